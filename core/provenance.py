"""Where a figure comes from: the commit, the settings and the weights, as short hashes."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

SOURCE = Path(__file__).resolve().parents[1]
DIGITS = 12  # of each SHA-256
# What two runs of one experiment differ in: seeds, and where and how they report.
NOT_SETTINGS = ("seed_everything", "seed", "ckpt_path", "default_root_dir", "logger", "callbacks")


def run_provenance(run: Path | None) -> dict[str, Any]:
    """What to note with each figure of a run: keys config_sha256, seed, commit and dirty.

    Args:
        run: folder with the run's config.yaml; without one the first two are None.
    """
    config: dict[str, Any] | None = None
    if run is not None and (run / "config.yaml").is_file():
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return {
        "config_sha256": None if config is None else config_hash(config),
        "seed": None if config is None else config.get("seed_everything"),
        **(git_state(SOURCE) or {"commit": None, "dirty": None}),
    }


def config_hash(config: dict[str, Any]) -> str:
    """The first 12 digits of the settings' SHA-256: the same for runs that differ only in their
    seeds, folder, logger and callbacks.
    """
    text = json.dumps(_settings(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _settings(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _settings(value) for k, value in node.items() if k not in NOT_SETTINGS}
    return [_settings(value) for value in node] if isinstance(node, list) else node


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """The first 12 digits of the SHA-256 of a network's parameters and buffers, in any order.

    Two files with the same network have the same; so has the network in memory.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]


def file_hash(path: Path) -> str:
    """The first 12 digits of the file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGITS]


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None if the folder is no git checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
        return {"commit": commit or None, "dirty": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return None


def _git(folder: Path, *arguments: str) -> str:
    call = ["git", "-C", str(folder), *arguments]
    result = subprocess.run(call, capture_output=True, text=True, timeout=20, check=False)
    return result.stdout.strip()

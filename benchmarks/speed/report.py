"""Figures as a table, as Markdown and as JSON, with the machine, the versions and the commit."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.timing import Timing
from core.cores import available_cores

FIELDS = ("stage", "mesh", "size", "batch", "backend", "threads")
PACKAGES = ("torch", "numba", "timm", "nvdiffrast", "drtk")
NOT_RUN = "not run"


def about() -> dict[str, Any]:
    """Machine, versions, commit."""
    return {
        "machine": _processor(),
        "cores": available_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def table(timings: dict[str, Timing], ours: str = "cpu") -> str:
    """Markdown: a row a key, the ratio to our backend's row of the same stage last."""
    lines = [
        f"| {' | '.join(FIELDS)} | ms/image | IQR | {ours} = 1 |",
        "|" + 9 * "---|",
    ]
    for key, timing in timings.items():
        fields = key.split("/")
        same = timings.get("/".join([*fields[:4], ours, fields[5]]))
        ratio = f"{timing.median / same.median:.2f}" if same else ""
        lines.append(f"| {' | '.join(fields)} | {timing.median:.3f} | {timing.iqr:.3f} | {ratio} |")
    return "\n".join(lines) + "\n"


def not_run(keys: list[str]) -> str:
    """Markdown rows of what could not be measured."""
    rows = [f"| {' | '.join(key.split('/'))} | {NOT_RUN} | {NOT_RUN} | |" for key in keys]
    return "".join(row + "\n" for row in rows)


def heading(facts: dict[str, Any]) -> str:
    """The facts of ``about`` in a few lines."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{facts['machine']}, {facts['cores']} cores; GPU: {facts['gpu'] or 'none'}\n"
        f"Python {facts['python']}, {versions}; commit {facts['commit']}\n"
    )


def save(path: Path, timings: dict[str, Timing], **more: Any) -> None:
    """Write JSON: medians by key; "about", "iqr" and what else is given."""
    content: dict[str, Any] = {"about": about()} | more
    content["iqr"] = {key: round(timing.iqr, 5) for key, timing in timings.items()}
    content |= {key: round(timing.median, 5) for key, timing in timings.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, float]:
    """The medians of a file that ``save`` wrote, by key."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key.count("/") == len(FIELDS) - 1}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Of the working copy, "+" if it was changed."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

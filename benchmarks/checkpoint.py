"""A trained method as a predictor, from its checkpoint and the record of its run; no Trainer."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from benchmarks.base import Predict
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError

GROUP = "monoface.methods"


def run_settings(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """The class of a run's method, by path, and the run's config.

    Args:
        checkpoint: <run>/checkpoints/<name>.ckpt; config.yaml and run.json lie in <run>.

    Raises:
        AssetNotFoundError: one of the three is missing.
        DataError: the method is not installed.
    """
    run = checkpoint.parent.parent
    for path in (checkpoint, run / "config.yaml", run / "run.json"):
        if not path.is_file():
            raise AssetNotFoundError(
                "checkpoint of a run",
                f"'{path}'",
                "Give <run>/checkpoints/best.ckpt of a training; config.yaml and run.json are "
                "written into <run> when it starts.",
            )
    method: str = json.loads((run / "run.json").read_text(encoding="utf-8"))["method"]
    known = {entry.value.replace(":", ".") for entry in entry_points(group=GROUP)}
    if method not in known:
        raise DataError(f"'{run}' is a run of {method}; installed are {', '.join(sorted(known))}")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return method, config


def load_predictor(checkpoint: Path) -> Predict:
    """The method of a checkpoint, in evaluation mode, on the GPU if there is one.

    Raises:
        AssetNotFoundError, DataError: see ``run_settings``; or the checkpoint does not fit.
    """
    method, config = run_settings(checkpoint)
    (entry,) = (e for e in entry_points(group=GROUP) if e.value.replace(":", ".") == method)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(entry.load(), "model")
    settings = parser.parse_object({"model": config["model"]})
    module: nn.Module = parser.instantiate(settings).model
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    except (RuntimeError, KeyError, OSError) as error:
        raise DataError(f"'{checkpoint}' is no checkpoint of its run's network: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.eval().to(device)

    @torch.no_grad()
    def predict(images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
        face: Reconstruction = module(images.to(device))
        return face

    return predict

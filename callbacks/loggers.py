"""What loggers take besides numbers: pictures, meshes, and a benchmark's tables and curves.

Only Weights & Biases takes all of it, and only here is it imported, when one of its loggers is
there.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from benchmarks.base import ErrorMesh, Results, Summary
from core.contracts import Reconstruction
from core.mesh import used
from core.mesh_files import export_glb

RED = 5.0  # millimetres
COLUMNS = ["metric", "unit", "meaning", "mean", "std", "median", "n"]


def log_image(logger: Logger, name: str, image: Float[Tensor, "3 h w"], step: int) -> None:
    """Give a picture to a logger that takes pictures; others are left alone."""
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [image.movedim(0, -1).numpy()], step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, image, step)


def log_mesh(logger: Logger, name: str, face: Reconstruction, step: int) -> None:
    """Give the first face's mesh, with its reflectance, to Weights & Biases; no other takes it.

    Args:
        logger: any.
        name: of the panel.
        face: on the CPU; the model frame's y is up, as the viewer wants it.
        step: of the training.
    """
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    kept, triangles = used(face.triangles)
    with TemporaryDirectory() as folder:  # wandb copies the file
        path = Path(folder, "face.glb")
        export_glb(path, face.vertices[0, 0, kept], triangles, face.uv[kept], face.albedo_map[0, 0])
        _log(logger, {name: wandb.Object3D(str(path))}, step)


def log_results(logger: Logger, results: Results, step: int) -> None:
    """Give a benchmark's results to a logger: the means, and to Weights & Biases all of them.

    ``benchmark/<name>/<metric>`` are the means. Weights & Biases also gets ``.../table`` with
    spread and baselines, ``.../samples`` with each sample's values, ``.../failures``, the curves
    (``.../curve/<metric>``), coloured points for the faces that the benchmark shows
    (``.../errors/<sample>``), and in the run's summary the protocol, its note and what was scored.
    """
    prefix = f"benchmark/{results.benchmark}"
    means = {f"{prefix}/{name}": value for name, value in results.means().items()}
    if isinstance(logger, WandbLogger):
        _log(logger, {f"{prefix}/{key}": x for key, x in _media(results).items()} | means, step)
        summary = logger.experiment.summary
        facts = {"protocol": results.protocol, "note": results.note, "run": results.run}
        summary.update({f"{prefix}/{key}": value for key, value in facts.items() if value})
    else:
        logger.log_metrics(means, step=step)


def _log(logger: WandbLogger, content: dict[str, Any], step: int) -> None:
    """``log_metrics``, which is typed for numbers but passes anything on."""
    logger.log_metrics(content, step)


def _media(results: Results) -> dict[str, Any]:
    """Tables and curves, by the end of their names."""
    import wandb

    media: dict[str, Any] = {"table": wandb.Table(*_table(results))}
    if results.per_sample:
        names = list(results.per_sample)
        samples = sorted({sample for values in results.per_sample.values() for sample in values})
        rows = [
            [sample, *(results.per_sample[name].get(sample) for name in names)]
            for sample in samples
        ]
        media["samples"] = wandb.Table(["sample", *names], rows)
    if results.failures:
        failed = [[why, name] for why, names in results.failures.items() for name in names]
        media["failures"] = wandb.Table(["failure", "sample"], failed)
    for name, points in results.curves.items():
        table = wandb.Table(["error", "samples, %"], points)
        title = f"{results.benchmark}: {name}"
        media[f"curve/{name}"] = wandb.plot.line(table, "error", "samples, %", title=title)
    for name, mesh in results.meshes.items():
        media[f"errors/{name}"] = wandb.Object3D.from_numpy(error_points(mesh))
    return media


def error_points(mesh: ErrorMesh) -> np.ndarray:
    """Points to look at: x, y, z and a colour in 0..255, white without error to red at 5 mm.

    Args:
        mesh: vertices without a known error are left out.

    Returns:
        Of shape (n, 6).
    """
    known = mesh.error.isfinite()
    share = (mesh.error[known] / RED).clamp(0, 1)
    colour = torch.stack([torch.ones_like(share), 1 - share, 1 - share], -1) * 255
    points: np.ndarray = torch.cat([mesh.vertices[known], colour.to(mesh.vertices)], -1).numpy()
    return points


def _table(results: Results) -> tuple[list[str | int], list[list[Any]]]:
    """Columns and rows; two columns for each baseline."""
    others = list(dict.fromkeys(name for metric in results.metrics for name in metric.baselines))
    none = Summary(None, None, None, 0)
    rows = []
    for metric in results.metrics:
        value = metric.value
        row: list[Any] = [metric.name, metric.unit, metric.meaning]
        row += [value.mean, value.std, value.median, value.n]
        for name in others:
            baseline = metric.baselines.get(name, none)
            row += [baseline.mean, baseline.std]
        rows.append(row)
    return [*COLUMNS, *(f"{name} {part}" for name in others for part in ("mean", "std"))], rows

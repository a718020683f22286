r"""The face model that FML has learned, as a file that every other method takes.

    python -m methods.fml export --ckpt runs/fml/checkpoints/last.ckpt --out fml.npz
    python -m methods.cest fit --config configs/cest.yaml --model.face_model fml.npz \
        --model.identity_dims 30

The first says how many modes there are; of a short training fewer than other methods ask for.

The learned bases are the best for the network, but their columns mean nothing by themselves. As in
the supplement, Sec. 1.1, the modes of the file are the principal components of many reconstructions
(there over 10,000 images): in the order of their variance, and scaled to standard deviations.

Vertices that the training did not draw follow the graph's nodes in shape and colour. The file has
all expressions of the face model, also where the training used the first few alone.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule
from torch import Tensor

from core.contracts import FaceBatch
from core.errors import AssetNotFoundError, DataError, MonofaceError
from core.face_models import FaceModel, load_face_model
from core.face_models.files import write_npz
from core.face_models.health import health, table
from core.face_models.model import CONTOUR, REQUIRED, VERSION
from core.face_models.sheet import write_sheet
from methods.fml import CENTIMETRE, FML

FACES = 1000  # reconstructions, at least
NOTHING = 1e-4  # of the largest standard deviation: smaller modes are rounding


def main(arguments: list[str] | None = None) -> None:
    """The command line; errors that a user can put right are printed in a few lines.

    Raises:
        SystemExit: with 2 after such an error.
    """
    options = _parser().parse_args(arguments)
    try:
        _export(options)
    except (MonofaceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m methods.fml export",
        description=f"{description}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="<run>/checkpoints/<name>.ckpt")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--sheet", type=Path, help="also draw +-2 sigma of the modes, as .png")
    help_ = "reconstructions of training images to learn the modes from; default: %(default)s"
    parser.add_argument("--faces", type=int, default=FACES, help=help_)
    help_ = "keep so many of each kind; default: all"
    parser.add_argument("--modes", type=int, help=help_)
    return parser


def _export(options: argparse.Namespace) -> None:
    method, data = load_run(options.ckpt)
    identity, albedo = reconstruct(method, training_batches(data), options.faces)
    model = FaceModel(learned_arrays(method, identity, albedo, options.modes))
    write_npz(options.out, arrays_of(model))
    print(table(health(model)))
    sizes = f"{len(model.identity_basis)} identity and {len(model.albedo_basis)} albedo modes"
    print(f"{options.out}: {sizes} of {len(identity)} reconstructions")
    if options.sheet:
        write_sheet(model, options.sheet)
        print(options.sheet)


def load_run(checkpoint: Path) -> tuple[FML, LightningDataModule]:
    """A trained method, in evaluation mode, and the data it was trained on, not augmented.

    Args:
        checkpoint: <run>/checkpoints/<name>.ckpt; config.yaml lies in <run>.

    Raises:
        AssetNotFoundError: a file is missing.
        DataError: the checkpoint is not one of FML, or not of this run.
    """
    record = checkpoint.parent.parent / "config.yaml"
    for path in (checkpoint, record):
        if not path.is_file():
            raise AssetNotFoundError(
                "checkpoint of a run of FML",
                f"'{path}'",
                "Give <run>/checkpoints/last.ckpt; config.yaml is written into <run> when it "
                "starts.",
            )
    config = yaml.safe_load(record.read_text(encoding="utf-8"))
    config["data"]["init_args"]["augmentation"] = {}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FML, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        built = parser.instantiate(
            parser.parse_object({key: config[key] for key in ("model", "data")})
        )
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        built.model.load_state_dict(state)
    except Exception as error:
        if isinstance(error, MonofaceError):
            raise
        raise DataError(f"'{checkpoint}' is no checkpoint of its run of FML: {error}") from error
    return built.model.eval(), built.data


def training_batches(data: LightningDataModule) -> Iterator[FaceBatch]:
    """Clips of the training people, other frames of them each time, without end."""
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield data.on_after_batch_transfer(batch, 0)


@torch.no_grad()
def reconstruct(
    method: FML, batches: Iterator[FaceBatch], count: int
) -> tuple[Float[Tensor, "f d"], Float[Tensor, "f e"]]:
    """Identity and albedo coefficients of so many clips.

    Raises:
        DataError: fewer than two are wanted.
    """
    if count < 2:
        raise DataError(f"--faces {count}: modes of variation need at least two reconstructions")
    found: list[tuple[Tensor, Tensor]] = []
    while sum(len(identity) for identity, _ in found) < count:
        x = method.unknowns(next(batches)["images"].to(method.device))
        found.append((x.identity[:, 0].cpu(), x.albedo[:, 0].cpu()))
    identity, albedo = (torch.cat(kind)[:count] for kind in zip(*found, strict=True))
    return identity, albedo


def principal_mixtures(
    coefficients: Float[Tensor, "f d"], basis: Float[Tensor, "d p 3"], most: int | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, "k d"]]:
    """Mean and principal components of fields sum_j c_j basis_j, as mixtures of the basis.

    The components have their standard deviation as length, the largest first; the sign is such that
    each one's largest value is positive. The fields themselves are not computed.

    Args:
        coefficients: c of f fields.
        basis: of the fields.
        most: keep so many.
    """
    rows, flat = coefficients.double(), basis.double().flatten(1)
    mean, centred = rows.mean(0), rows - rows.mean(0)
    # the fields' scatter, f x f, has the components' variances as its eigenvalues
    scatter = centred @ (flat @ flat.T) @ centred.T / (len(rows) - 1)
    values, vectors = torch.linalg.eigh(scatter)
    deviations = values.flip(0).clamp(min=0).sqrt()
    kept = min(int((deviations > NOTHING * deviations[0]).sum()), len(flat))
    mixtures = vectors.flip(1)[:, :kept].T @ centred / (len(rows) - 1) ** 0.5
    fields = mixtures @ flat
    if kept:
        largest = fields.gather(1, fields.abs().argmax(1, keepdim=True))
        mixtures = mixtures * largest.sign()
    return mean.float(), mixtures[:most].float()


@torch.no_grad()
def learned_arrays(
    method: FML,
    identity: Float[Tensor, "f d"],
    albedo: Float[Tensor, "f e"],
    modes: int | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of ``core.face_models.model``: the model that the method started from, with all
    its expressions, and the mean, modes and colours that it has learned.

    Args:
        method: trained.
        identity: alpha of f reconstructions.
        albedo: beta of these.
        modes: keep so many of each kind.
    """
    method = method.cpu()
    source, graph = load_face_model(method.source, 0, None, 0), method.graph
    shapes = CENTIMETRE * method.complement().T.unflatten(1, (-1, 3))  # of the nodes
    moved = graph(shapes).index_select(1, method.drawn)
    mean_shape, shape_modes = _mixed(shapes, *principal_mixtures(identity, moved, modes))
    colours = method.albedo_basis.detach()
    mean_colour, colour_modes = _mixed(colours, *principal_mixtures(albedo, colours, modes))
    albedo_mean = _everywhere(method, (method.albedo_mean + mean_colour)[None])[0]
    return arrays_of(source) | {
        "name": np.array(f"fml of {source.name}"),
        "mean": (source.mean + graph(mean_shape)).numpy(),
        "identity_basis": graph(shape_modes).numpy(),
        "albedo_mean": albedo_mean.numpy(),
        "albedo_basis": _everywhere(method, colour_modes).numpy(),
        "notes": np.array(
            [
                *source.notes,
                f"identity and albedo learned by FML from images: principal components of "
                f"{len(identity)} reconstructions",
            ]
        ),
    }


def _mixed(
    basis: Float[Tensor, "d p 3"], mean: Float[Tensor, " d"], mixtures: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "k p 3"]]:
    """Mean and modes themselves."""
    fields = (torch.cat([mean[None], mixtures]) @ basis.flatten(1)).unflatten(1, (-1, 3))
    return fields[0], fields[1:]


def _everywhere(method: FML, values: Float[Tensor, "k p 3"]) -> Float[Tensor, "k n 3"]:
    """Values of the drawn vertices, and of the others what their nodes have."""
    drawn, graph = method.drawn, method.graph
    place = torch.full((len(graph.bound),), -1)
    place[drawn] = torch.arange(len(drawn))
    whole = graph(values[:, place[graph.nodes]])
    whole[:, drawn] = values
    return whole


def arrays_of(model: FaceModel) -> dict[str, np.ndarray]:
    """The .npz of a face model."""
    texts = {key: getattr(model, key) for key in ("name", "source", "licence")}
    lists = {key: getattr(model, key) for key in ("expression_names", "notes", "stand_ins")}
    kept = [key for key in REQUIRED if not key.startswith("region_")]
    kept += ["expression_std", *sorted(CONTOUR if model.contour_vertices is not None else ())]
    arrays: dict[str, Any] = {key: getattr(model, key).cpu().numpy() for key in kept}
    arrays |= {f"region_{name}": model.region(name).cpu().numpy() for name in model.region_names}
    strings = {key: np.array(value, str) for key, value in {**texts, **lists}.items()}
    return {"version": np.array(VERSION), **strings, **arrays}

"""Benchmark, what every benchmark is: run a predictor, get Results; no Trainer needed.

Anything that maps images to a Reconstruction can be scored, also a model that is not of this suite:

    results = SyntheticFaces(Path("data/synthetic")).run(predict)
    print(results.to_markdown())
    results.save(Path("runs/mine/benchmarks"))
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from core.face_models.files import read_npz, write_npz

Predict = Callable[[Tensor], Reconstruction]
"""Images "b v 3 h w", RGB in [0, 1], on the CPU -> one face per image, on any device."""

PER_CENT, DEGREES, MILLIMETRES, GREY_LEVELS = "%", "degrees", "mm", "0..255"
SHOWN = 3  # samples whose meshes are kept


@dataclass(frozen=True)
class Summary:
    """The distribution of a metric over images.

    Attributes:
        mean: None, like the others, if n is 0.
        std: population standard deviation (numpy's default).
        median: of an even number of values the mean of the middle two.
        n: images that count.
    """

    mean: float | None
    std: float | None
    median: float | None
    n: int

    @classmethod
    def of(cls, values: Tensor) -> "Summary":
        """Of the values that are not NaN; whoever calls counts those that are."""
        known = values.double()[~values.isnan()]
        if known.numel() == 0:
            return cls(None, None, None, 0)
        median = torch.quantile(known, 0.5).item()
        return cls(known.mean().item(), known.std(correction=0).item(), median, known.numel())


@dataclass(frozen=True)
class Metric:
    """One line of a table.

    Attributes:
        name: with the unit at its end.
        unit: to be read.
        meaning: what is measured, in a few words.
        value: of the method.
        baselines: of others on the same images, by name.
        higher_is_better: most metrics are errors.
    """

    name: str
    unit: str
    meaning: str
    value: Summary
    baselines: dict[str, Summary] = field(default_factory=dict)
    higher_is_better: bool = False


@dataclass(frozen=True)
class ErrorMesh:
    """A surface with an error at each vertex, to be looked at.

    Attributes:
        vertices: x to the image's right, y up, z out of the face.
        triangles: counter-clockwise seen from outside; none for a cloud of points.
        error: millimetres; NaN where nothing was compared.
    """

    vertices: Float[Tensor, "n 3"]
    triangles: Int[Tensor, "t 3"]
    error: Float[Tensor, " n"]


@dataclass(frozen=True)
class Results:
    """What a benchmark found.

    Attributes:
        benchmark: its name, also of the files.
        protocol: what was measured on which data, so that the figures can be read without the code;
            results with the same protocol can be compared.
        metrics: in the order of the table.
        images: how many were tried.
        failures: names of the images of which a metric could not be computed, by what went wrong;
            they are not in that metric's mean and n.
        run: what was scored: method, checkpoint, step, as far as the caller knows.
        per_sample: of a metric's values those that count, by the name of the image or scan.
        curves: points (x, y) by name, as of cumulative error distributions.
        note: what the protocol leaves to the method, as the size of its images.
        meshes: of a few samples by name, chosen before any error was known; in a file of their own.
    """

    benchmark: str
    protocol: str
    metrics: list[Metric]
    images: int
    failures: dict[str, list[str]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    per_sample: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    note: str = ""
    meshes: dict[str, ErrorMesh] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Metric:
        """The metric of a name.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"no metric '{name}' in {[metric.name for metric in self.metrics]}")

    def means(self) -> dict[str, float]:
        """The mean of every metric that has one, by name: for loggers."""
        return {m.name: m.value.mean for m in self.metrics if m.value.mean is not None}

    def with_run(self, **run: Any) -> "Results":
        """The same with a note of what was scored."""
        return replace(self, run={**self.run, **run})

    def to_json(self) -> str:
        """All but the meshes; ``metrics`` is a dictionary by name. NaN does not occur."""
        content = asdict(replace(self, meshes={}))
        del content["meshes"]
        content["metrics"] = {metric.pop("name"): metric for metric in content["metrics"]}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """A table, a row for each metric and two columns for each baseline; then the protocol."""
        others = list(dict.fromkeys(name for metric in self.metrics for name in metric.baselines))
        head = ["metric", "unit", "mean ± std", "median", "n"]
        for name in others:
            head += [name, f"of {name}"]
        rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
        for metric in self.metrics:
            value = metric.value
            row = [f"`{metric.name}`: {metric.meaning}", metric.unit]
            row += [_spread(value), _number(value.median, _digits(value.mean)), str(value.n)]
            for name in others:
                other = metric.baselines.get(name)
                row += ["", ""] if other is None else [_spread(other), _share(value, other)]
            rows.append(row)
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        text = f"{self.protocol} {self.note}".strip()
        lines = [f"# {self.benchmark}", "", table, "", text, "", self._failure_report()]
        if self.run:
            known = {key: value for key, value in self.run.items() if value is not None}
            lines += ["", ", ".join(f"{key}: {value}" for key, value in known.items())]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write <folder>/<benchmark>.json and .md, and .npz if there are meshes.

        Earlier ones are replaced; those of another protocol are renamed to <benchmark>_<hash of
        the protocol>, with a picture <benchmark>.png of them if there is one, so that variants
        stand side by side and the plain name has the latest.

        Returns:
            The paths of .json and .md.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{self.benchmark}.json", folder / f"{self.benchmark}.md"
        _set_aside(paths[0], self.protocol)
        for path, text in zip(paths, (self.to_json(), self.to_markdown()), strict=True):
            path.write_text(text, encoding="utf-8")
        meshes = paths[0].with_suffix(".npz")
        meshes.unlink(missing_ok=True)
        if self.meshes:
            _write_meshes(meshes, self.meshes)
        return paths

    @classmethod
    def load(cls, path: Path) -> "Results":
        """What ``save`` wrote.

        Args:
            path: of the .json; meshes are read from the .npz beside it, if there is one.

        Raises:
            OSError: the file may not be opened.
            DataError: it is damaged, or holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["metrics"] = [_metric(name, **m) for name, m in content["metrics"].items()]
            results = cls(**content)
            _check_types(results)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"'{path}' holds no results of a benchmark: {error}") from error
        meshes = path.with_suffix(".npz")
        return replace(results, meshes=_read_meshes(meshes)) if meshes.is_file() else results

    def _failure_report(self) -> str:
        if not self.failures:
            return f"No failure in {self.images} images."
        parts = [
            f"{reason}: {len(names)} ({_few(names)})" for reason, names in self.failures.items()
        ]
        return f"Failures in {self.images} images, left out of the means: {'; '.join(parts)}."


class Benchmark(ABC):
    """A data set with a protocol; the docstring of a subclass states it with its source.

    Attributes:
        name: short; of the files and of the logged metrics.
    """

    name: str

    @abstractmethod
    def run(self, predict: Predict) -> Results:
        """Score a predictor.

        Failures are counted and reported, never scored.

        Args:
            predict: images "b v 3 h w", RGB in [0, 1], on the CPU, to one face per image.

        Raises:
            AssetNotFoundError, DataError: the data are not there, or not what the protocol says.
        """


def predicted(predict: Predict, images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
    """A predictor's faces on the CPU in float32, without gradients.

    Raises:
        DataError: it returned something else than one face per image.
    """
    face = predict(images)
    if not isinstance(face, Reconstruction):
        raise DataError(f"predict returned a {type(face).__name__}, wanted a Reconstruction")
    count, batch = face.vertices.shape[-2], tuple(images.shape[:2])
    wanted = {"vertices": (count, 3), "neutral": (count, 3), "landmarks": (68, 2)}
    for name, shape in wanted.items():
        found = tuple(getattr(face, name).shape)
        if found != (*batch, *shape):
            raise DataError(
                f"predict returned {name} of shape {found} for images of batch shape {batch}, "
                f"wanted {(*batch, *shape)}"
            )
    if not count:
        raise DataError("predict returned faces without vertices")
    return on_cpu(face)


def on_cpu(face: Reconstruction) -> Reconstruction:
    """The reconstruction on the CPU in float32, without gradients."""

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.float() if tensor.is_floating_point() else tensor

    tensors = {k: move(value) for k, value in vars(face).items() if isinstance(value, Tensor)}
    coefficients = {name: move(value) for name, value in face.coefficients.items()}
    return replace(face, **tensors, camera=face.camera.map(move), coefficients=coefficients)


def require_folder(what: str, folder: Path, remedy: str, licence: str | None = None) -> None:
    """Raise AssetNotFoundError if there is no such folder.

    Args:
        what: lies in it, in the user's words.
        folder: where it was looked for.
        remedy: how it is obtained and where to put it.
        licence: under which terms it can be had, if it is not free.
    """
    if not folder.is_dir():
        raise AssetNotFoundError(what, f"'{folder}'", remedy, licence)


def shown(names: list[str]) -> set[str]:
    """The samples to keep a mesh of for a look: at regular steps, whatever their errors will be."""
    return {names[len(names) * k // SHOWN] for k in range(SHOWN)} if names else set()


def listed(names: list[str], what: str) -> str:
    """So many named ones, for a protocol; another choice of as many reads otherwise."""
    digest = _digest("\n".join(sorted(names)))
    return f"{len(names)} named {what} ({_few(names, 3)}; list {digest})"


def by_sample(names: list[str], values: Float[Tensor, " n"]) -> dict[str, float]:
    """A metric's values as ``Results.per_sample`` has them: those that are NaN are missing."""
    return {n: v for n, v in zip(names, values.tolist(), strict=True) if not math.isnan(v)}


def _metric(name: str, value: dict[str, Any], baselines: dict[str, Any], **rest: Any) -> Metric:
    """From what ``to_json`` wrote."""
    others = {other: Summary(**summary) for other, summary in baselines.items()}
    return Metric(name=name, value=Summary(**value), baselines=others, **rest)


def _set_aside(path: Path, protocol: str) -> None:
    """Rename what ``Results.save`` wrote there, if it is of another protocol than this; what was
    renamed of this one goes.
    """
    try:
        earlier = str(json.loads(path.read_text(encoding="utf-8"))["protocol"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing is there, or nothing worth keeping
    if earlier == protocol:
        return
    for file in (path, *(path.with_suffix(end) for end in (".md", ".npz", ".png"))):
        old, new = (
            file.with_name(f"{file.stem}_{_digest(text)}{file.suffix}")
            for text in (earlier, protocol)
        )
        new.unlink(missing_ok=True)
        if file.is_file():
            file.replace(old)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _check_types(results: Results) -> None:
    """Raise TypeError or ValueError if something that was read is not what it should be."""
    if not results.metrics:
        raise ValueError("there is no metric")
    texts = [results.benchmark, results.protocol, results.note]
    for metric in results.metrics:
        texts += [metric.unit, metric.meaning]
        for summary in (metric.value, *metric.baselines.values()):
            known = [x for x in (summary.mean, summary.std, summary.median) if x is not None]
            if not all(math.isfinite(x) for x in (*known, summary.n)):
                raise ValueError(f"{metric.name} is not finite")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("benchmark, protocol, units and meanings shall be texts")
    numbers = [x for values in results.per_sample.values() for x in values.values()]
    numbers += [x for curve in results.curves.values() for point in curve for x in point]
    if not all(math.isfinite(x) for x in (results.images, *numbers)):
        raise ValueError("a sample's value or a curve is not finite")
    if not all(isinstance(names, list) for names in results.failures.values()):
        raise TypeError("failures shall be lists of names")
    if not isinstance(results.run, dict):
        raise TypeError("run shall be a dictionary")


def _write_meshes(path: Path, meshes: dict[str, ErrorMesh]) -> None:
    arrays = {"names": np.array(list(meshes))}
    for k, mesh in enumerate(meshes.values()):
        arrays[f"vertices_{k}"] = mesh.vertices.float().numpy()
        arrays[f"triangles_{k}"] = mesh.triangles.int().numpy()
        arrays[f"error_{k}"] = mesh.error.float().numpy()
    write_npz(path, arrays)


def _read_meshes(path: Path) -> dict[str, ErrorMesh]:
    arrays = read_npz(path)
    found = {}
    for k, name in enumerate(arrays.get("names", [])):
        vertices, triangles, error = (
            arrays.get(f"{part}_{k}", np.empty(0)) for part in ("vertices", "triangles", "error")
        )
        count = len(error)
        if (
            vertices.shape != (count, 3)
            or triangles.shape[1:] != (3,)
            or not np.isin(triangles, np.arange(count)).all()
        ):
            raise DataError(f"'{path}' holds no mesh '{name}' with an error at each vertex")
        found[str(name)] = ErrorMesh(
            torch.from_numpy(vertices).float(),
            torch.from_numpy(triangles).long(),
            torch.from_numpy(error).float(),
        )
    return found


def _spread(summary: Summary) -> str:
    digits = _digits(summary.mean)
    return f"{_number(summary.mean, digits)} ± {_number(summary.std, digits)}" if summary.n else "–"


def _digits(value: float | None) -> int:
    """Decimals so that three digits count, at most three."""
    return min(3, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 2


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: Summary, other: Summary) -> str:
    """The mean as a percentage of another's; of what is below 0, as signed figures may be, none."""
    if value.mean is None or other.mean is None or other.mean <= 0 or value.mean < 0:
        return "–"
    return f"{100 * value.mean / other.mean:.0f} %"


def _few(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

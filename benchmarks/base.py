"""Benchmark, what every benchmark is: run a predictor, get Results; no Trainer needed.

Anything that maps images to a Reconstruction can be scored, also a model that is not of this suite:

    results = SyntheticFaces(Path("data/synthetic")).run(predict)
    print(results.to_markdown())
    results.save(Path("runs/mine/benchmarks"))
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.contracts import Reconstruction

Predict = Callable[[Tensor], Reconstruction]
"""Images "b v 3 h w", RGB in [0, 1], on the CPU -> one face per image, on any device."""

PER_CENT, DEGREES, MILLIMETRES, GREY_LEVELS = "%", "degrees", "mm", "0..255"


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
class Results:
    """What a benchmark found.

    Attributes:
        benchmark: its name, also of the files.
        protocol: what was measured on which data, so that the figures can be read without the code.
        metrics: in the order of the table.
        images: how many were tried.
        failures: names of the images of which a metric could not be computed, by what went wrong;
            they are not in that metric's mean and n.
        run: what was scored: method, checkpoint, step, as far as the caller knows.
        per_sample: of a metric's values those that count, by the name of the image or scan.
        curves: points (x, y) by name, as of cumulative error distributions.
    """

    benchmark: str
    protocol: str
    metrics: list[Metric]
    images: int
    failures: dict[str, list[str]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    per_sample: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)

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
        """Everything; ``metrics`` is a dictionary by name. NaN does not occur."""
        content = asdict(self)
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
        lines = [f"# {self.benchmark}", "", table, "", self.protocol, "", self._failure_report()]
        if self.run:
            known = {key: value for key, value in self.run.items() if value is not None}
            lines += ["", ", ".join(f"{key}: {value}" for key, value in known.items())]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write <folder>/<benchmark>.json and .md; earlier ones are replaced.

        Returns:
            The two paths.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{self.benchmark}.json", folder / f"{self.benchmark}.md"
        for path, text in zip(paths, (self.to_json(), self.to_markdown()), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

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


def on_cpu(face: Reconstruction) -> Reconstruction:
    """The reconstruction on the CPU in float32, without gradients."""

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.float() if tensor.is_floating_point() else tensor

    tensors = {k: move(value) for k, value in vars(face).items() if isinstance(value, Tensor)}
    coefficients = {name: move(value) for name, value in face.coefficients.items()}
    return replace(face, **tensors, camera=face.camera.map(move), coefficients=coefficients)


def _spread(summary: Summary) -> str:
    digits = _digits(summary.mean)
    return f"{_number(summary.mean, digits)} ± {_number(summary.std, digits)}" if summary.n else "–"


def _digits(value: float | None) -> int:
    """Decimals so that three digits count, at most three."""
    return min(3, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 2


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: Summary, other: Summary) -> str:
    """The mean as a percentage of another's."""
    if value.mean is None or not other.mean:
        return "–"
    return f"{100 * value.mean / other.mean:.0f} %"


def _few(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

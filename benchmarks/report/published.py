"""The papers' figures, from ``benchmarks/papers.yaml``."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report.statistics import Figure

PAPERS = Path(__file__).parents[1] / "papers.yaml"


@dataclass(frozen=True)
class PublishedRow:
    """A method's line in a published table.

    Attributes:
        method: as this suite calls it.
        figures: by our metric's name; ``over_samples`` as printed.
        source: paper and table.
    """

    method: str
    figures: dict[str, Figure]
    source: str


@dataclass(frozen=True)
class PublishedTable:
    """Figures that were obtained in one way.

    Attributes:
        benchmark: which.
        unit: of all figures.
        protocol: in the papers' words, shortened.
        differs: what is not as in our protocol; "" if nothing that is known.
        requires: parts of our protocol's text without which ours is another one.
        titles: of the metrics, by name.
        rows: lines.
    """

    benchmark: str
    unit: str
    protocol: str
    differs: str
    requires: list[str]
    titles: dict[str, str]
    rows: list[PublishedRow]

    def unlike(self, protocol: str) -> str:
        """What makes these figures incomparable with ours; "" if nothing that is known."""
        missing = [part for part in self.requires if part not in protocol]
        ours = f"ours lacks: {'; '.join(missing)}" if missing else ""
        return "; ".join(part for part in (self.differs, ours) if part)


@cache
def published_tables(path: Path = PAPERS) -> list[PublishedTable]:
    """All tables of the file."""
    return [_table(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _table(
    benchmark: str,
    unit: str,
    protocol: str,
    metrics: dict[str, str],
    rows: list[dict[str, Any]],
    differs: str = "",
    requires: list[str] | None = None,
) -> PublishedTable:
    printed = [
        len(repr(x).partition(".")[2]) for row in rows for x in row["values"] if x is not None
    ]
    lines = [_row(list(metrics), max(2, *printed), **row) for row in rows]
    return PublishedTable(benchmark, unit, protocol, differs, requires or [], metrics, lines)


def _row(
    metrics: list[str],
    decimals: int,
    method: str,
    values: list[float | None],
    source: str,
    std: list[float | None] | None = None,
) -> PublishedRow:
    spread = std or [None] * len(values)
    figures = {
        metric: Figure(value, over_samples=deviation, decimals=decimals)
        for metric, value, deviation in zip(metrics, values, spread, strict=True)
        if value is not None
    }
    return PublishedRow(method, figures, source)

"""Leaderboards: which figures stand in which table, for all ways of writing them."""

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace

from benchmarks.base import Metric, Results
from benchmarks.report.published import PublishedTable, published_tables
from benchmarks.report.runs import Run, grouped, labels
from benchmarks.report.statistics import (
    Difference,
    Figure,
    over_seeds,
    paired_bootstrap,
    sample_means,
)

OURS, BASELINE, PAPER = "ours", "baseline", "paper"


@dataclass(frozen=True)
class Layout:
    """How a benchmark is shown.

    Attributes:
        title: of its leaderboards.
        columns: heading by metric; the lines are sorted by the last one.
        samples: metrics of single samples by which methods are compared.
    """

    title: str
    columns: dict[str, str]
    samples: tuple[str, ...]


VIDEOS = {"cooperative": "cooperative", "indoor": "indoor", "outdoor": "outdoor"}
LAYOUTS = {
    "synthetic": Layout(
        "Synthetic faces",
        {
            "nme_to_30_percent": "NME 0–30°",
            "nme_to_60_percent": "NME 30–60°",
            "nme_to_90_percent": "NME 60–90°",
            "nme_percent": "NME",
            "pose_degrees": "pose",
            "photometric_255": "colour",
            "albedo_255": "reflectance",
            "shape_mm": "shape",
        },
        ("nme_percent", "shape_mm", "photometric_255"),
    ),
    "aflw2000": Layout(
        "AFLW2000-3D, landmarks",
        {
            "nme_0_30_percent": "0–30°",
            "nme_30_60_percent": "30–60°",
            "nme_60_90_percent": "60–90°",
            "nme_all_percent": "all images",
            "nme_mean_percent": "mean of bins",
        },
        ("nme",),
    ),
    "aflw2000_dense": Layout(
        "AFLW2000-3D, dense",
        {
            "icp_nme_0_30_percent": "0–30°",
            "icp_nme_30_60_percent": "30–60°",
            "icp_nme_60_90_percent": "60–90°",
            "icp_nme_all_percent": "all images",
        },
        ("icp_nme",),
    ),
    "micc": Layout(
        "MICC Florence",
        {
            **{f"{key}_mean_mm": f"{name} (mean)" for key, name in VIDEOS.items()},
            **{f"{key}_rmse_mm": f"{name} (RMSE)" for key, name in VIDEOS.items()},
        },
        tuple(f"{key}_rmse_mm" for key in VIDEOS),
    ),
    "micc_renderings": Layout(
        "MICC Florence, renderings",
        {"all_rmse_mm": "RMSE", "vrn_nme_percent": "NME (vrn)", "icp_nme_percent": "NME (icp)"},
        ("icp_nme_percent", "all_rmse_mm"),
    ),
    "facewarehouse": Layout(
        "FaceWarehouse", {"l_mm": "region L", "s_mm": "region S"}, ("s_mm", "l_mm")
    ),
    "bu3dfe": Layout(
        "BU-3DFE",
        {"two_view_point_rmse_mm": "two views (RMSE)", "neutral_rmse_mm": "neutral (RMSE)"},
        ("two_view_point_rmse_mm", "neutral_rmse_mm"),
    ),
    "frgc": Layout("FRGC v2", {"scans_point_mm": "mean distance"}, ("scans_point_mm",)),
    "celeba": Layout(
        "CelebA",
        {"photometric_255": "mean of channels", "photometric_rgb_255": "Euclidean"},
        ("photometric_255", "photometric_rgb_255"),
    ),
    "now": Layout("NoW", {"all_mm": "mean", "all_median_mm": "median"}, ("mean_mm",)),
    "realy": Layout(
        "REALY",
        {
            "nose_mm": "nose",
            "mouth_mm": "mouth",
            "forehead_mm": "forehead",
            "cheek_mm": "cheek",
            "all_mm": "mean of the regions",
        },
        ("all_mm",),
    ),
}


UNITS = {"mm": "mm", "percent": "%", "255": "0..255", "degrees": "degrees"}
SHORT = ("nme", "nme21", "rmse", "icp", "vrn", "rgb")  # written in capitals


def spoken(metric: str, results: list[Results]) -> str:
    """A metric's or curve's name to be read: "cooperative RMSE, mm" for cooperative_rmse_mm.

    Args:
        metric: with its unit at the end; otherwise the unit is that of its parts, as of
            nme_all_percent for nme.
        results: in which it occurs.
    """
    stem, _, end = metric.rpartition("_")
    unit = UNITS.get(end, "")
    if not unit:
        stem = metric
        parts = (m.unit for r in results for m in r.metrics if m.name.startswith(f"{metric}_"))
        unit = next(parts, "")
    words = [word.upper() if word in SHORT else word for word in stem.split("_")]
    return ", ".join(filter(None, [" ".join(words), unit]))


@dataclass(frozen=True)
class Column:
    """A metric of a leaderboard."""

    metric: str
    title: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Row:
    """A line of a leaderboard; ``kind`` is OURS, BASELINE or PAPER, ``cells`` one a column."""

    label: str
    kind: str
    cells: list[Figure | None]
    source: str = ""


@dataclass(frozen=True)
class Block:
    """Lines that can be compared with each other.

    Attributes:
        protocol: the papers'; "" for the block that holds ours.
        differs: why it is a block of its own.
        best: for each column the best mean, of two lines or more.
    """

    rows: list[Row]
    best: list[float | None]
    protocol: str = ""
    differs: str = ""


@dataclass(frozen=True)
class Entry:
    """A method with its settings: the runs that differ in their seeds."""

    label: str
    runs: list[Run]

    @property
    def results(self) -> list[Results]:
        """Of each seed."""
        return [run.results for run in self.runs]


@dataclass(frozen=True)
class Comparison:
    """How much worse or better another method is than the first of the table.

    Attributes:
        metric: its name to be read.
    """

    metric: str
    first: str
    second: str
    difference: Difference


@dataclass(frozen=True)
class Board:
    """The leaderboard of a benchmark with one protocol.

    Attributes:
        blocks: the first holds ours.
        separate: published tables of other metrics, as (heading by metric, block).
    """

    benchmark: str
    title: str
    protocol: str
    columns: list[Column]
    blocks: list[Block]
    entries: list[Entry]
    comparisons: list[Comparison]
    separate: list[tuple[PublishedTable, list[Column], Block]] = field(default_factory=list)


def make_boards(runs: list[Run]) -> list[Board]:
    """A leaderboard for each benchmark and protocol, in the order of ``LAYOUTS``."""
    names = labels(runs)
    by_protocol = defaultdict(list)
    for run in runs:
        by_protocol[run.results.benchmark, run.results.protocol].append(run)
    known = list(LAYOUTS)
    order = sorted(
        by_protocol, key=lambda k: (known.index(k[0]) if k[0] in known else len(known), k)
    )
    boards = [_board(key[0], key[1], by_protocol[key], names) for key in order]
    return [_numbered(board, boards) for board in boards]


def _numbered(board: Board, boards: list[Board]) -> Board:
    """With the protocol's number in the title where a benchmark has several."""
    same = [other for other in boards if other.title == board.title]
    number = f", protocol {same.index(board) + 1}" if len(same) > 1 else ""
    return replace(board, title=board.title + number)


def _board(
    benchmark: str, protocol: str, runs: list[Run], names: dict[tuple[str, str], str]
) -> Board:
    entries = [Entry(names[key], group) for key, group in grouped(runs).items()]
    there = {m.name: m for run in runs for m in run.results.metrics}
    layout = _layout(benchmark, runs[0].results)
    chosen = {name: title for name, title in layout.columns.items() if name in there}
    if not chosen:
        chosen = {name: name for name in there}
    columns = [_column(there[name], title) for name, title in chosen.items()]
    ours = [_entry_row(entry, columns) for entry in entries] + _baselines(entries, columns)
    blocks, separate = [], []
    for table in published_tables():
        if table.benchmark != benchmark:
            continue
        unlike = table.unlike(protocol)
        if not set(table.titles) & set(chosen):
            theirs = [Column(m, title, table.unit, False) for m, title in table.titles.items()]
            block = _block(_papers(table, theirs), theirs, table.protocol, unlike)
            separate.append((table, theirs, block))
        elif unlike:
            blocks.append(_block(_papers(table, columns), columns, table.protocol, unlike))
        else:
            ours += _papers(table, columns)
    blocks.insert(0, _block(ours, columns))
    ranked = {row.label: k for k, row in enumerate(blocks[0].rows)}
    entries.sort(key=lambda entry: ranked[entry.label])
    return Board(
        benchmark,
        layout.title,
        protocol,
        columns,
        blocks,
        entries,
        _comparisons(entries, layout.samples),
        separate,
    )


def _layout(benchmark: str, results: Results) -> Layout:
    """That of ``LAYOUTS``, also for variants as "synthetic_5_frames"; of a benchmark that this
    module does not know everything, in its own order.
    """
    for name, layout in LAYOUTS.items():
        if benchmark == name:
            return layout
        known = {metric.name for metric in results.metrics} & set(layout.columns)
        if benchmark.startswith(f"{name}_") and benchmark not in LAYOUTS and known:
            variant = benchmark.removeprefix(f"{name}_").replace("_", " ")
            return replace(layout, title=f"{layout.title}, {variant}")
    columns = {metric.name: metric.name for metric in results.metrics}
    return Layout(benchmark, columns, tuple(results.per_sample)[:1])


def _column(metric: Metric, title: str) -> Column:
    return Column(metric.name, title, metric.unit, metric.higher_is_better)


def _entry_row(entry: Entry, columns: list[Column]) -> Row:
    cells = [over_seeds(entry.results, column.metric) for column in columns]
    seeds = len(entry.runs)
    return Row(entry.label, OURS, cells, "1 run" if seeds == 1 else f"{seeds} seeds")


def _baselines(entries: list[Entry], columns: list[Column]) -> list[Row]:
    """Those of the first entry; they look at no network."""
    metrics = {m.name: m for m in entries[0].results[0].metrics}
    names = list(dict.fromkeys(name for m in metrics.values() for name in m.baselines))
    rows = []
    for name in names:
        found = [metrics[c.metric].baselines.get(name) if c.metric in metrics else None
                 for c in columns]  # fmt: skip
        cells = [
            None if s is None or s.mean is None else Figure(s.mean, over_samples=s.std)
            for s in found
        ]
        rows.append(Row(name, BASELINE, cells, "baseline"))
    return rows


def _papers(table: PublishedTable, columns: list[Column]) -> list[Row]:
    return [
        Row(row.method, PAPER, [row.figures.get(c.metric) for c in columns], row.source)
        for row in table.rows
        if any(c.metric in row.figures for c in columns)
    ]


def _block(rows: list[Row], columns: list[Column], protocol: str = "", differs: str = "") -> Block:
    """Sorted by the last column, lines without it at the end."""
    signs = [-1 if column.higher_is_better else 1 for column in columns]

    def rank(row: Row) -> float:
        cell = row.cells[-1]
        return math.inf if cell is None else signs[-1] * cell.mean

    best: list[float | None] = []
    for k, sign in enumerate(signs):
        values = [sign * cell.mean for row in rows if (cell := row.cells[k]) is not None]
        best.append(sign * min(values) if len(values) > 1 else None)
    return Block(sorted(rows, key=rank), best, protocol, differs)


def _comparisons(entries: list[Entry], metrics: tuple[str, ...]) -> list[Comparison]:
    """The first entry with each other one, where both have values of single samples."""
    found = []
    for metric in metrics:
        name = spoken(metric, entries[0].results)
        first = sample_means(entries[0].results, metric)
        for other in entries[1:]:
            difference = paired_bootstrap(first, sample_means(other.results, metric))
            if difference is not None:
                found.append(Comparison(name, entries[0].label, other.label, difference))
    return found

"""Writes the leaderboards as a page, as Markdown and as LaTeX."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.report.boards import BASELINE, OURS, PAPER, Block, Board, Column, make_boards
from benchmarks.report.drawings import (
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    last_picture,
    mesh_scale,
    packed_mesh,
    plots,
)
from benchmarks.report.runs import Found
from benchmarks.report.statistics import Figure, over_seeds
from core.errors import DataError

TEMPLATES = Path(__file__).parent / "page"
LEGEND = (
    "± is the standard deviation over seeds, σ the one over images or meshes (of a mean of bins: "
    "over the bins). Bold is best among lines that can be compared."
)
MARKS = {OURS: "", BASELINE: " (baseline)", PAPER: ""}


def write_report(found: Found, folder: Path) -> list[Path]:
    """Writes index.html, report.md and report.tex.

    Args:
        found: the results.
        folder: where to; it is made.

    Returns:
        What was written.

    Raises:
        DataError: the folder cannot be written to.
    """
    boards = make_boards(found.runs)
    files = {"index.html": to_html, "report.md": to_markdown, "report.tex": to_tex}
    texts = {folder / name: text(boards, found) for name, text in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"the report cannot be written to '{folder}': {error}") from error
    return list(texts)


def cell_text(cell: Figure | None) -> tuple[str, str]:
    """A figure with its spread over seeds, and its spread over samples: "3.31 ± 0.05", "σ 1.20"."""
    if cell is None:
        return "–", ""
    places = cell.decimals
    text = f"{cell.mean:.{places}f}"
    if cell.over_seeds is not None:
        text += f" ± {cell.over_seeds:.{places}f}"
    spread = "" if cell.over_samples is None else f"σ {cell.over_samples:.{places}f}"
    return text, spread


def _is_best(cell: Figure | None, best: float | None) -> bool:
    return cell is not None and best is not None and round(cell.mean, 2) == round(best, 2)


def _heading(column: Column) -> str:
    arrow = " ↑" if column.higher_is_better else ""
    return f"{column.title}, {column.unit}{arrow}"


def to_html(boards: list[Board], found: Found) -> str:
    """One page without anything from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_text
    environment.tests["best"] = _is_best
    return environment.get_template("index.html.j2").render(
        boards=[_shown(board, f"board-{k}") for k, board in enumerate(boards)],
        found=found,
        legend=LEGEND,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "viewer.js").read_text(encoding="utf-8"),
        plot={"width": WIDTH, "height": HEIGHT, "left": LEFT, "top": TOP},
    )


def _shown(board: Board, anchor: str) -> dict[str, Any]:
    """A board with what only the page shows; meshes and pictures are those of the first seed."""
    first = {entry.label: entry.runs[0] for entry in board.entries}
    meshes = {label: run.results.meshes for label, run in first.items() if run.results.meshes}
    everything = [mesh for each in meshes.values() for mesh in each.values()]
    most = mesh_scale(everything) if everything else 0.0
    pictures = {label: last_picture(run.folder) for label, run in first.items()}
    names = list(dict.fromkeys(
        m.name for entry in board.entries for r in entry.results for m in r.metrics
    ))  # fmt: skip
    return {
        "anchor": anchor,
        "board": board,
        "plots": plots(board),
        "mesh_scale": most,
        "meshes": {
            label: {name: packed_mesh(mesh, most) for name, mesh in each.items()}
            for label, each in meshes.items()
        },
        "pictures": {label: picture for label, picture in pictures.items() if picture},
        "all_metrics": {
            name: [over_seeds(entry.results, name) for entry in board.entries] for name in names
        },
    }


def to_markdown(boards: list[Board], found: Found) -> str:
    """The leaderboards, comparisons, runs, and what was left out."""
    lines = ["# Leaderboards", "", LEGEND]
    for board in boards:
        lines += ["", f"## {_plain(board.title)}", "", _plain(board.protocol)]
        for block in board.blocks:
            lines += ["", *_block_notes(block), *_markdown_table(board.columns, block)]
        for _, columns, block in board.separate:
            lines += ["", *_block_notes(block), *_markdown_table(columns, block)]
        if board.comparisons:
            lines += ["", "Differences to the first method, 95 % intervals of a paired bootstrap:"]
            lines += ["", *_comparison_table(board)]
        lines += ["", *_run_lines(board)]
    if found.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"* {_plain(path)}: {_plain(why)}" for path, why in found.left_out.items()]
    return "\n".join(lines) + "\n"


def _block_notes(block: Block) -> list[str]:
    """What stands above a block of published figures."""
    if not block.protocol:
        return []
    differs = f" **Not comparable: {_plain(block.differs)}.**" if block.differs else ""
    return [f"Published: {_plain(block.protocol)}{differs}", ""]


def _markdown_table(columns: list[Column], block: Block) -> list[str]:
    rows = [["method", *map(_heading, columns), "source"]]
    rows.append(["---", *["---:"] * len(columns), "---"])
    for row in block.rows:
        cells = []
        for cell, best in zip(row.cells, block.best, strict=True):
            text, spread = cell_text(cell)
            bold = f"**{text}**" if _is_best(cell, best) else text
            cells.append(f"{bold} ({spread})" if spread else bold)
        rows.append([f"{_plain(row.label)}{MARKS[row.kind]}", *cells, _plain(row.source)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _comparison_table(board: Board) -> list[str]:
    rows = ["| metric | method | minus | difference | 95 % interval | samples |"]
    rows.append("|---|---|---|---:|---:|---:|")
    for c in board.comparisons:
        d = c.difference
        names = map(_plain, (c.metric, c.second, c.first))
        rows.append(
            f"| {' | '.join(names)} | {d.mean:+.3f} | {d.low:+.3f} to {d.high:+.3f}, {d.verdict} "
            f"| {d.samples} ({d.people} drawn) |"
        )
    return rows


def _run_lines(board: Board) -> list[str]:
    lines = ["Runs:", ""]
    for entry in board.entries:
        for run in entry.runs:
            facts = {k: v for k, v in run.facts.items() if v is not None}
            text = ", ".join(f"{key} {value}" for key, value in facts.items())
            failed = sum(map(len, run.results.failures.values()))
            lines.append(
                f"* {_plain(entry.label)}: {_plain(text)}; {failed} failures in "
                f"{run.results.images}. {_plain(run.results.note)}"
            )
    return lines


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def to_tex(boards: list[Board], found: Found) -> str:
    """Tables for LaTeX with booktabs; one for each board, and for each of other published ones."""
    parts = ["% \\usepackage{booktabs}"]
    for board in boards:
        caption = f"{board.title}. {board.protocol} {LEGEND}"
        parts.append(_tex_table(board.columns, board.blocks, caption, board.benchmark))
        for k, (table, columns, block) in enumerate(board.separate):
            caption = f"{board.title}, published. {table.protocol}"
            parts.append(_tex_table(columns, [block], caption, f"{board.benchmark}-{k}"))
    if found.left_out:
        parts += [f"% left out: {json.dumps(path)}" for path in found.left_out]
    return "\n\n".join(parts) + "\n"


def _tex_table(columns: list[Column], blocks: list[Block], caption: str, label: str) -> str:
    lines = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{l{'r' * len(columns)}l}}"]
    lines += ["\\toprule", _tex_row(["method", *map(_heading, columns), "source"])]
    for block in blocks:
        lines.append("\\midrule")
        if block.differs:
            note = tex_escaped(f"Not comparable: {block.differs}. {block.protocol}")
            width = f"\\multicolumn{{{len(columns) + 2}}}{{p{{0.9\\linewidth}}}}"
            lines.append(f"{width}{{\\emph{{{note}}}}} \\\\")
        for row in block.rows:
            cells = [f"{tex_escaped(row.label)}{MARKS[row.kind]}"]
            for cell, best in zip(row.cells, block.best, strict=True):
                text, spread = map(tex_escaped, cell_text(cell))
                bold = f"\\textbf{{{text}}}" if _is_best(cell, best) else text
                cells.append(f"{bold} ({spread})" if spread else bold)
            lines.append(f"{' & '.join([*cells, tex_escaped(row.source)])} \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{tex_escaped(caption)}}}"]
    lines += [f"\\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', label)}}}", "\\end{table}"]
    return "\n".join(lines)


def _tex_row(cells: list[str]) -> str:
    return f"{' & '.join(map(tex_escaped, cells))} \\\\"


TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[*"},  # after the end of a row they would be its arguments
    "|": "\\textbar{}",
    "×": "$\\times$",
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "±": "$\\pm$",
    "σ": "$\\sigma$",
    "°": "$^\\circ$",
    "–": "--",
    "·": "$\\cdot$",
    "↑": "$\\uparrow$",
}


def tex_escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(TEX.get(sign, sign) for sign in " ".join(text.split()))

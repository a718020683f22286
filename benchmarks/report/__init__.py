"""Leaderboards of many runs, beside what the papers print: a page, Markdown and LaTeX.

    python -m benchmarks report "runs/**" --out report

Reads all results (``<run>/benchmarks/<name>.json``) in the given folders, and writes

* ``index.html``: one file that needs no network, with leaderboards, cumulative error curves, meshes
  that turn, coloured by their error, the runs' last pictures, and who is better than whom;
* ``report.md`` and ``report.tex`` (needs the package booktabs): the leaderboards.

Runs that differ in nothing but their seeds make one line: mean ± standard deviation over the seeds.
Results of different protocols never meet in one table, and published figures that were not obtained
by our protocol stand apart, with what differs (``benchmarks/papers.yaml``).
"""

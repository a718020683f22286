"""Finds the results of benchmarks on disk, and which of them are one method with several seeds."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.base import Results
from core.errors import AssetNotFoundError, DataError
from core.provenance import config_hash

EARLIER = "earlier."  # folders in a run's, of trainings that were set aside
SEED = re.compile(r"[-_. ]?(seed)?[-_. ]?\d+$")  # at the end of a run's folder


@dataclass(frozen=True)
class Run:
    """Results, and the file that they were read from."""

    path: Path
    results: Results

    @cached_property
    def folder(self) -> Path:
        """Of the run: around its folder ``benchmarks``, or where its checkpoint is."""
        checkpoint = self.results.run.get("checkpoint")
        inside = self.path.parent.name == "benchmarks"
        places = [self.path.parents[1]] if inside else []
        places += [Path(str(checkpoint)).parents[1]] if checkpoint else []
        known = [p for p in places if (p / "config.yaml").is_file() or (p / "pictures").is_dir()]
        return [*known, *places, self.path.parent][0]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was scored; settings and seed from the run's config.yaml where results lack them."""
        config = self.folder / "config.yaml"
        if "config_sha256" in self.results.run or not config.is_file():
            return self.results.run
        try:
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return self.results.run
        if not isinstance(settings, dict):
            return self.results.run
        more = {"config_sha256": config_hash(settings), "seed": settings.get("seed_everything")}
        return self.results.run | more

    @property
    def key(self) -> tuple[str, str]:
        """The same for runs that differ in nothing but their seeds."""
        name = self.facts.get("name") or self.facts.get("method") or self.path.parent
        settings = self.facts.get("config_sha256") or self.facts.get("predictions") or self.folder
        return str(name), str(settings)

    @property
    def identity(self) -> str:
        """The same for runs of which only one may count: of one seed, or of one network."""
        if self.facts.get("config_sha256") and self.facts.get("seed") is not None:
            return f"seed {self.facts['seed']}"
        digest = self.facts.get("weights_sha256") or self.facts.get("checkpoint_sha256")
        return f"network {digest}" if digest else f"place {self.key[1]}"


@dataclass(frozen=True)
class Found:
    """What was read.

    Attributes:
        runs: without duplicates.
        left_out: why a file does not count, by its path.
    """

    runs: list[Run]
    left_out: dict[str, str]


def find_runs(places: list[str]) -> Found:
    """All results in some places.

    Args:
        places: files, folders (with all that is in them), or patterns as "runs/**".

    Raises:
        AssetNotFoundError: there are none.
    """
    files = {path.resolve(): path for place in places for path in _files(place)}
    read, left_out = [], {}
    for path in sorted(files.values()):
        try:
            if _holds_results(path):
                read.append(Run(path, Results.load(path)))
        except (OSError, DataError) as error:
            left_out[str(path)] = str(error)
    runs, duplicates = _without_duplicates(read)
    if not runs:
        broken = "".join(f" Left out: {reason}." for reason in left_out.values())
        raise AssetNotFoundError(
            "Results of benchmarks",
            f"{', '.join(map(repr, places))} ({len(files)} .json files looked at)",
            "They are <run>/benchmarks/<name>.json; write some with python -m methods.<name> test, "
            f"or with python -m benchmarks run or score.{broken}",
        )
    return Found(runs, left_out | duplicates)


def _files(place: str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        found: Iterator[Path] = path.rglob("*.json")
    elif path.exists():
        found = iter([path] if path.suffix == ".json" else [])
    elif any(sign in place for sign in "*?["):
        anchor = Path(path.anchor or ".")
        matches = anchor.glob(str(path.relative_to(path.anchor)) if path.anchor else place)
        return [f for match in matches for f in _files(str(match))]
    else:
        raise AssetNotFoundError("Results of benchmarks", f"'{place}'", "Give the runs' folder.")
    return [f for f in found if not any(part.startswith(EARLIER) for part in f.parts)]


def _holds_results(path: Path) -> bool:
    """Whether a JSON file is what a benchmark writes; other ones lie in runs' folders, too.

    Raises:
        DataError: it is no JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no JSON: {error}") from error
    return isinstance(content, dict) and {"benchmark", "metrics"} <= set(content)


def _without_duplicates(runs: list[Run]) -> tuple[list[Run], dict[str, str]]:
    """Of results that say the same of the same network the newest; and what was left out."""
    newest: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda r: r.path.stat().st_mtime, reverse=True):
        of = run.results
        newest.setdefault((of.benchmark, of.protocol, run.key, run.identity), run)
    kept = set(map(id, newest.values()))
    left_out = {
        str(run.path): f"a newer file has the same benchmark, settings and {run.identity}"
        for run in runs
        if id(run) not in kept
    }
    return [run for run in runs if id(run) in kept], left_out


def grouped(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """By the key of a run, each sorted by the seed."""
    groups = defaultdict(list)
    for run in sorted(runs, key=lambda r: str(r.facts.get("seed"))):
        groups[run.key].append(run)
    return dict(groups)


def labels(runs: list[Run]) -> dict[tuple[str, str], str]:
    """A short name for each key, different for each: the method's, if need be with the run's
    folder or the hash of its settings.
    """
    groups = grouped(runs)
    names = {key: _short(key[0]) for key in groups}
    for more in (_folder_name, lambda key, _: key[1][:6]):
        taken = list(names.values())
        names |= {
            key: f"{name} · {more(key, groups[key])}"
            for key, name in names.items()
            if taken.count(name) > 1 and more(key, groups[key])
        }
    for number, key in enumerate(names, 1):  # nothing told them apart
        if list(names.values()).count(names[key]) > 1:
            names[key] = f"{names[key]} #{number}"
    return names


def _short(name: str) -> str:
    """CEST for methods.cest.CEST."""
    return name.rpartition(".")[2] if re.fullmatch(r"[\w.]+", name) else name


def _folder_name(key: tuple[str, str], runs: list[Run]) -> str:
    """The runs' folder without the number of the seed."""
    return SEED.sub("", runs[0].folder.name) or runs[0].folder.name

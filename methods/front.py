"""What the command line answers before the heavy imports: help, list, plain mistakes.

Imports nothing but the standard library; ``methods/__init__.py`` says when it runs.
"""

import ast
import difflib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from core.errors import AssetNotFoundError, MonofaceError

PACKAGED = Path(__file__).resolve().parents[1]  # holds the folder configs/
SUBCOMMANDS = {
    "fit": "train; writes checkpoints, config.yaml and run.json into trainer.default_root_dir",
    "validate": "log the losses on the validation data",
    "test": "log the losses on the test data",
    "predict": "reconstruct",
}
HELP = """\
{title}

usage: {command} SUBCOMMAND {method}[--config FILE]... [--KEY VALUE]... [--ckpt_path FILE|last|best]

{subcommands}

  --config     YAML file(s), later ones are merged into earlier ones; default: {config}.
               Looked for in the working folder, then among those that come with monoface.
  --KEY VALUE  one setting, e.g. --model.lr 1e-4; stronger than the files
  --ckpt_path  a checkpoint, or "last" or "best" of trainer.default_root_dir. After a kill the same
               command again goes on where training was, if it has --ckpt_path last; the first time
               it starts from scratch.

examples:
  {command} fit {example}
  {command} fit {example}--config {base} --config configs/wandb.yaml --model.lr 1e-4
  {command} fit {example}--ckpt_path last

All settings with their defaults (takes some seconds): {command} fit {method}--help
"""


def answer(module: str, argv: list[str]) -> None:
    """Prints help or what is wrong and exits; returns if torch is needed to go on.

    Args:
        module: what ``python -m`` runs: "methods" for all, or a method's module.
        argv: the arguments after it.
    """
    try:
        _answer(module, argv)
    except MonofaceError as error:
        fail(error)


def fail(error: Exception) -> None:
    """Prints an error and exits with status 2; MONOFACE_TRACEBACK=1 shows where it arose."""
    if os.environ.get("MONOFACE_TRACEBACK"):
        raise error
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(2)


def _answer(module: str, argv: list[str]) -> None:
    first = argv[0] if argv else ""
    if first in ("-h", "--help"):
        sys.stdout.write(_help(module))
        raise SystemExit(0)
    if first == "list" and module == "methods":
        for entry in methods():
            sys.stdout.write(f"{entry.name:12} {title(entry.module)}\n")
        raise SystemExit(0)
    if not first:
        sys.stderr.write(_help(module))
        raise SystemExit(2)
    if first not in subcommands(module):
        known = subcommands(module)
        raise MonofaceError(
            f"{first!r} is no subcommand of {', '.join(known)}{did_you_mean(first, known)}; "
            f"it comes first: python -m {module} fit --config ..."
        )
    if module == "methods" and not is_help(argv):
        chosen(argv)
    for name in options(argv[1:], "--config", "-c"):
        find_config(name)


def _help(module: str) -> str:
    all_methods = module == "methods"
    default = default_config(module)
    config = default.relative_to(PACKAGED).as_posix() if default else None
    if all_methods:
        config = "configs/<method>.yaml"
    return HELP.format(
        title="monoface: monocular 3D face reconstruction" if all_methods else title(module),
        command=f"python -m {module}",
        method="--method NAME " if all_methods else "",
        example="--method cest " if all_methods else "",
        config=config or "none",
        base="configs/cest.yaml" if all_methods else config or "my.yaml",
        subcommands="\n".join(f"  {name:10} {text}" for name, text in subcommands(module).items()),
    )


OWN = {  # of one module
    "methods": {"list": "the methods that are installed"},
    "methods.fml": {"export": "write the learned face model as a file for every method"},
}


def subcommands(module: str) -> dict[str, str]:
    """What comes first on a module's command line, and what it is for."""
    return SUBCOMMANDS | OWN.get(module, {})


def title(module: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return module
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return text.splitlines()[0] if text else module


def methods() -> list[EntryPoint]:
    """The methods of all installed distributions: the entry points in monoface.methods."""
    return sorted(entry_points(group="monoface.methods"), key=lambda entry: entry.name)


def chosen(argv: list[str]) -> tuple[EntryPoint, list[str]]:
    """The method of ``--method NAME``, and the other arguments."""
    known = {entry.name: entry for entry in methods()}
    names = options(argv, "--method")
    if len(names) != 1 or names[0] not in known:
        wrong = f"no method {names[0]!r}" if names else "which method? --method NAME"
        hint = did_you_mean(names[0], known) if names else ""
        raise MonofaceError(f"{wrong}{hint}; installed: {', '.join(known)}")
    rest = [part for part in argv if part != f"--method={names[0]}"]
    if "--method" in rest:
        at = rest.index("--method")
        del rest[at : at + 2]
    return known[names[0]], rest


def is_help(argv: list[str]) -> bool:
    """Whether the arguments ask for help, general or on a class (``--data.help=NAME``)."""
    return any(part in ("-h", "--help") or part.split("=")[0].endswith(".help") for part in argv)


def options(argv: list[str], *names: str) -> list[str]:
    """The values of an option, given as ``--name value`` or ``--name=value``."""
    values = []
    for part, following in pairwise([*argv, ""]):
        name, equals, value = part.partition("=")
        if name in names:
            values.append(value if equals else following)
    return values


def default_config(module: str) -> Path | None:
    """The config that comes with a method, of the same name; None if there is none."""
    path = PACKAGED / "configs" / f"{module.rpartition('.')[2]}.yaml"
    return path if path.is_file() else None


def find_config(name: str) -> Path:
    """A config file: in the working folder, else among those that come with monoface.

    Raises:
        AssetNotFoundError: there is none; similar names are proposed.
    """
    places = [Path(name), PACKAGED / name, PACKAGED / "configs" / name]
    for path in places:
        if path.is_file():
            return path
    packaged = [
        path.relative_to(PACKAGED).as_posix() for path in (PACKAGED / "configs").rglob("*.yaml")
    ]
    nearby = [path.as_posix() for path in Path(name).parent.glob("*.yaml")]
    raise AssetNotFoundError(
        f"config {name!r}",
        f"{Path.cwd()} or {PACKAGED}",
        did_you_mean(name, {*packaged, *nearby}).strip("; ")
        or f"With monoface come {', '.join(sorted(packaged))}.",
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Words to end a message with, "did you mean a or b?", or nothing."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    if close:  # the best, and what is nearly as good
        ratio = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in close}
        close = [other for other in close if ratio[other] > ratio[close[0]] - 0.1]
    return f"; did you mean {' or '.join(close)}?" if close else ""

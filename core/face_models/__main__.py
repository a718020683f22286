"""Face models on the command line: which there are, importing, looking at, checking, mapping.

    python -m core.face_models list                                  # kinds, and what is imported
    python -m core.face_models import ict --raw ICT-FaceKit --out data/face_models/ict.npz
    python -m core.face_models show data/face_models/ict.npz --out sheet.png
    python -m core.face_models check data/face_models/ict.npz        # a health report
    python -m core.face_models map procedural data/face_models/ict.npz --out map.npz

A model is 'procedural' (built in) or the path of a .npz.
"""

import argparse
import sys
from pathlib import Path

from core.errors import MonofaceError

IMPORTED = Path("data/face_models")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that a user can put right are printed in a few lines.

    Raises:
        SystemExit: with 2 after such an error, with 1 if ``check`` finds a failure.
    """
    options = _parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except (MonofaceError, OSError) as error:  # OSError: a place that cannot be read or written
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m core.face_models",
        description=f"{description}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="kinds that can be imported, models that are there")
    listed.add_argument("--folder", type=Path, default=IMPORTED, help="where imported ones are")
    importing = commands.add_parser("import", help="convert a published model into our .npz")
    importing.add_argument("kind", help="one of those that `list` shows")
    importing.add_argument("--raw", type=Path, required=True, help="the folder with its files")
    importing.add_argument("--out", type=Path, required=True, help="the .npz to write")
    importing.add_argument("--variant", help="one of the kind's; by default the first")
    show = commands.add_parser("show", help="draw mean, modes, expressions and random people")
    show.add_argument("--out", type=Path, required=True, help="the picture to write")
    check = commands.add_parser("check", help="a health report")
    for each in (show, check):
        each.add_argument("model", help="'procedural' or the path of a .npz")
    mapping = commands.add_parser("map", help="which point of one model is which of another")
    mapping.add_argument("source", help="the model whose vertices are looked for")
    mapping.add_argument("target", help="the model on whose surface they are found")
    mapping.add_argument("--out", type=Path, required=True, help="the .npz to write")
    return parser


def _list(options: argparse.Namespace) -> None:
    from core.face_models.importers import KINDS
    from core.face_models.model import FaceModel

    print("procedural: built in, made by code\n  licence: MIT")
    for name, kind in KINDS.items():
        print(f"{name}: {kind.title}\n  gives: {kind.gives}\n  licence: {kind.licence}")
        print(f"  from: {kind.source}\n  variants: {', '.join(kind.variants)}")
    files = sorted(options.folder.glob("*.npz"))
    print(f"\nin {options.folder}/: {len(files) or 'none'}")
    for file in files:
        try:
            print(f"  {file.name}: {_sizes(FaceModel.from_file(file))}")
        except MonofaceError as error:
            print(f"  {file.name}: {error}")


def _sizes(model: "FaceModel") -> str:
    bases = (model.identity_basis, model.expression_basis, model.albedo_basis)
    modes = " + ".join(str(len(basis)) for basis in bases)
    stated = f"; stand-ins: {', '.join(model.stand_ins)}" if model.stand_ins else ""
    return f"{model.name}, {len(model.mean)} vertices, {modes} modes, {model.licence}{stated}"


def _import(options: argparse.Namespace) -> None:
    from core.face_models.health import table
    from core.face_models.importers import import_face_model

    model, findings = import_face_model(options.kind, options.raw, options.out, options.variant)
    print(table(findings))
    for note in model.notes:
        print(f"note: {note}")
    print(f"wrote {options.out}: {_sizes(model)}\nuse it: --model.face_model={options.out}")


def _show(options: argparse.Namespace) -> None:
    from core.face_models.model import load_face_model
    from core.face_models.sheet import write_sheet

    write_sheet(load_face_model(options.model), options.out)
    print(f"wrote {options.out}")


def _check(options: argparse.Namespace) -> None:
    from core.face_models.health import health, table
    from core.face_models.model import load_face_model

    findings = health(load_face_model(options.model))
    print(table(findings))
    if any(finding.level == "failure" for finding in findings):
        raise SystemExit(1)


def _map(options: argparse.Namespace) -> None:
    from core.face_models.correspondence import correspond_models
    from core.face_models.model import load_face_model

    found = correspond_models(load_face_model(options.source), load_face_model(options.target))
    found.save(options.out)
    valid, median = found.valid.mean(), sorted(found.distance_mm)[len(found.distance_mm) // 2]
    print(f"wrote {options.out}: {valid:.0%} of the vertices valid, median {median:.2f} mm away")


COMMANDS = {"list": _list, "import": _import, "show": _show, "check": _check, "map": _map}

if __name__ == "__main__":
    main()

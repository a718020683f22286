"""``python -m core.face_models sheet --out FILE [--model procedural|NPZ]``: look at a model."""

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        AssetNotFoundError, DataError: see ``load_face_model``.
    """
    parser = argparse.ArgumentParser(prog="python -m core.face_models")
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="draw mean, modes, expressions and random people")
    sheet.add_argument(
        "--out", type=Path, required=True, help="the picture to write, e.g. sheet.png"
    )
    sheet.add_argument("--model", default="procedural", help="'procedural' or the path of a .npz")
    options = parser.parse_args(arguments)

    from core.face_models.model import load_face_model
    from core.face_models.sheet import write_sheet

    write_sheet(load_face_model(options.model), options.out)


if __name__ == "__main__":
    main()

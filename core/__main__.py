"""``python -m core doctor``: what this machine has for monoface, what is missing, what to do."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 if ``make demo`` cannot run."""
    parser = argparse.ArgumentParser(prog="python -m core")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="what is installed, and what to do where it is not")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)

    from core.doctor import as_json, examine, table

    items = examine(Path())
    sys.stdout.write((as_json(items) if options.json else table(items)) + "\n")
    return int(any(item.needed and item.status != "found" for item in items))


if __name__ == "__main__":
    sys.exit(main())

"""Datasets on the command line: raw videos made into shards for training.

    python -m datamodules prepare voxceleb --raw vox2 --out data/vox2      # go on, if it was begun
    python -m datamodules prepare voxceleb --raw vox2 --out data/vox2 --shard 3/16   # a sixteenth

``datamodules.preparation`` says what it does, how long it takes, and how to run it on a cluster;
``datamodules.shards`` what comes of it.
"""

import argparse
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from core.errors import DataError, MonofaceError
from datamodules.preparation.plan import Mask, Plan, Settings, make_plan

DATASETS = ("voxceleb",)
LAUNCHERS = ("local", "ray")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that a user can put right are printed in a few lines.

    Raises:
        SystemExit: with 2 after such an error.
    """
    options = _parser().parse_args(arguments)
    try:
        _prepare(options)
    except MonofaceError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser(
        "prepare",
        help="make shards of videos",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    prepare.add_argument("dataset", choices=DATASETS)
    prepare.add_argument("--raw", type=Path, required=True, help="the videos; only read")
    prepare.add_argument("--out", type=Path, required=True, help="the result")
    prepare.add_argument("--shard", default="0/1", help="i/n: the i-th part of n, i from 0")
    prepare.add_argument("--jobs", type=int, help="processes; default: one for each core")
    prepare.add_argument("--launcher", choices=LAUNCHERS, default="local", help="who does it")
    for field in fields(Settings):
        kind = {"mask": str, "parsing": str, "detector": str}.get(field.name, type(field.default))
        prepare.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            choices=get_args(Mask) if field.name == "mask" else None,
            default=field.default,
            help=HELP[field.name],
        )
    return parser


HELP = {
    "size": "side of the crops, pixels",
    "margin": "side of the crop / longer side of the landmarks' box",
    "every": "take only every so many-th frame",
    "quality": "of the JPEG files",
    "min_crop_px": "drop faces whose crop is smaller in the video; FML: 200",
    "min_confidence": "drop faces whose landmarks have a smaller mean confidence",
    "mask": "which pixels show the face",
    "parsing": "face parsing network, .onnx, for --mask parsing",
    "detector": "insightface's model pack, a name or a folder, where no landmarks are given",
    "videos_per_shard": "in a tar file",
    "patience": "give a video up that takes longer for a frame, seconds",
}


def _prepare(options: argparse.Namespace) -> None:
    from datamodules.preparation.video import check_tools

    for name in ("parsing", "detector"):  # other processes have other working folders
        if (given := getattr(options, name)) and Path(given).exists():
            setattr(options, name, str(Path(given).resolve()))
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    number, count = _part(options.shard)
    if options.jobs is not None and options.jobs < 1:
        raise DataError(f"--jobs {options.jobs}: wanted at least 1")
    plan = make_plan(options.raw, options.out, settings, check_tools)
    _run(plan, number, count, options)


def _run(plan: Plan, number: int, count: int, options: argparse.Namespace) -> None:
    from datamodules.preparation import launch
    from datamodules.preparation.shard import finish
    from datamodules.preparation.video import check_tools

    mine = plan.jobs()[number::count]
    missing = [job for job in mine if not job.tar.is_file()]
    videos = sum(len(job.videos) for job in mine)
    begun = videos - sum(len(job.videos) for job in missing)
    if missing:
        check_tools(plan.settings, tuple(video for job in missing for video in job.videos))
    with tqdm(total=videos, initial=begun, desc="preparing", unit="video") as bar:
        if missing:
            for done in launch.LAUNCHERS[options.launcher](missing, options.jobs):
                bar.update(done)
    if left := finish(plan):
        print(f"{len(left)} of {len(plan.jobs())} shards are left to the other parts of --shard")
    else:
        print(f"finished: '{plan.out}'; what was left out and why: '{plan.out / 'report.json'}'")


def _part(text: str) -> tuple[int, int]:
    """The numbers of "i/n"."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not number < count:
        raise DataError(f"--shard '{text}': wanted i/n with i from 0 to n - 1, e.g. 3/16")
    return number, count


if __name__ == "__main__":
    main()

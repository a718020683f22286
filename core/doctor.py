"""What this machine has for monoface: packages, devices, models, data; each with the next step.

Nothing is downloaded, nothing is changed, and no package that is missing or broken stops the
report: what it raised is the report. Packages that take seconds to import (torchvision, lightning,
insightface, wandb) are judged by their metadata.
"""

import json
import netrc
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

PYTHON = (3, 11)
WANDB_LOGIN = "user"  # the name that `wandb login` writes into .netrc with every key
FREE_GB = 2.0  # what `make demo` writes, with room to spare
FACE_MODELS = Path("data/face_models")
DATASETS = {
    "data/synthetic": "Nothing to do: `make demo` makes it.",
    "data/voxceleb": "Bring extracted frames with landmarks; datamodules/voxceleb.py says how.",
    "data/300W_LP": "Optional, 300W-LP: datamodules/w300lp.py says how it lies.",
    "data/multipie": "Optional, Multi-PIE: datamodules/multipie.py says how it lies.",
    "data/300VW_Dataset_2015_12_14": "Optional, 300-VW: datamodules/vw300.py says how it lies.",
    "data/celeba": "Optional, CelebA: datamodules/celeba.py says how it lies.",
    "data/photos": "Optional, your own images: datamodules/image_folder.py says how they lie.",
}
BENCHMARKS = {
    **{"aflw2000": "AFLW2000-3D", "micc": "MICC Florence", "facewarehouse": "FaceWarehouse"},
    **{"bu3dfe": "BU-3DFE", "frgc": "FRGC v2", "celeba": "CelebA", "now": "NoW", "realy": "REALY"},
}
"""By the beginning of their folders' names, in small letters without other signs."""
SETUP = "Run `make setup`."


@dataclass(frozen=True)
class Item:
    """One thing that was looked for.

    Attributes:
        name: what it is.
        status: "broken": it is there but does not work.
        text: what was found, or what was wrong.
        next_step: how to get it; empty if there is nothing to do.
        needed: `make demo` cannot run without it.
    """

    name: str
    status: Literal["found", "missing", "broken"]
    text: str
    next_step: str = ""
    needed: bool = False


def examine(root: Path) -> list[Item]:
    """Look for everything.

    Args:
        root: the checkout's folder, in which ``data`` lies.
    """
    looks: list[tuple[str, bool, Callable[[], Item]]] = [
        ("python", True, _python),
        ("packages", True, _packages),
        ("torch", True, _torch),
        ("cuda", False, _cuda),
        ("torchvision", True, _torchvision),
        ("lightning", True, _lightning),
        ("numba", True, _numba),
        ("nvdiffrast", False, _nvdiffrast),
        ("drtk", False, _drtk),
        ("insightface", False, _insightface),
        ("built-in face model", True, _built_in),
        ("other face models", False, lambda: _face_models(root)),
        *((name, False, lambda name=name: _dataset(root, name)) for name in DATASETS),
        ("benchmarks", False, lambda: _benchmarks(root)),
        ("other data", False, lambda: _other_data(root)),
        ("disk", True, lambda: _disk(root)),
        ("wandb", False, _wandb),
    ]
    return [_safely(name, needed, look) for name, needed, look in looks]


def table(items: list[Item]) -> str:
    """The items as text, one line each, and a last line that says whether `make demo` can run."""
    width = max(len(item.name) for item in items)
    lines = [
        f"{item.status:<7}  {item.name:<{width}}  {item.text}"
        + (f" Next: {item.next_step}" if item.next_step else "")
        for item in items
    ]
    lacking = [item.name for item in items if item.needed and item.status != "found"]
    ready = (
        f"`make demo` cannot run: see {', '.join(lacking)}" if lacking else "`make demo` can run"
    )
    return "\n".join([*lines, ready])


def as_json(items: list[Item]) -> str:
    """The items as a JSON list of their attributes."""
    return json.dumps([asdict(item) for item in items], indent=2)


def _safely(name: str, needed: bool, look: Callable[[], Item]) -> Item:
    """The item; where looking for it fails in whatever way, an item that says so."""
    try:
        return look()
    except PackageNotFoundError as error:
        text = f"the package '{error.name}' is not installed."
        return Item(name, "missing", text, SETUP, needed)
    except Exception as error:  # a broken package may raise anything when it is imported
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        return Item(name, "broken", text, f"Install it anew: {SETUP}", needed)


def _python() -> Item:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        step = (
            f"Install Python {wanted} or newer, then `make setup PYTHON=/path/to/python{wanted}`."
        )
        return Item("python", "missing", f"this is {found}.", step, True)
    return Item("python", "found", f"{found} at {sys.executable}.", needed=True)


def _packages() -> Item:
    """All that pyproject.toml asks for, but for extras."""
    wanted = [line for line in requires("monoface") or [] if "extra ==" not in line]
    names = [match[0] for line in wanted if (match := re.match(r"[\w.-]+", line))]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        return Item("packages", "missing", f"lacking {', '.join(missing)}.", SETUP, True)
    return Item("packages", "found", f"all {len(names)} that are required.", needed=True)


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _torch() -> Item:
    version("torch")
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    text = f"{torch.__version__}, built with {build}, {torch.get_num_threads()} threads."
    return Item("torch", "found", text, needed=True)


def _cuda() -> Item:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
        named = ", ".join(f"{d.name} ({d.total_memory / 2**30:.0f} GB)" for d in devices)
        return Item("cuda", "found", f"{named}.")
    step = "Nothing on a machine without an NVIDIA GPU: the CPU renders. Else "
    if torch.version.cuda:
        step += "look at the driver: `nvidia-smi`."
    else:
        step += "install a CUDA build of torch and torchvision (pytorch.org)."
    return Item("cuda", "missing", "no device that torch can use.", step)


def _torchvision() -> Item:
    """Each release is built for one release of torch; with another it fails when it is imported."""
    pattern = re.compile(r"torch\s*\(?==\s*([\w.]+)")
    wanted = [match[1] for line in requires("torchvision") or [] if (match := pattern.match(line))]
    found = version("torchvision")
    torch = version("torch").split("+")[0]
    if wanted and wanted[0] != torch:
        text = f"{found} is built for torch {wanted[0]}, but torch is {torch}."
        return Item("torchvision", "broken", text, SETUP, True)
    return Item("torchvision", "found", f"{found}.", needed=True)


def _lightning() -> Item:
    return Item("lightning", "found", f"{version('pytorch-lightning')}.", needed=True)


def _numba() -> Item:
    version("numba")
    numba = import_module("numba")

    from core.cores import available_cores

    text = f"{numba.__version__}, {available_cores()} cores to work with."
    return Item("numba", "found", text, needed=True)


def _nvdiffrast() -> Item:
    from core.rasterize import nvdiffrast

    return _renderer("nvdiffrast", "nvdiffrast.torch", nvdiffrast.is_installed, nvdiffrast.INSTALL)


def _drtk() -> Item:
    from core.rasterize import drtk

    return _renderer("drtk", "drtk", drtk.is_installed, drtk.INSTALL)


def _renderer(name: str, module: str, is_installed: Callable[[], bool], install: str) -> Item:
    """A library behind the rasterizer, imported if it is there."""
    if not is_installed():
        return Item(name, "missing", "optional, for CUDA.", install)
    try:
        import_module(module)
    except Exception as error:  # a compiled library for another torch raises anything
        text = f"installed, but importing it raises {type(error).__name__}: {error}."
        return Item(name, "broken", " ".join(text.split()), install)
    return Item(name, "found", f"its licence is in: {install.rsplit('Licence: ')[-1]}")


def _insightface() -> Item:
    """Package and model files; used when photos come without landmarks."""
    found = version("insightface")
    import_module("onnxruntime")

    from core.detect import FILES, LICENCE, PACK, ROOT

    folder = (ROOT / "models" / PACK).expanduser()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        text = f"{found}, but its models {' and '.join(missing)} are not in '{folder}'."
        step = f"Nothing with network: it downloads {PACK}. Else place them there by hand."
        return Item("insightface", "missing", text, f"{step} {LICENCE}")
    return Item("insightface", "found", f"{found}, models in '{folder}'. {LICENCE}")


def _built_in() -> Item:
    from core.face_models.procedural import cache_file

    path = cache_file()
    kept = f"kept in '{path}'." if path.is_file() else "is built at first use, in some seconds."
    return Item("built-in face model", "found", kept, needed=True)


def _face_models(root: Path) -> Item:
    files = sorted((root / FACE_MODELS).glob("*.npz"))
    if files:
        listed = ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.0f} MB)" for path in files)
        return Item("other face models", "found", f"in '{FACE_MODELS}': {listed}.")
    step = "Optional: `python -m core.face_models list` says which can be imported, and how."
    return Item("other face models", "missing", f"none in '{FACE_MODELS}'.", step)


def _dataset(root: Path, name: str) -> Item:
    folder = root / name
    if not folder.is_dir():
        return Item(name, "missing", "no such folder.", DATASETS[name])
    return Item(name, "found", f"{sum(1 for _ in os.scandir(folder))} entries.")


def _in_data(root: Path) -> list[str]:
    folder = root / "data"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _benchmark(name: str) -> str | None:
    """Whose data a folder of that name holds."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((title for key, title in BENCHMARKS.items() if plain.startswith(key)), None)


def _benchmarks(root: Path) -> Item:
    """Folders in data; ``python -m benchmarks`` takes any other, too."""
    there = {name: title for name in _in_data(root) if (title := _benchmark(name))}
    if there:
        found = ", ".join(f"{title} in 'data/{name}'" for name, title in there.items())
        return Item("benchmarks", "found", f"{found}.")
    step = (
        "Optional: the files in benchmarks say how their data lie and who gives them; then "
        "`python -m benchmarks run NAME --root FOLDER --checkpoint ...`."
    )
    return Item("benchmarks", "missing", f"no data of {', '.join(BENCHMARKS.values())}.", step)


def _other_data(root: Path) -> Item:
    known = {FACE_MODELS.name, *(Path(name).name for name in DATASETS)}
    others = [name for name in _in_data(root) if name not in known and not _benchmark(name)]
    text = f"in data: {', '.join(others)}." if others else "nothing else in data."
    return Item("other data", "found", text)


def _disk(root: Path) -> Item:
    free = shutil.disk_usage(root).free / 1e9
    if free < FREE_GB:
        text = f"{free:.1f} GB free here, `make demo` wants {FREE_GB:g}."
        return Item("disk", "missing", text, "Make room, or `make clean` (data and runs).", True)
    return Item("disk", "found", f"{free:.0f} GB free here.", needed=True)


def _wandb() -> Item:
    """Whether runs could be sent: a key in the environment or in .netrc; it is not tried."""
    found = version("wandb")
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    entries = netrc.netrc(file).hosts if file.is_file() else {}
    url = os.environ.get("WANDB_BASE_URL")
    if url is None:  # the usual server is another one in each version: look for what a login wrote
        hosts = [host for host, (login, _, _) in entries.items() if login == WANDB_LOGIN]
    else:
        hosts = [host for host in entries if host == urlsplit(url).netloc]
    if os.environ.get("WANDB_API_KEY") or hosts:
        where = ", ".join(hosts) if hosts else "WANDB_API_KEY"
        return Item("wandb", "found", f"{found}, there is a key: {where}.")
    step = "Nothing: runs are logged on this machine. To send them: `wandb login`."
    return Item("wandb", "missing", f"{found}, not logged in{f' to {url}' if url else ''}.", step)

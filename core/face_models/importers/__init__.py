"""Importers: from the files of published face models to one .npz, ``FaceModel``'s.

One file a source; each reads its ``RawFolder`` into ``Parts`` (its docstring is the specification
of the raw format), ``complete`` fills in what is missing, and the health check refuses what is no
face in millimetres, upright and facing forwards.
"""

from pathlib import Path

from core.errors import AssetNotFoundError, DataError, MonofaceError
from core.face_models.files import write_npz
from core.face_models.health import Finding, health
from core.face_models.importers import bfm2009, bfm_hdf5, flame, ict
from core.face_models.importers.complete import complete
from core.face_models.importers.raw import Kind, RawFolder
from core.face_models.model import FaceModel

KINDS: dict[str, Kind] = {
    "bfm2009": bfm2009.KIND,
    "bfm2017": bfm_hdf5.kind("2017"),
    "bfm2019": bfm_hdf5.kind("2019"),
    "flame": flame.KIND,
    "ict": ict.KIND,
}


def import_face_model(
    name: str, raw: Path, out: Path, variant: str | None = None
) -> tuple[FaceModel, list[Finding]]:
    """Convert a published face model into our .npz and check it.

    Args:
        name: one of ``KINDS``.
        raw: the folder with its files.
        out: the .npz to write.
        variant: one of the kind's; None for the first.

    Returns:
        The model, and what the health check found.

    Raises:
        AssetNotFoundError: the folder or a file in it is missing.
        DataError: a file is not what it should be, or the result is no plausible face; then nothing
            is written.
        MonofaceError: no such kind or variant.
    """
    if name not in KINDS:
        raise MonofaceError(f"no importer '{name}'; there are {', '.join(KINDS)}")
    kind = KINDS[name]
    variant = variant or kind.variants[0]
    if variant not in kind.variants:
        raise MonofaceError(f"{name} has no variant '{variant}'; it has {', '.join(kind.variants)}")
    if out.suffix != ".npz":
        raise MonofaceError(f"'{out}' must end in .npz")
    if not raw.is_dir():
        raise AssetNotFoundError(f"the raw folder of {name}", f"'{raw}'", kind.source, kind.licence)
    parts = kind.read(RawFolder(raw, kind.licence), variant)
    try:
        arrays = complete(parts, kind, f"{name}-{variant}")
        model = FaceModel(arrays)
    except DataError as error:
        raise DataError(f"the files in '{raw}' make no face model: {error}") from error
    findings = health(model)
    failures = [finding.text for finding in findings if finding.level == "failure"]
    if failures:
        raise DataError(
            f"the files in '{raw}' make no plausible face: {'; '.join(failures)}. "
            f"Are they those of {kind.title}?"
        )
    write_npz(out, arrays)
    return model, findings

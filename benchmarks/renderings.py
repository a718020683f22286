"""MICC Florence 2D/3D: faces from renderings of the scans at large poses, against the scans."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import (
    MILLIMETRES,
    PER_CENT,
    Metric,
    Predict,
    Results,
    Summary,
    by_sample,
    predicted,
)
from benchmarks.dense import MODES, Mode, dense_nme_percent, in_image
from benchmarks.metrics import error_curve
from benchmarks.micc import people_of, read_scan, scan_path, subjects_of
from benchmarks.predictions import FaceMesh, check_unit
from benchmarks.scans import ERRORS, USUAL, Faces, ScanBenchmark, ScanProtocol, within
from benchmarks.views import lookup, meshes_of
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import MARGIN, face_crop
from core.errors import DataError
from core.render import draw
from core.rotation import rotation_from_euler
from core.uv import wrap

PITCHES = (-15.0, 20.0, 25.0)  # degrees, as CEST and PRN print them; VRN's author: -15, -20, -25
YAWS = {"cest": (-80.0, -40.0, 0.0, 40.0, 80.0), "mgcnet": (-80.0, -60.0, 0.0, 60.0, 80.0)}
RANDOM = {"cest": 0, "mgcnet": 5}  # further poses of each scan
FINER = 2  # times, before the pixels of a rendering are averaged
DENSE: tuple[Mode, ...] = ("icp", "vrn")
CURVE_PERCENT = 10.0  # how far the curves go


@dataclass(frozen=True)
class Pose:
    """One rendering.

    Attributes:
        group: "yaw_+40", or "random".
        label: of the pose, different for all of a scan.
        pitch, yaw: degrees; a positive pitch raises the nose, a positive yaw turns it to the left
            of the image.
    """

    group: str
    label: str
    pitch: float
    yaw: float


class MICCRenderings(ScanBenchmark):
    """Renderings of MICC Florence's scans, as of VRN, CEST, Deng et al. and MGCNet.

    On disk: as ``benchmarks.micc.MICC``, without videos; each .obj with its .mtl and picture, or
    with a colour for each vertex.

    Protocol. Each scan is drawn with its own colours, unlit and over black, by a scaled
    orthographic camera that is placed by the scan's landmarks as in training; poses are about the
    mean of these. "cest": pitches -15, 20 and 25 degrees times yaws -80, -40, 0, 40 and 80, 15 in
    all (the text says 20, but its 2,550 images are 15 times 170 scans); "mgcnet": yaws -80, -60, 0,
    60 and 80 and five random poses of each scan, 20 in all. Errors: of ``MICC``, for each yaw and
    over all; and the dense NME of CEST, % of the outer eye corners' distance in 3D, over the scan's
    vertices in the crop, in the frame of the rendering (``benchmarks.dense``).

    For other programs: ``images`` makes files <sample>.png and the scans' landmarks in them,
    <sample>.npy; their meshes, <sample>.obj and so on, may be in any frame, and have no NME.

    Args:
        root: of the data set.
        landmarks: folder with the .ljson files; otherwise ``root``.
        poses: cest or mgcnet.
        pitches: others than those, degrees.
        seed: of the random poses.
        scan: frontal1 or frontal2.
        images: folder to write the renderings to.
        protocol: how a face is compared with a scan.
        subjects: names to score these only; otherwise there must be 53.
        image_size: side of the renderings, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        progress: show a bar.
    """

    name = "micc_renderings"

    def __init__(
        self,
        root: Path,
        landmarks: Path | None = None,
        poses: Literal["cest", "mgcnet"] = "cest",
        pitches: list[float] | None = None,
        seed: int = 0,
        scan: Literal["frontal1", "frontal2"] = "frontal1",
        images: Path | None = None,
        protocol: ScanProtocol = USUAL,
        subjects: list[str] | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        progress: bool = True,
    ) -> None:
        super().__init__(protocol, progress)
        if image_size < 1:
            raise DataError(f"MICCRenderings: image_size is {image_size}; wanted at least 1")
        self.root, self.landmarks, self.which, self.subjects = (
            root,
            landmarks or root,
            scan,
            subjects,
        )
        self.kind, self.pitches, self.seed = poses, tuple(pitches or PITCHES), seed
        self.images, self.image_size, self.crop_margin = images, image_size, crop_margin

    def poses(self, subject: str) -> list[Pose]:
        """Those in which a subject is drawn."""
        found = [
            Pose(f"yaw_{yaw:+g}", f"pitch{pitch:+g}_yaw{yaw:+g}", pitch, yaw)
            for yaw in YAWS[self.kind]
            for pitch in self.pitches
        ]
        random = np.random.default_rng([self.seed, *subject.encode()])
        limits = max(map(abs, self.pitches)), max(map(abs, YAWS[self.kind]))
        for k in range(RANDOM[self.kind]):
            pitch, yaw = random.uniform(-1, 1, 2) * limits
            found.append(Pose("random", f"random{k}", float(pitch), float(yaw)))
        return found

    def samples(self) -> dict[str, list[str]]:
        """subject_01/frontal1_pitch+20_yaw-40 and so on, by yaw."""
        groups: dict[str, list[str]] = defaultdict(list)
        for subject in subjects_of(self.root, self.subjects):
            for pose in self.poses(subject):
                groups[pose.group].append(self._name(subject, pose))
        return dict(groups)

    def _name(self, subject: str, pose: Pose) -> str:
        return f"{subject}/{self.which}_{pose.label}"

    def describe(self) -> str:
        """The subjects and poses."""
        count = len(self.poses(""))
        pitches = ", ".join(f"{pitch:g}" for pitch in self.pitches)
        yaws = ", ".join(f"{yaw:g}" for yaw in YAWS[self.kind])
        others = f" and {RANDOM[self.kind]} random ones, seed {self.seed}"
        return (
            f"{people_of(self.subjects)}, scans {self.which} drawn in {count} poses each: pitch "
            f"{pitches} x yaw {yaws} degrees{others if RANDOM[self.kind] else ''}."
        )

    def scans(self, sample: str) -> list[FaceMesh]:
        """The one scan."""
        path = self._path(sample.partition("/")[0])
        return [read_scan(path, self.root, self.landmarks)]

    def _path(self, subject: str) -> Path:
        path = scan_path(self.root, subject, self.which)
        if path is None:
            raise DataError(f"no {self.which}/obj/*.obj")
        return path

    def run(self, predict: Predict) -> Results:
        """Score a predictor; it gets "b 1 3 s s" with s = ``image_size``.

        Raises:
            AssetNotFoundError, DataError: see ``samples``.
        """
        dense: dict[str, dict[Mode, float]] = {}
        failures: dict[str, list[str]] = defaultdict(list)
        known = meshes_of(self._faces(predict, dense, failures))
        return _with_dense(self._score(lambda name: lookup(known, name)), dense, failures)

    def _faces(
        self, predict: Predict, dense: dict[str, dict[Mode, float]], failures: dict[str, list[str]]
    ) -> Iterator[tuple[str, Reconstruction | DataError]]:
        """What the method makes of each rendering; on the way the dense errors are found."""
        subjects = subjects_of(self.root, self.subjects)
        for subject in tqdm(subjects, f"{self.name} faces", disable=not self.progress):
            try:
                for pose, image, true in self._draw(subject):
                    name = self._name(subject, pose)
                    face = predicted(predict, image[None, None])
                    try:
                        points = in_image(face)[0, 0]
                        dense[name] = dense_nme_percent(
                            points, true.points, true.interocular, DENSE
                        )
                    except DataError as error:
                        failures[f"NME: {error}"].append(name)
                    yield name, face
            except _NotDrawnError as error:
                yield from ((self._name(subject, pose), error) for pose in self.poses(subject))

    def score(self, faces: Faces) -> Results:
        """Score meshes of any topology.

        Raises:
            AssetNotFoundError, DataError: see ``samples``.
        """
        if self.images is not None:
            for subject in subjects_of(self.root, self.subjects):
                with suppress(_NotDrawnError):  # it is counted when it is scored
                    list(self._draw(subject))
        return self._score(faces)

    def _score(self, faces: Faces) -> Results:
        """The errors of ``ScanBenchmark``, with those over all poses first."""
        results = super().score(faces)
        table, per_sample = [], dict(results.per_sample)
        for key, meaning in ERRORS.items():
            values: dict[str, float] = {}
            for group in self.samples():
                values |= results.per_sample[f"{group}_{key}_mm"]
            summary = Summary.of(torch.tensor(list(values.values()), dtype=torch.float64))
            table.append(Metric(f"all_{key}_mm", MILLIMETRES, f"all poses: {meaning}", summary))
            per_sample[f"all_{key}_mm"] = values
        size = f"Renderings of {self.image_size} x {self.image_size} pixels."
        return replace(
            results,
            metrics=[*table, *results.metrics],
            per_sample=per_sample,
            note=f"{size} {results.note}".strip(),
        )

    def _draw(self, subject: str) -> Iterator[tuple[Pose, Float[Tensor, "3 s s"], "_True"]]:
        """Pictures of a scan, and the scan in the frame of each.

        Raises:
            _NotDrawnError: there is no scan, or it is damaged or without colours.
        """
        try:
            (scan,) = self.scans(subject)
            check_unit(scan)
            points = scan.vertices[within(scan, scan.nose_tip, self.protocol.crop_mm)]
            coloured = read_coloured(self._path(subject))
        except DataError as error:
            raise _NotDrawnError(str(error)) from error
        for pose in self.poses(subject):
            camera = self._camera(scan.landmarks, pose)
            image = coloured.drawn(camera, self.image_size)
            seen, depth = camera.project(points)
            towards = -depth * camera.scale[..., None]
            eyes = scan.landmarks[[36, 45]]
            interocular = float((eyes[0] - eyes[1]).norm() * camera.scale)
            true = _True(torch.cat([seen, towards[..., None]], -1), interocular)
            if self.images is not None:
                self._write(self._name(subject, pose), image, camera.project(scan.landmarks)[0])
            yield pose, image, true

    def _camera(self, landmarks: Float[Tensor, "68 3"], pose: Pose) -> WeakPerspectiveCamera:
        """Places the landmarks in the picture as ``face_crop`` does; float64."""
        angles = torch.tensor([pose.pitch, pose.yaw, 0.0], dtype=torch.float64).deg2rad()
        rotation = frontal(landmarks) @ rotation_from_euler(*angles.unbind())
        one = torch.ones((), dtype=torch.float64)
        camera = WeakPerspectiveCamera(rotation, one, torch.zeros(2, dtype=torch.float64))
        seen = camera.project(landmarks)[0]
        matrix = face_crop(seen, torch.ones(len(seen)), self.image_size, self.crop_margin)
        return camera.crop(matrix[0, 0], matrix[:2, 2])

    def _write(self, name: str, image: Tensor, landmarks: Tensor) -> None:
        assert self.images is not None
        path = self.images / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path)
        np.save(path.with_suffix(".npy"), landmarks.numpy())


class _NotDrawnError(DataError):
    """There are no pictures of a scan."""


@dataclass(frozen=True)
class _True:
    """The cropped scan in the frame of a rendering (``benchmarks.dense``), pixels."""

    points: Float[Tensor, "n 3"]
    interocular: float


def _with_dense(
    results: Results, dense: dict[str, dict[Mode, float]], failures: dict[str, list[str]]
) -> Results:
    """With the NME of the renderings that have one."""
    names = list(dense)
    table, per_sample, curves = [], dict(results.per_sample), dict(results.curves)
    for mode in DENSE:
        values = torch.tensor([dense[name][mode] for name in names], dtype=torch.float64)
        metric, meaning = f"{mode}_nme_percent", f"dense, all poses, {MODES[mode]}"
        table.append(Metric(metric, PER_CENT, meaning, Summary.of(values)))
        per_sample[metric] = by_sample(names, values)
        missing = torch.full((results.images - len(names),), torch.nan, dtype=torch.float64)
        curves[metric] = error_curve(torch.cat([values, missing]), CURVE_PERCENT)
    metrics = [*table, *results.metrics]
    return replace(
        results,
        metrics=metrics,
        per_sample=per_sample,
        curves=curves,
        failures={**results.failures, **failures},
    )


@dataclass(frozen=True)
class Coloured:
    """A scan with its colours.

    Attributes:
        uv: v down; zeros where there is no picture.
        texture: RGB in [0, 1], if there is one.
        colours: of the vertices, RGB in [0, 1], if there is no picture.
    """

    vertices: Float[Tensor, "n 3"]
    triangles: Int[Tensor, "t 3"]
    uv: Float[Tensor, "n 2"]
    texture: Float[Tensor, "3 h w"] | None
    colours: Float[Tensor, "n 3"] | None

    def drawn(self, camera: WeakPerspectiveCamera, size: int) -> Float[Tensor, "3 s s"]:
        """The scan as a camera sees it, unlit, over black."""
        finer = torch.full_like(camera.scale, FINER)
        camera = camera.crop(finer, torch.zeros_like(camera.translation))
        one = camera.map(lambda value: value.float()[None, None])
        colours = None if self.colours is None else self.colours[None, None]
        surface = draw(
            self.vertices[None, None],
            self.triangles,
            self.uv,
            one,
            size * FINER,
            attributes=colours,
        )
        if self.texture is None:
            assert surface.attributes is not None
            image = surface.attributes
        else:
            image = wrap(self.texture[None, None], surface.uv)
        return F.avg_pool2d((image * surface.mask)[0], FINER)[0].clamp(0, 1)


def read_coloured(path: Path) -> Coloured:
    """A scan with a picture or with colours of its vertices; these may be split at seams.

    Raises:
        DataError: it cannot be read or has neither; in words that fit several scans.
    """
    import trimesh

    try:
        mesh: Any = trimesh.load(path, process=False, force="mesh")
        material = getattr(mesh.visual, "material", None)
        picture = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        uv, texture, colours = np.zeros((len(mesh.vertices), 2)), None, None
        if picture is not None and mesh.visual.uv is not None:
            texture = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
            texture, uv = texture.permute(2, 0, 1), mesh.visual.uv * [1, -1] + [0, 1]
        elif mesh.visual.kind == "vertex":
            colours = torch.from_numpy(np.array(mesh.visual.vertex_colors[:, :3])).float() / 255
    except Exception as error:  # trimesh's and Pillow's parsers raise a dozen kinds
        raise DataError("its .obj cannot be read") from error
    if texture is None and colours is None:
        raise DataError("its .obj has neither a picture nor colours of its vertices")
    return Coloured(
        torch.from_numpy(np.array(mesh.vertices)).float(),
        torch.from_numpy(np.array(mesh.faces)).long(),
        torch.from_numpy(np.array(uv)).float(),
        texture,
        colours,
    )

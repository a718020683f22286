"""SyntheticFaces: unseen people of a synthetic set, against their known shape, pose and albedo."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks import metrics
from benchmarks.base import (
    DEGREES,
    GREY_LEVELS,
    MILLIMETRES,
    PER_CENT,
    Benchmark,
    ErrorMesh,
    Metric,
    Predict,
    Results,
    Summary,
    by_sample,
    predicted,
    shown,
)
from core.align import procrustes
from core.camera import Camera, PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import MARGIN, face_crop, warp
from core.errors import AssetNotFoundError, DataError
from core.face_models import FaceModel
from core.image_files import read_image
from core.lighting import AMBIENT, shade_points
from core.normals import vertex_normals
from core.render import draw, render_reconstruction
from core.rotation import euler_from_rotation
from core.truth import Truth, load_truth
from core.uv import bake, unwrap, uv_grid

BASELINE = "mean face"
TEXELS = 96  # side of the UV map on which reflectance is compared
CURVES = {"nme_percent": 10.0, "shape_mm": 5.0}  # how far each curve goes
BY_SAMPLE = ["nme_percent", "pose_degrees", "shape_mm", "neutral_mm", "albedo_255"]
BY_SAMPLE += ["photometric_255"]
VISIBLE = 0.5  # of a mask's pixel or texel: more of it is face than is not

UNITS = {"percent": PER_CENT, "degrees": DEGREES, "mm": MILLIMETRES, "255": GREY_LEVELS}
MEANING = {
    "nme_percent": "landmarks, all poses",
    "nme_to_30_percent": "landmarks, yaw up to 30°",
    "nme_to_60_percent": "landmarks, yaw 30° to 60°",
    "nme_to_90_percent": "landmarks, yaw above 60°",
    "pose_degrees": "angle between the rotations",
    "pose_to_30_degrees": "the same, yaw up to 30°",
    "pose_to_60_degrees": "the same, yaw 30° to 60°",
    "pose_to_90_degrees": "the same, yaw above 60°",
    "pitch_degrees": "pitch alone",
    "yaw_degrees": "yaw alone",
    "roll_degrees": "roll alone",
    "shape_mm": "with expression, similarity-aligned",
    "shape_rigid_mm": "with expression, rigidly aligned",
    "neutral_mm": "without expression, similarity-aligned",
    "neutral_rigid_mm": "without expression, rigidly aligned",
    "albedo_255": "reflectance up to a gain per channel",
    "albedo_raw_255": "reflectance as it is",
    "shading_percent": "correlation of the reflectance's error with the shading",
    "shading_power_percent": "power of the shading in the reflectance",
    "photometric_255": "colour, mean over channels",
    "photometric_rgb_255": "colour, Euclidean in RGB",
    "coverage_percent": "of the seen face that is drawn (higher is better)",
}


class SyntheticFaces(Benchmark):
    """Frames of people that no training has seen, each with everything known (``core.truth``).

    Protocol. Images: every frame of the split whose detector found a face, cropped with
    ``core.crop.face_crop`` on the *detected* landmarks, as a user would. Compared in pixels of the
    crop:

    * Landmarks: NME over all 68 points, hidden ones included, in % of sqrt(w h) of the true points'
      box, as on AFLW2000-3D; also by bins of the true yaw.
    * Pose: relative to the line of sight to the model's origin, since a crop does not tell where
      the optical axis was. Geodesic angle, also by bins of the true yaw; absolute differences of
      the Euler angles.
    * Shape: mean distance of corresponding vertices of the model's region ``face``, per image,
      after a least-squares alignment of these vertices: a similarity, or rigid.
    * Reflectance: mean absolute difference over the texels of a 96 x 96 UV map that the true face
      shows and nothing covers; as it is, and after a gain for each channel, since light and
      reflectance are known only up to it. Over the same texels the correlation of its relative
      error with the true shading, and the power of the shading in it: how much light is left.
    * Photometric: the drawn face against the crop, in the pixels that are both drawn and visible
      face (the true mask, without occluders); coverage says how much of the latter that is. Light
      coefficients are not compared.

    Each figure is the mean over images of an image's mean; std is the population's. The baseline
    "mean face" is the model's mean shape, frontal, of the size and place that the crop's convention
    gives, with mean reflectance under ambient light. An image of which something cannot be
    computed is listed, and is not in the mean of that.

    Meshes of another topology than the truth's are scored without shape and reflectance.

    Args:
        root: of the synthetic set.
        split: train, val or test.
        image_size: side of the crops, pixels: what the method takes.
        crop_margin: side of the crop in units of the landmarks' box: that of the training.
        batch_size: images at a time.
        frames: how many frames of a clip the method sees at once: the scored one, and others
            spread over the clip. Only methods that make one person of them can profit.
        every: only every so many-th frame of a clip.
        max_frames: at most so many frames, chosen at random.
        seed: of that choice.
        progress: show a bar.
    """

    name = "synthetic"

    def __init__(
        self,
        root: Path,
        split: str = "test",
        image_size: int = 256,
        crop_margin: float = MARGIN,
        batch_size: int = 32,
        frames: int = 1,
        every: int = 1,
        max_frames: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        sizes = {"image_size": image_size, "batch_size": batch_size, "frames": frames}
        for name, value in sizes.items():
            if value < 1:
                raise DataError(f"SyntheticFaces: {name} is {value}; wanted at least 1")
        if every < 1 or (max_frames is not None and max_frames < 1):
            raise DataError(
                f"SyntheticFaces: every is {every} and max_frames {max_frames}; wanted at least 1"
            )
        self.root, self.split = Path(root), split
        if split != "test":
            self.name = f"{self.name}_{split}"
        if frames > 1:
            self.name = f"{self.name}_{frames}_frames"
        self.frames = frames
        self.image_size, self.crop_margin, self.batch_size = image_size, crop_margin, batch_size
        self.every, self.max_frames, self.seed = every, max_frames, seed
        self.progress = progress

    def run(self, predict: Predict) -> Results:
        """Score a predictor; it gets "b 1 3 s s" with s = ``image_size``.

        Raises:
            AssetNotFoundError: there is no such set, or it has no ground truth.
            DataError: people or frames of the split are missing, or ``predict`` returns something
                else than one face per image.
        """
        found, undetected = self._frames()
        frames = self._subset(found)
        looked_at = shown(frames)
        failures: dict[str, list[str]] = defaultdict(list)
        notes: list[str] = []
        scores: list[dict[str, Tensor]] = []
        baseline: list[dict[str, Tensor]] = []
        yaws: list[Tensor] = []
        names: list[str] = []
        meshes: dict[str, ErrorMesh] = {}
        bar = tqdm(total=len(frames), desc=self.name, unit="frame", disable=not self.progress)
        for batch in self._batches(frames, failures):
            face = predicted(predict, batch.clips)
            if self.frames > 1:
                face = _first_frames(face)
            comparable = _same_mesh(face, batch.model)
            if not comparable and not notes:
                notes.append(_other_mesh(face, batch.model))
            scores.append(_score(face, batch, comparable, failures))
            names += batch.names
            if comparable:
                meshes |= _meshes(face, batch, scores[-1]["shape_mm"], looked_at)
            mean = mean_face(batch.model, self.image_size, self.crop_margin, len(batch.images))
            baseline.append(_score(mean, batch, True, None))
            yaws.append(euler_from_rotation(batch.rotation)[1])
            bar.update(len(batch.images))
        bar.close()
        if not scores:
            raise DataError(
                f"no frame of '{self.root}' could be read and cropped: {dict(failures)}"
            )
        own, others = _joined(scores), _joined(baseline)
        yaw = torch.cat(yaws).abs() * (180 / math.pi)
        _add_yaw_bins(own, yaw)
        _add_yaw_bins(others, yaw)
        table = [
            Metric(
                name,
                UNITS[name.rpartition("_")[2]],
                meaning,
                Summary.of(own[name]),
                {BASELINE: Summary.of(others[name])},
                higher_is_better=name == "coverage_percent",
            )
            for name, meaning in MEANING.items()
        ]
        protocol = (
            f"{len(frames)} of {len(found)} detected frames of the {self.split} split (in "
            f"{undetected} more the detector found no face) of set "
            f"{self._manifest().get('hash', 'without manifest')[:8]}. NME in % of sqrt(w h) of the "
            "true landmarks' box; pose relative to the line of sight; shape in mm between "
            "corresponding vertices of the region 'face'; reflectance on the visible texels; "
            "colour where drawn and visible face meet."
        )
        return Results(
            self.name,
            " ".join([protocol, *notes]),
            table,
            len(frames),
            dict(failures),
            per_sample={key: by_sample(names, own[key]) for key in BY_SAMPLE},
            curves={key: metrics.error_curve(own[key], most) for key, most in CURVES.items()},
            note=f"Crops of {self.image_size} x {self.image_size} pixels, margin "
            f"{self.crop_margin:g}.",
            meshes=meshes,
        )

    def _frames(self) -> tuple[list[str], int]:
        """The detected frames of the split, sorted, and the number of those without a detection.

        Raises:
            AssetNotFoundError: there is no such split.
            DataError: a person has not as many frames as the set's manifest says.
        """
        listing = self.root / "splits" / f"{self.split}.txt"
        if not listing.is_file():
            raise AssetNotFoundError(
                f"synthetic set, split '{self.split}'",
                f"'{listing}'",
                "Make the set with python -m datamodules.synthetic, or give its folder as root.",
            )
        wanted, names, without = self._frames_of_a_person(), [], 0
        for person in listing.read_text().split():
            images = sorted((self.root / "frames" / person).glob("*/*/*.*"))
            if not images or wanted not in (None, len(images)):
                raise DataError(
                    f"'{self.root / 'frames' / person}' holds {len(images)} frames, wanted "
                    f"{wanted or 'some'}; make the set again: python -m datamodules.synthetic"
                )
            for image in images:
                name = image.relative_to(self.root / "frames").with_suffix("")
                if (self.root / "landmarks" / name).with_suffix(".npy").is_file():
                    names.append(name.as_posix())
                else:
                    without += 1
        return names, without

    def _manifest(self) -> dict[str, Any]:
        path = self.root / "manifest.json"
        manifest: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return manifest

    def _frames_of_a_person(self) -> int | None:
        settings = self._manifest().get("settings")
        return math.prod(settings[k] for k in ("videos", "clips", "frames")) if settings else None

    def _subset(self, names: list[str]) -> list[str]:
        names = [name for name in names if int(name.rpartition("/")[2]) % self.every == 0]
        if self.max_frames is not None and self.max_frames < len(names):
            random = np.random.default_rng(self.seed)
            chosen = sorted(random.choice(len(names), self.max_frames, replace=False))
            names = [names[k] for k in chosen]
        if not names:
            raise DataError(f"no frame is left of '{self.root}', {self.split}, every {self.every}")
        return names

    def _batches(self, names: list[str], failures: dict[str, list[str]]) -> Iterator["_Batch"]:
        for start in range(0, len(names), self.batch_size):
            frames = []
            for name in names[start : start + self.batch_size]:
                truth = load_truth(self.root, name)
                try:
                    frames.append(self._frame(name, truth))
                except DataError as error:
                    failures[f"not usable: {error}"].append(name)
            if frames:
                yield _batch(frames)

    def _frame(self, name: str, truth: Truth) -> "_Frame":
        crop, matrix = self._crop(name, truth)
        others = [self._crop(n, load_truth(self.root, n))[0][:3] for n in self._others(name)]
        clip = torch.stack([crop[:3], *others]).clamp(0, 1)
        return _Frame(name, clip, (crop[3:] > VISIBLE).float(), matrix, truth)

    def _others(self, name: str) -> list[str]:
        """What else is shown of the clip: evenly spread after the frame, beginning anew at the
        end.
        """
        if self.frames == 1:
            return []
        clip, _, frame = name.rpartition("/")
        found = sorted(path.stem for path in (self.root / "landmarks" / clip).glob("*.npy"))
        at = found.index(frame)
        steps = [round(k * len(found) / self.frames) for k in range(1, self.frames)]
        return [f"{clip}/{found[(at + step) % len(found)]}" for step in steps]

    def _crop(self, name: str, truth: Truth) -> tuple[Float[Tensor, "4 s s"], Float[Tensor, "3 3"]]:
        """Image and mask of a frame, and the crop's matrix.

        Raises:
            DataError: one of its files is not what it should be.
        """
        detected = np.load((self.root / "landmarks" / name).with_suffix(".npy"))
        if detected.shape != (68, 3):
            raise DataError(f"landmarks of shape {detected.shape}, wanted (68, 3)")
        points = torch.from_numpy(detected).float()
        size, margin = self.image_size, self.crop_margin
        matrix = face_crop(points[:, :2], points[:, 2], size, margin)
        image = _read(truth.image_path, "RGB")
        mask = _read(truth.mask_path, "L")
        if mask.shape[-2:] != image.shape[-2:]:
            raise DataError(f"mask of {tuple(mask.shape[-2:])}, image {tuple(image.shape[-2:])}")
        return warp(torch.cat([image, mask]), matrix, size), matrix


@dataclass(frozen=True)
class _Frame:
    name: str
    clip: Tensor
    mask: Tensor
    matrix: Tensor
    truth: Truth


@dataclass(frozen=True)
class _Batch:
    """Frames and their truth in pixels of the crop."""

    names: list[str]
    model: FaceModel
    images: Float[Tensor, "b 1 3 s s"]
    clips: Float[Tensor, "b v 3 s s"]
    masks: Float[Tensor, "b 1 1 s s"]
    camera: PerspectiveCamera
    landmarks: Float[Tensor, "b 1 68 2"]
    rotation: Float[Tensor, "b 3 3"]
    vertices: Float[Tensor, "b 1 n 3"]
    neutral: Float[Tensor, "b 1 n 3"]
    albedo: Float[Tensor, "b 1 3 t t"]
    shading: Float[Tensor, "b 1 1 t t"]
    texels: Float[Tensor, "b 1 1 t t"]


def _batch(frames: list[_Frame]) -> _Batch:
    truths = [frame.truth for frame in frames]
    model = truths[0].model
    clips = torch.stack([frame.clip for frame in frames])
    images = clips[:, :1]
    masks = torch.stack([frame.mask for frame in frames])[:, None]
    matrix = torch.stack([frame.matrix for frame in frames])
    original = PerspectiveCamera(
        *(
            torch.stack([getattr(truth.camera, key) for truth in truths])[:, None]
            for key in ("rotation", "translation", "focal", "centre")
        )
    )
    scale, offset = matrix[:, None, 0, 0], matrix[:, None, :2, 2]  # the crop does not turn
    camera = original.crop(scale, offset)
    landmarks = torch.stack([truth.landmarks for truth in truths])[:, None]
    vertices = torch.stack([truth.vertices for truth in truths])[:, None]
    surface = draw(vertices, model.triangles, model.uv, camera, images.shape[-1])
    grid = uv_grid(model.uv, model.triangles, TEXELS)
    seen, visible = unwrap(masks, vertices, camera, surface, grid, model.triangles)
    normals = vertex_normals(camera.position(vertices), model.triangles)
    light = torch.stack([truth.light for truth in truths])[:, None]
    shading = bake(shade_points(normals, light).mean(-1, keepdim=True), grid, model.triangles)
    return _Batch(
        names=[frame.name for frame in frames],
        model=model,
        images=images,
        clips=clips,
        masks=masks,
        camera=camera,
        landmarks=landmarks * scale[..., None, None] + offset[..., None, :],
        rotation=apparent_rotation(original)[:, 0],
        vertices=vertices,
        neutral=torch.stack([truth.neutral for truth in truths])[:, None],
        albedo=_at(TEXELS, torch.stack([truth.albedo_map for truth in truths])[:, None]),
        shading=shading,
        texels=(seen * visible > VISIBLE).float(),
    )


def _score(
    face: Reconstruction,
    batch: _Batch,
    comparable: bool,
    failures: dict[str, list[str]] | None,
) -> dict[str, Tensor]:
    """All metrics of a batch, NaN where one could not be computed, and why to ``failures``."""
    finite = _finite(face)
    good = finite.nonzero()[:, 0]
    size = len(finite)
    scores = {name: torch.full((size,), torch.nan) for name in MEANING}
    reasons = {"the prediction is not finite": ~finite}
    if len(good):
        face = _select(face, good)
        found, more = _score_finite(face, batch, comparable, good)
        for name, values in found.items():
            scores[name][good] = values
        for reason, which in more.items():
            reasons[reason] = torch.zeros(size, dtype=torch.bool)
            reasons[reason][good] = which
    if failures is not None:
        for reason, which in reasons.items():
            names = [batch.names[k] for k in which.nonzero()[:, 0].tolist()]
            if names:
                failures.setdefault(reason, []).extend(names)
    return scores


def _score_finite(
    face: Reconstruction, batch: _Batch, comparable: bool, rows: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics and, by reason, which images failed."""
    rotation, true_rotation = apparent_rotation(face.camera)[:, 0], batch.rotation[rows]
    euler = metrics.euler_degrees(rotation, true_rotation)
    images, masks = batch.images[rows, 0], batch.masks[rows, 0]
    rendered, surface = render_reconstruction(face, images.shape[-1])
    both = surface.mask[:, 0] * masks
    scores = {
        "nme_percent": metrics.nme_percent(face.landmarks, batch.landmarks[rows])[:, 0],
        "pose_degrees": metrics.rotation_degrees(rotation, true_rotation),
        "pitch_degrees": euler[:, 0],
        "yaw_degrees": euler[:, 1],
        "roll_degrees": euler[:, 2],
        "photometric_255": metrics.photometric_255(rendered[:, 0], images, both),
        "photometric_rgb_255": metrics.photometric_rgb_255(rendered[:, 0], images, both),
        "coverage_percent": metrics.coverage_percent(surface.mask[:, 0], masks),
    }
    hidden = scores["coverage_percent"].isnan()
    failed = {
        "nothing of the true face is visible": hidden,
        "nothing of the face is drawn where it is seen": scores["photometric_255"].isnan()
        & ~hidden,
    }
    if comparable:
        region = batch.model.region("face")
        for name, found, true in (
            ("shape", face.vertices, batch.vertices),
            ("neutral", face.neutral, batch.neutral),
        ):
            points = found[:, 0, region], true[rows, 0][:, region]
            scores[f"{name}_mm"] = _aligned(*points, scale=True)
            scores[f"{name}_rigid_mm"] = _aligned(*points, scale=False)
            failed[f"{name}: the vertices cannot be aligned"] = scores[f"{name}_mm"].isnan()
        maps = _at(TEXELS, face.albedo_map)[:, 0], batch.albedo[rows, 0], batch.texels[rows, 0]
        scores["albedo_255"] = metrics.albedo_255(*maps, gain=True)
        scores["albedo_raw_255"] = metrics.albedo_255(*maps, gain=False)
        found, true, texels = maps
        light = batch.shading[rows, 0]
        scores["shading_percent"] = metrics.shading_percent(found, true, light, texels)
        scores["shading_power_percent"] = metrics.shading_power_percent(found, true, light, texels)
    return scores, failed


def _meshes(
    face: Reconstruction, batch: _Batch, shape_mm: Float[Tensor, " b"], wanted: set[str]
) -> dict[str, ErrorMesh]:
    """The wanted faces that could be scored: aligned as for ``shape_mm``, with their distances."""
    region, found = batch.model.region("face"), {}
    for k, name in enumerate(batch.names):
        if name in wanted and not shape_mm[k].isnan():
            ours, true = face.vertices[k, 0].double(), batch.vertices[k, 0].double()
            moved = procrustes(ours[region], true[region], True).apply(ours)
            error = torch.full_like(moved[:, 0], torch.nan)
            error[region] = (moved - true)[region].norm(dim=-1)
            found[name] = ErrorMesh(moved.float(), face.triangles, error.float())
    return found


def mean_face(model: FaceModel, size: int, margin: float, count: int = 1) -> Reconstruction:
    """The baseline: the mean shape from the front, where ``core.crop.face_crop`` would put it.

    Mean reflectance, ambient light. It looks at no image.

    Args:
        model: whose mean.
        size: side of the crop, pixels.
        margin: of the crop.
        count: copies, as batch axes (count, 1).
    """
    points = model.landmarks(model.mean)[:, :2]
    low, high = points.amin(0), points.amax(0)
    scale = size / (margin * (high - low).max())
    middle = (low + high) / 2 * points.new_tensor([1, -1])
    camera = WeakPerspectiveCamera(frontal(points), scale, size / 2 - scale * middle)
    light = points.new_zeros(9, 1)
    light[0] = AMBIENT
    grid = uv_grid(model.uv, model.triangles, TEXELS)

    def copies(tensor: Tensor) -> Tensor:
        return tensor.expand(count, 1, *tensor.shape)

    camera = camera.map(copies)
    vertices = copies(model.mean)
    return Reconstruction(
        vertices=vertices,
        neutral=vertices,
        triangles=model.triangles,
        uv=model.uv,
        camera=camera,
        landmarks=camera.project(model.landmarks(vertices))[0],
        albedo_map=copies(bake(model.albedo_mean, grid, model.triangles)),
        light=copies(light),
    )


def apparent_rotation(camera: Camera) -> Float[Tensor, "*b 3 3"]:
    """The head rotation as it looks: relative to the line of sight to the model's origin.

    Under weak perspective it is the head rotation. A perspective camera is first turned, by the
    smallest rotation, to look at the origin. Worked number: a head whose rotation is the identity,
    45 degrees to the right of the optical axis, shows its cheek on the image's left, so that the
    nose seems turned to the image's right: yaw = -45 degrees.
    """
    if not isinstance(camera, PerspectiveCamera):
        return camera.head_rotation
    x, y, z = torch.nn.functional.normalize(camera.translation, dim=-1).unbind(-1)
    # Rodrigues' formula from (x, y, z) to (0, 0, 1) without angles; singular only behind the camera
    k = 1 / (1 + z)
    rows = [
        torch.stack([1 - k * x * x, -k * x * y, -x], -1),
        torch.stack([-k * x * y, 1 - k * y * y, -y], -1),
        torch.stack([x, y, z], -1),
    ]
    return frontal(x) @ torch.stack(rows, -2) @ camera.rotation


def _read(path: Path, mode: Literal["RGB", "L"]) -> Float[Tensor, "c h w"]:
    try:
        return read_image(path, mode).float() / 255
    except DataError as error:  # frames are listed by reason, so without their paths
        raise DataError(f"unreadable {path.suffix[1:]} file") from error


def _at(size: int, maps: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c s s"]:
    """UV maps resampled to size x size texels."""
    if maps.shape[-2:] == (size, size):
        return maps
    small = F.interpolate(maps.flatten(0, 1), (size, size), mode="bilinear", antialias=True)
    return small.unflatten(0, maps.shape[:2])


def _aligned(found: Tensor, true: Tensor, scale: bool) -> Tensor:
    """``aligned_point_to_point_mm``, NaN for those that cannot be aligned."""
    try:
        return metrics.aligned_point_to_point_mm(found, true, scale)
    except ValueError:
        if len(found) == 1:
            return torch.full((1,), torch.nan)
        halves = zip(found.tensor_split(2), true.tensor_split(2), strict=True)
        return torch.cat([_aligned(x, y, scale) for x, y in halves])


def _finite(face: Reconstruction) -> Tensor:
    """Which images' faces are free of NaN and infinities."""
    parts = [face.vertices, face.neutral, face.landmarks, face.albedo_map, face.light]
    parts += [
        value.flatten(2) if value.dim() > 2 else value for value in vars(face.camera).values()
    ]
    return torch.stack([part.reshape(len(part), -1).isfinite().all(1) for part in parts]).all(0)


def _select(face: Reconstruction, rows: Tensor) -> Reconstruction:
    return Reconstruction(
        vertices=face.vertices[rows],
        neutral=face.neutral[rows],
        triangles=face.triangles,
        uv=face.uv,
        camera=face.camera.map(lambda value: value[rows]),
        landmarks=face.landmarks[rows],
        albedo_map=face.albedo_map[rows],
        light=face.light[rows],
    )


def _first_frames(face: Reconstruction) -> Reconstruction:
    """Of each clip's faces the first."""
    tensors = ("vertices", "neutral", "landmarks", "albedo_map", "light")
    return replace(
        face,
        **{name: getattr(face, name)[:, :1] for name in tensors},
        camera=face.camera.map(lambda value: value[:, :1]),
        coefficients={name: value[:, :1] for name, value in face.coefficients.items()},
    )


def _same_mesh(face: Reconstruction, model: FaceModel) -> bool:
    return torch.equal(face.uv, model.uv)  # the same vertices; a method may draw a part only


def _other_mesh(face: Reconstruction, model: FaceModel) -> str:
    return (
        "Shape and reflectance are not scored: the predicted mesh "
        f"({face.vertices.shape[-2]} vertices) is not that of the truth ({len(model.mean)}, with "
        "their own texture coordinates), and this benchmark compares "
        "corresponding vertices only."
    )


def _joined(scores: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([score[name] for score in scores]) for name in MEANING}


def _add_yaw_bins(scores: dict[str, Tensor], yaw_degrees: Tensor) -> None:
    """NME and pose of each bin, NaN outside it."""
    which = metrics.yaw_bin(yaw_degrees)
    for what, unit in (("nme", "percent"), ("pose", "degrees")):
        for k, edge in enumerate((30, 60, 90)):
            inside = scores[f"{what}_{unit}"].where(which == k, torch.nan)
            scores[f"{what}_to_{edge}_{unit}"] = inside

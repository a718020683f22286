"""MICC Florence 2D/3D: faces from videos against scans of the same people."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.base import Predict, Results, listed, predicted, require_folder
from benchmarks.predictions import FaceMesh, landmark_vertices, read_mesh
from benchmarks.scans import USUAL, ScanBenchmark, ScanProtocol
from benchmarks.views import lookup
from core.crop import MARGIN, face_crop, warp
from core.detect import FaceDetector
from core.errors import DataError
from core.face_models.files import read_npz

SUBJECTS = 53
VIDEOS = {
    "cooperative": "Indoor-Cooperative",
    "indoor": "PTZ-Indoor",
    "outdoor": "PTZ-Outdoor",
}
SCANS = ("frontal1", "frontal2")
LICENCE = "research only, by the form of the MICC, University of Florence"


class MICC(ScanBenchmark):
    """MICC Florence 2D/3D face dataset (Bagdanov et al. 2011), the protocol of Deng et al. 2019.

    On disk (``subject_01`` ... ``subject_53``)::

        subject_01/Model/frontal1/obj/<time>.obj      scans, mm, x to the image's right, y up,
        subject_01/Model/frontal2/obj/<time>.obj      z to the camera; subject_30 has no frontal2
        subject_01/Model/frontal1/obj/<time>.ljson    its 68 landmarks (menpo)
        subject_01/Video/Indoor-Cooperative.<any>     also PTZ-Indoor and PTZ-Outdoor

    The landmarks are those that come with GANFit's code (GPL; ``MICC_landmarks``), in the same
    tree: copied into the data set's, or in a folder of their own. Licence of the data: research
    only, by a form.

    Protocol. One mesh for each video: the mean of the neutral shapes of all frames with a face. The
    scan is cropped to 95 mm around the nose tip; the mesh is moved by the landmarks, then by ICP
    with a scale for each mesh; errors are point-to-plane distances from every vertex in the crop.
    Deng et al. and MGCNet also cut the forehead, by a plane that is not known: that is not done.
    Which scan they took is not known either. Each figure is the mean over the 53 subjects for each
    kind of video.

    Args:
        root: of the data set.
        landmarks: folder with the .ljson files; otherwise ``root``.
        frame_landmarks: folder with ``subject_01/PTZ-Indoor.npz``: landmarks (f, 68, 2 or more) in
            pixels, origin at the top left corner of the image, and valid (f,). Otherwise the
            detector looks for the largest face in each frame.
        scan: frontal1, frontal2, or best: the nearer one (GANFit).
        protocol: how a face is compared with a scan.
        subjects: names to score these only; otherwise there must be 53.
        image_size: side of the crops of frames, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        batch_size: frames at a time.
        every: only every so many-th frame.
        max_frames: at most so many of a video, the first ones.
        progress: show a bar.
    """

    name = "micc"

    def __init__(
        self,
        root: Path,
        landmarks: Path | None = None,
        frame_landmarks: Path | None = None,
        scan: Literal["frontal1", "frontal2", "best"] = "frontal1",
        protocol: ScanProtocol = USUAL,
        subjects: list[str] | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        batch_size: int = 32,
        every: int = 1,
        max_frames: int | None = None,
        progress: bool = True,
    ) -> None:
        if min(image_size, batch_size, every) < 1 or (max_frames is not None and max_frames < 1):
            raise DataError(
                f"MICC: image_size {image_size}, batch_size {batch_size}, every {every} and "
                f"max_frames {max_frames}; wanted at least 1"
            )
        super().__init__(protocol, progress)
        self.root, self.landmarks, self.frame_landmarks = root, landmarks or root, frame_landmarks
        self.which, self.subjects = scan, subjects
        self.image_size, self.crop_margin, self.batch_size = image_size, crop_margin, batch_size
        self.every, self.max_frames = every, max_frames
        self._detector: FaceDetector | None = None

    def samples(self) -> dict[str, list[str]]:
        """subject_01/PTZ-Indoor and so on, by the kind of video."""
        chosen = subjects_of(self.root, self.subjects)
        return {kind: [f"{name}/{video}" for name in chosen] for kind, video in VIDEOS.items()}

    def describe(self) -> str:
        """The subjects and scans."""
        which = "the nearer of frontal1 and frontal2" if self.which == "best" else self.which
        frames = "" if self.every == 1 else f" Every {self.every}. frame."
        if self.max_frames is not None:
            frames += f" At most {self.max_frames} frames of each."
        people = people_of(self.subjects)
        return f"{people}, three videos each, against scan {which}.{frames}"

    def scans(self, sample: str) -> list[FaceMesh]:
        """One scan, or those that there are for ``scan="best"``."""
        subject = sample.partition("/")[0]
        names = SCANS if self.which == "best" else (self.which,)
        paths = [scan_path(self.root, subject, name) for name in names]
        found = [read_scan(path, self.root, self.landmarks) for path in paths if path is not None]
        if not found:
            raise DataError(f"no {' or '.join(names)}/obj/*.obj")
        return found

    def run(self, predict: Predict) -> Results:
        """Score a predictor on the videos' frames; it gets "b 1 3 s s" with s = ``image_size``.

        Raises:
            AssetNotFoundError: there is no such data set, or no detector.
            DataError: subjects are missing.
        """
        names = [name for group in self.samples().values() for name in group]
        known: dict[str, FaceMesh | DataError] = {}
        for name in names:
            try:
                known[name] = self._average(name, predict)
            except DataError as error:
                known[name] = error

        return self.score(lambda sample: lookup(known, sample))

    def _average(self, sample: str, predict: Predict) -> FaceMesh:
        """The mean neutral shape of a video's frames.

        Raises:
            DataError: there is no video, it cannot be decoded, or no frame has a usable face.
        """
        total, count = None, 0
        for images in self._crops(sample):
            face = predicted(predict, images)
            good = torch.stack(
                [x.isfinite().flatten(1).all(1) for x in (face.neutral, face.landmarks)]
            )
            good = good.all(0)
            neutral = face.neutral[good, 0].double()
            if total is None and len(neutral):
                seen = face.camera.project(face.vertices)[0][good, 0]
                rows = landmark_vertices(seen, face.landmarks[good, 0], neutral[0, :, 2].float())
                total = torch.zeros_like(neutral[0])
            if total is not None:
                total += neutral.sum(0)
                count += len(neutral)
        if total is None:
            raise DataError("no frame of the video has a face and a finite prediction")
        return FaceMesh(total / count, face.triangles.long(), (total / count)[rows])

    def _crops(self, sample: str) -> Iterator[Float[Tensor, "b 1 3 s s"]]:
        """Batches of the frames that have a face."""
        crops = []
        for frame, points in self._frames(sample):
            matrix = face_crop(points, torch.ones(68), self.image_size, self.crop_margin)
            crops.append(warp(frame, matrix, self.image_size).clamp(0, 1))
            if len(crops) == self.batch_size:
                yield torch.stack(crops)[:, None]
                crops = []
        if crops:
            yield torch.stack(crops)[:, None]

    def _frames(self, sample: str) -> Iterator[tuple[Tensor, Float[Tensor, "68 2"]]]:
        """Frames, RGB in [0, 1], with their landmarks."""
        import av

        subject, video = sample.split("/")
        paths = sorted((self.root / subject / "Video").glob(f"{video}.*"))
        if not paths:
            raise DataError("there is no such video")
        known = self._known_landmarks(sample)
        try:
            with av.open(str(paths[0])) as container:
                chosen = islice(container.decode(video=0), 0, None, self.every)
                for index, frame in enumerate(islice(chosen, self.max_frames)):
                    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                    image = pixels.permute(2, 0, 1).float() / 255
                    points = self._points(image, index * self.every, known)
                    if points is not None:
                        yield image, points
        except av.error.FFmpegError as error:
            raise DataError("the video cannot be decoded") from error

    def _known_landmarks(self, sample: str) -> tuple[Tensor, Tensor] | None:
        """Landmarks of all frames and whether they are valid, if a folder of them was given."""
        if self.frame_landmarks is None:
            return None
        path = self.frame_landmarks / f"{sample}.npz"
        if not path.is_file():
            raise DataError("there are no landmarks of the video's frames")
        arrays = read_npz(path)
        points, valid = arrays.get("landmarks"), arrays.get("valid")
        if points is None or valid is None or points.shape[:2] != (len(valid), 68):
            raise DataError("the landmarks of the video's frames are not (f, 68, 2) and valid (f,)")
        return torch.from_numpy(points[..., :2]).float(), torch.from_numpy(valid).bool()

    def _points(
        self, image: Tensor, index: int, known: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "68 2"] | None:
        """The landmarks of a frame; None if it shows no face."""
        if known is not None:
            points, valid = known
            return points[index] if index < len(valid) and valid[index] else None
        if self._detector is None:
            self._detector = FaceDetector()
        found = self._detector(image)
        return found[0].landmarks if found else None


def subjects_of(root: Path, wanted: list[str] | None) -> list[str]:
    """The folders of MICC Florence's people.

    Args:
        root: of the data set.
        wanted: names; None for all 53.

    Raises:
        AssetNotFoundError: there is no such data set.
        DataError: some are missing.
    """
    require_folder(
        "MICC Florence",
        root,
        "Ask for it at micc.unifi.it and give the folder of subject_01 as root.",
        LICENCE,
    )
    found = sorted(path.name for path in root.glob("subject_*") if path.is_dir())
    if wanted is None and len(found) != SUBJECTS:
        raise DataError(
            f"'{root}' holds {len(found)} folders subject_*, wanted {SUBJECTS}; complete it, or "
            "give the names of those to score as subjects"
        )
    missing = sorted(set(wanted or []) - set(found))
    chosen = found if wanted is None else wanted
    if missing or not chosen:
        raise DataError(f"'{root}' has no {missing or 'subject at all'}")
    return chosen


def people_of(wanted: list[str] | None) -> str:
    """How many of MICC Florence's people are scored, and who, if not all."""
    return f"{SUBJECTS} subjects" if wanted is None else listed(wanted, "subjects")


def scan_path(root: Path, subject: str, name: str) -> Path | None:
    """The .obj of a scan (frontal1), if it is there."""
    folder = root / subject / "Model" / name / "obj"
    return next(iter(sorted(folder.glob("*.obj"))), None)


def read_scan(path: Path, root: Path, landmarks: Path) -> FaceMesh:
    """A scan with its 68 landmarks.

    Args:
        path: of the .obj.
        root: of the data set.
        landmarks: a folder with the same tree, in which the .ljson is.

    Raises:
        DataError: a file is missing or damaged, in words that fit several scans.
    """
    points = read_ljson((landmarks / path.relative_to(root)).with_suffix(".ljson"))
    try:
        vertices, triangles = read_mesh(path)
    except DataError as error:
        raise DataError("its .obj cannot be read") from error
    return FaceMesh(vertices, triangles, points)


def read_ljson(path: Path) -> Float[Tensor, "68 3"]:
    """The 68 landmarks of a menpo file.

    Raises:
        DataError: it is missing or holds something else; its message names no file, so that equal
            failures of several samples read equal.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = content.get("groups", {"LJSON": content})  # version 3; versions 1 and 2
        points = torch.tensor(groups["LJSON"]["landmarks"]["points"], dtype=torch.float64)
    except FileNotFoundError as error:
        raise DataError("no .ljson of its 68 landmarks") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("its .ljson cannot be read") from error
    if points.shape != (68, 3) or not points.isfinite().all():
        raise DataError(f"its .ljson holds points of shape {tuple(points.shape)}, wanted (68, 3)")
    return points

"""Photographs of people of whom there are scans: crops, predictions, and how faces are found."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.base import Predict, predicted
from benchmarks.predictions import FaceMesh, frontmost, landmark_distances
from core.contracts import Reconstruction
from core.crop import MARGIN, face_crop, warp
from core.detect import FaceDetector
from core.errors import DataError
from core.image_files import read_image


class FaceFinder:
    """The 68 landmarks of the face in a photograph, from files or by the detector.

    Args:
        landmarks: folder with <sample>.npy or .txt, (68, 2 or more), pixels, origin at the top left
            corner of the image; None: the detector looks for the largest face.
    """

    def __init__(self, landmarks: Path | None) -> None:
        self.landmarks = landmarks
        self._detector: FaceDetector | None = None

    def __call__(self, sample: str, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "68 2"]:
        """The landmarks.

        Raises:
            DataError: there are none; its message names no file, so that equal failures of several
                samples read equal.
        """
        if self.landmarks is not None:
            return self._read(self.landmarks, sample)
        if self._detector is None:
            self._detector = FaceDetector()
        found = self._detector(image)
        if not found:
            raise DataError("no face was found in the photograph")
        return found[0].landmarks

    def _read(self, folder: Path, sample: str) -> Tensor:
        arrays, texts = folder / f"{sample}.npy", folder / f"{sample}.txt"
        try:
            array = np.load(arrays, allow_pickle=False) if arrays.is_file() else np.loadtxt(texts)
        except FileNotFoundError as error:
            raise DataError("there are no landmarks of the photograph") from error
        except (OSError, ValueError, EOFError) as error:
            raise DataError("the landmarks of the photograph cannot be read") from error
        if array.ndim != 2 or array.shape[0] != 68 or array.shape[1] < 2:
            raise DataError(f"landmarks of shape {array.shape}, wanted (68, 2)")
        return torch.from_numpy(array[:, :2].astype(np.float32))


class Views:
    """Predicts faces from photographs.

    Args:
        finder: of the face in each.
        image_size: side of the crops, pixels: what the method takes.
        crop_margin: side of the crops in units of the landmarks' box.
    """

    def __init__(self, finder: FaceFinder, image_size: int, crop_margin: float = MARGIN) -> None:
        if image_size < 1:
            raise DataError(f"image_size is {image_size}; wanted at least 1")
        self.finder, self.image_size, self.crop_margin = finder, image_size, crop_margin

    def crop(self, sample: str, path: Path) -> Float[Tensor, "3 s s"]:
        """The face in a photograph.

        Raises:
            DataError: there is no such photograph, or no face in it.
        """
        try:
            image = read_image(path).float() / 255
        except DataError as error:
            raise DataError("the photograph is missing or cannot be read") from error
        points = self.finder(sample, image)
        matrix = face_crop(points, torch.ones(68), self.image_size, self.crop_margin)
        return warp(image, matrix, self.image_size).clamp(0, 1)

    def predict(
        self,
        predict: Predict,
        photographs: Iterable[tuple[str, list[tuple[str, Path]]]],
        neutral: bool = False,
    ) -> dict[str, FaceMesh | DataError]:
        """One mesh for each sample, or why there is none.

        Args:
            predict: it gets all photographs of one sample at a time, "1 v 3 s s".
            photographs: samples with the names and files of their photographs, taken at one moment.
            neutral: the meshes without expression.
        """

        def faces() -> Iterator[tuple[str, Reconstruction | DataError]]:
            for sample, files in photographs:
                try:
                    crops = torch.stack([self.crop(name, path) for name, path in files])
                    face = predicted(predict, crops[None])
                except DataError as error:
                    yield sample, error
                else:
                    yield sample, face

        return meshes_of(faces(), neutral)


def meshes_of(
    faces: Iterable[tuple[str, Reconstruction | DataError]], neutral: bool = False
) -> dict[str, FaceMesh | DataError]:
    """A method's faces as meshes with 68 landmarks, or why there is none.

    Which vertices are landmarks is known from images only, so it is found from all images together:
    from the side alone, the two eyes are in one place.

    Args:
        faces: one identity each, on the CPU; a mesh is the mean over its views.
        neutral: without expression.
    """
    found: dict[str, tuple[Tensor, Tensor] | DataError] = {}
    distances: dict[int, Tensor] = {}  # by the number of vertices: another one is another topology
    depths: dict[int, Tensor] = {}
    images: Counter[int] = Counter()
    for sample, face in faces:
        if isinstance(face, DataError):
            found[sample] = face
            continue
        shapes = (face.neutral if neutral else face.vertices)[0]
        seen = face.camera.project(face.vertices)[0][0]
        if not all(x.isfinite().all() for x in (shapes, seen, face.landmarks)):
            found[sample] = DataError("the predicted face is not finite")
            continue
        count = shapes.shape[1]
        distance = landmark_distances(seen, face.landmarks[0])
        distances[count] = distances[count] + distance if count in distances else distance
        images[count] += len(seen)
        depths.setdefault(count, shapes[0, :, 2])
        found[sample] = shapes.double().mean(0).float(), face.triangles.long()
    rows = {n: frontmost(total / images[n], depths[n]) for n, total in distances.items()}
    return {
        sample: mesh if isinstance(mesh, DataError) else _with_landmarks(mesh, rows)
        for sample, mesh in found.items()
    }


def _with_landmarks(mesh: tuple[Tensor, Tensor], rows: dict[int, Tensor]) -> FaceMesh:
    vertices, triangles = mesh
    return FaceMesh(vertices, triangles, vertices[rows[len(vertices)]])


def lookup(found: dict[str, FaceMesh | DataError], sample: str) -> FaceMesh:
    """A sample's face; raises the DataError that stands for it."""
    face = found[sample]
    if isinstance(face, DataError):
        raise face
    return face

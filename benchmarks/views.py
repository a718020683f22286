"""Photographs of people of whom there are scans: crops, predictions, and how faces are found."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.base import Predict, on_cpu
from benchmarks.predictions import FaceMesh, landmark_vertices
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
        self, predict: Predict, photographs: Iterable[tuple[str, list[tuple[str, Path]]]]
    ) -> dict[str, FaceMesh | DataError]:
        """One mesh for each sample, or why there is none.

        Args:
            predict: it gets all photographs of one sample at a time, "1 v 3 s s".
            photographs: samples with the names and files of their photographs, taken at one moment.
        """
        found: dict[str, FaceMesh | DataError] = {}
        for sample, files in photographs:
            try:
                crops = torch.stack([self.crop(name, path) for name, path in files])
                found[sample] = expressive_mesh(on_cpu(predict(crops[None])))
            except DataError as error:
                found[sample] = error
        return found


def expressive_mesh(face: Reconstruction) -> FaceMesh:
    """The mean over the views of one face, with its expression, and its landmarks.

    Raises:
        DataError: the prediction is not finite.
    """
    if not (face.vertices.isfinite().all() and face.landmarks.isfinite().all()):
        raise DataError("the predicted face is not finite")
    seen = face.camera.project(face.vertices)[0]
    rows = landmark_vertices(seen[0], face.landmarks[0], face.vertices[0, 0, :, 2])
    vertices = face.vertices[0].double().mean(0)
    return FaceMesh(vertices, face.triangles.long(), vertices[rows])


def lookup(found: dict[str, FaceMesh | DataError], sample: str) -> FaceMesh:
    """A sample's face; raises the DataError that stands for it."""
    face = found[sample]
    if isinstance(face, DataError):
        raise face
    return face

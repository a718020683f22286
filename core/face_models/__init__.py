"""Linear 3D morphable models of the face: one FaceModel for every source."""

from core.face_models.model import FaceModel, load_face_model

__all__ = ["FaceModel", "load_face_model"]

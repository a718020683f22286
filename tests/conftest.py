"""What all tests share: the fake face model, a fixed seed, and no more than two threads."""

import pytest
import torch

from core.face_models import FaceModel
from tests.fakes.face_model import face_model_arrays

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def face_model() -> FaceModel:
    return FaceModel(face_model_arrays())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For tiny tensors: threads that wait for each other on a busy machine are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

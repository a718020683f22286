"""What all tests share: the fake face model, a fixed seed, a GPU, and no more than two threads."""

from collections.abc import Iterator

import pytest
import torch

from core.face_models import FaceModel
from tests.fakes.face_model import face_model_arrays
from tests.fakes.gpu import pretended

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def face_model() -> FaceModel:
    return FaceModel(face_model_arrays())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])])
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """One that is there, and everywhere one that only shows where devices are mixed."""
    if request.param == "cuda":
        yield torch.device("cuda", 0)
        return
    with pretended() as device:
        yield device


@pytest.fixture
def one_thread():
    """For tiny tensors: threads that wait for each other on a busy machine are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

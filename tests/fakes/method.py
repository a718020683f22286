"""A method and a datamodule so small that a training takes a moment."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import Dataset, Sampler, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import FaceBatch, Reconstruction
from methods.base import FaceMethod
from methods.cli import main


@dataclass(frozen=True)
class Weights:
    """Weights of the terms.

    Args:
        landmark: of the squared distance in units of the image's side.
        regularization: of the mean square of the network's outputs.
    """

    landmark: float = 1.0
    regularization: float = 0.01


torch.serialization.add_safe_globals([Weights])


class FakeMethod(FaceMethod):
    """Landmarks by a linear network, with the dropout and batch norm that resuming must get right.

    Args:
        lr: learning rate.
        image_size: pixels.
        dropout: probability.
        nan_from: step from which on the loss is NaN; -1 = never.
        nan_steps: for how many steps.
        late_from: step from which on the last part, an offset of all landmarks, learns.
        weights: of the terms.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        image_size: int = 8,
        dropout: float = 0.3,
        nan_from: int = -1,
        nan_steps: int = 0,
        late_from: int = 0,
        weights: Weights = Weights(),
    ) -> None:
        super().__init__()
        self.lr, self.image_size, self.weights = lr, image_size, weights
        self.nan_range = range(nan_from, nan_from + nan_steps)
        self.calls, self.late_from = 0, late_from
        self.offset = nn.Parameter(torch.zeros(2))
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(3 * image_size**2),
            nn.Dropout(dropout),
            nn.Linear(3 * image_size**2, 68 * 2),
        )

    def forward(self, images: Tensor) -> Reconstruction:
        b, v, _, _, width = images.shape
        numbers = self.net(images.flatten(0, 1)).unflatten(0, (b, v)).unflatten(-1, (68, 2))
        late = self.training and self.global_step < self.late_from
        numbers = numbers + (self.offset.detach() if late else self.offset)
        vertices = torch.cat([numbers, torch.zeros_like(numbers[..., :1])], -1)
        camera = WeakPerspectiveCamera(
            rotation=frontal(images).expand(b, v, 3, 3),
            scale=images.new_full((b, v), width / 2),
            translation=images.new_full((b, v, 2), width / 2),
        )
        return Reconstruction(
            vertices=vertices,
            neutral=vertices,
            triangles=torch.tensor([[0, 1, 2]]),
            uv=torch.zeros(68, 2),
            camera=camera,
            landmarks=camera.project(vertices)[0],
            albedo_map=images.new_full((b, v, 3, 2, 2), 0.5),
            light=images.new_zeros(b, v, 9, 1),
            coefficients={"numbers": numbers.flatten(2)},
        )

    def terms(self, batch: FaceBatch) -> dict[str, Tensor]:
        face = self(batch["images"])
        error = (face.landmarks - batch["landmarks"]) / batch["images"].shape[-1]
        landmark = error.square().mean()
        if self.training:
            landmark = landmark * (torch.nan if self.calls in self.nan_range else 1)
            self.calls += 1
        return {
            "landmark": landmark,
            "regularization": face.coefficients["numbers"].square().mean(),
        }

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.lr)


class FakeFaces(LightningDataModule):
    """Random images, their landmarks a fixed linear map of them; shuffled anew in each epoch.

    Args:
        batch_size: clips in a batch.
        samples: clips in an epoch.
        image_size: pixels.
        workers: processes that load.
        nan_landmarks: index of a clip whose landmarks are NaN; -1 = none.
    """

    def __init__(
        self,
        batch_size: int = 4,
        samples: int = 20,
        image_size: int = 8,
        workers: int = 0,
        nan_landmarks: int = -1,
    ) -> None:
        super().__init__()
        self.batch_size, self.workers = batch_size, workers
        self.dataset = _Clips(samples, image_size, nan_landmarks)

    def train_dataloader(self) -> StatefulDataLoader:
        return self._loader(_Shuffled(len(self.dataset)))

    def val_dataloader(self) -> StatefulDataLoader:
        return self._loader(None)

    test_dataloader = predict_dataloader = val_dataloader

    def _loader(self, sampler: Sampler | None) -> StatefulDataLoader:
        return StatefulDataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=_collate,
        )


class OtherFaces(FakeFaces):
    """FakeFaces of a size that cannot be chosen."""

    def __init__(self, batch_size: int = 4, workers: int = 0) -> None:
        super().__init__(batch_size, 12, 8, workers)


class _Clips(Dataset):
    def __init__(self, samples: int, size: int, nan_landmarks: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.images = torch.rand(samples, 2, 3, size, size, generator=random)
        linear = torch.randn(3 * size**2, 68 * 2, generator=random)
        self.landmarks = (self.images.flatten(2) @ linear).unflatten(-1, (68, 2))
        if nan_landmarks >= 0:
            self.landmarks[nan_landmarks, 1, 5] = torch.nan

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> FaceBatch:
        return FaceBatch(
            images=self.images[index],
            landmarks=self.landmarks[index],
            landmark_confidence=torch.ones(2, 68),
            masks=torch.ones_like(self.images[index, :, :1]),
            sample_ids=[f"id{index}/video/clip/{frame}" for frame in range(2)],
        )


def _collate(clips: list[FaceBatch]) -> FaceBatch:
    ids = [name for clip in clips for name in clip["sample_ids"]]
    tensors = default_collate(
        [{k: v for k, v in clip.items() if k != "sample_ids"} for clip in clips]
    )
    return FaceBatch(**tensors, sample_ids=ids)


class _Shuffled(Sampler[int]):
    """A permutation that depends on the epoch only; its iterator's state is all there is."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return _Indices(self)


class _Indices(Iterator[int]):
    def __init__(self, sampler: _Shuffled) -> None:
        self.sampler, self.epoch, self.position = sampler, sampler.epoch, 0

    def __next__(self) -> int:
        if self.position == self.sampler.length:
            raise StopIteration
        order = torch.randperm(
            self.sampler.length, generator=torch.Generator().manual_seed(self.epoch)
        )
        self.position += 1
        return int(order[self.position - 1])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


if __name__ == "__main__":
    main("tests.fakes.method.FakeMethod")

"""The small recognizer: it learns to tell people apart, and is made where its file is missing."""

import math

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.nn import functional as F

from callbacks.recognizer import TrainRecognizer, collect_faces, main, make_recognizer
from core.errors import DataError
from core.perceptual import Recognizer
from core.recognizer import SmallRecognizer, changed, contrast, train_recognizer
from datamodules.photos import Photos
from datamodules.voxceleb import VoxCeleb
from methods.deng import Weights
from tests.fakes import voxceleb

pytestmark = pytest.mark.usefixtures("one_thread")


def people(count: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures whose coarse pattern is the person's, before backdrops of their own."""
    random = torch.Generator().manual_seed(seed)
    pattern = torch.rand(count, 1, 3, 6, 6, generator=random).expand(count, each, 3, 6, 6)
    faces = F.interpolate(pattern.flatten(0, 1), 112, mode="bilinear")
    faces = faces + 0.1 * torch.randn(count * each, 3, 1, 1, generator=random)
    mask = torch.zeros(count * each, 1, 112, 112)
    mask[..., 16:96, 16:96] = 1
    backdrop = torch.rand(count * each, 3, 1, 1, generator=random)
    pictures = (faces * mask + backdrop * (1 - mask)).clamp(0, 1)
    names = torch.arange(count).repeat_interleave(each) * 7 + 3
    return (pictures * 255).byte(), (mask * 255).byte(), names


def area_under_curve(network: SmallRecognizer, faces: torch.Tensor, names: torch.Tensor) -> float:
    """The chance that two pictures of one person are more alike than two of different people."""
    with torch.no_grad():
        unit = F.normalize(network.eval()(2 * faces.float() / 255 - 1), dim=1)
    cosines = unit @ unit.T
    same, upper = names[:, None] == names, torch.ones_like(cosines).triu(1).bool()
    alike, different = cosines[same & upper], cosines[~same & upper]
    return (alike[:, None] > different).float().mean().item()


def test_it_learns_to_tell_unseen_people_apart():
    faces, masks, names = people(24, 3, seed=1)
    network = train_recognizer(faces, masks, names, steps=30, progress=False)
    others, _, other_names = people(12, 3, seed=2)
    untrained = area_under_curve(SmallRecognizer(), others, other_names)
    trained = area_under_curve(network, others, other_names)
    assert trained > 0.9
    assert trained > untrained + 0.1


def test_the_seed_decides_and_the_callers_chance_is_left_alone():
    data = people(4, 2, seed=0)
    torch.manual_seed(5)
    first = train_recognizer(*data, steps=2, seed=1, progress=False)
    drawn = torch.rand(1)
    again = train_recognizer(*data, steps=2, seed=1, progress=False)
    other = train_recognizer(*data, steps=2, seed=2, progress=False)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first[1].weight, other[1].weight)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_the_loss_against_a_loop():
    embeddings = torch.randn(6, 4)
    people_of = torch.tensor([0, 0, 1, 1, 2, 2])
    got = contrast(embeddings, people_of[:, None] == people_of)
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).double()
    losses = []
    for i in range(6):
        scores = {j: float(unit[i] @ unit[j]) / 0.1 for j in range(6) if j != i}
        whole = math.log(sum(math.exp(score) for score in scores.values()))
        losses.append(whole - scores[i ^ 1])
    assert got.item() == pytest.approx(sum(losses) / 6, rel=1e-4)


def test_changed_pictures_keep_the_face_and_change_the_rest():
    faces, masks, _ = people(64, 1, seed=0)
    small = F.avg_pool2d(torch.cat([faces, masks], 1).float() / 255, 2)
    pictures = changed(small)
    assert pictures.shape == (64, 3, 56, 56)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    pairs = torch.stack([small[:, :3, 14:42, 14:42], pictures[..., 14:42, 14:42]]).flatten(2)
    inside = torch.stack([torch.corrcoef(pairs[:, k])[0, 1] for k in range(64)])
    assert inside.median() > 0.7
    corner = (pictures[..., :4, :4] - small[:, :3, :4, :4]).abs().mean((1, 2, 3))
    assert (corner > 0.1).float().mean() > 0.5


def test_people_with_one_picture_teach_nothing():
    faces, masks, _ = people(5, 1, seed=0)
    with pytest.raises(DataError, match="of 5 people 0 have so many"):
        train_recognizer(faces, masks, torch.arange(5), steps=1)


@pytest.fixture
def data(tmp_path):
    voxceleb.write(tmp_path / "voxceleb")
    module = VoxCeleb(tmp_path / "voxceleb", image_size=64, frames_per_clip=2, workers=0)
    module.setup("fit")
    return module


def test_faces_are_those_of_the_training_people_each_once(data):
    faces, masks, names = collect_faces(data)
    (reader,) = data.readers("train")
    identities = {clip.identity for clip in reader.clips}
    assert names.unique().numel() == len(identities)
    frames = sum(len(clip.frames) for clip in reader.clips)
    assert 2 * len(identities) <= len(faces) <= frames
    assert len(faces) == len(masks) == len(names)
    assert faces.float().mean((1, 2, 3)).min() > 5  # of 255: pictures, not rounding
    assert masks.amax() == 255
    assert len(torch.unique(faces, dim=0)) == len(faces)


class Method(LightningModule):
    """With a perceptual loss, or without."""

    def __init__(self, perceptual: float) -> None:
        super().__init__()
        self.weights = Weights(perceptual=perceptual)


def test_it_is_trained_once_and_only_where_it_counts(data, tmp_path):
    path = tmp_path / "made" / "recognizer.pt"
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule = data
    callback = TrainRecognizer(path, steps=2)
    callback.setup(trainer, Method(0.0), "fit")
    callback.setup(trainer, Method(0.2), "predict")
    assert not path.exists()
    callback.setup(trainer, Method(0.2), "fit")
    features = Recognizer(path).features(torch.rand(2, 3, 112, 112))
    assert features.shape == (2, 128)
    when = path.stat().st_mtime_ns
    callback.setup(trainer, Method(0.2), "fit")
    assert path.stat().st_mtime_ns == when


def test_other_data_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"not from Photos.*python -m callbacks\.recognizer"):
        make_recognizer(Photos(tmp_path), tmp_path / "recognizer.pt")


def test_the_command_reports_what_is_wrong(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "holiday.txt").write_text("not ours")
    arguments = ["--root", str(tmp_path / "set"), "--out", str(tmp_path / "recognizer.pt")]
    assert main(arguments) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "recognizer.pt").exists()

"""Deng's C-Net: Eq. 7 and 8 against loops, R-Net frozen, sets of any size, aggregation that learns
which images to trust."""

import copy

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer

from core.contracts import FaceBatch
from core.errors import AssetNotFoundError, MonofaceError
from core.losses import total
from methods.cli import main
from methods.deng import Deng, Weights
from methods.deng_cnet import CNet, DengCNet, aggregate
from tests.fakes.face_model import write

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 48
WITHOUT = Weights(perceptual=0.0)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("model") / "face.npz")
    return {
        "face_model": str(path),
        "image_size": SIZE,
        "uv_size": 16,
        "region": None,
        "backbone": "resnet18",
        "backbone_options": {"channels": [4, 8, 8, 16]},
    }


@pytest.fixture
def make(settings):
    def build(**options) -> DengCNet:
        torch.manual_seed(1)
        widths = {"c_net_width": 8, "c_net_hidden": 16}
        method = DengCNet(**{**settings, **widths, "weights": WITHOUT, **options})
        for head in method.network.heads.values():
            torch.nn.init.normal_(head.weight, std=0.05)
        return method.eval()

    return build


def woken(method: DengCNet) -> DengCNet:
    """Its last layer no longer zero, so that confidences differ."""
    torch.nn.init.normal_(method.c_net.last.weight, std=0.5)
    return method


def pictures(b: int = 2, v: int = 3) -> FaceBatch:
    return FaceBatch(
        images=torch.rand(b, v, 3, SIZE, SIZE),
        landmarks=SIZE * torch.rand(b, v, 68, 2),
        landmark_confidence=torch.ones(b, v, 68),
        masks=torch.ones(b, v, 1, SIZE, SIZE),
        sample_ids=[str(k) for k in range(b * v)],
    )


def test_the_papers_network_has_three_million_parameters():
    """Sec. 5.2, on ResNet-50's features."""
    network = CNet(256, 2048, 80)
    assert 2.9e6 < sum(p.numel() for p in network.parameters()) < 3.1e6
    assert network(torch.rand(2, 256, 28, 28), torch.rand(2, 2048)).shape == (2, 80)
    assert network.shallow[:6](torch.rand(1, 256, 28, 28)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize("scalar", [False, True])
def test_eq_7_element_by_element(scalar):
    coefficients, logits = torch.randn(2, 5, 4), 3 * torch.randn(2, 5, 1 if scalar else 4)
    got = aggregate(coefficients, logits)
    c = 1 / (1 + np.exp(-logits.double().numpy()))
    for i in range(2):
        for k in range(4):
            weights = [c[i, j, 0 if scalar else k] for j in range(5)]
            wanted = sum(w * float(coefficients[i, j, k]) for j, w in enumerate(weights))
            assert got[i, k].item() == pytest.approx(wanted / sum(weights), abs=1e-5)


def test_eq_7_of_tiny_confidences_is_finite():
    coefficients = torch.tensor([[[1.0], [3.0]]])
    equal = aggregate(coefficients, torch.full((1, 2, 1), -300.0))
    torch.testing.assert_close(equal, torch.tensor([[2.0]]))
    logits = torch.tensor([[[-300.0], [300.0]]], requires_grad=True)
    aggregated = aggregate(coefficients, logits)
    torch.testing.assert_close(aggregated, torch.tensor([[3.0]]))
    aggregated.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("aggregation", ["elementwise", "scalar", "average"])
def test_it_starts_as_the_average_of_r_net(make, settings, aggregation):
    method = make(aggregation=aggregation)
    images = pictures()["images"]
    single = Deng(**settings, weights=WITHOUT).eval()
    single.network.load_state_dict(method.network.state_dict())
    with torch.no_grad():
        face, each = method(images), single(images)
    mean = each.coefficients["identity"].mean(1, keepdim=True).expand(2, 3, -1)
    assert each.coefficients["identity"].std(1).max() > 1e-3
    torch.testing.assert_close(face.coefficients["identity"], mean)
    for name in ("expression", "albedo", "angles", "translation", "light"):
        torch.testing.assert_close(face.coefficients[name], each.coefficients[name])
    torch.testing.assert_close(face.neutral[:, 0], face.neutral[:, 2])


@pytest.mark.parametrize(("aggregation", "numbers"), [("elementwise", 8), ("scalar", 1)])
def test_confidences_are_of_each_image_by_itself(make, aggregation, numbers):
    method = woken(make(aggregation=aggregation))
    images = pictures(2, 4)["images"]
    with torch.no_grad():
        c = method.confidences(images)
        alone = method.confidences(images[1:, 2:3])
        parts = method.estimates(images, ("identity", "angles"))
        identity = method._of_each(images, ("identity",))[0]["identity"]
    assert c.shape == (2, 4, numbers)
    assert ((c > 0) & (c < 1)).all()
    assert c.std(1).max() > 1e-3
    torch.testing.assert_close(alone, c[1:, 2:3])
    wanted = (c * identity).sum(1) / c.sum(1)
    for view in range(4):
        torch.testing.assert_close(parts["identity"][:, view], wanted)


def test_average_stays_the_average(make):
    method = woken(make(aggregation="average"))
    images = pictures()["images"]
    with torch.no_grad():
        found = method.estimates(images, ("identity",))["identity"][:, 0]
        each = method._of_each(images, ("identity",))[0]["identity"]
    torch.testing.assert_close(found, each.mean(1))


def test_eq_8_is_the_mean_of_the_losses_of_the_images(make, settings):
    """Image by image, with the aggregated identity put into R-Net's other estimates."""
    method = woken(make())
    batch = pictures(1, 3)
    with torch.no_grad():
        whole = total(method.terms(batch), method.weights)
        unknowns = method.unknowns(batch["images"])
        each = []
        for j in range(3):
            x = copy.copy(unknowns)
            parts = {name: part[:, j : j + 1] for name, part in vars(x).items()}
            one = {
                name: value[:, j : j + 1] if isinstance(value, torch.Tensor) else value[j : j + 1]
                for name, value in batch.items()
            }
            each.append(total(method.hybrid_terms(type(x)(**parts), one), method.weights))
    torch.testing.assert_close(whole, torch.stack(each).mean())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_sets_of_any_size_and_many_at_once(make, monkeypatch, count):
    method = woken(make())
    images = pictures(1, count)["images"]
    with torch.no_grad():
        face = method(images)
        monkeypatch.setattr("methods.deng_cnet.AT_ONCE", 2)
        parts = method(images)
    assert face.vertices.shape[:2] == (1, count)
    torch.testing.assert_close(face.vertices, parts.vertices)
    torch.testing.assert_close(face.neutral, face.neutral[:, :1].expand_as(face.neutral))


def test_only_c_net_learns(make):
    method = make().train()
    assert not method.network.training
    assert method.c_net.training
    batch = pictures()
    before = copy.deepcopy(method.state_dict())
    optimizer = method.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(2):  # the first moves the last layer only
        optimizer.zero_grad()
        total(method.terms(batch), method.weights).backward()
        optimizer.step()
    after = method.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("c_net.")}
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert own == {id(p) for p in method.c_net.parameters()}


def test_defaults_are_the_papers():
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(DengCNet).parameters.items()}
    assert defaults["lr"] == 2e-5  # Sec. 6
    weights = defaults["weights"]
    multi_image = weights.landmark, weights.photometric, weights.perceptual
    assert multi_image == (1.6e-3, 1.9, 0.1)  # Sec. 5.1
    assert (weights.coefficients, weights.texture) == (3e-4, 5.0)  # as R-Net's
    assert defaults["aggregation"] == "elementwise"


def saved(method: Deng, path) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(method)
    trainer.save_checkpoint(path)


def set_up(method: DengCNet, ckpt_path: str | None = None) -> DengCNet:
    method.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    method.trainer.ckpt_path = ckpt_path
    method.setup("fit")
    return method


def test_r_net_comes_from_its_checkpoint(make, settings, tmp_path):
    single = Deng(**settings, weights=WITHOUT)
    torch.nn.init.normal_(single.network.heads["identity"].weight)
    saved(single, tmp_path / "r_net.ckpt")
    method = set_up(make(r_net=tmp_path / "r_net.ckpt"))
    for key, value in single.network.state_dict().items():
        assert torch.equal(method.network.state_dict()[key], value)
    assert not any(p.requires_grad for p in method.network.parameters())


def test_a_run_that_goes_on_needs_no_r_net(make, tmp_path):
    method = make(r_net=tmp_path / "gone.ckpt")
    before = copy.deepcopy(method.network.state_dict())
    set_up(method, ckpt_path="last.ckpt")
    assert all(torch.equal(v, before[key]) for key, v in method.network.state_dict().items())
    with pytest.raises(AssetNotFoundError, match=r"gone\.ckpt.*python -m methods\.deng fit"):
        set_up(make(r_net=tmp_path / "gone.ckpt"))


def test_another_r_net_is_refused(make, settings, tmp_path):
    other = Deng(**{**settings, "light_channels": 3}, weights=WITHOUT)
    saved(other, tmp_path / "other.ckpt")
    with pytest.raises(MonofaceError, match=r"other\.ckpt.*heads\.light.*light_channels"):
        set_up(make(r_net=tmp_path / "other.ckpt"))


def test_a_backbone_without_feature_maps_is_refused(settings):
    options = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 1}}
    with pytest.raises(MonofaceError, match=r"VisionTransformer has none.*resnet50"):
        DengCNet(**{**settings, **options})


def test_it_learns_to_distrust_covered_images(make):
    """R-Net is right but where an image is black in its middle: C-Net has to see that."""
    method = make(c_net_width=16, c_net_hidden=32)
    torch.nn.init.normal_(method.network.heads["identity"].weight, std=10)
    random = torch.Generator().manual_seed(0)
    tone = torch.rand(24, 1, 1, 1, 1, generator=random)  # tells the people apart
    images = 0.4 + 0.5 * tone + 0.02 * torch.randn(24, 5, 3, SIZE, SIZE, generator=random)
    images[:, :2, :, 8:40, 8:40] = 0
    images = images[:, torch.randperm(5, generator=random)]
    with torch.no_grad():
        clean = images[:, (images.mean((0, 2, 3, 4)) > 0.5).nonzero()[:, 0]]
        identity = method._of_each(clean, ("identity",))[0]["identity"].mean(1)
    optimizer = torch.optim.Adam(method.c_net.parameters(), 1e-2)

    def error(rows: slice) -> torch.Tensor:
        found = method.estimates(images[rows], ("identity",))["identity"][:, 0]
        return (found - identity[rows]).square().sum(-1).mean()

    with torch.no_grad():
        average = error(slice(16, 24))
    for _ in range(30):
        optimizer.zero_grad()
        error(slice(0, 16)).backward()
        optimizer.step()
    with torch.no_grad():
        assert error(slice(16, 24)) < 0.2 * average


def test_predict_gives_a_person_one_shape(settings, tmp_path):
    """A folder for each person: one identity, each photo's own pose and expression; exported."""
    for name in ("ann/a", "ann/b", "bob/a"):
        (tmp_path / "people" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(np.roll(pixels, ord(name[-1]), 0)).save(tmp_path / f"people/{name}.png")
        five = [[35, 35], [55, 35], [45, 46], [37, 58], [53, 58]]
        np.savetxt(tmp_path / f"people/{name}.txt", five)
    single = Deng(**settings, weights=WITHOUT)
    for head in single.network.heads.values():
        torch.nn.init.normal_(head.weight, std=10)
    saved(single, tmp_path / "r_net.ckpt")
    model = {**settings, "r_net": str(tmp_path / "r_net.ckpt"), "aggregation": "average"}
    config = {
        "model": {**model, "weights": {"perceptual": 0.0}},
        "data": {
            "class_path": "datamodules.photos.Photos",
            "init_args": {"path": str(tmp_path / "people"), "image_size": SIZE},
        },
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "callbacks.export.Export"}],
            "default_root_dir": str(tmp_path / "run"),
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    argv = ["predict", f"--config={tmp_path}/config.yaml", "--data.folders_are_people=true"]
    main("methods.deng_cnet.DengCNet", argv)
    faces = {
        name: np.load(tmp_path / f"run/predictions/{name}/face.npz")
        for name in ("ann/a", "ann/b", "bob/a")
    }
    one, other, bob = faces.values()
    np.testing.assert_allclose(one["neutral"], other["neutral"], atol=1e-4)
    assert np.abs(one["neutral"] - bob["neutral"]).max() > 1e-2
    assert np.abs(one["vertices"] - other["vertices"]).max() > 1e-2
    assert np.abs(one["camera_rotation"] - other["camera_rotation"]).max() > 1e-3

"""Deng's R-Net: its outputs, its loss as a whole, one batch learned, guards, two processes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from core.camera import PerspectiveCamera, frontal
from core.contracts import FaceBatch
from core.errors import MonofaceError
from core.landmarks import INNER_MOUTH, NOSE
from core.lighting import AMBIENT
from core.losses import total
from core.recognizer import SmallRecognizer, save_recognizer
from core.render import draw_lit, render_reconstruction
from core.rotation import rotation_from_euler
from methods.base import PATIENCE
from methods.deng import Deng, Weights, flat_skin
from methods.regression import APPEARANCE, GEOMETRY, CoefficientWeights, Unknowns, lit
from tests.fakes.face_model import write

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

SIZE = 48
THIN = {"channels": [4, 8, 8, 16]}
NORM_FREE = {**THIN, "norm_layer": "layernorm2d"}  # batch norm's means are of a process's own batch


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture
def make(model_file):
    def build(**options) -> Deng:
        torch.manual_seed(1)
        usual = {
            "image_size": SIZE,
            "uv_size": SIZE,
            "region": None,
            "backbone": "resnet18",
            "backbone_options": THIN,
            "weights": Weights(perceptual=0.0),
        }
        return Deng(face_model=model_file, **{**usual, **options})

    return build


def some_unknowns(b: int, v: int, seed: int = 0) -> Unknowns:
    """Of the fake model: 8 identity, 5 expression and 4 albedo modes; white light."""
    random = torch.Generator().manual_seed(seed)
    sizes = {"identity": 8, "expression": 5, "albedo": 4, "angles": 3, "translation": 3}
    spread = {"angles": 0.2, "translation": 8.0}
    parts = {
        name: spread.get(name, 1.0) * torch.randn(b, v, n, generator=random)
        for name, n in sizes.items()
    }
    return Unknowns(**parts, light=0.1 * torch.randn(b, v, 9, 1, generator=random))


def faces(method: Deng, b: int = 4, v: int = 1) -> FaceBatch:
    """Pictures of the method's own model."""
    x = some_unknowns(b, v)
    vertices = method.shape(x.identity, x.expression)
    camera = method.camera(x.angles, x.translation, SIZE)
    albedo = method.face_model.albedo(x.albedo)
    images, mask, _ = draw_lit(vertices, method.triangles, albedo, lit(x.light), camera, SIZE)
    return FaceBatch(
        images=images.clamp(0, 1),
        landmarks=camera.project(method.face_model.landmarks(vertices))[0],
        landmark_confidence=torch.ones(b, v, 68),
        masks=mask,
        sample_ids=[f"face{k}" for k in range(b * v)],
    )


@pytest.mark.parametrize(("light", "numbers"), [(1, 239), (3, 257)])
def test_resnet50_gives_the_papers_numbers(tmp_path, light, numbers):
    path = write(tmp_path / "bfm.npz", identity=90, expression=70, albedo=85)
    dims = {"identity_dims": 80, "expression_dims": 64, "albedo_dims": 80}
    method = Deng(face_model=str(path), **dims, light_channels=light).eval()
    with torch.no_grad():
        outputs = method.network(torch.rand(1, 3, 64, 64), tuple(method.outputs))
    found = torch.cat(list(outputs.values()), -1)
    assert found.shape == (1, numbers)
    assert not found.any()
    assert sum(p.numel() for p in method.network.backbone.parameters()) == 23_508_032  # ResNet-50
    assert method.weights == Weights(1.9, 1.6e-3, 0.2, 3e-4, 5.0, 0.0)  # Sec. 4.3
    assert method.coefficient_weights == CoefficientWeights(1.0, 0.8, 1.7e-3)
    wanted = [20.0 if point in (*NOSE, *INNER_MOUTH) else 1.0 for point in range(68)]
    assert method.importance.tolist() == wanted


def test_an_untrained_network_gives_the_lit_frontal_mean_face(make, face_model):
    face = make().eval()(torch.rand(1, 2, 3, SIZE, SIZE))
    torch.testing.assert_close(face.vertices[0, 1], face_model.mean)
    torch.testing.assert_close(face.camera.head_rotation[0, 0], torch.eye(3))
    box = face.landmarks[0, 0]
    middle = (box.amin(0) + box.amax(0)) / 2
    assert (middle - SIZE / 2).abs().max() < 1.5  # perspective: nearer points are farther out
    assert face.light[..., 0, :].eq(AMBIENT).all()
    assert not face.light[..., 1:, :].any()


def test_camera_by_hand(make):
    """At 1 m, 10 mm to the right, 20 mm up and 100 mm nearer; focal length 1015 at 224 pixels."""
    method = make()
    angles = torch.tensor([[[0.1, -0.3, 0.2]]])
    camera = method.camera(angles, torch.tensor([[[10.0, 20.0, 100.0]]]), SIZE)
    assert isinstance(camera, PerspectiveCamera)
    pixel, depth = camera.project(method.pivot[None, None, None])
    focal = 1015 * SIZE / 224
    wanted = torch.tensor([SIZE / 2 + focal * 10 / 900, SIZE / 2 - focal * 20 / 900])
    torch.testing.assert_close(pixel[0, 0, 0], wanted)
    torch.testing.assert_close(depth[0, 0, 0], torch.tensor(900.0))
    turned = frontal(angles) @ rotation_from_euler(*angles[0, 0])
    torch.testing.assert_close(camera.rotation[0, 0], turned)


def test_the_reconstruction_looks_like_what_was_trained_on(make):
    """Lit per vertex in the loss; as an albedo map lit per pixel in what is given back."""
    method = make(uv_size=128)
    x = some_unknowns(2, 1)
    batch = faces(method, 2)
    picture, surface = render_reconstruction(method.reconstruction(x, SIZE), SIZE)
    error = ((picture - batch["images"]).abs() * surface.mask).sum() / surface.mask.sum() / 3
    assert error < 0.01
    names = {"identity", "expression", "albedo", "angles", "translation", "light"}
    coefficients = method.reconstruction(x, SIZE).coefficients
    assert set(coefficients) == names
    torch.testing.assert_close(coefficients["light"], x.light.flatten(2))


def test_the_truth_has_no_error(make):
    """And the terms do not depend on the resolution of the images."""
    method = make().eval()
    batch = faces(method)
    terms = method.hybrid_terms(some_unknowns(4, 1), batch)
    assert terms["photometric"] < 1e-6
    assert terms["landmark"] < 1e-6
    wrong = dataclasses.replace(some_unknowns(4, 1), translation=torch.zeros(4, 1, 3))
    terms = method.hybrid_terms(wrong, batch)
    twice = FaceBatch(
        **{
            **batch,
            "images": batch["images"].repeat_interleave(2, -1).repeat_interleave(2, -2),
            "landmarks": 2 * batch["landmarks"],
        }
    )
    doubled = method.hybrid_terms(wrong, twice)
    torch.testing.assert_close(doubled["landmark"], terms["landmark"])
    assert doubled["photometric"].item() == pytest.approx(terms["photometric"].item(), rel=0.1)


def test_under_the_best_pose_the_shape_does_not_feel_a_wrong_pose(make):
    """In training; the pose is the best for the landmarks as they are weighted, some 20 times."""
    method = make(landmark_pose="best").train()
    assert method.importance.max() == 20
    x = some_unknowns(4, 1)
    batch = faces(method)
    wrong = method.camera(x.angles + 0.3, x.translation + 20, batch["images"].shape[-1])
    true = method.face_model.landmarks(method.shape(x.identity, x.expression)).detach()
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    points = (true + 2 * noise).requires_grad_()
    terms, alike = {}, {}
    for pose in ("best", "estimated"):
        method.landmark_pose = pose
        terms[pose] = method.landmark_term(points, wrong, batch)
        (gradient,) = torch.autograd.grad(terms[pose], points)
        alike[pose] = gradient.sum(-2).norm()
    assert terms["best"] > terms["estimated"]  # the sum of both errors
    assert alike["best"] < 0.02 * alike["estimated"]
    method.eval().landmark_pose = "best"
    assert method.landmark_term(points, wrong, batch) == terms["estimated"]


def test_weights_have_the_names_of_the_terms(make):
    method = make()
    batch = faces(method)
    names = {field.name for field in dataclasses.fields(Weights)}
    assert set(method.terms(batch)) == set(method.terms_without_rendering(batch)) == names


def test_one_batch_is_learned(make):
    """120 steps on one batch: every term of the data falls by more than half."""
    method = make(lr=3e-3)
    batch = faces(method)
    optimizer = method.configure_optimizers()["optimizer"]
    history = []
    for _ in range(120):
        terms = method.terms(batch)
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        total(terms, method.weights).backward()
        optimizer.step()
    for name in ("photometric", "landmark"):
        assert history[-1][name] < 0.5 * history[0][name], name


def test_landmark_steps_teach_shape_and_pose_only(make):
    """Their terms are those of the whole; albedo and light begin to learn afterwards."""
    method = make(landmark_steps=1)
    for head in method.network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.1)
    batch = faces(method)
    total(method.train().terms(batch), method.weights).backward()
    heads = method.network.heads
    assert all(p.grad is not None for name in GEOMETRY for p in heads[name].parameters())
    assert all(p.grad is None for name in APPEARANCE for p in heads[name].parameters())
    assert all(p.grad is not None for p in method.network.backbone.parameters())
    method.eval()  # evaluation always renders
    with torch.no_grad():
        whole, quick = method.terms(batch), method.terms_without_rendering(batch)
        x = method.unknowns(batch["images"])
    torch.testing.assert_close(whole["landmark"], quick["landmark"])
    albedo = CoefficientWeights().albedo * x.albedo.square().sum(-1).mean()
    torch.testing.assert_close(whole["coefficients"], quick["coefficients"] + albedo)
    assert whole["photometric"] > 0
    assert quick["photometric"] == quick["texture"] == 0


@pytest.mark.parametrize("pose_width", [None, 4])
@pytest.mark.parametrize("kernel_lr", [None, 0.05])
def test_each_parameter_learns_in_one_group(make, kernel_lr, pose_width):
    options = {"landmark_steps": 60, "anneal_steps": 100}
    method = make(kernel_lr=kernel_lr, pose_width=pose_width, **options)
    groups = method.configure_optimizers()["optimizer"].param_groups
    given = [parameter for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given)) == len(list(method.parameters()))
    if kernel_lr:
        kernels = groups[0]["params"]
        assert {p.ndim for p in kernels} == {4}
        assert method.network.backbone.conv1.weight not in set(kernels)


def test_the_perceptual_loss_without_a_recognizer_is_a_clear_error(make):
    method = make(weights=Weights(), recognizer=None)
    with pytest.raises(MonofaceError, match=r"model\.weights\.perceptual: 0"):
        method.setup("fit")
    method.setup("predict")  # needs none


def test_an_unknown_backbone_is_a_clear_error(make):
    with pytest.raises(MonofaceError, match=r"no backbone 'resnet5'; similar names: .*resnet50"):
        make(backbone="resnet5", backbone_options=None)


@pytest.mark.parametrize(
    "backbone", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "strided_encoder"]
)
def test_other_backbones(make, backbone):
    method = make(backbone=backbone, backbone_options=None).eval()
    with torch.no_grad():
        assert method(torch.rand(2, 1, 3, SIZE, SIZE)).vertices.shape[:2] == (2, 1)


def test_flat_skin_is_skin_of_the_drawn_part(face_model):
    skin = face_model.region_face & ~face_model.region("eyes") & ~face_model.region("lips")
    assert torch.equal(flat_skin(face_model, "face"), skin.nonzero()[:, 0])


class Batches(LightningDataModule):
    """The same batches for any number of processes, each of which gets its share of a batch."""

    def __init__(self, batches: list[FaceBatch]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        first, step = self.trainer.global_rank, self.trainer.world_size
        own = [{key: value[first::step] for key, value in batch.items()} for batch in self.batches]
        return DataLoader(own, batch_size=None, shuffle=False)

    val_dataloader = train_dataloader


def fit(method: Deng, batches: list[FaceBatch], folder: Path, **settings) -> Deng:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=len(batches),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(method, datamodule=Batches(batches))
    return method


def test_images_that_are_not_finite_stop_with_their_names(make, tmp_path):
    method = make()
    batch = faces(method)
    batch["images"][2] = torch.nan
    with pytest.raises(MonofaceError, match=r"photometric is nan.*images not finite in face2\."):
        fit(method, PATIENCE * [batch], tmp_path)


@pytest.mark.slow  # starts processes
def test_two_processes_give_the_result_of_one(make, tmp_path):
    """Of the same whole batches; without batch norm, which sees only a process's own share."""
    options = {"backbone_options": NORM_FREE}
    batch = faces(make(**options), b=8)
    parts = [{key: value[k : k + 4] for key, value in batch.items()} for k in (0, 4, 2)]
    two = {"devices": 2, "strategy": "ddp_fork"}
    alone = fit(make(**options), parts, tmp_path, devices=1).state_dict()
    together = fit(make(**options), parts, tmp_path, **two).state_dict()
    start = make(**options).state_dict()
    moved = max((alone[name] - start[name]).abs().max().item() for name in alone)
    assert moved > 1e-4
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=0, msg=name)


def test_what_is_not_shared_is_compared_only_on_demand(make, tmp_path):
    """A hat on the photo changes Eq. 4 of whole pictures, but not of what both show."""
    save_recognizer(SmallRecognizer(4, 16), tmp_path / "recognizer.pt", "nothing")
    changes = {}
    for compared in ("whole", "shared"):
        method = make(
            weights=Weights(), recognizer=str(tmp_path / "recognizer.pt"), compared=compared
        )
        batch = faces(method)
        batch["masks"][..., : SIZE // 2, :] = 0
        x = some_unknowns(4, 1, seed=1)
        before = method.hybrid_terms(x, batch)["perceptual"]
        batch["images"] = torch.where(batch["masks"] > 0, batch["images"], 0.9)
        changes[compared] = (method.hybrid_terms(x, batch)["perceptual"] - before).abs().item()
    assert changes["shared"] == 0
    assert changes["whole"] > 1e-4


def test_missing_landmarks_do_not_disturb_the_perceptual_loss(make, tmp_path):
    save_recognizer(SmallRecognizer(4, 16), tmp_path / "recognizer.pt", "nothing")
    method = make(weights=Weights(), recognizer=str(tmp_path / "recognizer.pt"))
    batch, x = faces(method), some_unknowns(4, 1)
    expected = method.hybrid_terms(x, batch)["perceptual"]
    batch["landmark_confidence"][:2] = 0
    batch["landmarks"][:2] = 1000.0
    found = method.hybrid_terms(x, batch)["perceptual"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

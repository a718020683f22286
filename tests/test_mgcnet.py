"""MGCNet: its losses between views at the truth and off it, flags, one batch learned."""

import dataclasses
import time

import pytest
import torch

from core.contracts import FaceBatch
from core.landmarks import INNER_MOUTH, NOSE
from core.losses import total
from core.render import draw_lit
from methods.mgcnet import MGCNet, Weights
from methods.regression import CoefficientWeights, Unknowns, lit
from tests.fakes.face_model import write

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
VIEWS = ("pixel", "depth", "epipolar")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture
def make(model_file):
    def build(**options) -> MGCNet:
        torch.manual_seed(1)
        usual = {
            "image_size": SIZE,
            "uv_size": SIZE,
            "region": None,
            "backbone": "resnet18",
            "backbone_options": {"channels": [4, 8, 8, 16]},
            "weights": Weights(perceptual=0.0),
        }
        return MGCNet(face_model=model_file, **{**usual, **options})

    return build


def some_unknowns(b: int = 2, apart: float = 0.35) -> Unknowns:
    """Three views of each of b people in ambient light, the yaws so many radians apart."""
    random = torch.Generator().manual_seed(0)

    def same(n: int) -> torch.Tensor:
        return torch.randn(b, 1, n, generator=random).expand(b, 3, n)

    angles = 0.1 * torch.randn(b, 3, 3, generator=random)
    angles[..., 1] = torch.tensor([-apart, 0.0, apart]) + 0.1
    return Unknowns(
        identity=same(8),
        expression=same(5),
        albedo=same(4),
        angles=angles,
        translation=6 * torch.randn(b, 3, 3, generator=random),
        light=torch.zeros(b, 3, 9, 3),
    )


def views(method: MGCNet, x: Unknowns, size: int = SIZE) -> FaceBatch:
    vertices = method.shape(x.identity, x.expression)
    camera = method.camera(x.angles, x.translation, size)
    albedo = method.face_model.albedo(x.albedo)
    images, mask, _ = draw_lit(vertices, method.triangles, albedo, lit(x.light), camera, size)
    b, v = images.shape[:2]
    return FaceBatch(
        images=images,
        landmarks=camera.project(method.face_model.landmarks(vertices))[0],
        landmark_confidence=torch.ones(b, v, 68),
        masks=mask,
        sample_ids=[f"face{k}" for k in range(b * v)],
        multi_view=torch.ones(b, dtype=torch.bool),
    )


def test_resnet50_gives_the_papers_257_numbers(tmp_path):
    path = write(tmp_path / "bfm.npz", identity=90, expression=70, albedo=85)
    dims = {"identity_dims": 80, "expression_dims": 64, "albedo_dims": 80}
    method = MGCNet(face_model=str(path), **dims)
    assert sum(head.out_features for head in method.network.heads.values()) == 257
    assert method.weights == Weights(1.9, 1e-3, 0.2, 1e-4, 0.15, 1e-4, 1e-3)  # Sec. 3.3, 3.8
    assert method.coefficient_weights == CoefficientWeights(1.0, 0.8, 3e-3)
    wanted = [10.0 if point in (*NOSE, *INNER_MOUTH) else 1.0 for point in range(68)]
    assert method.importance.tolist() == wanted
    names = [name for name, _ in method.network.named_modules() if name.endswith("bn1")]
    assert names  # batch norm, unlike the public code


def test_the_truth_has_no_error_between_views(make):
    """Wrong poses are seen by pixels and epipolar lines, different shapes by depth."""
    method = make().eval()
    x = some_unknowns()
    batch = views(method, x)
    truth = method.hybrid_terms(x, batch)
    assert truth["pixel"] < 0.004
    assert truth["depth"] < 0.3  # millimetres
    assert truth["epipolar"] < 1e-3  # pixels
    assert truth["landmark"] < 1e-6
    turned = x.angles.clone()
    turned[:, 0, 1] += 0.1
    wrong = method.hybrid_terms(dataclasses.replace(x, angles=turned), batch)
    assert wrong["pixel"] > 1.5 * truth["pixel"]
    assert wrong["epipolar"] > 0.3
    wrong = method.hybrid_terms(other_shape(x), batch)
    assert wrong["depth"] > 3 * truth["depth"]
    torch.testing.assert_close(wrong["epipolar"], truth["epipolar"])  # of poses alone


def other_shape(x: Unknowns) -> Unknowns:
    """In the target view alone."""
    other = x.identity.clone()
    other[:, 1] = -other[:, 1]
    return dataclasses.replace(x, identity=other)


def test_without_the_covisible_map_the_truth_has_an_error(make):
    x = some_unknowns(apart=0.6)
    with_map, without = make().eval(), make(covisible=False).eval()
    batch = views(with_map, x)
    assert without.hybrid_terms(x, batch)["pixel"] > 2 * with_map.hybrid_terms(x, batch)["pixel"]


def test_distances_do_not_depend_on_the_resolution(make):
    method = make().eval()
    x = some_unknowns()
    batch, large = views(method, x), views(method, x, 2 * SIZE)
    turned = x.angles.clone()
    turned[:, 0, 1] += 0.1
    wrong = dataclasses.replace(x, angles=turned)
    one, two = method.hybrid_terms(wrong, batch), method.hybrid_terms(wrong, large)
    torch.testing.assert_close(two["epipolar"], one["epipolar"])
    one, two = (method.hybrid_terms(other_shape(x), views)["depth"] for views in (batch, large))
    assert two.item() == pytest.approx(one.item(), rel=0.15)


def test_single_images_have_no_loss_between_views(make):
    method = make().eval()
    x = some_unknowns()
    turned = x.angles.clone()
    turned[:, 0, 1] += torch.tensor([0.1, 0.3])
    batch = views(method, x)
    x = dataclasses.replace(x, angles=turned.requires_grad_())
    batch["multi_view"] = torch.tensor([True, False])
    terms = method.hybrid_terms(x, batch)
    first = Unknowns(**{name: value[:1] for name, value in vars(x).items()})
    part = FaceBatch(**{key: value[:1] for key, value in batch.items()})
    alone = method.hybrid_terms(first, part)
    for name in VIEWS:
        torch.testing.assert_close(terms[name], alone[name])
    sum(terms[name] for name in VIEWS).backward()
    assert turned.grad[0].any()
    assert not turned.grad[1].any()
    del batch["multi_view"]
    terms = method.hybrid_terms(x, batch)
    assert all(terms[name] == 0 for name in VIEWS)
    one = FaceBatch(**{key: value[:, 1:2] for key, value in batch.items() if key != "sample_ids"})
    one["sample_ids"] = ["a", "b"]
    single = Unknowns(**{name: value[:, 1:2] for name, value in vars(x).items()})
    assert method.hybrid_terms(single, one)["landmark"] >= 0


def test_a_missing_landmark_does_not_count(make):
    method = make().eval()
    x = some_unknowns()
    batch = views(method, x)
    batch["landmarks"][:, 0, 5] = 1000.0
    assert method.hybrid_terms(x, batch)["epipolar"] > 1
    batch["landmark_confidence"][:, 0, 5] = 0
    assert method.hybrid_terms(x, batch)["epipolar"] < 1e-3


@pytest.mark.parametrize("name", VIEWS)
def test_each_weight_of_0_leaves_its_term_out(make, name):
    method = make(weights=Weights(perceptual=0.0, **{name: 0.0})).eval()
    x = some_unknowns()
    batch = views(method, x)
    turned = x.angles.clone()
    turned[:, 0, 1] += 0.1
    terms = method.hybrid_terms(other_shape(dataclasses.replace(x, angles=turned)), batch)
    assert [other for other in VIEWS if terms[other] == 0] == [name]


def test_weights_have_the_names_of_the_terms(make):
    method = make()
    batch = views(method, some_unknowns())
    names = {field.name for field in dataclasses.fields(Weights)}
    assert set(method.terms(batch)) == set(method.terms_without_rendering(batch)) == names


def test_one_batch_is_learned(make):
    """From an untrained network, whose views have one pose, so no baseline: every term falls."""
    method = make(lr=5e-3)
    batch = views(method, some_unknowns(b=1, apart=0.5))
    optimizer = method.configure_optimizers()["optimizer"]
    history = []
    for _ in range(90):
        terms = method.terms(batch)
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        total(terms, method.weights).backward()
        assert all(p.grad.isfinite().all() for p in method.parameters())
        optimizer.step()
    assert history[0]["epipolar"] == 0
    for name in ("photometric", "landmark", "pixel"):
        assert history[-1][name] < 0.5 * history[0][name], name
    assert history[-1]["epipolar"] < 0.5 * max(step["epipolar"] for step in history)


@pytest.mark.slow
def test_the_losses_between_views_cost_at_most_two_fifths():
    """Of a step with the losses in the images alone; ResNet-50, three views of 224 pixels."""
    torch.manual_seed(1)
    weights = Weights(perceptual=0.0)
    method = MGCNet(identity_dims=80, expression_dims=50, albedo_dims=20, weights=weights)
    batch = views(method, rich_unknowns(method), 224)
    optimizer = method.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def step(weights: Weights) -> float:
        method.weights = weights
        start = time.process_time()
        optimizer.zero_grad()
        total(method.terms(batch), weights).backward()
        optimizer.step()
        return time.process_time() - start

    alone = dataclasses.replace(weights, pixel=0.0, depth=0.0, epipolar=0.0)
    rounds = [(step(alone), step(weights)) for _ in range(5)][1:]
    without, whole = (min(times) for times in zip(*rounds, strict=True))
    print(f"losses between views: {whole / without - 1:.1%} of {without:.2f} s")
    assert whole <= 1.4 * without


def rich_unknowns(method: MGCNet) -> Unknowns:
    """As ``some_unknowns`` of one person, for a method with other numbers of modes."""
    x = some_unknowns(b=1, apart=0.5)
    sizes = {name: method.outputs[name] for name in ("identity", "expression", "albedo")}
    return dataclasses.replace(x, **{name: torch.zeros(1, 3, n) for name, n in sizes.items()})

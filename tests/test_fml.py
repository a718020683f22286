"""FML: the paper's layers and numbers, each loss by hand, what is shared, one batch learned."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.camera import PerspectiveCamera
from core.contracts import FaceBatch
from core.errors import MonofaceError
from core.lighting import AMBIENT, sh_basis
from core.losses import total
from core.render import draw, render_reconstruction
from methods.fml import FML, Weights
from methods.fml_losses import (
    expression_l2,
    graph_smoothness,
    reflectance_sparsity,
    vertex_photometric,
)
from methods.fml_network import FMLNetwork
from methods.regression import Unknowns, lit
from tests.fakes.face_model import face_model_arrays, write

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture
def make(model_file):
    def build(**options) -> FML:
        torch.manual_seed(1)
        usual = {
            "shape_dims": 12,
            "albedo_dims": 9,
            "nodes": 60,
            "jaw": "fixed",
            "image_size": SIZE,
            "uv_size": SIZE,
            "width": 0.05,
            "stride": 2,
        }
        return FML(face_model=model_file, **{**usual, **options})

    return build


def some_unknowns(method: FML, b: int = 2, v: int = 3, seed: int = 0) -> Unknowns:
    """Clips of people with several poses and lights; 5 expressions of the fake model."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return Unknowns(
        identity=normal(b, 1, method.dims["identity"]).expand(b, v, -1),
        albedo=normal(b, 1, method.dims["albedo"]).expand(b, v, -1),
        expression=normal(b, v, 5),
        angles=0.25 * normal(b, v, 3),
        translation=5 * normal(b, v, 3),
        light=0.15 * normal(b, v, 9, 3),
    )


def clips(method: FML, x: Unknowns) -> FaceBatch:
    """Pictures of the method's own faces, drawn and lit pixel by pixel."""
    b, v = x.angles.shape[:2]
    camera = method.camera(x.angles, x.translation, SIZE)
    with torch.no_grad():
        neutral, _ = method.neutral(x.identity[:, 0])
        vertices = method.shape(neutral, x.expression)
        shown = method.lit_vertices(
            vertices, method.reflectance(x.albedo[:, 0]), lit(x.light), camera
        )
        colours = torch.zeros_like(vertices)
        colours[:, :, method.drawn] = shown.colours
        uv = method.face_model.uv
        surface = draw(vertices, method.triangles, uv, camera, SIZE, attributes=colours)
        landmarks = camera.project(method.landmarks(vertices, camera))[0]
    return FaceBatch(
        images=surface.attributes,
        landmarks=landmarks,
        landmark_confidence=torch.ones(b, v, 68),
        masks=surface.mask,
        sample_ids=[f"face{k}" for k in range(b * v)],
    )


TABLES = {  # channels, height, width of what each row leaves
    "features": [(96, 60, 60), (96, 29, 29), (256, 29, 29), (256, 14, 14), (384, 14, 14)],
    "medium": [(256, 7, 7), (256, 4, 4)],
    "identity": [(384, 4, 4), (256, 4, 4), (1000,), (1000,), (500,), (500,)],  # last: 1000
    "spread": [(196,), (384, 14, 14)],
    "parameters": [(384, 14, 14), (384, 14, 14), (256, 14, 14), (256, 6, 6), (2048,), (70,), (27,)],
}


def test_layers_have_the_shapes_of_tables_1_to_3():
    network = FMLNetwork(240, (500, 500), (6 + 64, 27))
    shapes: list[tuple[int, ...]] = []
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.MaxPool2d)
    for layer in network.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        known, own = network(torch.rand(1, 2, 3, 240, 240))
    assert known.shape == (1, 1000)
    assert own.shape == (1, 2, 97)
    assert shapes == [shape for rows in TABLES.values() for shape in rows]


def test_the_paper_has_124_million_parameters():
    """Its |V| = 60k and 124 M are rounded; 58,700 vertices give both. Counted by hand for a mesh
    of that size: 3 V (500 + 1) of colours, 3 * 521 * 500 of the graph."""
    network = FMLNetwork(240, (500, 500), (6 + 64, 27))
    count = sum(p.numel() for p in network.parameters())
    convolutions = 3 * 121 * 96 + 25 * 96 * 256 + 9 * 256 * 384 + 9 * 384 * 256 + 9 * 256 * 256
    convolutions += 2 * 9 * 256 * 384 + 9 * (384 + 768 * 384 + 384 * 384 + 384 * 256)
    linear = 4 * 4 * 256 * 1000 + 2 * 1000 * 1000 + 1000 * 196 + 6 * 6 * 256 * 2048 + 2048 * 97
    biases = 96 + 256 + 384 + 2 * 256 + 384 + 256 + 3 * 1000 + 196 + 3 * 384 + 256 + 2048 + 97
    assert count == convolutions + linear + biases
    assert count + 3 * 58_700 * 501 + 3 * 521 * 500 == pytest.approx(124e6, rel=5e-3)
    assert Weights() == Weights(1.6, 4.7, 1e-3, 1e-7, 1e-8)  # supplement, Sec. 2


def test_learned_parameters_are_those_of_the_model_and_the_network(make):
    method = make()
    p = len(method.drawn)
    learned = {name: tuple(value.shape) for name, value in method.named_parameters()}
    own = {name: shape for name, shape in learned.items() if not name.startswith("network.")}
    assert own == {"shape_basis": (180, 12), "albedo_mean": (p, 3), "albedo_basis": (9, p, 3)}
    stored = set(method.state_dict())
    assert stored == set(learned)  # neither S nor the face model's arrays


def test_of_the_face_model_no_identity_and_no_colour_is_used(make, tmp_path):
    """Other people in the file make no difference."""
    arrays = face_model_arrays()
    rng = np.random.default_rng(3)
    for key in ("identity_basis", "albedo_basis", "albedo_mean"):
        arrays[key] = rng.random(arrays[key].shape).astype(np.float32)
    np.savez(tmp_path / "other.npz", **arrays)
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    faces = [
        method.eval()(images) for method in (make(), make_with(make, str(tmp_path / "other.npz")))
    ]
    for name in ("vertices", "albedo_map", "landmarks", "light"):
        assert torch.equal(getattr(faces[0], name), getattr(faces[1], name)), name


def make_with(make, path: str) -> FML:
    torch.manual_seed(1)
    first = make()
    options = {"image_size": SIZE, "uv_size": SIZE, "width": 0.05, "stride": 2, "nodes": 60}
    second = FML(face_model=path, shape_dims=12, albedo_dims=9, jaw="fixed", **options)
    second.load_state_dict(first.state_dict())
    return second


def test_an_untrained_network_gives_the_lit_frontal_mean_face_of_one_colour(make, face_model):
    face = make().eval()(torch.rand(1, 2, 3, SIZE, SIZE))
    torch.testing.assert_close(face.vertices[0, 1], face_model.mean)
    torch.testing.assert_close(face.camera.head_rotation[0, 0], torch.eye(3))
    box = face.landmarks[0, 0]
    assert ((box.amin(0) + box.amax(0)) / 2 - SIZE / 2).abs().max() < 1.5
    assert face.light[..., 0, :].eq(AMBIENT).all()
    assert not face.light[..., 1:, :].any()
    colours = face.albedo_map.flatten(3)
    assert (colours - colours[..., :1]).abs().max() < 1e-6


def test_frames_share_identity_and_not_the_rest(make):
    method = make().eval()
    for parameter in method.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.rand(2, 3, 3, SIZE, SIZE)
    face = method(images)
    for name in ("identity", "albedo"):
        values = face.coefficients[name]
        assert torch.equal(values[:, 0], values[:, 2])
        assert not torch.allclose(values[0], values[1])
    assert torch.equal(face.neutral[:, 0], face.neutral[:, 2])
    assert not torch.allclose(face.vertices[:, 0], face.vertices[:, 2])
    shuffled = method(images[:, [2, 0, 1]])  # a mean: the order of the frames does not matter
    torch.testing.assert_close(shuffled.vertices, face.vertices[:, [2, 0, 1]], atol=1e-3, rtol=1e-4)
    repeated = method(images[:, [0, 0, 0, 0, 0]])  # any number of frames; equal ones are as one
    torch.testing.assert_close(repeated.vertices[:, :1], method(images[:, :1]).vertices)


def test_identity_and_expression_are_orthogonal_at_every_step(make):
    """B_G^T OCL(Theta) = 0 to 1e-5 in float32, during a training that changes Theta."""
    method = make(lr=0.05)
    batch = clips(method, some_unknowns(method))
    pulled = method.graph.pulled_back(method.face_model.expression_basis).flatten(1).T
    pulled = pulled / pulled.norm(dim=0)
    optimizer = method.configure_optimizers()["optimizer"]
    before = method.shape_basis.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        total(method.terms(batch), method.weights).backward()
        optimizer.step()
        rest = method.complement()
        assert rest.dtype == torch.float32
        assert (pulled.T @ rest).abs().max() < 1e-5
        assert (method.blendshapes.T @ rest).abs().max() < 1e-5
    assert (method.shape_basis - before).abs().max() > 0.1
    assert (pulled.T @ method.shape_basis).abs().max() > 1e-2  # which Theta itself is not


def test_shape_by_hand(make, face_model):
    """Eq. 3: mean + S OCL(Theta) a + B d, in millimetres."""
    method = make()
    identity, expression = torch.randn(2, 12), torch.randn(2, 3, 5)
    neutral, moved = method.neutral(identity)
    nodes = torch.einsum("mk,bk->bm", method.complement(), identity)
    torch.testing.assert_close(moved.flatten(1), nodes)
    along = torch.einsum("nk,bnkc->bnc", method.graph.weights, moved[:, method.graph.bound])
    torch.testing.assert_close(neutral, face_model.mean + 10 * along, atol=1e-3, rtol=1e-4)
    with_expression = method.shape(neutral, expression)
    blend = torch.einsum("bvk,knc->bvnc", expression, face_model.expression_basis)
    torch.testing.assert_close(with_expression, neutral[:, None] + blend, atol=1e-3, rtol=1e-4)


def test_lit_vertices_by_hand(make):
    """Eq. 7 and culling, from normals of the mesh as triangles have them."""
    method = make()
    x = some_unknowns(method, 1, 1)
    x.angles[0, 0, 1] = 0.9
    neutral, _ = method.neutral(x.identity[:, 0])
    vertices = method.shape(neutral, x.expression)
    camera = method.camera(x.angles, x.translation, SIZE)
    assert isinstance(camera, PerspectiveCamera)
    albedo = method.reflectance(x.albedo[:, 0])
    shown = method.lit_vertices(vertices, albedo, lit(x.light), camera)
    position = camera.position(vertices)[0, 0]
    a, b, c = position[method.triangles].unbind(1)
    sums = torch.zeros_like(position)
    for k in range(3):
        sums.index_add_(0, method.triangles[:, k], torch.linalg.cross(b - a, c - a))
    normals = F.normalize(sums[method.drawn], dim=-1)
    wanted = albedo[0] * (sh_basis(normals) @ lit(x.light)[0, 0])
    torch.testing.assert_close(shown.colours[0, 0], wanted, atol=1e-4, rtol=1e-4)
    towards = (normals * position[method.drawn]).sum(-1) < 0
    assert torch.equal(shown.facing[0, 0].bool(), towards)
    assert 0.5 < shown.facing.mean() < 1


def test_photometric_by_hand():
    colours, seen = torch.zeros(2, 2, 4, 3), torch.zeros(2, 2, 4, 3)
    seen[0, 0, 0] = torch.tensor([0.3, 0.0, 0.4])  # 0.25
    seen[0, 0, 3] = 100.0  # not visible
    weight = torch.ones(2, 2, 4)
    weight[0, 0, 2:] = 0
    # a mean over two visible vertices, a sum over frames, a mean over clips
    wanted = torch.tensor(0.25 / 2 / 2)
    torch.testing.assert_close(vertex_photometric(colours, seen, weight), wanted)
    assert vertex_photometric(colours, seen, 0 * weight) == 0


def test_smoothness_by_hand():
    moved = torch.zeros(2, 3, 3)
    moved[0, 0, 1] = 2.0
    edges = torch.tensor([[0, 1], [0, 2]])
    assert graph_smoothness(moved, edges) == 2 * (4 + 4) / 2
    shifted = moved + torch.randn(2, 1, 3)
    torch.testing.assert_close(graph_smoothness(shifted, edges), torch.tensor(8.0))


def test_sparsity_by_hand():
    """Two neighbours of one chroma, two of different ones."""
    albedo = torch.tensor([[[0.8, 0.4, 0.4], [0.4, 0.2, 0.2], [0.4, 0.4, 0.2]]])
    light = torch.tensor([0.5, 1.5])[None, :, None, None]
    edges = torch.tensor([[0, 1], [1, 2]])
    one, two = math.sqrt(0.4**2 + 2 * 0.2**2) ** 0.9, 0.2**0.9
    away = torch.tensor([0.5 - 0.4, 0.25 - 0.4, 0.25 - 0.2]).norm().item()
    wanted = 2 * (one + math.exp(-80 * away) * two)
    found = reflectance_sparsity(albedo, albedo[:, None] * light, edges)
    assert found.item() == pytest.approx(wanted, rel=1e-3)


def test_sparsity_has_a_gradient_where_all_is_one_colour_and_none_through_the_weights():
    albedo = torch.full((1, 4, 3), 0.5, requires_grad=True)
    colours = torch.rand(1, 2, 4, 3, requires_grad=True)
    edges = torch.tensor([[0, 1], [1, 2], [2, 3]])
    term = reflectance_sparsity(albedo, colours, edges)
    gradients = torch.autograd.grad(term, [albedo, colours], allow_unused=True)
    assert not gradients[0].any()  # finite
    assert gradients[1] is None


def test_expression_by_hand():
    expression = torch.zeros(2, 3, 4)
    expression[0, :, 1] = 2.0
    assert expression_l2(expression) == 3 * 4 / 2


def test_under_the_best_pose_the_shape_does_not_feel_a_wrong_pose(make):
    """In training; the 66 landmarks that count are those for which the pose is the best."""
    method = make(landmark_pose="best").train()
    x = some_unknowns(method, 2, 2)
    batch = clips(method, x)
    wrong = method.camera(x.angles + 0.3, x.translation + 20, SIZE)
    neutral, _ = method.neutral(x.identity[:, 0])
    true = method.landmarks(method.shape(neutral, x.expression), wrong).detach()
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


def test_landmarks_are_66_and_missing_ones_do_not_count(make):
    method = make()
    batch = clips(method, some_unknowns(method, 1, 2))
    points = torch.cat([batch["landmarks"], torch.zeros(1, 2, 68, 1)], -1)
    points[..., [60, 64], :2] += 9
    still = torch.eye(3).expand(1, 2, 3, 3), torch.tensor([0.0, 0, 1]).expand(1, 2, 3)
    camera = PerspectiveCamera(*still, torch.ones(1, 2), torch.zeros(1, 2, 2))  # pixel = x, y
    assert method.landmark_term(points, camera, batch) == 0
    points[:, 0, 5, 0] += 0.1 * SIZE
    found = method.landmark_term(points, camera, batch)
    assert found.item() == pytest.approx(0.01, rel=1e-4)  # summed over points and frames
    batch["landmark_confidence"][:, 0, 5] = 0
    assert method.landmark_term(points, camera, batch) == 0


def test_the_truth_has_hardly_an_error(make):
    method = make(occlusion="masked").eval()
    x = some_unknowns(method)
    batch = clips(method, x)
    border = 1 - batch["masks"].flatten(0, 1)  # where a vertex sees a little of the background
    batch["masks"] = 1 - F.max_pool2d(border, 7, 1, 3).unflatten(0, (2, 3))
    right = method.terms_of(x, batch)
    assert right["landmark"] < 1e-9
    other = dataclasses.replace(x, albedo=x.albedo.flip(0))
    assert right["photometric"] < 0.2 * method.terms_of(other, batch)["photometric"]
    other = dataclasses.replace(x, identity=x.identity.flip(0))
    assert method.terms_of(other, batch)["landmark"] > 1e-3
    decimetres = method.neutral(x.identity[:, 0])[1] / 10
    assert right["smooth"] == graph_smoothness(decimetres, method.graph.edges) > 0
    assert method.terms_of(dataclasses.replace(x, identity=0 * x.identity), batch)["smooth"] == 0


def test_covered_vertices_count_unless_the_mask_is_asked(make):
    x = some_unknowns(make(), 1, 1)
    batch = clips(make(), x)
    batch["images"][..., : SIZE // 2] = 0  # something dark before the face
    batch["masks"][..., : SIZE // 2] = 0
    ignored = make().terms_of(x, batch)["photometric"]
    masked = make(occlusion="masked").terms_of(x, batch)["photometric"]
    assert masked < 0.5 * ignored


def test_vertices_beyond_the_image_do_not_count(make):
    method = make()
    x = some_unknowns(method, 1, 1)
    batch = clips(method, x)
    away = dataclasses.replace(x, translation=x.translation + 10_000 * torch.tensor([1.0, 0, 0]))
    assert method.terms_of(away, batch)["photometric"] == 0


def test_a_sliding_jaw_follows_the_pose(make):
    method = make(jaw="sliding").eval()
    x = some_unknowns(method, 1, 1)
    angles = torch.tensor([[[0.0, 0.9, 0.0]]])
    neutral, _ = method.neutral(x.identity[:, 0])
    vertices = method.shape(neutral, x.expression)
    camera = method.camera(angles, x.translation, SIZE)
    points = method.landmarks(vertices, camera)
    fixed = method.face_model.landmarks(vertices)
    assert (points - fixed)[..., :17, :].norm(dim=-1).max() > 5  # millimetres
    assert torch.equal(points[..., 17:, :], fixed[..., 17:, :])


@pytest.mark.parametrize("jaw", ["fixed", "sliding"])
def test_landmarks_without_the_other_vertices(make, jaw):
    """The same points with the same gradients."""
    method = make(jaw=jaw)
    x = some_unknowns(method, 2, 3)
    camera = method.camera(x.angles, x.translation, SIZE)
    weight = torch.rand(2, 3, 68, 3)

    def of_the_mesh():
        neutral, _ = method.neutral(x.identity[:, 0])
        return method.landmarks(method.shape(neutral, x.expression), camera)

    def alone():
        displacements = method.displacements(x.identity[:, 0])
        return method.landmark_shape(displacements, x.expression, camera)

    gradients = []
    for points in (of_the_mesh(), alone()):
        (gradient,) = torch.autograd.grad((points * weight).sum(), method.shape_basis)
        gradients.append((points.detach(), gradient))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_reconstruction_looks_like_what_was_trained_on(make):
    """Lit per vertex in the loss; as an albedo map lit per pixel in what is given back."""
    method = make(uv_size=128)
    x = some_unknowns(method, 2, 1)
    method.unknowns = lambda images: x
    batch = clips(method, x)
    with torch.no_grad():
        picture, surface = render_reconstruction(method(batch["images"]), SIZE)
    error = ((picture - batch["images"]).abs() * surface.mask).sum() / surface.mask.sum() / 3
    assert error < 0.02


def test_weights_have_the_names_of_the_terms(make):
    method = make()
    batch = clips(method, some_unknowns(method))
    assert set(method.terms(batch)) == {field.name for field in dataclasses.fields(Weights)}


def test_in_the_first_stage_identity_keeps_still(make):
    method = make(expression_steps=1)
    for parameter in method.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    x = method.unknowns(images)
    assert not x.identity.any()
    assert not x.albedo.any()
    assert x.expression.any()
    x.expression.sum().backward()
    assert not method.network.identity.last[0].weight.grad  # nothing to learn from
    assert method.eval().unknowns(images).identity.any()


@pytest.mark.parametrize(("shapes", "albedos"), [(0, 0), (0, 9), (12, 0)])
def test_a_model_of_size_0_is_the_mean_face(make, face_model, shapes, albedos):
    method = make(shape_dims=shapes, albedo_dims=albedos)
    batch = clips(method, some_unknowns(method))
    terms = method.terms(batch)
    total(terms, method.weights).backward()
    assert all(term.isfinite() for term in terms.values())
    face = method(batch["images"])
    if not shapes:
        torch.testing.assert_close(face.neutral[0, 0], face_model.mean)


def test_the_normalized_identity_network_takes_each_clip_by_itself():
    """A batch has few; and with a step that kills every unit of a plain network it goes on. The
    features that it is given are normalized over the whole batch in training, and only there.
    """
    torch.manual_seed(1)
    whole = FMLNetwork(SIZE, (5, 3), (3, 2), width=0.1, stride=2, normalized=True).train()
    network = whole.identity
    torch.nn.init.normal_(network.last[0].weight)
    images = torch.rand(2, 3, 3, SIZE, SIZE)
    alone, together = (whole(x)[0][0] for x in (images[:1], images))
    assert (alone - together).abs().max() > 1e-3
    whole.eval()
    torch.testing.assert_close(whole(images[:1])[0], whole(images)[0][:1], rtol=0, atol=1e-4)
    whole.train()
    features = torch.randn(4, 3, 26, 2, 2)
    found = network(features)
    torch.testing.assert_close(network(features[:1]), found[:1])
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.bias.data -= 100.0
            layer.bias.data[::2] += 1.0
    assert (network(features)[0] - network(features)[1]).abs().max() > 0.01


def test_units_of_the_normalized_identity_network_outlive_noise():
    """While its numbers are noise to the loss, large steps could switch them off, unit by unit."""
    torch.manual_seed(0)
    network = FMLNetwork(SIZE, (5, 3), (3, 2), width=0.1, stride=2, normalized=True).identity
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(400):
        found = network(torch.randn(4, 3, 26, 2, 2))
        (found - torch.randn_like(found)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    units = network.body(torch.randn(64, 3, 26, 2, 2).mean(1))
    assert (units > 0).any(0).float().mean() > 0.7  # of norms with factors and offsets 0.2 to 0.4
    assert units.square().mean() > 0.05  # 0.003


def test_the_frames_may_give_their_identity_no_gradient(make):
    """``detach_identity``: they are estimated from it all the same."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 3, SIZE, SIZE)
    for held in (False, True):
        network = make(detach_identity=held).network
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        _, frames = network(images)
        assert (frames - network(images, without_identity=True)[1]).abs().max() > 1e-4
        frames.sum().backward()
        assert (network.identity.last[0].weight.grad is None) == held
        assert network.features.low[0][0].weight.grad.any()


def test_images_that_are_too_small_are_refused(make):
    with pytest.raises(MonofaceError, match="smaller stride"):
        make(image_size=32, stride=4)


def test_one_batch_is_learned(make):
    """Another method's faces, of unknown bases, from one mesh of one colour."""
    truth = make()
    torch.nn.init.normal_(truth.shape_basis, std=0.15)
    x = some_unknowns(truth, 2, 3, seed=5)
    batch = clips(truth, x)
    method = make(width=0.1, lr=3e-3, occlusion="masked", weights=Weights(landmark=40.0))
    optimizer = method.configure_optimizers()["optimizer"]
    history = []
    for _ in range(80):
        terms = method.terms(batch)
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        total(terms, method.weights).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
        optimizer.step()
    assert history[-1]["landmark"] < 0.2 * history[0]["landmark"]
    assert history[-1]["photometric"] < 0.5 * history[0]["photometric"]


def test_colours_begin_to_learn_with_the_images(make):
    """Until then they have no gradient, afterwards nearly the whole learning rate."""
    method = make(landmark_steps=60, anneal_steps=200, basis_lr=0.1).train()
    for parameter in method.network.parameters():  # the frames' numbers depend on the identity
        torch.nn.init.normal_(parameter, std=0.1)
    total(method.terms(clips(method, some_unknowns(method))), method.weights).backward()
    colours = [*method.network.colour_heads(), method.albedo_mean, method.albedo_basis]
    assert not any(p.grad is not None and p.grad.any() for p in colours)
    assert method.network.identity.last[0].weight.grad.any()
    made = method.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    own = {id(p) for p in colours}
    late = [g for g in optimizer.param_groups if {id(p) for p in g["params"]} & own]
    assert {id(p) for g in late for p in g["params"]} == own
    for _ in range(60 + 50):
        optimizer.step()
        scheduler.step()
    rates = {g["initial_lr"]: g["lr"] for g in late}
    assert all(rate > 0.7 * whole for whole, rate in rates.items())
    others = [g for g in optimizer.param_groups if g not in late]
    assert all(g["lr"] < 0.45 * g["initial_lr"] for g in others)


@pytest.mark.parametrize("landmark_steps", [0, 3])
def test_batch_norms_keep_their_statistics_while_colours_learn(make, monkeypatch, landmark_steps):
    """A frame's numbers are then its own; with colours from the start it is as elsewhere."""
    method = make(landmark_steps=landmark_steps, normalized=True, pose_width=8).train()
    for parameter in method.network.identity.last.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    norms = [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    ours = [part for part in norms if part in list(method.network.modules())]
    assert 0 < len(ours) < len(norms)  # the pose's, too
    clips_of_two = torch.rand(2, 2, 3, SIZE, SIZE)
    for step in [*range(5), 0]:  # the last: another training of the same object
        monkeypatch.setattr(FML, "global_step", step)
        method.on_train_batch_start({}, 0)
        kept = 0 < landmark_steps <= step
        before = [norm.running_mean.clone() for norm in norms]
        found, _ = method.network(clips_of_two)
        method.pose(clips_of_two.flatten(0, 1))
        after = [norm.running_mean for norm in norms]
        pairs = zip(before, after, strict=True)
        assert [torch.equal(*pair) for pair in pairs] == [kept] * len(norms)
        alone, _ = method.network(clips_of_two[:1])
        assert torch.allclose(alone, found[:1], atol=1e-5) == kept
    synchronized = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    monkeypatch.setattr(FML, "global_step", landmark_steps)
    synchronized.on_train_batch_start({}, 0)
    parts = [m for m in synchronized.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert [part.training for part in parts] == [landmark_steps == 0] * len(norms)


def test_the_reflectance_is_a_group_of_its_own(make):
    method = make(lr=1e-3, basis_lr=3e-3, kernel_lr=0.02, anneal_steps=100)
    optimizer = method.configure_optimizers()["optimizer"]
    groups = {group.get("name", ""): group for group in optimizer.param_groups}
    reflectance = {id(p) for p in groups["reflectance"]["params"]}
    assert reflectance == {id(method.albedo_mean), id(method.albedo_basis)}
    assert groups["reflectance"]["initial_lr"] == 3e-3
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in method.parameters())


@pytest.mark.parametrize("kernel_lr", [None, 0.02])
def test_the_head_of_the_identity_may_be_turned_by_muon(make, kernel_lr):
    method = make(kernel_lr=kernel_lr, head_lr=0.3)
    optimizer = method.configure_optimizers()["optimizer"]
    head = method.network.identity.last[0].weight
    found = [g for g in optimizer.param_groups if any(p is head for p in g["params"])]
    assert [(len(g["params"]), g["initial_lr"], g["use_fallback"]) for g in found] == [
        (1, 0.3, False)
    ]
    turned = [p for g in optimizer.param_groups if not g["use_fallback"] for p in g["params"]]
    assert len(turned) == 1 + (len(method.network.kernels()) if kernel_lr else 0)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in method.parameters())
    assert not any(group.get("use_fallback") is False for group in of_no_shapes(make))


def of_no_shapes(make):
    """The optimizer's groups for a model whose identity has nothing to turn."""
    return make(shape_dims=0, head_lr=0.3).configure_optimizers()["optimizer"].param_groups

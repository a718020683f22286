"""CEST: each of its equations against an independent calculation; its ablations; one batch is
learned."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import FaceBatch
from core.errors import MonofaceError
from core.lighting import AMBIENT, sh_basis
from core.losses import total
from core.render import draw, render
from core.rotation import rotation_from_euler
from core.uv import bake, uv_grid
from methods.cest import (
    CEST,
    SHAPE_SCALE,
    VIEWPOINT_SCALE,
    Encoder,
    ReflectanceNet,
    Weights,
    other_frames,
)
from methods.optimizers import annealed
from tests.fakes.face_model import face_model_arrays, write

SIZE = 48


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture
def make(model_file):
    def build(**options) -> CEST:
        torch.manual_seed(1)
        sizes = {"image_size": SIZE, "uv_size": SIZE, "width": 4, "reflectance_width": 4}
        return CEST(model_file, **{**sizes, **options})

    return build


def clips(face_model, b: int = 2, v: int = 3) -> tuple[FaceBatch, torch.Tensor]:
    """Rendered clips: one person, light and reflectance a clip, the pose changes. And the
    reflectance."""
    identity = torch.randn(b, 1, 8).expand(b, v, 8)
    vertices = face_model.shape(identity)
    yaw = torch.linspace(-0.6, 0.6, v).expand(b, v)
    rotation = frontal(yaw) @ rotation_from_euler(0.2 * torch.randn(b, v), yaw, torch.zeros(b, v))
    camera = WeakPerspectiveCamera(
        rotation, torch.full((b, v), SIZE / 190), torch.full((b, v, 2), SIZE / 2)
    )
    grid = uv_grid(face_model.uv, face_model.triangles, SIZE)
    albedo = bake(face_model.albedo(torch.randn(b, 4)), grid, face_model.triangles)
    albedo = albedo.clamp(0, 1)[:, None].expand(b, v, 3, SIZE, SIZE)
    light = 0.2 * torch.randn(b, 1, 9, 1).expand(b, v, 9, 1)
    light = torch.cat([torch.full_like(light[..., :1, :], AMBIENT), light[..., 1:, :]], -2)
    surface = draw(vertices, face_model.triangles, face_model.uv, camera, SIZE)
    landmarks = camera.project(face_model.landmarks(vertices))[0]
    batch = FaceBatch(
        images=render(surface, albedo, light).clamp(0, 1),
        landmarks=landmarks,
        landmark_confidence=torch.ones(b, v, 68),
        masks=surface.mask,
        sample_ids=[str(k) for k in range(b * v)],
    )
    return batch, albedo


@pytest.mark.parametrize("conditional", [True, False])
def test_eq_2_to_4_each_estimate_depends_on_those_before(make, face_model, conditional):
    """CEST: changing v changes s, r and l; changing s changes r and l; IEST: it changes nothing
    else."""
    method = make(conditional=conditional).eval()
    batch, _ = clips(face_model)
    for name, parameter in method.named_parameters():
        if "weight" in name and not parameter.any():  # the zero-initialised last layers
            torch.nn.init.normal_(parameter, std=0.02)

    def estimates() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            face = method(batch["images"])
        return {
            "shape": face.coefficients["identity"],
            "reflectance": face.albedo_map,
            "light": face.light,
        }

    def changed(network: Encoder | ReflectanceNet, values: list[float]) -> set[str]:
        before = estimates()
        layer = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        saved = layer.bias.detach().clone()
        with torch.no_grad():
            layer.bias[: len(values)] += torch.tensor(values)
            after = estimates()
            layer.bias.copy_(saved)
        return {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}

    turned = [1.0, 0.0, 3.0, 1.0, 0.0, 0.5, 0.2]
    expected = {"shape", "reflectance", "light"} if conditional else set()
    assert changed(method.f_viewpoint, turned) == expected
    expected = {"shape", "reflectance", "light"} if conditional else {"shape"}
    assert changed(method.f_shape, [2.0, -2.0, 2.0]) == expected
    expected = {"reflectance", "light"} if conditional else {"reflectance"}
    assert changed(method.f_reflectance, [1.0, -1.0, 0.5]) == expected


def test_eq_5_shape_is_the_linear_model(make):
    method = make().eval()
    with torch.no_grad():
        layer = method.f_shape[-2]
        layer.bias.copy_(torch.linspace(-1, 1, len(layer.bias)))
        face = method(torch.rand(1, 1, 3, SIZE, SIZE))
    arrays = face_model_arrays()
    a = SHAPE_SCALE * np.linspace(-1, 1, 13)
    expected = arrays["mean"].astype(float)
    for k in range(8):
        expected = expected + a[k] * arrays["identity_basis"][k]
    neutral = expected.copy()
    for k in range(5):
        expected = expected + a[8 + k] * arrays["expression_basis"][k]
    np.testing.assert_allclose(face.vertices[0, 0], expected, atol=1e-3)
    np.testing.assert_allclose(face.neutral[0, 0], neutral, atol=1e-3)


def test_eq_6_to_9_terms_against_loops(make, face_model, monkeypatch):
    """The photometric, landmark and regularisation terms, written out image by image and pixel by
    pixel."""
    method = make(weights=Weights(photometric=2.0, landmark=3.0, regularization=0.5)).eval()
    with torch.no_grad():
        method.f_shape[-2].bias.normal_(std=0.3 / SHAPE_SCALE)
        method.f_viewpoint[-2].bias.normal_(std=0.05 / VIEWPOINT_SCALE)
    batch, _ = clips(face_model)
    batch["masks"] = (batch["masks"] * (torch.rand_like(batch["masks"]) > 0.3)).float()
    batch["landmark_confidence"][0, 0, :5] = 0
    chosen = torch.tensor([[1, 2, 0], [2, 0, 1]])
    monkeypatch.setattr("methods.cest.other_frames", lambda b, v: chosen)
    with torch.no_grad():
        terms = method.terms(batch)
        face, surface = method.estimate(batch["images"])

    photometric, landmark, energy = [], [], []
    for i in range(2):
        for f in range(3):
            seen = (surface.mask[i, f, 0] * batch["masks"][i, f, 0]).bool().numpy()
            r = face.albedo_map[i, chosen[i, f]]
            for reflectance in (r, r.flip(-1)):  # r_j and r_j' of Eq. 8
                image = _render_naively(surface, i, f, reflectance, face.light[i, f])
                wrong = np.abs(image - batch["images"][i, f].permute(1, 2, 0).numpy()).mean(-1)
                photometric.append(wrong[seen].mean())
            off = (face.landmarks[i, f] - batch["landmarks"][i, f]).numpy() / SIZE
            known = batch["landmark_confidence"][i, f].numpy() > 0
            landmark.append((off**2).sum(-1)[known].mean())
            a = np.concatenate([face.coefficients[k][i, f] for k in ("identity", "expression")])
            energy.append((a**2).sum())
    expected = [np.mean(photometric), np.mean(landmark), np.mean(energy)]
    got = [terms[name].item() for name in ("photometric", "landmark", "regularization")]
    np.testing.assert_allclose(got, expected, rtol=2e-4)
    weighted = 2 * expected[0] + 3 * expected[1] + 0.5 * expected[2]  # Eq. 9
    assert total(terms, method.weights).item() == pytest.approx(weighted, rel=2e-4)


def _render_naively(surface, i, f, reflectance, light):
    """R(v, s, r, l) from the drawn geometry: bilinear look-up and nine harmonics, pixel by
    pixel."""
    height, width = surface.mask.shape[-2:]
    texture = reflectance.permute(1, 2, 0).double().numpy()
    rows, columns = texture.shape[:2]
    image = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            if not surface.mask[i, f, 0, y, x]:
                continue
            u, v = surface.uv[i, f, y, x].double().numpy() * [columns, rows] - 0.5
            u, v = np.clip(u, 0, columns - 1), np.clip(v, 0, rows - 1)
            u0, v0 = min(int(u), columns - 2), min(int(v), rows - 2)
            du, dv = u - u0, v - v0
            colour = (
                texture[v0, u0] * (1 - du) * (1 - dv)
                + texture[v0, u0 + 1] * du * (1 - dv)
                + texture[v0 + 1, u0] * (1 - du) * dv
                + texture[v0 + 1, u0 + 1] * du * dv
            )
            basis = sh_basis(surface.normals[i, f, :, y, x]).numpy()
            image[y, x] = colour * (basis @ light.numpy())
    return image


def test_eq_7_8_reflectances_come_from_another_frame_of_the_clip_and_its_mirror(make):
    method = make()
    b, v = 3, 4
    maps = torch.arange(b * v).float().view(b, v, 1, 1, 1) + torch.zeros(b, v, 3, 2, 2)
    maps = maps + torch.tensor([0.0, 0.25])  # tells left from right
    swapped, mirrored = method.swapped_reflectances(maps)
    assert torch.equal(mirrored, swapped.flip(-1))
    for i in range(b):
        for f in range(v):
            source = int(swapped[i, f, 0, 0, 0])
            assert source // v == i, "from another clip"
            assert source % v != f, "from the frame itself"
    single = method.swapped_reflectances(maps[:, :1])  # a clip of one frame: r_i and r_i'
    assert torch.equal(single[0], maps[:, :1])
    assert torch.equal(single[1], maps[:, :1].flip(-1))


def test_eq_8_each_other_frame_is_drawn_equally_often():
    drawn = torch.stack([other_frames(50, 4) for _ in range(60)]).flatten(0, 1)
    for frame in range(4):
        counts = torch.bincount(drawn[:, frame], minlength=4)
        assert counts[frame] == 0
        others = counts[torch.arange(4) != frame].double()
        assert ((others - 1000).abs() < 5 * 1000**0.5).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2),
        ({"symmetry": False}, 1),
        ({"consistency": "none"}, 2),
        ({"consistency": "average"}, 2),
        ({"consistency": "none", "symmetry": False}, 1),
    ],
)
def test_ablations_of_the_constraints(make, options, expected):
    """How many images explain a frame, and whose reflectance it is."""
    maps = torch.rand(2, 4, 3, 6, 6)
    result = make(**options).swapped_reflectances(maps)
    assert len(result) == expected
    if options.get("consistency") == "none":
        assert torch.equal(result[0], maps)
    if options.get("consistency") == "average":
        mean = sum(maps[:, k] for k in range(4)) / 4
        for k in range(4):
            torch.testing.assert_close(result[0][:, k], mean)


def test_eq_10_shape_sees_a_crop_without_viewpoint(make, monkeypatch):
    """Shifting, scaling and rolling the camera with the image leaves what f_shape sees the same."""
    method = make().eval()
    seen = []
    method.f_shape.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    axis = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle, zoom, shift = 0.3, 1.2, 0.05

    def pattern(x, y):
        return torch.stack([torch.exp(-4 * (x**2 + y**2)), 0.5 + 0.3 * x, 0.5 + 0.3 * y])

    c, s = np.cos(angle), np.sin(angle)
    back_x, back_y = (x - 2 * shift) / zoom, (y - 2 * shift) / zoom
    moved = pattern(c * back_x + s * back_y, -s * back_x + c * back_y)  # turned clockwise
    with torch.no_grad():
        method(pattern(x, y)[None, None])
        # roll > 0 turns clockwise; about the model's z axis that is a negative right-handed angle
        numbers = [np.log(zoom), 0.0, 0.0, -angle, shift, shift, 0.0]
        method.f_viewpoint[-2].bias.copy_(torch.tensor(numbers) / VIEWPOINT_SCALE)
        method(moved[None, None])
    middle = slice(SIZE // 4, -SIZE // 4)
    difference = (seen[0] - seen[1])[..., middle, middle].abs()
    assert difference.max() < 0.03
    assert seen[0][..., middle, middle].std() > 0.1


def test_eq_11_viewpoint_against_scipy(make, face_model):
    method = make().eval()
    numbers = torch.tensor([0.1, 0.3, -0.4, 0.2, 0.05, -0.03, 0.7])
    with torch.no_grad():
        method.f_viewpoint[-2].bias.copy_(numbers / VIEWPOINT_SCALE)
        camera, _ = method.viewpoint(torch.zeros(1, 1, 3, SIZE, SIZE))
    points = np.random.default_rng(0).normal(size=(10, 3)) * 50
    rotation = Rotation.from_rotvec(numbers[1:4].numpy()).as_matrix()
    landmarks = face_model.landmarks(face_model.mean).double().numpy()
    pivot = (landmarks.min(0) + landmarks.max(0)) / 2
    turned = (points - pivot) @ rotation.T
    scale = SIZE / 190 * np.exp(0.1)
    expected = SIZE * (0.5 + numbers[4:6].numpy()) + scale * turned[:, :2] * [1, -1]
    got = camera.project(torch.from_numpy(points).float()[None, None])[0][0, 0]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_eq_12_the_unwrapped_texture_of_the_truth_is_the_lit_albedo(make, face_model, monkeypatch):
    """With the true geometry the reflectance network sees albedo times light wherever it sees
    anything."""
    method = make().eval()
    seen = []
    method.f_reflectance.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():  # a frontal mean face with constant light
        grid = uv_grid(face_model.uv, face_model.triangles, SIZE)
        albedo = bake(face_model.albedo_mean, grid, face_model.triangles)[None, None]
        light = torch.zeros(1, 1, 9, 1)
        light[..., 0, 0] = AMBIENT
        camera, _ = method.viewpoint(torch.zeros(1, 1, 3, SIZE, SIZE))
        vertices = face_model.mean[None, None]
        surface = draw(vertices, face_model.triangles, face_model.uv, camera, SIZE)
        method(render(surface, albedo, light))
    texture, visible = seen[0][:, :3], seen[0][:, 3:]
    expected = 2 * albedo[0] * AMBIENT * sh_basis(torch.tensor([0.0, 0.0, -1.0]))[0] - 1
    inner = torch.nn.functional.max_pool2d(1 - visible, 5, 1, 2) == 0  # away from the silhouette
    assert inner.float().mean() > 0.2
    assert ((texture - expected) * inner).abs().max() < 0.05


def test_an_untrained_network_gives_the_lit_frontal_mean_face(make, face_model):
    face = make().eval()(torch.rand(1, 2, 3, SIZE, SIZE))
    torch.testing.assert_close(face.vertices[0, 1], face_model.mean)
    torch.testing.assert_close(face.camera.head_rotation[0, 0], torch.eye(3))
    box = face.landmarks[0, 0]
    torch.testing.assert_close((box.amin(0) + box.amax(0)) / 2, torch.full((2,), SIZE / 2))
    assert face.light[..., 0, :].eq(AMBIENT).all()
    assert not face.light[..., 1:, :].any()
    assert face.albedo_map.min() >= 0
    assert face.albedo_map.max() <= 1


@pytest.mark.parametrize("size", [33, 48, 96, 100, 256])
def test_encoders_take_any_size(size):
    encoder = Encoder(3, size, 7, width=2).eval()
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, 7)
    strided = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.stride for m in strided] == [(2, 2)] * 6 + [(1, 1)]  # App. B.1


@pytest.mark.parametrize("size", [33, 48, 100])
def test_reflectance_net_keeps_the_size(size):
    assert ReflectanceNet(4, width=2).eval()(torch.rand(1, 4, size, size)).shape == (
        1,
        3,
        size,
        size,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_light_of_one_and_three_channels(make, face_model, channels):
    method = make(light_channels=channels)
    batch, _ = clips(face_model, 1, 2)
    assert method(batch["images"]).light.shape == (1, 2, 9, channels)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_reach_the_viewpoint_through_crop_and_unwrapping(make, face_model, detach):
    """The shape and reflectance alone (no landmark, no rendering) reach f_v unless detached."""
    method = make(detach_conditions=detach)
    for network in (method.f_shape, method.f_light):
        torch.nn.init.normal_(network[-2].weight, std=0.1)
    batch, _ = clips(face_model)
    face = method(batch["images"])
    (face.coefficients["identity"].sum() + face.albedo_map.square().sum()).backward()
    gradient = method.f_viewpoint[-2].bias.grad
    assert (gradient is None or not gradient.any()) == detach
    method.zero_grad()
    method.terms_without_rendering(batch)["regularization"].backward()  # through the crop alone
    gradient = method.f_viewpoint[-2].bias.grad
    assert (gradient is None or not gradient.any()) == detach


def test_gradients_do_not_mix_clips(make, face_model):
    """In evaluation mode a clip's loss depends on its own images only."""
    method = make().eval()
    torch.nn.init.normal_(method.f_shape[-2].weight, std=0.1)
    batch, _ = clips(face_model)
    images = batch["images"].clone().requires_grad_()
    face = method(images)
    face.landmarks[0].sum().backward()
    assert images.grad[0].any()
    assert not images.grad[1].any()


@pytest.mark.usefixtures("one_thread")
def test_one_batch_is_learned(make, face_model):
    """60 steps on one batch: every term of the data falls by more than half."""
    method = make(weights=dataclasses.replace(Weights(), landmark=50.0), width=8, lr=3e-3)
    batch, _ = clips(face_model)
    optimizer = method.configure_optimizers()["optimizer"]
    history = []
    for _ in range(60):
        terms = method.terms(batch)
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        total(terms, method.weights).backward()
        optimizer.step()
    for name in ("photometric", "landmark"):
        assert history[-1][name] < 0.5 * history[0][name], name


def test_learning_rate_rises_then_falls_to_zero_or_stays():
    assert {annealed(step, None) for step in range(5)} == {1.0}
    factors = [annealed(step, 1000) for step in range(1001)]
    assert max(factors) > 0.98
    assert factors[500] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0, abs=1e-9)
    assert all(a < b for a, b in itertools.pairwise(factors[:41]))
    assert all(a >= b for a, b in itertools.pairwise(factors[60:]))


def test_weights_have_the_names_of_the_terms(make, face_model):
    terms = make().terms(clips(face_model)[0])
    assert set(terms) == {field.name for field in dataclasses.fields(Weights)}


def test_too_many_modes_is_a_clear_error(make):
    with pytest.raises(ValueError, match="8 modes in identity_basis, but 99"):
        make(identity_dims=99)


def test_geometry_keeps_float32_under_bfloat16_autocast(make, face_model):
    """Networks may run in bfloat16; the same estimates must then be placed to a hundredth of a
    pixel."""
    method = make().eval()
    with torch.no_grad():
        method.f_shape[-2].bias.normal_(std=0.5 / SHAPE_SCALE)
        method.f_viewpoint[-2].bias.normal_(std=0.1 / VIEWPOINT_SCALE)
        images = torch.rand(1, 2, 3, SIZE, SIZE)
        exact = method(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = method(images)
    a = torch.cat([mixed.coefficients[k] for k in ("identity", "expression")], -1)
    vertices = face_model.shape(*a.split(method.dims, -1))
    torch.testing.assert_close(mixed.vertices, vertices, atol=1e-4, rtol=0)
    expected = mixed.camera.project(face_model.landmarks(vertices))[0]
    torch.testing.assert_close(mixed.landmarks, expected, atol=1e-2, rtol=0)
    assert (mixed.landmarks - exact.landmarks).abs().max() < 0.5
    for value in (*vars(mixed.camera).values(), mixed.albedo_map, mixed.light, mixed.vertices):
        assert value.dtype == torch.float32
    vector = mixed.coefficients["viewpoint"][0, :, 1:4].double().numpy()
    expected = np.diag([1.0, -1, -1]) @ Rotation.from_rotvec(vector).as_matrix()
    np.testing.assert_allclose(mixed.camera.rotation[0], expected, atol=1e-6)


def test_too_small_images_are_a_clear_error(make):
    with pytest.raises(MonofaceError, match="at least 33 pixels"):
        make(image_size=32)


@pytest.mark.parametrize("size", [33, 64])
def test_bfloat16_gradients_do_not_depend_on_what_was_in_memory(make, face_model, size):
    """Twice the same step, with freed NaNs in between, gives the same finite gradients, near those
    of float32."""
    method = make(image_size=size, uv_size=size)
    batch, _ = clips(face_model)
    images = torch.nn.functional.interpolate(batch["images"].flatten(0, 1), size)
    batch = {
        **batch,
        "images": images.unflatten(0, (2, 3)),
        "masks": torch.ones(2, 3, 1, size, size),
    }
    torch.nn.init.normal_(method.f_shape[-2].weight, std=0.1)

    def gradients(enabled: bool) -> dict[str, torch.Tensor]:
        junk = [torch.full((length,), torch.nan) for length in range(100, 4000, 13)]
        del junk
        torch.manual_seed(0)
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = method.terms(batch)
        total(terms, method.weights).backward()
        return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}

    first, second, exact = gradients(True), gradients(True), gradients(False)
    for name, gradient in first.items():
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(gradient, second[name]), name
    name = "f_viewpoint.18.bias"
    assert torch.nn.functional.cosine_similarity(first[name], exact[name], dim=0) > 0.9


def test_reflectance_and_light_begin_at_the_full_learning_rate(make):
    method = make(landmark_steps=600, anneal_steps=1000, lr=1e-3)
    made = method.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(1001):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    geometry, appearance = np.array(rates).T
    assert geometry[500] == pytest.approx(5e-4)
    assert appearance[800] == pytest.approx(5e-4)
    assert appearance[601:651].argmax() > 40  # it rises first
    assert appearance[650] > 0.95e-3
    assert geometry[1000] == appearance[1000] == 0
    counts = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    assert sum(counts) == sum(p.numel() for p in method.parameters())


def test_muon_turns_the_kernels_of_viewpoint_and_shape(make, face_model):
    """Each parameter is in one group; the rates anneal from their own starts; geometry learns."""
    method = make(kernel_lr=0.05, lr=1e-3, landmark_steps=60, anneal_steps=100)
    made = method.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    kernels, rest, appearance = optimizer.param_groups
    assert [p.ndim for p in kernels["params"]] == [4] * 10
    assert sum(len(group["params"]) for group in (kernels, rest, appearance)) == len(
        list(method.parameters())
    )
    assert [group.get("use_fallback", False) for group in optimizer.param_groups] == [
        False,
        True,
        True,
    ]
    batch, _ = clips(face_model)
    history = []
    for _ in range(50):
        optimizer.zero_grad()
        terms = method.terms_without_rendering(batch)
        history.append(terms["landmark"].item())
        total(terms, method.weights).backward()
        optimizer.step()
        scheduler.step()
    assert history[-1] < 0.6 * history[0]
    assert kernels["lr"] == pytest.approx(50 * rest["lr"])
    assert kernels["lr"] == pytest.approx(0.025)
    assert {p.grad is None for p in appearance["params"]} == {True}


def test_expression_coefficients_are_standard_deviations(tmp_path):
    arrays = face_model_arrays()
    arrays["expression_std"] = np.linspace(0.1, 0.5, 5).astype(np.float32)
    np.savez(tmp_path / "model.npz", **arrays)
    sizes = {"image_size": SIZE, "uv_size": SIZE, "width": 4, "reflectance_width": 4}
    method = CEST(str(tmp_path / "model.npz"), **sizes)
    numbers = torch.randn(1, 1, 5)
    vertices = method.shape(torch.zeros(1, 1, 8), numbers)[0, 0]
    expected = arrays["mean"].astype(float)
    for k in range(5):
        activation = numbers[0, 0, k].item() * arrays["expression_std"][k]
        expected = expected + activation * arrays["expression_basis"][k]
    np.testing.assert_allclose(vertices, expected, atol=1e-3)


def test_landmark_steps_teach_viewpoint_and_shape_only(make, face_model):
    """The terms without rendering are those of the whole, and reach no other network; then all
    learn."""
    method = make(landmark_steps=1)
    torch.nn.init.normal_(method.f_shape[-2].weight, std=0.1)
    batch, _ = clips(face_model)
    quick = method.train().terms(batch)
    total(quick, method.weights).backward()
    reached = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {"f_viewpoint", "f_shape"}
    assert quick["photometric"] == 0
    method.eval()  # evaluation always renders
    with torch.no_grad():
        whole, without = method.terms(batch), method.terms_without_rendering(batch)
    for name in ("landmark", "regularization"):
        torch.testing.assert_close(whole[name], without[name])
    assert whole["photometric"] > 0
    method = make(landmark_steps=0).train()
    total(method.terms(batch), method.weights).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_under_the_best_pose_the_viewpoint_s_errors_do_not_reach_the_shape(make, face_model):
    """The shape's gradient is that of the least error over poses, whatever the viewpoint says; the
    viewpoint's is that of the plain term; evaluation knows no difference. (Without the crop, which
    a wrong viewpoint changes, and with it what the shape's network sees.)"""
    batch, _ = clips(face_model)
    shape, viewpoint, values = {}, {}, {}
    for pose in ("estimated", "best"):
        for off in (0.0, 3.0):
            torch.manual_seed(0)
            method = make(landmark_pose=pose, detach_conditions=True, conditional=False).train()
            torch.nn.init.normal_(method.f_shape[-2].weight, std=0.1)
            with torch.no_grad():
                method.f_viewpoint[-2].bias[2] += off  # tenths of a radian
            method.terms_without_rendering(batch)["landmark"].backward()
            shape[pose, off] = method.f_shape[-2].weight.grad
            viewpoint[pose, off] = method.f_viewpoint[-2].weight.grad
            with torch.no_grad():
                values[pose, off] = method.eval().terms(batch)["landmark"]
    change = {
        pose: (shape[pose, 3.0] - shape[pose, 0.0]).norm() / shape[pose, 0.0].norm()
        for pose in ("estimated", "best")
    }
    assert change["best"] < 0.1 * change["estimated"], change
    for off in (0.0, 3.0):
        torch.testing.assert_close(viewpoint["best", off], viewpoint["estimated", off])
        assert values["best", off] == values["estimated", off]

"""Deng: every quantity against the formulas of the authors' public code, written out in NumPy.

The public code's conventions: decimetres, rows times transposed matrices, y up, the camera 10 dm
before the face at z = 10 - z, R = Rz Ry Rx, pixels counted from the lower left corner, images of
224 pixels. Where the method differs on purpose, the difference itself is tested.
"""

import numpy as np
import pytest
import torch

from core.lighting import FACTORS, shade_points
from core.losses import (
    coefficient_l2,
    cosine_distance,
    landmark_l2,
    light_colour_l2,
    masked_l21,
    region_variance,
)
from core.normals import vertex_normals
from core.render import draw_lit
from core.rotation import euler_from_rotation
from core.skin import skin_probability
from methods.deng import Deng, Weights
from methods.regression import Unknowns, lit
from tests.fakes.face_model import face_model_arrays

SIZE, FOCAL, CENTRE = 224, 1015.0, 112.0
# a and c of the public code's nine functions, and the power of -1 of each in our camera frame
A = np.array([np.pi, *3 * [2 * np.pi / np.sqrt(3)], *5 * [2 * np.pi / np.sqrt(8)]])
C = np.array(
    [
        1 / np.sqrt(4 * np.pi),
        *3 * [np.sqrt(3) / np.sqrt(4 * np.pi)],
        *5 * [3 * np.sqrt(5) / np.sqrt(12 * np.pi)],
    ]
)
SCALE = np.array([1, 1, 1, 1, 1, 1, 0.5 / np.sqrt(3), 1, 0.5])


class Public:
    """The public code for one face: numbers in, every intermediate result out."""

    def __init__(self, arrays: dict, numbers: dict[str, np.ndarray]) -> None:
        mean = arrays["mean"].astype(float) / 100
        shift = mean.mean(0)
        basis, spread = arrays["expression_basis"] / 100, arrays["expression_std"]
        self.shift = shift
        self.shape = mean - shift
        self.shape = self.shape + np.einsum(
            "k,knc->nc", numbers["identity"], arrays["identity_basis"] / 100
        )
        self.shape = self.shape + np.einsum("k,knc->nc", numbers["expression"] * spread, basis)
        self.texture = arrays["albedo_mean"] + np.einsum(
            "k,knc->nc", numbers["albedo"], arrays["albedo_basis"]
        )
        (cx, cy, cz), (sx, sy, sz) = np.cos(numbers["angles"]), np.sin(numbers["angles"])
        rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        self.rotation = rz @ ry @ rx
        posed = self.shape @ self.rotation.T + numbers["translation"]
        self.camera = np.stack([posed[:, 0], posed[:, 1], 10 - posed[:, 2]], -1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """x to the right, y up."""
        return FOCAL * points[:, :2] / points[:, 2:] + CENTRE

    def normals(self, triangles: np.ndarray, weighted: bool) -> np.ndarray:
        """Means of the triangles' normals, unit ones unless weighted with the area; rotated."""
        a, b, c = (self.shape[triangles[:, k]] for k in range(3))
        face = np.cross(a - b, b - c)
        if not weighted:
            face = face / np.linalg.norm(face, axis=1, keepdims=True)
        total = np.zeros_like(self.shape)
        for corner in range(3):
            np.add.at(total, triangles[:, corner], face)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return np.divide(total, length, where=length > 0, out=total) @ self.rotation.T

    def colours(self, normals: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        """gamma 3 x 9 without the constant; x right, y up, z towards the viewer."""
        x, y, z = normals.T
        one = np.ones_like(x)
        functions = [one, -y, z, -x, x * y, -y * z, 3 * z * z - 1, -x * z, x * x - y * y]
        basis = (A * C * SCALE)[:, None] * functions
        gamma = gamma + np.array([0.8, *8 * [0]])
        return self.texture * (gamma @ basis).T


@pytest.fixture(scope="module")
def arrays():
    made = face_model_arrays()
    made["expression_std"] = np.linspace(0.5, 1.5, 5).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def numbers():
    random = np.random.default_rng(3)
    return {
        "identity": random.normal(size=8),
        "expression": random.normal(size=5),
        "albedo": random.normal(size=4),
        "angles": np.array([0.2, -0.5, 0.15]),
        "translation": np.array([0.1, -0.2, 0.4]),
        "gamma": 0.1 * random.normal(size=(3, 9)),
    }


@pytest.fixture(scope="module")
def public(arrays, numbers):
    return Public(arrays, numbers)


@pytest.fixture(scope="module")
def method(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "face.npz"
    np.savez(path, **arrays)
    return Deng(
        face_model=str(path),
        region=None,
        backbone="resnet18",
        backbone_options={"channels": [4, 4, 4, 4]},
        light_channels=3,
        weights=Weights(perceptual=0.0),
    )


@pytest.fixture(scope="module")
def unknowns(method, public, numbers):
    """The same face in the conventions of this suite."""
    rotation = torch.from_numpy(public.rotation)
    angles = torch.stack(euler_from_rotation(rotation))
    pivot = method.pivot.double().numpy() / 100 - public.shift  # ours, where theirs is the origin
    translation = 100 * (numbers["translation"] + public.rotation @ pivot)
    # Their functions in our frame, where y and z point the other way.
    signs = np.array([1, 1, -1, -1, -1, -1, 1, 1, 1])
    light = (numbers["gamma"] * (A * C * SCALE * signs / np.array(FACTORS))).T
    parts = {name: numbers[name] for name in ("identity", "expression", "albedo")}
    parts |= {"angles": angles.numpy(), "translation": translation, "light": light}
    return Unknowns(
        **{name: torch.from_numpy(value).float()[None, None] for name, value in parts.items()}
    )


def test_shape_and_texture(method, unknowns, public):
    vertices = method.shape(unknowns.identity, unknowns.expression)[0, 0].double().numpy()
    np.testing.assert_allclose(vertices / 100 - public.shift, public.shape, atol=1e-5)
    albedo = method.face_model.albedo(unknowns.albedo)[0, 0]
    np.testing.assert_allclose(albedo, public.texture, atol=1e-5)


def test_pose_and_projection(method, unknowns, public, arrays):
    vertices = method.shape(unknowns.identity, unknowns.expression)
    camera = method.camera(unknowns.angles, unknowns.translation, SIZE)
    seen = camera.position(vertices)[0, 0].double().numpy() / 100
    np.testing.assert_allclose(seen, public.camera * [1, -1, 1], atol=1e-5)
    corners = public.camera[arrays["landmark_vertices"]]
    points = public.project((corners * arrays["landmark_weights"][..., None]).sum(1))
    ours = camera.project(method.face_model.landmarks(vertices))[0][0, 0].double().numpy()
    np.testing.assert_allclose(ours / SIZE, [0, 1] + points * [1, -1] / SIZE, atol=1e-5)
    theirs = np.stack([points[:, 0], SIZE - 1 - points[:, 1]], 1)  # rows of pixels, 223 - y
    np.testing.assert_allclose(ours - theirs, np.broadcast_to([0, 1], (68, 2)), atol=2e-3)


def test_normals(method, unknowns, public, arrays):
    vertices = method.shape(unknowns.identity, unknowns.expression)
    camera = method.camera(unknowns.angles, unknowns.translation, SIZE)
    ours = vertex_normals(camera.position(vertices), method.triangles)[0, 0] * torch.tensor(
        [1.0, -1.0, -1.0]
    )
    np.testing.assert_allclose(ours, public.normals(arrays["triangles"], True), atol=1e-5)
    # The difference: their triangles count the same whatever their area.
    cosine = (ours.double().numpy() * public.normals(arrays["triangles"], False)).sum(1)
    degrees = np.degrees(np.arccos(cosine.clip(-1, 1)))
    assert 0.01 < degrees.mean() < 2


def test_colours(method, unknowns, public, arrays, numbers):
    normals = public.normals(arrays["triangles"], True)
    given = torch.from_numpy(normals * [1, -1, -1]).float()[None, None]
    albedo = method.face_model.albedo(unknowns.albedo)
    ours = (albedo * shade_points(given, lit(unknowns.light)))[0, 0]
    np.testing.assert_allclose(ours, public.colours(normals, numbers["gamma"]), atol=1e-5)


def test_picture(method, unknowns, public, arrays, numbers):
    """Colours of the vertices, interpolated where the ray of each pixel meets the mesh first."""
    vertices = method.shape(unknowns.identity, unknowns.expression)
    camera = method.camera(unknowns.angles, unknowns.translation, SIZE)
    albedo = method.face_model.albedo(unknowns.albedo)
    picture, mask, _ = draw_lit(
        vertices, method.triangles, albedo, lit(unknowns.light), camera, SIZE
    )
    colours = public.colours(public.normals(arrays["triangles"], True), numbers["gamma"])
    random = np.random.default_rng(0)
    pixels = random.integers(0, SIZE, (400, 2))
    x = (pixels + 0.5 - CENTRE) / FOCAL
    rays = np.stack([x[:, 0], -x[:, 1], np.ones(len(x))], 1)
    a, b, c = (public.camera[arrays["triangles"][:, k]] for k in range(3))
    # ray * depth = a + u (b - a) + v (c - a), by Cramer's rule
    p, q = b - a, c - a
    normal = np.cross(p, q)
    below = rays @ normal.T
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (a * normal).sum(1) / below
        hit = rays[:, None] * depth[..., None] - a
        area = (normal**2).sum(1)
        u = (np.cross(hit, q) * normal).sum(-1) / area
        v = (np.cross(p, hit) * normal).sum(-1) / area
    inside = (u >= 0) & (v >= 0) & (u + v <= 1)
    nearest = np.where(inside, depth, np.inf).argmin(1)
    rows = np.arange(len(pixels))
    found = inside[rows, nearest]
    u, v = u[rows, nearest], v[rows, nearest]
    corners = colours[arrays["triangles"][nearest]]
    wanted = corners[:, 0] * (1 - u - v)[:, None] + corners[:, 1] * u[:, None]
    wanted = wanted + corners[:, 2] * v[:, None]
    ours = picture[0, 0, :, pixels[:, 1], pixels[:, 0]].T.numpy()
    seen = mask[0, 0, 0, pixels[:, 1], pixels[:, 0]].numpy() > 0
    assert (seen == found).mean() > 0.99
    both = seen & found
    assert both.sum() > 100
    error = np.abs(ours - wanted)[both].max(1)
    assert np.quantile(error, 0.9) < 1e-5  # the others lie beside a snapped edge
    assert error.max() < 0.02


def batch_of(seed: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    rendered, photo = random.uniform(0, 1, (2, 3, 3, 20, 20))
    skin = random.uniform(0, 1, (3, 1, 20, 20))
    skin[0, :, 10:] = 0
    return rendered, photo, skin


def photometric(rendered: np.ndarray, photo: np.ndarray, mask: np.ndarray, constant: float):
    """As published: one mean over the whole batch; the constant is 1e-6."""
    distance = np.sqrt(constant + ((rendered - photo) ** 2).sum(1, keepdims=True)) * mask
    return distance.sum() / mask.sum()


def test_photometric():
    rendered, photo, skin = batch_of(0)
    ours = masked_l21(*(torch.from_numpy(value).float() for value in (rendered, photo, skin)))
    parts = [photometric(rendered[[k]], photo[[k]], skin[[k]], 0.0) for k in range(3)]
    assert ours.item() == pytest.approx(np.mean(parts), abs=1e-5)
    # The differences: each image counts the same; equal colours have no error at all.
    assert abs(ours.item() - photometric(rendered, photo, skin, 0.0)) > 1e-4
    same = torch.rand(1, 3, 4, 4)
    assert masked_l21(same, same, torch.ones(1, 1, 4, 4)) == 0
    theirs = photometric(same.numpy(), same.numpy(), np.ones((1, 1, 4, 4)), 1e-6)
    assert theirs == pytest.approx(1e-3)
    single = [photometric(rendered[:1], photo[:1], skin[:1], constant) for constant in (0, 1e-6)]
    assert single[0] == pytest.approx(single[1], abs=1e-5)


def test_skin_attention(method):
    """The probability as it is (published), or full from 0.5 on (the paper)."""
    images = torch.rand(1, 2, 3, 30, 30) * 0.2 + torch.tensor([0.6, 0.45, 0.35])[:, None, None]
    mask = (torch.rand(1, 2, 1, 30, 30) > 0.3).float()
    probability = skin_probability(images) * mask
    method.skin_threshold = None
    torch.testing.assert_close(method.attention(images, mask), probability, atol=1e-4, rtol=0)
    method.skin_threshold = 0.5
    likely = probability > 0.5
    assert likely.any()
    assert not likely[mask > 0].all()
    wanted = torch.where(likely, 1.0, probability)
    torch.testing.assert_close(method.attention(images, mask), wanted, atol=1e-4, rtol=0)


def test_landmarks(method):
    random = np.random.default_rng(1)
    found, given = random.uniform(0, SIZE, (2, 3, 68, 2))
    known = torch.ones(3, 68)
    pair = [torch.from_numpy(value).float() for value in (found, given)]
    for chosen in (range(28, 31), range(27, 36)):  # published; the paper's "nose"
        weight = np.ones(68)
        weight[list(chosen)] = 20
        weight[60:] = 20
        wanted = (weight * ((found - given) ** 2).sum(-1)).sum() / (3 * 68)
        importance = torch.from_numpy(weight).float()
        ours = landmark_l2(*pair, known, SIZE / 224, importance).item()
        assert ours == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(method.importance, importance)  # by default the paper's


def test_perceptual():
    a, b = torch.randn(2, 4, 16).double().numpy()
    cosine = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    ours = cosine_distance(torch.from_numpy(a).float(), torch.from_numpy(b).float()).item()
    assert ours == pytest.approx((1 - cosine).sum() / 4, abs=1e-5)


def test_regularization(method):
    random = np.random.default_rng(2)
    identity, expression, albedo = random.normal(size=(3, 2, 1, 7))
    wanted = 1.0 * (identity**2).sum() + 0.8 * (expression**2).sum() + 1.7e-3 * (albedo**2).sum()
    parts = [torch.from_numpy(value).float() for value in (identity, expression, albedo)]
    assert method.coefficient_term(*parts).item() == pytest.approx(wanted / 2, rel=1e-5)
    assert coefficient_l2(parts[0]).item() == pytest.approx((identity**2).sum() / 2, rel=1e-5)
    gamma = random.normal(size=(2, 1, 9, 3))
    wanted = ((gamma - gamma.mean(-1, keepdims=True)) ** 2).mean()
    ours = light_colour_l2(torch.from_numpy(gamma).float()).item()
    assert ours == pytest.approx(wanted, rel=1e-5)


def test_flat_skin():
    random = np.random.default_rng(4)
    texture, mask = random.uniform(size=(2, 1, 50, 3)), np.arange(50) % 3 == 0
    masked = mask[:, None] * np.ones(3)
    mean = (texture * masked).sum(-2, keepdims=True) / masked.sum(-2, keepdims=True)
    wanted = (((texture - mean) * masked) ** 2).sum() / (2 * mask.sum())
    ours = region_variance(
        torch.from_numpy(texture).float(), torch.from_numpy(np.flatnonzero(mask))
    )
    assert ours.item() == pytest.approx(wanted, rel=1e-5)

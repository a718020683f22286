"""A pose network of its own: what the others see of a face is straightened by it."""

import math

import pytest
import torch

from core.contracts import FaceBatch
from core.crop import canonical_to_image
from core.errors import MonofaceError
from core.losses import total
from core.render import draw
from methods.deng import Deng, Weights
from methods.deng_cnet import DengCNet
from methods.fml import FML
from methods.mgcnet import MGCNet
from methods.mgcnet import Weights as MGCNetWeights
from methods.pose import POSE_SCALES, PoseNet, landmark_pivot, posed_camera
from methods.regression import APPEARANCE, GEOMETRY
from tests.fakes.face_model import write

SIZE, FOCAL, DISTANCE = 64, 1015.0, 1000.0
TURNED = [0.0, 0.0, math.radians(25)], [14.0, -9.0, 120.0]  # roll; aside, down and away
CLIP = torch.rand(2, 3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture
def make_deng(model_file):
    def build(kind: type[Deng] = Deng, **options) -> Deng:
        torch.manual_seed(1)
        backbone = {"backbone": "resnet18", "backbone_options": {"channels": [4, 8, 8, 16]}}
        sizes = {"image_size": SIZE, "uv_size": 16, "pose_width": 4, "region": None}
        usual = {**backbone, **sizes, "weights": Weights(perceptual=0.0)}
        return kind(face_model=model_file, **{**usual, **options})

    return build


@pytest.fixture
def make_fml(model_file):
    torch.manual_seed(1)
    dims = {"shape_dims": 6, "albedo_dims": 6, "nodes": 30, "region": None, "jaw": "fixed"}
    sizes = {"image_size": SIZE, "uv_size": 16, "width": 0.03, "stride": 2, "normalized": True}
    return FML(face_model=model_file, **dims, **sizes, pose_width=4)


def numbers_of(angles: list[float], translation: list[float]) -> torch.Tensor:
    """What a network gives of this pose."""
    scales = list(POSE_SCALES.values())
    return torch.cat(
        [torch.tensor([x]) / s for x, s in zip((angles, translation), scales, strict=True)], 1
    )


def woken(net: PoseNet) -> PoseNet:
    """Its last layer no longer zero, so that poses are large and differ."""
    last = net.encoder[-2]
    torch.nn.init.normal_(last.weight, std=2.0)
    torch.nn.init.normal_(last.bias, std=2.0)
    return net


def pose_net(model) -> PoseNet:
    torch.manual_seed(1)
    return PoseNet(SIZE, 4, landmark_pivot(model), FOCAL, DISTANCE).eval()


def picture(model, angles: list[float], translation: list[float]) -> torch.Tensor:
    """The mean face in this pose, textured with its UV positions."""
    pose = torch.tensor([[angles]]), torch.tensor([[translation]])
    focal = FOCAL * SIZE / 224
    camera = posed_camera(*pose, landmark_pivot(model), focal, DISTANCE, SIZE)
    uv = torch.cat([model.uv, model.uv[:, :1]], 1)
    vertices, colours = model.mean[None, None], uv[None, None]
    shown = draw(vertices, model.triangles, model.uv, camera, SIZE, attributes=colours)
    return (shown.attributes * shown.mask)[0]


def test_an_untrained_network_leaves_the_image_as_it_is(face_model):
    net = pose_net(face_model)
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        numbers, straight = net(images)
    assert not numbers.any()
    torch.testing.assert_close(straight, images, atol=1e-4, rtol=0)


def test_a_turned_shifted_distant_face_is_straightened(face_model):
    net = pose_net(face_model)
    images = picture(face_model, *TURNED)
    wanted = picture(face_model, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    found = net.straightened(images, numbers_of(*TURNED))
    before, after = ((x - wanted).abs().mean() for x in (images, found))
    assert after < 0.2 * before  # resampled once, seen from elsewhere
    assert after < 0.02


def test_the_pivot_comes_to_the_middle_however_the_head_turns(face_model):
    pose = [0.3, 0.9, -0.4], [20.0, 5.0, -60.0]
    pivot, focal = landmark_pivot(face_model), FOCAL * SIZE / 224
    camera = posed_camera(*(torch.tensor([x]) for x in pose), pivot, focal, DISTANCE, SIZE)
    near = camera.weak_perspective(pivot)
    torch.testing.assert_close(
        near.project(pivot[None, None])[0], camera.project(pivot[None, None])[0]
    )
    around = pivot + torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    torch.testing.assert_close(
        near.project(around)[0], camera.project(around)[0], atol=5e-3, rtol=0
    )
    matrix = canonical_to_image(near.about(pivot), SIZE, 190.0)
    middle = matrix @ torch.tensor([SIZE / 2, SIZE / 2, 1.0])
    torch.testing.assert_close(middle[0, :2], camera.project(pivot[None, None])[0][0, 0])


def test_the_rest_sees_the_straightened_face_and_teaches_the_pose_nothing(make_deng):
    """The pose learns from the landmarks through the camera alone."""
    method = make_deng().eval()
    net = woken(method.network.pose)
    for head in method.network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.1)
    seen = []
    method.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    parts = method.estimates(CLIP, tuple(method.outputs))
    numbers, straight = net(CLIP.flatten(0, 1))
    torch.testing.assert_close(seen[0], straight)
    assert (straight - CLIP.flatten(0, 1)).abs().max() > 0.01
    torch.testing.assert_close(parts["angles"].flatten(0, 1), 0.1 * numbers[:, :3])
    torch.testing.assert_close(parts["translation"].flatten(0, 1), 10 * numbers[:, 3:])
    parts["identity"].sum().backward(retain_graph=True)
    assert all(p.grad is None for p in net.parameters())
    parts["angles"].sum().backward()
    assert net.encoder[-2].weight.grad.any()


@pytest.mark.parametrize("landmark_pose", ["estimated", "best"])
@pytest.mark.parametrize("kind", [Deng, MGCNet])
def test_the_pose_learns_from_landmarks_alone(make_deng, kind, landmark_pose):
    weights = {Deng: Weights, MGCNet: MGCNetWeights}[kind](perceptual=0.0)
    options = {"landmark_steps": 1, "landmark_pose": landmark_pose, "weights": weights}
    method = make_deng(kind, **options).train()
    batch = FaceBatch(
        images=CLIP,
        landmarks=SIZE * torch.rand(2, 3, 68, 2),
        landmark_confidence=torch.ones(2, 3, 68),
        masks=torch.ones(2, 3, 1, SIZE, SIZE),
        sample_ids=list("abcdef"),
    )
    total(method.terms(batch), method.weights).backward()
    assert method.network.pose.encoder[-2].weight.grad.any()
    assert method.network.heads["identity"].weight.grad.any()


def test_geometry_stays_in_float32_under_autocast(make_deng):
    method = make_deng().eval()
    woken(method.network.pose)
    with torch.autocast("cpu", torch.bfloat16):
        numbers, straight = method.network.pose(CLIP.flatten(0, 1))
    assert numbers.dtype == straight.dtype == torch.float32
    exact = method.network.pose.straightened(CLIP.flatten(0, 1), numbers)
    torch.testing.assert_close(straight, exact)


def test_heads_for_all_but_the_pose(make_deng):
    method = make_deng()
    assert {*method.network.heads} == {*GEOMETRY, *APPEARANCE} - {*POSE_SCALES}
    face = method.eval()(CLIP)
    assert face.vertices.shape[:2] == (2, 3)


def test_c_net_takes_an_r_net_with_it_and_leaves_it_alone(make_deng, tmp_path):
    r_net = make_deng()
    woken(r_net.network.pose)
    torch.save({"state_dict": r_net.state_dict()}, tmp_path / "r_net.ckpt")
    method = make_deng(DengCNet, r_net=tmp_path / "r_net.ckpt", c_net_width=4, c_net_hidden=4)
    method.trainer = type("Fake", (), {"ckpt_path": None})()
    method.setup("predict")
    method.train()
    found = method.estimates(CLIP, ("angles",))["angles"]
    torch.testing.assert_close(found, r_net.eval().estimates(CLIP, ("angles",))["angles"])
    assert not any(p.requires_grad for p in method.network.pose.parameters())
    assert not method.network.pose.encoder.training


def test_each_frame_of_a_clip_is_straightened_by_its_own_pose(make_fml):
    method = make_fml.eval()
    woken(method.pose)
    seen = []
    method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        x = method.unknowns(CLIP)
        numbers, straight = method.pose(CLIP.flatten(0, 1))
    torch.testing.assert_close(seen[0], 2 * straight.unflatten(0, (2, 3)) - 1)
    torch.testing.assert_close(x.angles.flatten(0, 1), 0.1 * numbers[:, :3])
    torch.testing.assert_close(x.translation.flatten(0, 1), 10 * numbers[:, 3:])
    assert (x.angles[:, 0] - x.angles[:, 1]).abs().min() > 0


def test_all_of_it_learns_once(make_fml):
    groups = make_fml.configure_optimizers()["optimizer"].param_groups
    given = [parameter for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given)) == len(list(make_fml.parameters()))


def test_images_that_are_too_small_are_refused(face_model):
    with pytest.raises(MonofaceError, match="at least 33 pixels, got 32"):
        PoseNet(32, 4, landmark_pivot(face_model), FOCAL, DISTANCE)
    with pytest.raises(MonofaceError, match="takes images of 64 x 64 pixels, got 64 x 72"):
        pose_net(face_model)(torch.zeros(1, 3, 64, 72))


def test_a_network_without_channels_is_refused(face_model):
    with pytest.raises(MonofaceError, match="pose_width is 0; wanted at least 1"):
        PoseNet(64, 0, landmark_pivot(face_model), FOCAL, DISTANCE)

"""PGN: phases, frozen parts, losses at the truth and off it, paper's sizes, one batch learned."""

import dataclasses

import pytest
import torch
from torch import nn

from core.affine_pose import AffineCamera
from core.camera import frontal
from core.contracts import FaceBatch
from core.errors import MonofaceError
from core.losses import total
from core.render import draw_lit, render_reconstruction
from core.rotation import rotation_from_euler, rotation_from_vector
from methods.optimizers import Part, annealed, optimizer_of_parts
from methods.pgn import (
    PGN,
    Estimate,
    Weights,
    label_distance,
    landmark_modes,
    point_distance,
    regularization,
    some_pairs,
)
from methods.pgn_networks import Encoder, NumberHead, PointRegressor, PositionMap, own_texels
from tests.fakes.face_model import write

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
STEPS = {"landmark_steps": 2, "single_steps": 2, "pair_steps": 2}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture
def make(model_file, monkeypatch):
    """A small PGN; its attribute ``global_step`` can be set."""
    monkeypatch.setattr(PGN, "global_step", 0, raising=False)

    def build(**options) -> PGN:
        torch.manual_seed(1)
        usual = {"image_size": SIZE, "uv_size": 32, "width": 2, "blocks": 1, "region": None}
        usual |= {"map_size": 16, "map_width": 16, "hidden": 16, "pooled": False, **STEPS}
        return PGN(face_model=model_file, **{**usual, **options})

    return build


def at(method: PGN, step: int) -> PGN:
    type(method).global_step = step
    return method.train()


def people(method: PGN, b: int = 2, v: int = 4, apart: float = 0.25) -> tuple[FaceBatch, Estimate]:
    """Images of people who turn their heads in ambient light, and the truth."""
    random = torch.Generator().manual_seed(0)
    identity = torch.randn(b, 1, 8, generator=random).expand(b, v, 8)
    expression = torch.randn(b, v, 5, generator=random)
    vertices = method.shape(identity, expression)
    yaw = apart * (torch.arange(v) - (v - 1) / 2).expand(b, v)
    zero = torch.zeros(b, v)
    linear = SIZE / 220 * (frontal(zero) @ rotation_from_euler(zero + 0.1, yaw, zero))
    middle = torch.tensor([0.5, 0.5, 0.0]) * SIZE
    pose = torch.cat([linear, middle.expand(b, v, 3)[..., None]], -1)
    camera = AffineCamera.of(pose)
    waves = torch.sin(vertices[:1, :1] / 6 + torch.arange(3.0))  # the same on all people
    albedo = (0.5 + 0.25 * waves).expand(b, v, -1, -1).contiguous()
    light = torch.zeros(b, v, 9, 1)
    light[..., 0, 0] = 1.0
    triangles = method.face_model.triangles
    images, mask, _ = draw_lit(vertices, triangles, albedo, light, camera, SIZE)
    images = images + 0.5 * (1 - mask)
    corners = method.face_model.landmarks(vertices)
    landmarks = corners @ linear.mT + middle
    batch = FaceBatch(
        images=images.clamp(0, 1),
        landmarks=landmarks[..., :2].contiguous(),
        landmark_confidence=torch.ones(b, v, 68),
        masks=mask,
        sample_ids=[f"face{k}" for k in range(b * v)],
        landmarks_3d=landmarks * torch.tensor([1, 1, -1]) + torch.tensor([0, 0, 17.0]),
        has_landmarks_3d=torch.ones(b, v, dtype=torch.bool),
    )
    return batch, Estimate(identity, expression, corners, landmarks, pose, landmarks)


def test_the_papers_network_has_prnets_sizes(tmp_path):
    """256 x 256 pixels to 8 x 8 x 512 features by 11 layers, and 17 transposed ones to the map."""
    encoder = Encoder()
    assert encoder.channels == 512
    assert (
        sum(isinstance(m, nn.Conv2d) and m.kernel_size == (4, 4) for m in encoder.modules()) == 11
    )
    decoder = PositionMap(512, 8, 256, 512, torch.rand(68, 2))
    transposed = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(transposed) == 17
    assert {m.kernel_size for m in transposed} == {(4, 4)}
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, 256, 256))
        assert features.shape == (1, 512, 8, 8)
        assert decoder.eval().layers(features).shape[-2:] == (256, 256)
    path = write(tmp_path / "bfm.npz", identity=210, expression=40)
    with torch.device("meta"):
        heads = [NumberHead(512, 8, n, 512, True) for n in (199, 29)]
    method = PGN(str(path), 199, 29, width=2, blocks=1, map_width=16, hidden=8)
    assert method.dims == [199, 29]
    assert [head.last.out_features for head in heads] == method.dims
    assert method.weights == Weights(1.0, 1.0, 0.2, 0.2, 10.0, 1.0)  # Sec. 4
    steps = method.landmark_steps, method.single_steps, method.pair_steps
    assert steps == (600_000, 400_000, 200_000)


def test_landmarks_start_at_the_mean_face_and_have_texels_of_their_own(make):
    for points in ("map", "linear"):
        method = make(points=points).eval()
        places = method.places(method.features(torch.rand(1, 2, 3, SIZE, SIZE)), SIZE)
        mean = method.face_model.landmarks(method.face_model.mean) - method.pivot
        wanted = mean * torch.tensor([1, -1, -1]) * SIZE / 190 + SIZE * torch.tensor([0.5, 0.5, 0])
        torch.testing.assert_close(places[0, 1], wanted)
    assert isinstance(method.position, PointRegressor)
    close = torch.tensor([[0.5, 0.5]]).expand(5, 2)
    assert len(set(own_texels(close, 4).tolist())) == 5
    apart = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]])
    assert own_texels(apart, 4).tolist() == [0, 3, 12]  # rows are v


def test_sizes_that_do_not_fit_say_so(make):
    with pytest.raises(MonofaceError, match="multiple of 32"):
        make(image_size=80)
    with pytest.raises(MonofaceError, match="4, 8, 16, 32, 64"):
        make(map_size=12)


def test_the_pose_is_that_of_the_landmarks(make):
    for pose in ("similarity", "affine"):
        method = make(pose=pose)
        _, truth = people(method)
        torch.testing.assert_close(
            method.pose_of(truth.corners, truth.places), truth.pose, rtol=1e-4, atol=1e-4
        )


def test_an_affine_pose_takes_in_a_faces_proportions_and_a_similarity_does_not(make):
    """So that Eq. 8 can only teach them with the latter."""
    method, errors = make(), {}
    _, truth = people(method)
    narrow = truth.corners * torch.tensor([0.9, 1.0, 1.0])
    for pose in ("similarity", "affine"):
        method.pose = pose
        found = method.pose_of(narrow, truth.places)
        landmarks = narrow @ found[..., :3].mT + found[..., None, :, 3]
        errors[pose] = point_distance(landmarks, truth.places, SIZE)
    assert errors["affine"] < 1e-2 < 50 < errors["similarity"]


def test_each_phase_has_its_terms_and_trains_its_parts(make):
    method = make()
    batch, _ = people(method)
    kinds = {
        0: ({"points"}, {"encoder", "position"}),
        1: ({"points"}, {"encoder", "position"}),
        2: ({"landmark", "regularization"}, {"f_identity", "f_expression"}),
        4: (set(vars(method.weights)) - {"points"}, {"f_identity", "f_expression"}),
    }
    with torch.no_grad():
        for head in (method.f_identity, method.f_expression):
            nn.init.normal_(head.last.weight, std=0.1)
        nn.init.normal_(method.position.last[0].weight, std=0.1)
    for step, (names, parts) in kinds.items():
        at(method, step).on_train_batch_start(batch, 0)
        method.zero_grad()
        terms = method.terms(batch)
        assert set(terms) == set(vars(method.weights))
        assert {name for name, term in terms.items() if term != 0} == names, step
        total(terms, method.weights).backward()
        learning = {
            name.partition(".")[0]
            for name, parameter in method.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }
        assert learning == parts, step
    terms = method.eval().terms(batch)
    assert all(term > 0 for term in terms.values())  # evaluation: all of them


def test_fixed_parts_do_not_change_and_stay_in_evaluation_mode(make):
    method = make()
    batch, _ = people(method)
    optimizer = method.configure_optimizers()["optimizer"]

    def steps(first: int, last: int) -> None:
        for step in range(first, last):
            type(method).global_step = step
            method.on_train_batch_start(batch, step)
            optimizer.zero_grad()
            total(method.terms(batch), method.weights).backward()
            optimizer.step()

    method.train()
    steps(0, 2)
    kept = {k: v.clone() for k, v in method.state_dict().items()}
    assert method.encoder.training
    steps(2, 8)
    assert not method.encoder.training
    assert not method.position.training
    assert method.f_identity.training
    method.eval().train()  # as after a validation
    assert not method.encoder.training
    changed = {k for k, v in method.state_dict().items() if not torch.equal(v, kept[k])}
    assert {name.partition(".")[0] for name in changed} == {"f_identity", "f_expression"}


def test_the_third_phase_takes_two_and_then_all_images(make, monkeypatch):
    method = make(multi_clips=1)
    batch, _ = people(method)
    seen = []
    monkeypatch.setattr(
        PGN, "swap_terms", lambda self, images, *rest: seen.append(images.shape[:2]) or {}
    )
    for step in (4, 5, 6, 7):
        at(method, step).terms(batch)
    method.eval().terms(batch)
    assert seen == [(1, 2), (1, 2), (1, 4), (1, 4), (2, 4)]


def test_all_images_of_a_clip_have_one_identity_and_the_order_does_not_matter(make):
    method = make()
    with torch.no_grad():
        nn.init.normal_(method.f_identity.last.weight)
        nn.init.normal_(method.f_expression.last.weight)
    images = torch.rand(2, 4, 3, SIZE, SIZE) * torch.rand(2, 4, 3, 1, 1)
    for _ in range(30):  # batch norm's statistics, without which all features are about 0
        method.features(images)
    method.eval()
    face, turned = method(images), method(images.flip(1))
    identity = face.coefficients["identity"]
    torch.testing.assert_close(identity, identity[:, :1].expand_as(identity))
    torch.testing.assert_close(turned.coefficients["identity"], identity)
    expression = face.coefficients["expression"]
    torch.testing.assert_close(turned.coefficients["expression"].flip(1), expression)
    assert (expression[:, 0] - expression[:, 1]).abs().max() > 1e-3
    alone = method(images[:, :1]).coefficients["identity"]
    assert (alone - identity[:, :1]).abs().max() > 1e-3
    separate = method.estimate(method.features(images), SIZE, together=False).identity
    torch.testing.assert_close(separate[:, :1], alone)


def test_the_truth_has_almost_no_loss_between_images_and_others_more(make):
    method = make().eval()
    batch, truth = people(method)

    def terms(identity, pose) -> dict[str, torch.Tensor]:
        vertices = method.shape(identity, truth.expression)
        features = method.features(batch["images"])
        camera = AffineCamera.of(pose)
        with torch.no_grad():
            return method.swap_terms(batch["images"], vertices, camera, batch["masks"], features)

    right = terms(truth.identity, truth.pose)
    pose = truth.pose.clone()
    pose[:, 1, 0, 3] += 2.0  # one head two pixels beside where it is
    shifted = terms(truth.identity, pose)
    flat = terms(-truth.identity, truth.pose)
    for name in ("photometric", "flow"):
        assert shifted[name] > 2 * right[name], name
        assert flat[name] > 1.1 * right[name], name
    assert right["flow"] < 0.3 * 256 / SIZE  # pixels of images of 256


def test_some_pairs_of_each_clip_are_drawn():
    every = some_pairs((3, 4, 3), None, torch.device("cpu"))
    assert every.tolist() == list(range(36))
    seen = torch.zeros(36)
    for _ in range(300):
        chosen = some_pairs((3, 4, 3), 2, torch.device("cpu"))
        assert (chosen // 12).tolist() == [0, 0, 1, 1, 2, 2]
        assert len(set(chosen.tolist())) == 6
        seen[chosen] += 1
    assert (seen > 20).all()  # 50 are expected


def test_flow_is_in_the_same_unit_at_half_the_size(make):
    method, batch = make(), people(make())[0]
    target = batch["images"].flatten(0, 1)
    drawn, weight = target.roll(2, -1), batch["masks"].flatten(0, 1)
    found = []
    for stride in (1, 2):
        method.flow_stride = stride
        found.append(method.flow_term(target, drawn, weight).item())
    assert found == pytest.approx([2 * 256 / SIZE] * 2, rel=0.25)


def test_eq_8_and_12_are_what_they_say():
    found, places = torch.zeros(1, 2, 68, 3), torch.zeros(1, 2, 68, 3)
    places[0, 0, 3] = torch.tensor([1.0, -2.0, 3.0])
    places[0, 1, 4:6, 0] = 4.0
    assert point_distance(found, places, 128).item() == pytest.approx((6 + 8) / 2 * 2)
    identity, expression = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[-4.0, 1.0]]])
    assert regularization(identity, expression).item() == pytest.approx(3 + 5 / 2)


def test_labels_count_in_three_dimensions_where_they_are_known_and_else_in_two(make):
    batch, truth = people(make())
    assert label_distance(truth.places, batch).item() == pytest.approx(0, abs=0.02)
    deeper = truth.places + torch.tensor([0, 0, 30.0])  # the origin is free
    assert label_distance(deeper, batch).item() == pytest.approx(0, abs=0.05)
    off = truth.places.clone()
    off[0, :, 0] += torch.tensor([1.0, 0, 0])
    off[1, :, 1, 2] += 3.0
    unit = 256 / SIZE
    depth = (3 - 3 / 68) + 67 * 3 / 68
    wanted = (4 * 1 + 4 * depth) / 8 * unit
    assert label_distance(off, batch).item() == pytest.approx(wanted, rel=1e-3)
    batch["has_landmarks_3d"][1] = False  # depth is not known there
    assert label_distance(off, batch).item() == pytest.approx(unit, rel=1e-3)
    batch["landmark_confidence"][1] = 0.0
    off[1, :, :, :2] += 99.0
    assert label_distance(off, batch).item() == pytest.approx(unit, rel=1e-3)
    del batch["landmarks_3d"], batch["has_landmarks_3d"]
    batch["landmarks"][1] = off[1, :, :, :2]
    assert label_distance(off, batch).item() == pytest.approx(unit / 2, rel=1e-3)


def test_a_regressed_pose_learns_from_the_datas_landmarks_with_everything_else(make):
    method = make(pose="regressed")
    assert method.position is None
    batch, _ = people(method)
    wanted = {0: {"encoder", "f_pose"}, 2: {"encoder", "f_pose"}, 4: {"f_pose"}}
    for step, parts in wanted.items():
        at(method, step).on_train_batch_start(batch, 0)
        method.zero_grad()
        for head in (method.f_pose, method.f_identity, method.f_expression):
            nn.init.normal_(head.last.weight, std=1e-2)
        terms = method.terms(batch)
        assert terms["landmark"] > 0
        assert terms["points"] == 0
        assert (terms["flow"] > 0) == (step == 4)
        terms["landmark"].backward()
        learning = {n.partition(".")[0] for n, p in method.named_parameters() if p.grad is not None}
        assert learning == parts | {"f_identity", "f_expression"}
    face = method.eval()(batch["images"])
    corners = method.face_model.landmarks(face.vertices)
    seen, _ = face.camera.project(corners)
    torch.testing.assert_close(seen, face.landmarks, rtol=1e-4, atol=1e-3)


def test_the_reconstruction_shows_the_image_itself(make):
    """Its texture is the image's, and its light leaves colours as they are."""
    method = make().eval()
    batch, truth = people(method, apart=0.1)
    face = method(batch["images"])
    assert face.albedo_map.shape == (2, 4, 3, 32, 32)
    vertices, camera = method.shape(truth.identity, truth.expression), AffineCamera.of(truth.pose)
    texture = method.texture(batch["images"], vertices, camera)
    face = dataclasses.replace(face, vertices=vertices, camera=camera, albedo_map=texture)
    drawn, surface = render_reconstruction(face, SIZE)
    inside = surface.mask * (surface.normals[:, :, 2:] < -0.6)
    error = ((drawn - batch["images"]).abs() * inside).sum() / (3 * inside.sum())
    assert error < 0.06
    assert ((batch["images"] - 0.5).abs() * inside).sum() / (3 * inside.sum()) > 0.1


def test_single_images_have_no_losses_between_images(make):
    method = at(make(), 6)
    batch, _ = people(method, v=1)
    terms = method.terms(batch)
    assert terms["photometric"] == terms["flow"] == terms["semantic"] == 0
    assert terms["landmark"] > 0


def test_colours_instead_of_patterns_see_the_light(make):
    """Lp-, of Fig. 5, is misled by a gain that Lp does not see."""
    batch, truth = people(make())
    gain = torch.tensor([1.0, 0.7, 1.0, 0.85]).view(1, 4, 1, 1, 1)
    ratios = {}
    for census in (True, False):
        method = make(census=census, weights=Weights(flow=0.0, semantic=0.0)).eval()
        vertices = method.shape(truth.identity, truth.expression)
        camera = AffineCamera.of(truth.pose)
        values = [
            method.swap_terms(images, vertices, camera, batch["masks"], torch.zeros(2, 4, 1, 1, 1))
            for images in (batch["images"], batch["images"] * gain)
        ]
        assert "flow" not in values[0]
        ratios[census] = (values[1]["photometric"] / values[0]["photometric"]).item()
    print(ratios)
    assert ratios[True] < 0.5 * ratios[False]


def test_weights_to_start_from_are_read_and_others_refused(make, tmp_path):
    from types import SimpleNamespace

    first, path = make(), tmp_path / "last.ckpt"
    torch.save({"state_dict": first.state_dict()}, path)
    second = make(start_from=path)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    second._trainer = SimpleNamespace(ckpt_path=None)
    second.setup("fit")
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)
    other = make(start_from=path, width=4)
    other._trainer = SimpleNamespace(ckpt_path=None)
    with pytest.raises(MonofaceError, match="holds another network"):
        other.setup("fit")
    missing = make(start_from=tmp_path / "none.ckpt")
    missing._trainer = SimpleNamespace(ckpt_path=None)
    with pytest.raises(MonofaceError, match="Train that step first"):
        missing.setup("fit")


def test_rates_are_halved_from_each_parts_start_and_end_with_it():
    a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    parts = [Part([a], end=100), Part([b], start=100)]

    def rates(step: int, anneal: int | None, halve: int | None) -> list[float]:
        found = optimizer_of_parts(parts, 1.0, None, anneal, halve)
        return [factor(step) for factor in found["lr_scheduler"]["scheduler"].lr_lambdas]

    assert rates(99, None, 40) == [0.25, 1.0]
    assert rates(180, None, 40) == [0.0625, 0.25]
    assert rates(100, 200, None)[0] == pytest.approx(0, abs=1e-9)
    assert rates(150, 200, None) == pytest.approx([0, 0.5])
    parts[0] = Part([a], end=10_000_000)  # of a training that ends before the part would
    assert rates(150, 200, None) == pytest.approx([annealed(150, 200), 0.5])
    assert rates(200, 200, None) == pytest.approx([0, 0], abs=1e-9)


def test_one_batch_is_learned(make):
    """The landmarks first, then a face around them."""
    steps = {"landmark_steps": 100, "single_steps": 60, "pair_steps": 0}
    weights = Weights(1e-2, 1e-2, 0.0, 0.0, 0.0, 1e-4)
    method = make(lr=3e-3, width=4, hidden=64, weights=weights, **steps)
    batch, _ = people(method, v=2, apart=0.5)
    optimizer = method.configure_optimizers()["optimizer"]
    first = method.eval().terms(batch)
    method.train()
    for step in range(160):
        type(method).global_step = step
        method.on_train_batch_start(batch, step)
        optimizer.zero_grad()
        total(method.terms(batch), weights).backward()
        optimizer.step()
    last = method.terms(batch)
    assert label_distance(method.estimate(method.features(batch["images"]), SIZE).places, batch) < (
        0.25 * first["points"]
    )
    assert last["landmark"] < 300  # of 204 numbers, pixels of images of 256


def test_random_heads_are_what_the_linear_landmarks_add_up(make):
    model = make(points="linear").face_model
    modes = landmark_modes(model, 190.0)
    turned = model.landmarks(model.mean) / 190.0
    turned = (turned - turned.mean(0)) @ rotation_from_vector(torch.tensor([0.0, 0.1, 0.0])).mT
    straight = model.landmarks(model.mean) / 190.0
    change = (turned - (straight - straight.mean(0))) @ frontal(turned)
    unit = modes / modes.norm(dim=1, keepdim=True)
    kept = unit[:40].T @ (unit[:40] @ change.flatten())
    assert (kept - change.flatten()).norm() < 0.05 * change.norm()  # by a fifth of the directions
    spread = modes.norm(dim=1)
    assert (spread[:-1] >= spread[1:] - 1e-7).all()
    assert spread[0] > 20 * spread[40]

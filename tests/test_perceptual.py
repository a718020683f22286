"""Alignment to ArcFace's template, recognition networks from ONNX and state dicts, remembered
features."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from core.errors import AssetNotFoundError, DataError, MonofaceError
from core.iresnet import IResNet
from core.landmarks import five_points
from core.perceptual import SIDE, TEMPLATE, Recognizer, align_112
from core.recognizer import SmallRecognizer, save_recognizer

pytestmark = pytest.mark.usefixtures("one_thread")


def landmarks_at(points: torch.Tensor) -> torch.Tensor:
    """68 landmarks whose eyes, nose tip and mouth corners are these five points."""
    landmarks = torch.full((68, 2), 50.0)
    landmarks[36:42], landmarks[42:48] = points[0], points[1]
    landmarks[30], landmarks[48], landmarks[54] = points[2:]
    return landmarks


def small_iresnet() -> IResNet:
    """A tiny one whose batch norms do something."""
    network = IResNet((1, 2, 1, 1), (4, 4, 6, 8, 8), 16).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return network


def to_onnx(network: torch.nn.Module, identities: bool = True) -> "helper.ModelProto":
    """An IResNet as insightface's files hold it, node by node; some weights by way of Identity."""
    nodes, weights = [], []

    def constant(tensor: torch.Tensor) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        if not identities:
            return name
        return node("Identity", [name])

    def node(kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"x{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def apply(layer: torch.nn.Module, x: str) -> str:
        if isinstance(layer, torch.nn.Sequential):
            for part in layer:
                x = apply(part, x)
            return x
        if isinstance(layer, torch.nn.Conv2d):
            p, s, k = layer.padding[0], layer.stride[0], layer.kernel_size[0]
            shape = {"kernel_shape": [k, k], "strides": [s, s], "pads": [p] * 4}
            return node("Conv", [x, constant(layer.weight)], **shape)
        if isinstance(layer, torch.nn.PReLU):
            return node("PRelu", [x, constant(layer.weight[:, None, None])])
        if isinstance(layer, torch.nn.Linear):
            return node("Gemm", [x, constant(layer.weight), constant(layer.bias)], transB=1)
        if isinstance(layer, torch.nn.Identity):
            return x
        numbers = layer.weight, layer.bias, layer.running_mean, layer.running_var
        return node("BatchNormalization", [x, *map(constant, numbers)], epsilon=layer.eps)

    x = "input"
    for layer in (network.conv1, network.bn1, network.prelu):
        x = apply(layer, x)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            y = x
            for part in ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"):
                y = apply(getattr(block, part), y)
            x = node("Add", [y, apply(block.downsample, x)])
    x = node("Flatten", [apply(network.bn2, x)])
    x = apply(network.features, apply(network.fc, x))
    values = [
        helper.make_tensor_value_info(name, 1, ["n", *shape])
        for name, shape in (("input", (3, SIDE, SIDE)), (x, (network.fc.out_features,)))
    ]
    graph = helper.make_graph(nodes, "iresnet", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 8
    return model


@pytest.fixture
def files(tmp_path):
    network = small_iresnet()
    model = to_onnx(network)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    torch.save(network.state_dict(), tmp_path / "net.pth")
    return network, tmp_path


def test_an_onnx_file_gives_what_onnxruntime_gives(files):
    _, folder = files
    path = folder / "net.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    faces = torch.rand(5, 3, SIDE, SIDE)
    (expected,) = session.run(None, {"input": (2 * faces - 1).numpy()})  # (x - 127.5) / 127.5
    recognizer = Recognizer(path)
    got = recognizer.network(2 * faces - 1)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected, atol=1e-4)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(recognizer.features(faces), unit, atol=1e-4)


def test_a_state_dict_is_the_same_network_and_gives_the_same_gradient(files):
    network, folder = files
    faces = torch.rand(3, 3, SIDE, SIDE)
    direction = torch.randn(3, 16)
    results = []
    for name in ("net.onnx", "net.pth"):
        recognizer = Recognizer(folder / name)
        inputs = faces.clone().requires_grad_()
        features = recognizer.features(inputs)
        (gradient,) = torch.autograd.grad((features * direction).sum(), inputs)
        results.append((features.detach(), gradient))
        assert not any(p.requires_grad for p in recognizer.parameters())
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)
    expected = torch.nn.functional.normalize(network(2 * faces - 1), dim=1)
    torch.testing.assert_close(results[0][0], expected.detach(), atol=1e-5, rtol=1e-4)
    assert results[0][1].abs().max() > 1e-5


def test_the_names_are_those_of_arcface_torch():
    names = set(IResNet((3, 4, 14, 3)).state_dict())
    block = {f"{layer}.weight" for layer in ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")}
    assert {f"layer3.13.{name}" for name in block} <= names
    wanted = {"conv1.weight", "bn1.running_var", "prelu.weight", "bn2.bias", "fc.bias"}
    wanted |= {
        "layer1.0.downsample.0.weight",
        "layer4.0.downsample.1.bias",
        "features.running_mean",
    }
    assert wanted <= names
    assert "layer3.14.bn1.weight" not in names
    assert "layer2.1.downsample.0.weight" not in names
    size = sum(p.numel() for p in IResNet((3, 4, 14, 3)).parameters())
    assert 43.5e6 < size < 43.7e6  # ArcFace's r50 has 43.6 million


def test_features_in_half_precision_are_float32_and_nearly_the_same(files):
    _, folder = files
    faces = torch.rand(2, 4, 3, SIDE, SIDE)
    exact = Recognizer(folder / "net.pth").features(faces)
    half = Recognizer(folder / "net.pth", half=True).features(faces)
    assert exact.shape == (2, 4, 16)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert ((half * exact).sum(-1) > 0.995).all()
    with torch.autocast("cpu", torch.bfloat16):
        around = Recognizer(folder / "net.pth").features(faces)
    torch.testing.assert_close(around, half, atol=1e-3, rtol=0)


def test_a_recognizer_stays_frozen_in_a_method_that_trains(files):
    _, folder = files
    recognizer = Recognizer(folder / "net.onnx")
    before = {name: value.clone() for name, value in recognizer.state_dict().items()}
    torch.nn.ModuleList([recognizer]).train()
    recognizer.features(torch.rand(4, 3, SIDE, SIDE, requires_grad=True)).sum().backward()
    after = recognizer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(module.training for module in recognizer.modules())


@pytest.mark.parametrize("size", [(112, 112), (224, 224), (160, 200)])
def test_faces_are_moved_onto_the_template(size):
    """A picture that shows its own coordinates shows, at the template's points, where they were."""
    height, width = size
    angle, scale = 0.4, width / 160
    turn = scale * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    template = torch.tensor(TEMPLATE) + 0.5
    middle = torch.tensor([width / 2, height / 2])
    points = (template - template.mean(0)) @ turn.T + middle
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    picture = torch.stack([x, y, torch.ones_like(x)])
    aligned = align_112(picture[None], landmarks_at(points)[None])[0]
    for at, expected in zip(template, points, strict=True):
        column, row = (at - 0.5).floor().long().tolist()
        part = at - 0.5 - torch.tensor([column, row])
        corner = aligned[:2, row : row + 2, column : column + 2]
        seen = (1 - part[1]) * corner[:, 0] + part[1] * corner[:, 1]
        seen = (1 - part[0]) * seen[:, 0] + part[0] * seen[:, 1]
        torch.testing.assert_close(seen, expected, atol=2e-2, rtol=0)


def test_the_alignment_is_the_least_squares_one():
    """Compared with numpy's solution for the four numbers of a similarity."""
    random = np.random.default_rng(0)
    points = np.array(TEMPLATE) * 0.9 + random.normal(size=(5, 2)) * 4 + 6
    rows = [[x, -y, 1, 0] for x, y in points] + [[y, x, 0, 1] for x, y in points]
    goal = np.concatenate([np.array(TEMPLATE)[:, 0] + 0.5, np.array(TEMPLATE)[:, 1] + 0.5])
    a, b, u, v = np.linalg.lstsq(np.array(rows), goal, rcond=None)[0]
    y, x = np.meshgrid(np.arange(112) + 0.5, np.arange(112) + 0.5, indexing="ij")
    picture = torch.from_numpy(np.stack([x, y, x * 0 + 1])).float()
    given = landmarks_at(torch.from_numpy(points).float())
    torch.testing.assert_close(five_points(given), torch.from_numpy(points).float())
    aligned = align_112(picture[None], given[None])[0].numpy()
    inside = (aligned[2] > 0.999) & (aligned[0] > 1) & (aligned[0] < 111)
    inside &= (aligned[1] > 1) & (aligned[1] < 111)
    assert inside.mean() > 0.5
    moved = a * aligned[0] - b * aligned[1] + u, b * aligned[0] + a * aligned[1] + v
    np.testing.assert_allclose(moved[0][inside], x[inside], atol=1e-2)
    np.testing.assert_allclose(moved[1][inside], y[inside], atol=1e-2)


def test_alignment_is_differentiable_and_does_not_depend_on_neighbours():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64, requires_grad=True)
    points = (torch.tensor(TEMPLATE) * 0.35 + torch.randn(5, 2)).double()
    landmarks = torch.stack([landmarks_at(points + 1).double(), landmarks_at(points * 3).double()])
    aligned = align_112(images, landmarks)
    alone = align_112(images[:1], landmarks[:1])
    torch.testing.assert_close(aligned[:1], alone)
    weight = torch.randn_like(aligned)
    (gradient,) = torch.autograd.grad((aligned * weight).sum(), images)
    step = torch.randn_like(images) * 1e-3
    with torch.no_grad():
        after = (align_112(images + step, landmarks) * weight).sum()
    torch.testing.assert_close(after - (aligned * weight).sum(), (gradient * step).sum())


def test_unknown_landmarks_take_the_whole_image():
    image = torch.rand(1, 3, 112, 112)
    nowhere = torch.full((1, 68, 2), 30.0, requires_grad=True)
    aligned = align_112(image, nowhere)
    torch.testing.assert_close(aligned, image, atol=1e-4, rtol=0)
    aligned.sum().backward()
    assert nowhere.grad.isfinite().all()


def test_remembered_features_are_exact_and_computed_once(files):
    _, folder = files
    images, landmarks = torch.rand(2, 2, 3, 64, 64), 20 + 30 * torch.rand(2, 2, 68, 2)
    expected = Recognizer(folder / "net.pth").photo_features(images, landmarks)
    direct = Recognizer(folder / "net.pth").features(align_112(images, landmarks))
    torch.testing.assert_close(expected, direct)
    recognizer = Recognizer(folder / "net.pth", remembered=4)
    computed = []
    recognizer.network.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    for _ in range(2):
        torch.testing.assert_close(recognizer.photo_features(images, landmarks), expected)
    assert computed == [4]
    flipped = images.flip(-1)  # another picture under the same landmarks
    got = recognizer.photo_features(flipped, landmarks)
    assert computed == [4, 4]
    torch.testing.assert_close(got, recognizer.features(align_112(flipped, landmarks)))
    recognizer.photo_features(images[:1, :1], landmarks[:1, :1])  # forgotten: only four are kept
    assert computed[2:] == [4, 1]
    both = torch.cat([flipped[1:, 1:], flipped[1:, 1:]])  # the same twice in a batch
    points = torch.cat([landmarks[1:, 1:], landmarks[1:, 1:]])
    got = recognizer.photo_features(both, points)
    torch.testing.assert_close(got[0], got[1])
    assert computed[2:] == [4, 1]


def test_a_missing_file_says_how_it_is_had(tmp_path):
    with pytest.raises(AssetNotFoundError) as caught:
        Recognizer(tmp_path / "recognizer.pt")
    for part in (
        str(tmp_path / "recognizer.pt"),
        "python -m callbacks.recognizer",
        "w600k_r50.onnx",
        "buffalo_l",
        "non-commercial",
        "weights.perceptual=0",
    ):
        assert part in str(caught.value)


def test_other_files_are_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"no file of torch")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for name in ("other.pt", "broken.pt"):
        with pytest.raises(DataError, match=f"{name}' is neither .* arcface_torch"):
            Recognizer(tmp_path / name)
    with pytest.raises(DataError, match=r"broken\.onnx' is no ONNX file"):
        Recognizer(tmp_path / "broken.onnx")
    model = to_onnx(small_iresnet())
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 96
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"takes \[0, 3, 112, 96\]"):
        Recognizer(tmp_path / "small.onnx")
    model = to_onnx(small_iresnet())
    model.graph.node[1].op_type = "Unheard"
    (tmp_path / "strange.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"cannot convert .*strange\.onnx.*opset 11"):
        Recognizer(tmp_path / "strange.onnx")


def test_without_onnx2torch_the_error_names_it(files, monkeypatch):
    _, folder = files
    monkeypatch.setitem(__import__("sys").modules, "onnx2torch", None)
    with pytest.raises(MonofaceError, match=r"onnx2torch.*monoface\[perceptual\]"):
        Recognizer(folder / "net.onnx")


def test_the_small_recognizers_file(tmp_path):
    network = SmallRecognizer(width=4, dims=8).eval()
    save_recognizer(network, tmp_path / "new" / "small.pt", "nothing")
    faces = torch.rand(3, 3, SIDE, SIDE)
    expected = torch.nn.functional.normalize(network(2 * faces - 1), dim=1)
    got = Recognizer(tmp_path / "new" / "small.pt").features(faces)
    torch.testing.assert_close(got, expected)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["small.pt"]

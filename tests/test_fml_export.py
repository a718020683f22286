"""FML's export: principal components by hand, the file a face model, the command, other methods."""

import numpy as np
import pytest
import torch
import yaml

from core.errors import AssetNotFoundError, DataError
from core.face_models import FaceModel, load_face_model
from core.face_models.files import read_npz, write_npz
from methods.cest import CEST
from methods.cli import main as train
from methods.deng import Deng
from methods.fml import FML
from methods.fml_export import (
    arrays_of,
    learned_arrays,
    load_run,
    main,
    principal_mixtures,
    reconstruct,
)
from methods.mgcnet import MGCNet
from tests.fakes import face_model as fake

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"shape_dims": 9, "albedo_dims": 6, "nodes": 60, "jaw": "fixed", "region": "face"}
NETWORK = {"image_size": 48, "uv_size": 48, "width": 0.05, "stride": 2}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return str(fake.write(tmp_path_factory.mktemp("model") / "face.npz"))


@pytest.fixture(scope="module")
def method(model_file) -> FML:
    torch.manual_seed(1)
    method = FML(face_model=model_file, **SIZES, **NETWORK).eval()
    torch.nn.init.normal_(method.shape_basis, std=0.2)
    torch.nn.init.normal_(method.albedo_basis, std=0.02)
    return method


def test_principal_components_are_those_of_the_fields():
    """By a singular value decomposition of the fields themselves."""
    coefficients, basis = torch.randn(30, 5) + 1, torch.randn(5, 40, 3)
    fields = torch.einsum("fk,knc->fnc", coefficients, basis).flatten(1)
    mean, mixtures = principal_mixtures(coefficients, basis)
    mean, found = mean @ basis.flatten(1), mixtures @ basis.flatten(1)
    torch.testing.assert_close(mean, fields.mean(0), atol=1e-4, rtol=1e-4)
    _, sizes, directions = torch.linalg.svd(fields - fields.mean(0), full_matrices=False)
    assert found.shape == (5, 120)
    torch.testing.assert_close(found.norm(dim=1), sizes[:5] / 29**0.5, rtol=1e-3, atol=1e-4)
    cosines = (found / found.norm(dim=1, keepdim=True) * directions[:5]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(5), atol=1e-3, rtol=0)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


def test_what_does_not_vary_is_no_mode():
    coefficients = torch.randn(20, 1) @ torch.randn(1, 4)
    assert len(principal_mixtures(coefficients, torch.randn(4, 10, 3))[1]) == 1
    assert principal_mixtures(torch.zeros(20, 0), torch.zeros(0, 10, 3))[1].shape == (0, 0)
    assert len(principal_mixtures(torch.randn(20, 4), torch.randn(4, 10, 3), 2)[1]) == 2


def test_the_models_people_are_the_methods(method, tmp_path):
    """A reconstruction lies in the exported model, with coefficients of about one."""
    identity, albedo = torch.randn(200, 9), torch.randn(200, 6)
    write_npz(tmp_path / "fml.npz", learned_arrays(method, identity, albedo))
    model = FaceModel.from_file(tmp_path / "fml.npz")
    with torch.no_grad():
        shapes, colours = method.neutral(identity)[0], method.reflectance(albedo)
    for wanted, mean, basis, at in (
        (shapes, model.mean, model.identity_basis, slice(None)),
        (colours, model.albedo_mean, model.albedo_basis, method.drawn),
    ):
        flat = basis[:, at].flatten(1).T.double()
        rows = (wanted - mean[at]).flatten(1).T.double()
        numbers = torch.linalg.lstsq(flat, rows).solution
        assert (flat @ numbers - rows).abs().max() < 1e-3
        torch.testing.assert_close(
            numbers.std(1), torch.ones_like(numbers[:, 0]), atol=0.02, rtol=0
        )
        assert numbers.mean(1).abs().max() < 0.02
    sizes = model.identity_basis[:, method.drawn].flatten(1).norm(dim=1)
    assert (sizes.diff() <= 0).all()
    for key in ("triangles", "uv", "mirror", "expression_basis", "landmark_weights"):
        assert torch.equal(getattr(model, key), getattr(method.face_model, key))
    assert "200 reconstructions" in model.notes[-1]


def test_all_expressions_are_kept(model_file):
    """Also where the training used few of them."""
    few = FML(face_model=model_file, expression_dims=2, **SIZES, **NETWORK).eval()
    model = FaceModel(learned_arrays(few, torch.randn(20, 9), torch.randn(20, 6)))
    source = load_face_model(model_file)
    assert len(few.face_model.expression_basis) == 2 < len(source.expression_basis)
    assert torch.equal(model.expression_basis, source.expression_basis)
    assert model.expression_names == source.expression_names


def test_vertices_that_were_not_drawn_follow(method):
    model = FaceModel(learned_arrays(method, torch.randn(50, 9), torch.randn(50, 6)))
    outside = torch.ones(len(model.mean), dtype=torch.bool)
    outside[method.drawn] = False
    assert outside.any()
    assert (model.identity_basis[:, outside].norm(dim=-1) > 0).all()
    low, high = model.albedo_mean[method.drawn].amin(0), model.albedo_mean[method.drawn].amax(0)
    beyond = model.albedo_mean[outside]
    assert ((beyond >= low - 1e-4) & (beyond <= high + 1e-4)).all()  # between their nodes'


def test_arrays_of_a_model_are_its_file(tmp_path, face_model):
    for name, model in (("fake", face_model), ("head", load_face_model())):
        write_npz(tmp_path / f"{name}.npz", arrays_of(model))
        again = FaceModel.from_file(tmp_path / f"{name}.npz")
        for key, value in model.named_buffers():
            assert torch.equal(getattr(again, key), value), key
        assert (again.name, again.notes, again.expression_names) == (
            *(model.name, model.notes, model.expression_names),
        )


@pytest.mark.parametrize("other", [CEST, Deng, MGCNet])
def test_other_methods_take_it(method, other, tmp_path):
    path = tmp_path / "fml.npz"
    write_npz(path, learned_arrays(method, torch.randn(20, 9), torch.randn(20, 6)))
    small = {"image_size": 48, "uv_size": 48, "identity_dims": 7}
    backbone = {"backbone": "resnet18", "backbone_options": {"channels": [4, 4, 4, 4]}}
    options = {"width": 2, "reflectance_width": 2} if other is CEST else backbone
    face = other(face_model=str(path), **small, **options).eval()(torch.rand(1, 1, 3, 48, 48))
    torch.testing.assert_close(face.vertices[0, 0], FaceModel.from_file(path).mean)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_file):
    """A training of two steps by the shipped config."""
    root = tmp_path_factory.mktemp("run")
    settings = {"identities": [3, 1, 1], "videos": 1, "frames": 3, "size": 48, "texture": 32}
    overlay = {
        "model": {"face_model": model_file, "expression_dims": 5, **SIZES, **NETWORK},
        "data": {
            "init_args": {
                "root": str(root / "data"),
                "settings": {**settings, "face_model": model_file},
                "jobs": 1,
                "workers": 0,
                "clips_per_batch": 2,
                "frames_per_clip": 2,
            }
        },
        "trainer": {
            "max_steps": 2,
            "val_check_interval": 2,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(root / "run"),
            "callbacks": [],
        },
    }
    (root / "small.yaml").write_text(yaml.safe_dump(overlay))
    train("methods.fml.FML", ["fit", "--config=configs/fml.yaml", f"--config={root}/small.yaml"])
    return root / "run/checkpoints/last.ckpt"


def test_the_command_writes_model_and_sheet(run, tmp_path, capsys):
    out, sheet = tmp_path / "new/fml.npz", tmp_path / "modes.png"
    main(["--ckpt", str(run), "--out", str(out), "--sheet", str(sheet), "--faces", "7"])
    printed = capsys.readouterr().out
    assert "of 7 reconstructions" in printed
    assert str(out) in printed
    model = FaceModel.from_file(out)
    assert len(model.identity_basis) <= 6
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    before = read_npz(out)
    main(["--ckpt", str(run), "--out", str(out), "--faces", "7"])
    assert all(np.array_equal(before[key], value) for key, value in read_npz(out).items())


def test_a_run_is_read_as_it_was_trained_but_not_augmented(run):
    method, data = load_run(run)
    state = torch.load(run, weights_only=True)["state_dict"]
    assert all(torch.equal(method.state_dict()[key], value) for key, value in state.items())
    assert not method.training
    assert not any(vars(data.augmentation).values())


def test_what_is_missing_is_said(run, tmp_path, capsys):
    with pytest.raises(AssetNotFoundError, match=r"config\.yaml"):
        load_run(tmp_path / "checkpoints/last.ckpt")
    with pytest.raises(SystemExit) as leaving:
        main(["--ckpt", str(tmp_path / "no.ckpt"), "--out", str(tmp_path / "out.npz")])
    assert leaving.value.code == 2
    assert "no.ckpt" in capsys.readouterr().err
    other = run.with_name("other.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, other)
    with pytest.raises(DataError, match="no checkpoint of its run"):
        load_run(other)


def test_modes_need_faces(method):
    with pytest.raises(DataError, match="at least two"):
        reconstruct(method, iter([]), 1)

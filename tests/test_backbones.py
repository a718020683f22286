"""Our own backbones under timm's interface."""

import pytest
import timm
import torch

import methods.backbones  # noqa: F401  # registers them
from core.errors import MonofaceError
from methods.deng_cnet import _first_stage
from methods.encoder import Encoder
from methods.regression import Regressor

IMAGES = torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))


def made(**options) -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model("strided_encoder", width=4, num_classes=0, **options).eval()


def test_it_is_cests_encoder_without_its_last_layer():
    torch.manual_seed(1)
    encoder = Encoder(3, 70, 7, 4).eval()
    with torch.no_grad():
        whole, pooled = made(global_pool="")(IMAGES), made()(IMAGES)
        torch.testing.assert_close(whole, torch.nn.Sequential(*encoder)[:-2](IMAGES))
    assert whole.shape == (2, 32, 2, 2)
    torch.testing.assert_close(pooled, whole.mean((2, 3)))


def test_feature_info_is_that_of_the_features():
    net, seen = made(), {}
    for stage in net.feature_info:
        module = net.get_submodule(stage["module"])
        module.register_forward_hook(lambda _, __, y, name=stage["module"]: seen.update({name: y}))
    with torch.no_grad():
        net(torch.rand(1, 3, 64, 64))
    for stage in net.feature_info:
        side = 64 // stage["reduction"]
        assert seen[stage["module"]].shape == (1, stage["num_chs"], side, side)
    name, channels = _first_stage(net)
    assert seen[name].shape == (1, channels, 16, 16)  # C-Net's shallow features


@pytest.mark.parametrize("pooled", [True, False])
def test_a_regressor_of_it(pooled):
    net = Regressor("strided_encoder", {"identity": 5}, 70, False, pooled, {"width": 4})
    assert net(IMAGES, ("identity",))["identity"].shape == (2, 5)
    assert [kernel.shape[1] for kernel in net.kernels()] == [4, 8, 16, 32, 32]


def test_what_it_cannot_do_is_said():
    with pytest.raises(MonofaceError, match="no classifier"):
        timm.create_model("strided_encoder", num_classes=10)
    with pytest.raises(MonofaceError, match=r"no pretrained weights.*model\.pretrained: false"):
        Regressor("strided_encoder", {"identity": 5}, 70, True, True, {})
    with pytest.raises(MonofaceError, match="at least 33 pixels, got 32"):
        Regressor("strided_encoder", {"identity": 5}, 32, False, True, {})
    with pytest.raises(MonofaceError, match=r"'resnet18' does not take .*'width': 4"):
        Regressor("resnet18", {"identity": 5}, 70, False, True, {"width": 4})
    with pytest.raises(MonofaceError, match="similar names: strided_encoder"):
        Regressor("strided_net", {"identity": 5}, 70, False, True, {})

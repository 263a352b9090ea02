"""Feature maps of every family of backbones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.conftest import Case
from torchgeo_debias.backbones import create_backbone, find_spec
from torchgeo_debias.backbones.maps import map_shapes
from torchgeo_debias.errors import ConfigError

#: Strides of the families of `conftest.FAMILIES` that do not have a single map with the stride of their patches.
STRIDES = {
    "timm:test_resnet": (8, 16, 32),
    "timm:test_convnext": (8, 16, 32),
    "timm:swin_tiny_patch4_window7_224": (8, 16, 32),
    "timm:hiera_tiny_224": (8, 16, 32),
    "clip_vitb32": (32,),
    "sd15_unet": (8, 16, 32),
}


def test_maps_have_the_stated_strides_and_channels(case: Case) -> None:
    backbone, size = case.backbone, case.images.shape[-1]
    assert backbone.map_strides == STRIDES.get(case.name, (16,))
    with torch.no_grad():
        maps = backbone.maps(case.images)
    expected = [
        (2, channels, size // stride, size // stride)
        for channels, stride in zip(backbone.map_channels, backbone.map_strides, strict=True)
    ]
    assert [tuple(each.shape) for each in maps] == expected
    assert all(each.isfinite().all() for each in maps)


def test_gradients_reach_the_lora_through_the_maps(case: Case) -> None:
    backbone = copy.deepcopy(case.backbone)
    torch.stack([each.square().sum() for each in backbone.maps(case.images)]).sum().backward()  # type: ignore[no-untyped-call]
    learning = [p.grad is not None and bool(p.grad.any()) for p in backbone.parameters() if p.requires_grad]
    assert all(learning)


def test_the_map_of_a_plain_transformer_has_the_mean_of_its_features(case: Case) -> None:
    if len(case.backbone.map_strides) > 1 or case.name == "dofa_base":
        return  # DOFA normalises after the mean: see below
    with torch.no_grad():
        (only,) = case.backbone.maps(case.images)
        mean = case.backbone(case.images)[:, -only.shape[1] :]
    torch.testing.assert_close(only.mean(dim=(2, 3)), mean, rtol=1e-4, atol=1e-4)


def test_the_map_of_dofa_holds_its_last_tokens_row_by_row() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("dofa_base", size=48, bands=("red", "nir"), weights="random").eval()
    model: Any = backbone.model
    nn.init.normal_(model.fc_norm.weight)
    kept: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, tokens: kept.append(tokens))
    images = torch.randn(1, 2, 48, 48)
    with torch.no_grad():
        backbone(images)
        (only,) = backbone.maps(images)
        expected = model.fc_norm(kept[0])
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(only[0, :, row, column], expected[0, 1 + 3 * row + column])


def test_the_last_map_of_a_resnet_is_what_it_pools() -> None:
    backbone = create_backbone("timm:test_resnet", size=64, weights="random").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.maps(images)[-1].mean(dim=(2, 3)), backbone(images))


def test_a_model_that_gives_no_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match="timm:test_resnet gives no feature maps"):
        map_shapes(nn.Identity(), find_spec("timm:test_resnet"))


def test_a_model_with_other_strides_only_is_refused() -> None:
    model: Any = nn.Identity()
    model.feature_info = [{"reduction": 2, "num_chs": 8}, {"reduction": 4, "num_chs": 16}]
    model.forward_intermediates = None
    with pytest.raises(ConfigError, match="strides 2, 4 only"):
        map_shapes(model, find_spec("timm:test_resnet"))

"""One backbone of each family with random weights, LoRA on it, as the contract tests want it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from torchgeo_debias.backbones import AdapterSettings, Backbone, add_adapter, create_backbone
from torchgeo_debias.backbones.diffusion import ARCHITECTURES, Architecture, encoder_settings

RGB = ("red", "green", "blue")
S2 = tuple(f"b{i:02d}" for i in range(1, 14))

#: Name, chip size, bands: every way in which features are taken and LoRA is placed.
FAMILIES: list[tuple[str, int, tuple[str, ...]]] = [
    ("timm:test_vit", 64, RGB),  # class token, merged qkv
    ("timm:test_vit4", 32, ("a", "b", "c", "d")),  # register tokens and another attention
    ("timm:test_resnet", 32, RGB),  # convolutions, numbered stem, batch normalisation
    ("timm:test_convnext", 32, ("vv", "vh")),  # linear layers in blocks without attention
    ("timm:swin_tiny_patch4_window7_224", 224, RGB),  # a map whose channels come last
    ("timm:hiera_tiny_224", 64, ("pan",)),  # tokens without a prefix
    ("vits16_s2_moco", 32, S2),  # torchgeo
    ("dofa_base", 32, ("red", "nir")),  # wavelengths
    ("clip_vitb32", 32, RGB),  # open_clip, nn.MultiheadAttention
    ("sd15_unet", 128, RGB),  # diffusers, made small
]


#: Stable Diffusion in small: as many blocks, few channels.
SMALL_DIFFUSION = Architecture(
    {
        "block_out_channels": (8, 8, 16, 16),
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "layers_per_block": 1,
    },
    {**encoder_settings((8, 8, 8, 8)), "norm_num_groups": 4, "layers_per_block": 1},
    prompt=(77, 8),
)


@pytest.fixture(scope="package", autouse=True)
def small_diffusion() -> Iterator[None]:
    """Everywhere in these tests, Stable Diffusion is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "stable-diffusion-1", SMALL_DIFFUSION)
        yield


@dataclass
class Case:
    """A backbone before and after LoRA.

    Attributes:
        plain: The library's model without LoRA.
        before: Features (2, dim) of ``images`` without LoRA.
        fresh: The same with a LoRA just put on.
        backbone: With LoRA whose B matrices are no longer zero, in evaluation mode.
    """

    name: str
    bands: tuple[str, ...]
    images: Tensor
    plain: nn.Module
    before: Tensor
    fresh: Tensor
    backbone: Backbone


@pytest.fixture(scope="package", params=FAMILIES, ids=[name for name, _, _ in FAMILIES])
def case(request: pytest.FixtureRequest) -> Case:
    name, size, bands = request.param
    torch.manual_seed(0)
    backbone = create_backbone(name, size=size, bands=bands, weights="random").eval()
    for parameter_name, parameter in backbone.named_parameters():
        # ResNets start with blocks switched off, which pretrained ones are not.
        if ("bn" in parameter_name or "gamma" in parameter_name) and parameter.abs().max() < 1e-3:
            nn.init.ones_(parameter)
    images = torch.randn(2, len(bands), size, size)
    plain = copy.deepcopy(backbone.model)
    with torch.no_grad():
        before = backbone(images)
        add_adapter(backbone, AdapterSettings(rank=2)).eval()
        fresh = backbone(images)
    for parameter_name, parameter in backbone.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.02)
    return Case(name, bands, images, plain, before, fresh, backbone)

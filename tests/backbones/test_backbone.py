from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from peft import PeftModel
from torch import nn

from torchgeo_debias.backbones import (
    AdapterSettings,
    BackboneSpec,
    adapter_targets,
    add_adapter,
    create_backbone,
    empty_backbone,
    find_spec,
    list_backbones,
    pick_dtype,
)
from torchgeo_debias.backbones.diffusion import ARCHITECTURES
from torchgeo_debias.errors import ConfigError


@pytest.mark.parametrize("spec", list_backbones(), ids=lambda spec: spec.name)
def test_registry_entries_exist_in_their_library(spec: BackboneSpec) -> None:
    if spec.library == "timm":
        config = timm.get_pretrained_cfg(f"{spec.arch}.{spec.hub}" if spec.hub else spec.arch, allow_unregistered=False)
        assert config is not None
        if spec.hub is not None:
            assert spec.statistics == (config.mean, config.std)
            assert spec.licence.lower().replace(" ", "-") == config.license
        assert (spec.patch == 1) == (spec.family == "cnn")
    elif spec.library == "torchgeo":
        from torchgeo.models import get_weight, list_models

        assert spec.arch in list_models()
        assert spec.hub is not None
        get_weight(spec.hub)
    elif spec.library == "diffusers":
        assert spec.arch in ARCHITECTURES
        assert spec.hub is not None
    else:
        assert (spec.arch, spec.hub) in open_clip.list_pretrained()
        assert open_clip.get_model_config(spec.arch)["vision_cfg"]["patch_size"] == spec.patch
    assert find_spec(spec.name) is spec
    assert spec.licence
    assert spec.note


def test_names_are_unique() -> None:
    names = [spec.name for spec in list_backbones()]
    assert len(set(names)) == len(names)


def test_any_timm_model_is_described() -> None:
    spec = find_spec("timm:resnet18.tv_in1k")
    assert (spec.arch, spec.hub, spec.family) == ("resnet18", "tv_in1k", "cnn")
    assert find_spec("timm:vit_tiny_patch16_224").family == "vit"


@pytest.mark.parametrize("name", ["dinov9", "timm:nonesuch"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name.removeprefix("timm:")):
        find_spec(name)


@pytest.mark.parametrize(("pool", "width"), [("cls", 64), ("mean", 64), ("cls+mean", 128)])
def test_pooling_takes_the_tokens_it_names(pool: Any, width: int) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("timm:test_vit", size=32, pool=pool, weights="random").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = backbone.model.forward_features(images)  # type: ignore[operator]
        expected = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1)}
        expected["cls+mean"] = torch.cat([expected["cls"], expected["mean"]], dim=1)
        features = backbone(images)
    assert features.shape == (2, width)
    assert backbone.dim == width
    torch.testing.assert_close(features, expected[pool])


def test_a_model_without_class_token_pools_the_mean() -> None:
    backbone = create_backbone("timm:test_resnet", size=32, pool="cls", weights="random").eval()
    assert backbone.pool == "mean"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), backbone.model.forward_features(images).mean(dim=(2, 3)))  # type: ignore[operator]


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_any_number_of_bands(name: str, bands: int) -> None:
    backbone = create_backbone(name, size=32, bands=tuple(map(str, range(bands))), weights="random").eval()
    assert backbone(torch.randn(1, bands, 32, 32)).shape == (1, backbone.dim)


def test_clip_takes_other_bands() -> None:
    backbone = create_backbone("clip_vitb32", size=32, bands=("vv", "vh"), weights="random").eval()
    assert backbone(torch.randn(1, 2, 32, 32)).shape == (1, 1536)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("timm:test_vit", {"size": 40}, "multiple of 16 pixels; received 40, try 32"),
        ("timm:test_vit", {"size": 32, "pool": "max"}, "pooling 'max'"),
        ("timm:swin_tiny_patch4_window7_224", {"size": 64}, "224 pixels only"),
        ("dofa_base", {"size": 32, "bands": ("red", "thermal")}, "thermal is not a known band"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        create_backbone(name, weights="random", **options)


def test_random_weights_follow_the_seed() -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        digests.append(create_backbone("timm:test_vit", size=32, weights="random").digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_adapter_opens_on_the_models_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = add_adapter(create_backbone("timm:test_vit", size=32, weights="random"), AdapterSettings(rank=4)).eval()
    nn.init.normal_(next(p for n, p in backbone.named_parameters() if "lora_B" in n))
    backbone.model.save_pretrained(tmp_path)  # type: ignore[operator]
    torch.manual_seed(0)
    stock = PeftModel.from_pretrained(timm.create_model("test_vit", num_classes=0, img_size=32), tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = stock.forward_features(images)
        torch.testing.assert_close(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1), backbone(images))


def test_targets_of_a_merged_qkv() -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    attention = [name for name in adapter_targets(model) if name.startswith("blocks.0.")]
    assert attention == ["blocks.0.attn.qkv", "blocks.0.attn.proj"]
    everything = [name for name in adapter_targets(model, "all") if name.startswith("blocks.0.")]
    assert everything == [*attention, "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]


def test_targets_of_a_multihead_attention_are_the_attention_itself() -> None:
    model = nn.TransformerEncoderLayer(8, 2)
    assert adapter_targets(model) == ["self_attn"]


def test_a_model_without_a_place_for_lora_is_refused() -> None:
    with pytest.raises(ConfigError, match="--method probe"):
        adapter_targets(nn.Sequential(nn.ReLU()))


def test_adapter_settings_survive_json_and_refuse_nonsense() -> None:
    odd = AdapterSettings("rslora", 3, 5.0, 0.1, "all", ("qkv",), 2)
    assert AdapterSettings.from_json(odd.to_json()) == odd
    with pytest.raises(ConfigError, match="rank"):
        AdapterSettings(rank=0)


def test_precision_names() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("32", cpu) == torch.float32
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    assert pick_dtype("16", cpu) == torch.float16
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet", "vits16_s2_moco", "dofa_base", "clip_vitb32"])
def test_an_empty_backbone_has_the_shapes_and_no_values(name: str) -> None:
    bands = ("red", "nir")
    empty = empty_backbone(name, size=32, bands=bands)
    real = create_backbone(name, size=32, bands=bands, weights="random")
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (empty, real)]
    assert shapes[0] == shapes[1]
    assert empty(torch.empty(3, 2, 32, 32, device="meta")).shape == (3, real.dim)

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchgeo_debias.backbones import (
    AdapterSettings,
    Backbone,
    Experts,
    adapter_state,
    add_adapter,
    attach_adapter,
    create_backbone,
)
from torchgeo_debias.backbones.mixture import mixed
from torchgeo_debias.backbones.strength import interpolated, scaled
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.errors import ConfigError

CASES = [
    *itertools.product(["lora", "rslora", "adalora", "loha", "lokr", "ia3"], ["timm:test_vit", "timm:test_resnet"]),
    ("vera", "timm:test_vit"),
    ("lora", "clip_vitb32"),  # peft merges into nn.MultiheadAttention
]


def adapted(kind: str, name: str = "timm:test_vit") -> tuple[Backbone, Backbone, Tensor]:
    """A backbone without and with an adapter that is no longer fresh, and images."""
    torch.manual_seed(0)
    plain = create_backbone(name, size=32, weights="random").eval()
    for parameter_name, parameter in plain.named_parameters():
        if "bn" in parameter_name and parameter.abs().max() < 1e-3:
            nn.init.ones_(parameter)  # ResNets start with blocks switched off
    experts = Experts(np.random.default_rng(0).normal(size=(3, plain.dim)).astype(np.float32), 1.0)
    settings = AdapterSettings(kind=cast(Any, kind), rank=2, experts=3)
    backbone = add_adapter(copy.deepcopy(plain), settings, experts if settings.mixture else None).eval()
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return plain, backbone, torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_weights_lie_on_the_line_from_the_pretrained_to_the_adapted_ones(kind: str, name: str) -> None:
    plain, backbone, images = adapted(kind, name)
    merged = cast(Any, copy.deepcopy(backbone.model)).merge_and_unload().state_dict()
    before = plain.model.state_dict()
    assert any(not torch.equal(before[key], merged[key]) for key in before)
    reference = copy.deepcopy(plain)
    with torch.no_grad():
        for strength in (0.0, 0.3, 1.0):
            line = {
                key: torch.lerp(before[key], merged[key], strength) if before[key].is_floating_point() else before[key]
                for key in before
            }
            reference.model.load_state_dict(line)
            with scaled(backbone, strength):
                torch.testing.assert_close(backbone(images), reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["houlsby", "adaptformer", "plora"])
def test_what_own_kinds_add_is_scaled(kind: str) -> None:
    _, backbone, _ = adapted(kind)
    settings = adapter_state(backbone)
    assert settings is not None
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.1, 0.9]])
    with torch.no_grad(), mixed(shares):
        for place in settings.config["modules"]:
            layer = backbone.model.get_submodule(place)
            x = torch.randn(2, 5, next(p for p in layer.parameters() if p.ndim == 2).shape[1])
            base, full = cast(Any, layer).base_layer(x), layer(x)
            assert not torch.allclose(base, full)
            with scaled(backbone, 0.3):
                torch.testing.assert_close(layer(x), base + 0.3 * (full - base), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "ia3", "plora"])
def test_afterwards_the_adapter_is_as_it_was_whatever_happened(kind: str) -> None:
    _, backbone, _ = adapted(kind)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(KeyboardInterrupt), scaled(backbone, 0.3):
        raise KeyboardInterrupt
    after = backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["lora", "lokr", "houlsby"])
def test_an_adapter_stored_within_has_the_strength_wherever_it_is_loaded(kind: str) -> None:
    plain, backbone, images = adapted(kind)
    with torch.no_grad(), scaled(backbone, 0.4):
        expected = backbone(images)
        state = adapter_state(backbone)
        assert state is not None
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    assert not torch.allclose(backbone(images), expected, atol=1e-4)
    with torch.no_grad():
        again = attach_adapter(plain, state.config, tensors).eval()
        torch.testing.assert_close(again(images), expected)


def test_kinds_that_do_not_scale_are_refused() -> None:
    for kind in ("dora", "hra"):
        with pytest.raises(ConfigError, match=rf"kind {kind} cannot be changed: its update does not scale"):
            scaled(adapted(kind)[1], 0.5).__enter__()


def test_nothing_to_scale_and_strengths_beyond_are_refused() -> None:
    plain, backbone, _ = adapted("lora")
    with pytest.raises(ConfigError, match="no adapter whose strength"):
        scaled(plain, 0.5).__enter__()
    with pytest.raises(ConfigError, match=r"strength of an adapter must lie between 0 and 1; received 1.1"):
        scaled(backbone, 1.1).__enter__()


def head(seed: int, classes: int = 3, cosine: bool = False) -> LinearHead:
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(classes, 4)).astype(np.float32), rng.normal(size=classes).astype(np.float32)
    return LinearHead(weight, bias, cosine)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_logits_of_a_head_between_two_lie_between_theirs(cosine: bool) -> None:
    first, second = head(0, cosine=cosine), head(1, cosine=cosine)
    features = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    between = interpolated(first, second, 0.25)
    assert between.weight.dtype == between.bias.dtype == np.float32
    assert between.cosine is cosine
    np.testing.assert_allclose(
        between.logits(features), 0.75 * first.logits(features) + 0.25 * second.logits(features), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(interpolated(first, second, 0.0).weight, first.weight)
    np.testing.assert_array_equal(interpolated(first, second, 1.0).bias, second.bias)


def test_heads_of_other_kinds_or_shapes_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match=r"received linear \(3, 4\) and cosine \(3, 4\)"):
        interpolated(head(0), head(1, cosine=True), 0.5)
    with pytest.raises(ConfigError, match=r"received linear \(3, 4\) and linear \(2, 4\)"):
        interpolated(head(0), head(1, classes=2), 0.5)
    with pytest.raises(ConfigError, match=r"strength of a head must lie between 0 and 1; received -0.1"):
        interpolated(head(0), head(1), -0.1)

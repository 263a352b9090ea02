"""Blocks that are computed twice, or by compiled code, give the same features and gradients under the same names."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchgeo_debias.backbones import AdapterSettings, Backbone, Experts, add_adapter, create_backbone
from torchgeo_debias.backbones.blocks import blocks_of, hastened

BLOCKS = {"timm:test_vit": 6, "timm:test_resnet": 4}


def backbone(name: str, kind: Any = None) -> Backbone:
    """With random weights, in training, the adapter with an effect."""
    torch.manual_seed(0)
    made = create_backbone(name, size=32, weights="random")
    if kind is not None:
        centres = np.random.default_rng(0).normal(size=(3, made.dim)).astype(np.float32)
        settings = AdapterSettings(kind, rank=2, dropout=0.2)
        add_adapter(made, settings, Experts(centres, 5.0) if settings.mixture else None)
    for parameter in made.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return made.train()


def features_and_gradients(made: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    made.zero_grad()
    torch.manual_seed(1)
    images = torch.randn(3, 3, 32, 32)
    features = made(images)
    features.square().mean().backward()
    return features.detach(), {
        name: parameter.grad.clone() for name, parameter in made.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("kind", [None, "lora", "adalora", "houlsby", "clora"])
def test_blocks_are_found_whatever_the_adapter(name: str, kind: str | None) -> None:
    assert len(blocks_of(backbone(name, kind).model)) == BLOCKS[name]


@pytest.mark.parametrize("kind", [None, "lora", "adalora", "houlsby", "clora"])
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_blocks_that_are_computed_twice_are_the_same(name: str, kind: str | None) -> None:
    made = backbone(name, kind)
    plain = copy.deepcopy(made)
    features, gradients = features_and_gradients(plain)
    names = list(made.state_dict())
    with hastened(made, recomputed=True):
        assert list(made.state_dict()) == names
        again = features_and_gradients(made)
    assert torch.equal(again[0], features)
    assert again[1].keys() == gradients.keys()
    assert all(torch.equal(again[1][name], gradients[name]) for name in gradients)
    # Batch normalisations saw each batch once.
    for counted, expected in zip(made.buffers(), plain.buffers(), strict=True):
        assert torch.equal(counted, expected)


def test_blocks_that_are_computed_twice_keep_less() -> None:
    made = backbone("timm:test_vit")

    def kept() -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.__setitem__(tensor.data_ptr(), tensor.nbytes) or tensor,  # type: ignore[func-returns-value]
            lambda tensor: tensor,
        ):
            made(torch.randn(3, 3, 32, 32))
        return sum(sizes.values())

    plain = kept()
    with hastened(made, recomputed=True):
        assert kept() < plain / 3
    assert kept() == plain, "afterwards it is as it was"


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_code_gives_the_same(recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.append(len(graph.graph.nodes))
        return graph.forward  # as traced; generating machine code for it is PyTorch's own affair

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    made = backbone("timm:test_vit", "lora")
    features, gradients = features_and_gradients(made)
    names = list(made.state_dict())
    with hastened(made, compiled=True, recomputed=recomputed):
        assert list(made.state_dict()) == names
        again = features_and_gradients(made)
        assert isinstance(copy.deepcopy(made), Backbone)
    assert seen
    torch.testing.assert_close(again[0], features)
    torch.testing.assert_close(again[1], gradients)
    count = len(seen)
    features_and_gradients(made)
    assert len(seen) == count
    assert "forward" not in vars(made)

"""What every family of backbones promises."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel

from tests.backbones.conftest import Case
from torchgeo_debias.backbones import Backbone


def test_features_are_vectors_of_the_stated_length(case: Case) -> None:
    assert case.before.shape == (2, case.backbone.dim)
    assert case.before.isfinite().all()
    assert not torch.allclose(case.before[0], case.before[1])


def test_a_fresh_lora_changes_nothing(case: Case) -> None:
    torch.testing.assert_close(case.fresh, case.before, rtol=1e-4, atol=1e-5)


def test_only_the_lora_is_trainable(case: Case) -> None:
    trainable = {name for name, parameter in case.backbone.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not any(part in name for name in trainable for part in ("patch_embed", "stem", ".model.conv1."))


def test_every_lora_parameter_learns(case: Case) -> None:
    backbone = copy.deepcopy(case.backbone).train()
    backbone(case.images).square().sum().backward()
    dead = [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert not dead


def test_training_leaves_what_the_adapter_does_not_carry(case: Case) -> None:
    backbone = copy.deepcopy(case.backbone).eval().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        backbone(case.images + 5)
    for name, value in backbone.state_dict().items():
        # peft merges its update into nn.MultiheadAttention for each call and takes it out again: rounding remains.
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)


def test_the_adapter_opens_in_stock_peft(case: Case, tmp_path: Path) -> None:
    adapted = case.backbone
    adapted.model.save_pretrained(tmp_path)  # type: ignore[operator]
    opened = PeftModel.from_pretrained(copy.deepcopy(case.plain), tmp_path)
    again = Backbone(opened, adapted.spec, adapted.pool, adapted.bands, adapted.digest).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(case.images), adapted(case.images), rtol=0, atol=0)
        assert not torch.allclose(adapted(case.images), case.before, atol=1e-6)


def test_the_faster_attention_agrees(case: Case) -> None:
    cpu = torch.device("cpu")
    features = []
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float32):
            case.backbone.prefer(cpu, dtype)
            features.append(case.backbone(case.images))
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-4)

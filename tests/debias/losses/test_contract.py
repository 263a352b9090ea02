"""What every loss for training keeps to."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses import LOSSES, LongTailLoss, build_loss, loss_settings
from torchgeo_debias.debias.losses.classification import Weighted
from torchgeo_debias.errors import ConfigError

TABLE = ClassTable.from_counts({"a": 60, "b": 25, "c": 14, "d": 1})
every_loss = pytest.mark.parametrize("name", LOSSES)


def built(name: str, table: ClassTable = TABLE) -> LongTailLoss:
    loss = build_loss(name, table)
    if isinstance(loss, Weighted):
        loss.weigh(np.linspace(0.5, 2.0, 100))
    return loss


def batch(n: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and index; each class is there."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    return torch.randn(n, 4, generator=draw), labels, torch.randperm(100, generator=draw)[:n]


@every_loss
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_logit_gets_a_gradient(name: str, share: float) -> None:
    logits, labels, index = batch()
    loss = built(name)
    loss.at(share)
    logits.requires_grad_()
    value = loss(logits, labels, index=index, features=torch.zeros(16, 3))
    assert value.ndim == 0
    (slope,) = torch.autograd.grad(value, logits)
    assert (slope != 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_have_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[6e4, 0, 0, -6e4], [-6e4, 0, 6e4, 0], [0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    loss = built(name)
    for share in (0.0, 1.0):
        loss.at(share)
        for labels in (torch.tensor([0, 2, 3]), torch.tensor([3, 0, 1])):
            value = loss(logits, labels, index=torch.arange(3))
            assert value.dtype == torch.float32
            assert value.isfinite()
            (slope,) = torch.autograd.grad(value, logits)
            assert slope.isfinite().all()


@every_loss
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    logits, labels, index = batch()
    order = torch.arange(15, -1, -1)
    loss = built(name)
    torch.testing.assert_close(
        loss(logits[order], labels[order], index=index[order]), loss(logits, labels, index=index)
    )


@every_loss
def test_the_loss_is_the_mean_of_those_of_the_samples(name: str) -> None:
    logits, labels, index = batch()
    loss = built(name)
    loss.at(1.0)
    each = [loss(logits[i : i + 1], labels[i : i + 1], index=index[i : i + 1]) for i in range(16)]
    torch.testing.assert_close(loss(logits, labels, index=index), torch.stack(each).mean())


@every_loss
def test_a_batch_of_a_single_sample_of_a_single_sample_class_counts(name: str) -> None:
    value = built(name)(torch.zeros(1, 4), torch.tensor([3]), index=torch.tensor([0]))
    assert value.isfinite()
    assert value > 0


@every_loss
def test_with_classes_of_one_size_and_its_own_part_switched_off_it_is_cross_entropy(name: str) -> None:
    off = {"focal": {"gamma": 0.0}, "ldam": {"max_margin": 0.0}}
    logits, labels, index = batch()
    loss = build_loss(name, ClassTable.from_counts({"a": 9, "b": 9, "c": 9, "d": 9}), off.get(name))
    if isinstance(loss, Weighted):
        loss.weigh(np.full(100, 3.0))
    loss.at(1.0)
    torch.testing.assert_close(loss(logits, labels, index=index), F.cross_entropy(logits, labels))


@every_loss
def test_a_class_without_a_training_chip_breaks_nothing(name: str) -> None:
    logits, labels, index = batch()
    loss = built(name, ClassTable.from_counts({"a": 60, "b": 25, "c": 15, "d": 0}))
    loss.at(1.0)
    assert loss(logits, labels, index=index).isfinite()


@every_loss
def test_entries_say_what_they_are(name: str) -> None:
    entry = LOSSES[name]
    assert entry.name == name
    assert entry.title
    assert any(year in entry.source for year in map(str, range(1950, 2027)))
    assert entry.origin in ("as published", "adapted", "ours")
    assert is_dataclass(entry.settings)


@every_loss
def test_settings_come_back_from_json(name: str) -> None:
    settings = loss_settings(name)
    assert loss_settings(name, json.loads(json.dumps(asdict(settings)))) == settings
    with pytest.raises(ConfigError, match=r"\.$|nothing to set"):
        loss_settings(name, {"nonsense": 1})
    for field in fields(settings):
        with pytest.raises(ConfigError, match=field.name):
            loss_settings(name, {field.name: "many"})


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"There is no loss 'dice': choose among ce, "):
        build_loss("dice", TABLE)

"""What every loss for training keeps to."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses import LOSSES, LongTailLoss, build_loss, loss_settings
from torchgeo_debias.debias.losses.classification import PLAIN, Weighted
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError

TABLE = ClassTable.from_counts({"a": 60, "b": 25, "c": 14, "d": 1})
NO_TERM: dict[str, dict[str, Any]] = {"sbcl": {"weight": 0.0}, "boda": {"weight": 0.0, "gap_weight": 0.0}}
every_loss = pytest.mark.parametrize("name", LOSSES)


def samples(table: ClassTable) -> Samples:
    """Training chips of two domains."""
    labels = np.repeat(np.arange(4), table.counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    return Samples(features, labels, table, np.arange(len(labels)) % 2)


def built(name: str, table: ClassTable = TABLE, settings: dict[str, Any] | None = None) -> LongTailLoss:
    loss = build_loss(name, table, settings)
    loss.learn(samples(table), seed=0)
    return loss


def batch(n: int = 16) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, labels, and what else there is of the samples; each class is there."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    logits = torch.randn(n, 4, generator=draw)
    index = torch.randperm(100, generator=draw)[:n]
    return logits, labels, {"index": index, "features": torch.randn(n, 3, generator=draw)}


def part(rest: dict[str, Tensor], which: Any) -> dict[str, Tensor]:
    return {name: value[which] for name, value in rest.items()}


@every_loss
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_logit_gets_a_gradient(name: str, share: float) -> None:
    logits, labels, rest = batch()
    loss = built(name)
    loss.at(share)
    logits.requires_grad_()
    value = loss(logits, labels, **rest)
    assert value.ndim == 0
    (slope,) = torch.autograd.grad(value, logits)
    assert (slope != 0).all()


@every_loss
def test_features_get_a_gradient_where_the_loss_follows_them(name: str) -> None:
    logits, labels, rest = batch()
    loss = built(name)
    features = rest["features"].requires_grad_()
    value = loss(logits.requires_grad_(), labels, index=rest["index"], features=features)
    (slope,) = torch.autograd.grad(value, features, allow_unused=True)
    assert (slope is not None) == (loss.wants == "current")
    assert slope is None or (slope != 0).all()


@every_loss
def test_what_must_be_known_and_is_not_is_said(name: str) -> None:
    logits, labels, rest = batch()
    for loss, given in ((build_loss(name, TABLE), rest), (built(name), {})):
        if loss.wants == "nothing":
            assert loss(logits, labels, **given).isfinite()
        else:
            with pytest.raises(ConfigError, match=f"The loss '{name}' needs"):
                loss(logits, labels, **given)


@every_loss
def test_what_is_learnt_depends_on_the_seed_alone(name: str) -> None:
    logits, labels, rest = batch()
    first = built(name)(logits, labels, **rest)
    torch.manual_seed(3)
    assert torch.equal(built(name)(logits, labels, **rest), first)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_have_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[6e4, 0, 0, -6e4], [-6e4, 0, 6e4, 0], [0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    loss = built(name)
    for share in (0.0, 1.0):
        loss.at(share)
        for labels in (torch.tensor([0, 2, 3]), torch.tensor([3, 0, 1])):
            features = torch.tensor([[1e3, 0, -1e3], [0, 1, 0], [1, 0, 0]], dtype=dtype, requires_grad=True)
            value = loss(logits, labels, index=torch.arange(3), features=features)
            assert value.dtype == torch.float32
            assert value.isfinite()
            slopes = torch.autograd.grad(value, [logits, features], allow_unused=True)
            assert all(slope is None or slope.isfinite().all() for slope in slopes)


@every_loss
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    logits, labels, rest = batch()
    order = torch.arange(15, -1, -1)
    loss = built(name)
    torch.testing.assert_close(loss(logits[order], labels[order], **part(rest, order)), loss(logits, labels, **rest))


@every_loss
def test_but_for_terms_on_features_the_loss_is_the_mean_of_those_of_the_samples(name: str) -> None:
    logits, labels, rest = batch()
    loss = built(name, settings=NO_TERM.get(name))
    loss.at(1.0)
    each = [loss(logits[i : i + 1], labels[i : i + 1], **part(rest, slice(i, i + 1))) for i in range(16)]
    torch.testing.assert_close(loss(logits, labels, **rest), torch.stack(each).mean())


@every_loss
def test_a_batch_of_a_single_sample_of_a_single_sample_class_counts(name: str) -> None:
    value = built(name)(torch.zeros(1, 4), torch.tensor([3]), index=torch.tensor([99]), features=torch.ones(1, 3))
    assert value.isfinite()
    assert value > 0


@every_loss
def test_with_classes_of_one_size_and_its_own_part_switched_off_it_is_cross_entropy(name: str) -> None:
    off: dict[str, dict[str, Any]] = {"focal": {"gamma": 0.0}, "ldam": {"max_margin": 0.0}, **NO_TERM}
    logits, labels, rest = batch()
    even = ClassTable.from_counts({"a": 25, "b": 25, "c": 25, "d": 25})
    loss = built(name, even, off.get(name))
    if isinstance(loss, Weighted):
        loss.weigh(np.full(100, 3.0))
    loss.at(1.0)
    torch.testing.assert_close(loss(logits, labels, **rest), F.cross_entropy(logits, labels))


@every_loss
def test_a_class_without_a_training_chip_breaks_nothing(name: str) -> None:
    logits, labels, rest = batch()
    loss = built(name, ClassTable.from_counts({"a": 60, "b": 25, "c": 15, "d": 0}))
    loss.at(1.0)
    assert loss(logits, labels, **rest).isfinite()


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


@pytest.mark.parametrize("name", NO_TERM)
@pytest.mark.parametrize("beside", PLAIN)
def test_a_term_on_features_goes_beside_any_plain_loss(name: str, beside: str) -> None:
    logits, labels, rest = batch()
    loss = built(name, settings={**NO_TERM[name], "class_loss": beside})
    alone = build_loss(beside, TABLE)
    for share in (0.0, 1.0):
        loss.at(share)
        alone.at(share)
        torch.testing.assert_close(loss(logits, labels, **rest), alone(logits, labels))


@pytest.mark.parametrize("name", NO_TERM)
@pytest.mark.parametrize("beside", ["weighted", "sbcl", "boda", "dice"])
def test_but_not_beside_one_that_must_know_the_chips(name: str, beside: str) -> None:
    with pytest.raises(ConfigError, match=f"class_loss must be one of ce, .*; received '{beside}'"):
        loss_settings(name, {"class_loss": beside})

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses import build_loss
from torchgeo_debias.debias.losses.classification import Weighted
from torchgeo_debias.errors import ConfigError

from .test_contract import TABLE, batch


def test_ce_is_that_of_torch() -> None:
    logits, labels, _ = batch()
    torch.testing.assert_close(build_loss("ce", TABLE)(logits, labels), F.cross_entropy(logits, labels))


def test_inverse_weights_make_classes_count_alike_over_all_chips() -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(TABLE.counts))
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.stack([each[labels == c].mean() for c in range(4)]).mean()
    torch.testing.assert_close(build_loss("inverse", TABLE)(logits, labels), expected)


def test_the_effective_number_is_that_of_the_paper() -> None:
    table = ClassTable.from_counts({"a": 2, "b": 1})
    # beta 0.5: 1 / 1.5 and 1 / 1, scaled so that two samples of a and one of b weigh three.
    weights = np.array([2 / 3, 1.0]) * 3 / (2 * 2 / 3 + 1)
    for c in (0, 1):
        value = build_loss("class-balanced", table, {"beta": 0.5})(torch.zeros(1, 2), torch.tensor([c]))
        assert value.item() == pytest.approx(weights[c] * np.log(2))


def test_balanced_softmax_adds_the_log_prior() -> None:
    logits, labels, _ = batch()
    expected = F.cross_entropy(logits + torch.log(torch.tensor(TABLE.counts)), labels)
    torch.testing.assert_close(build_loss("balanced-softmax", TABLE)(logits, labels), expected)
    torch.testing.assert_close(
        build_loss("balanced-softmax", TABLE, {"tau": 0.0})(logits, labels), F.cross_entropy(logits, labels)
    )


def test_ldam_weighs_late() -> None:
    logits, labels, _ = batch()
    margin = 30 * 0.5 * (1 / torch.tensor(TABLE.counts)) ** 0.25
    lowered = logits - F.one_hot(labels, 4) * margin
    each = F.cross_entropy(lowered, labels, reduction="none")
    number = 1 / (1 - 0.9999 ** torch.tensor(TABLE.counts, dtype=torch.float64))
    weights = (number * 100 / (number @ torch.tensor(TABLE.counts, dtype=torch.float64))).float()
    loss = build_loss("ldam", TABLE)
    for share, expected in [(0.0, each.mean()), (0.79, each.mean()), (0.8, (weights[labels] * each).mean())]:
        loss.at(share)
        torch.testing.assert_close(loss(logits, labels), expected, rtol=1e-4, atol=1e-5)


def test_background_weighs_as_much_as_without_weights() -> None:
    table = ClassTable.from_counts({"a": 60, "b": 20, "background": 20}, background="background")
    for name in ("inverse", "class-balanced"):
        value = build_loss(name, table)(torch.zeros(1, 3), torch.tensor([2]))
        assert value.item() == pytest.approx(np.log(3))


def test_chips_weigh_what_they_are_told() -> None:
    loss = build_loss("weighted", TABLE)
    assert isinstance(loss, Weighted)
    loss.weigh(np.array([1.0, 2.0, 6.0]))
    logits, labels = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]]), torch.tensor([0, 0])
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = (each[0] * 2 + each[1] / 3) / 2  # chips 2 and 0 of a mean weight of 3
    torch.testing.assert_close(loss(logits, labels, index=torch.tensor([2, 0])), expected)


def test_weights_that_cannot_be_are_refused() -> None:
    loss = build_loss("weighted", TABLE)
    assert isinstance(loss, Weighted)
    with pytest.raises(ConfigError, match="needs a weight for each training chip and the index"):
        loss(torch.zeros(1, 4), torch.tensor([0]), index=torch.tensor([0]))
    for nonsense in ([1.0, np.nan], [1.0, -1.0], [0.0, 0.0], [[1.0]]):
        with pytest.raises(ConfigError, match="finite numbers, at least 0 and not all 0"):
            loss.weigh(np.array(nonsense))
    loss.weigh(np.ones(3))
    with pytest.raises(ConfigError, match="needs a weight for each training chip and the index"):
        loss(torch.zeros(1, 4), torch.tensor([0]))


def test_a_share_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"share of the training without weights must lie in 0..1; received 2"):
        build_loss("ldam", TABLE, {"deferred": 2})

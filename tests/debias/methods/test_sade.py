from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import logit_adjustment
from torchgeo_debias.debias.head import Floats, LinearHead
from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.debias.methods.sade import (
    SadeSettings,
    aggregated,
    aggregation_weights,
    fit_experts,
    inverse_adjustment,
)
from torchgeo_debias.debias.methods.solver import fit_linear
from torchgeo_debias.errors import ConfigError, DataError

from .test_balanced_softmax import long_tail


def test_the_third_expert_aims_at_the_reversed_priors() -> None:
    table = ClassTable.from_counts({"a": 70, "b": 20, "c": 10})
    pi = np.array([0.7, 0.2, 0.1])
    aim = np.array([0.1, 0.2, 0.7])
    np.testing.assert_allclose(inverse_adjustment(table, 1.0), np.log(pi / aim), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inverse_adjustment(table, 2.0), np.log(pi / (aim**2 / np.sum(aim**2))), rtol=1e-5)


def test_classes_with_equal_counts_are_equal() -> None:
    shift = inverse_adjustment(ClassTable.from_counts({"a": 20, "b": 70, "c": 20}), 1.0)
    assert shift[0] == shift[2]
    # Their two places in the reversed order hold 20 and 70 samples, that of b holds 20.
    between = np.log(70 / 20) - np.log(20 / np.sqrt(20 * 70))
    assert shift[1] - shift[0] == pytest.approx(between)
    np.testing.assert_allclose(inverse_adjustment(ClassTable.from_counts({"a": 5, "b": 5}), 2.0), 0, atol=1e-6)


def test_without_tau_it_is_logit_adjustment_and_background_keeps_its_share() -> None:
    table = ClassTable.from_counts({"a": 60, "b": 20, "background": 20}, background="background")
    np.testing.assert_allclose(inverse_adjustment(table, 0.0), logit_adjustment(table, 1.0), rtol=1e-5, atol=1e-6)
    assert inverse_adjustment(table, 2.0)[2] == pytest.approx(0)


def test_each_expert_prefers_the_rare_class_more_than_the_one_before() -> None:
    data = long_tail()
    chance = []
    for expert in fit_experts(data, SadeSettings()):
        logits = torch.tensor(expert.logits(data.features))
        chance.append(logits.softmax(dim=1)[:, 2].mean().item())
    assert chance[0] < chance[1] < chance[2]


def test_the_method_averages_its_experts() -> None:
    data = long_tail()
    experts = fit_experts(data, SadeSettings(tau=1.0))
    expected = np.mean([expert.logits(data.features) for expert in experts], axis=0)
    np.testing.assert_allclose(fit_method("sade", data, {"tau": 1.0}).logits(data.features), expected, atol=1e-4)


def test_linear_experts_would_differ_by_their_bias_alone() -> None:
    data = long_tail()
    labels = torch.tensor(data.labels)

    def linear(shift: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
        added = torch.tensor(shift, dtype=torch.float64)
        return fit_linear(data.features, lambda z: F.cross_entropy(z + added, labels, reduction="sum"), 3)

    heads = [linear(np.zeros(3, np.float32)), linear(inverse_adjustment(data.table, 2.0))]
    np.testing.assert_allclose(heads[0][0], heads[1][0], atol=1e-3)
    assert np.ptp(heads[0][1] - heads[1][1]) > 1


def test_the_expert_that_says_the_same_of_both_views_is_trusted_most() -> None:
    rng = np.random.default_rng(0)
    views = rng.normal(size=(2, 300, 6)).astype(np.float32)
    views[1, :, :2] = views[0, :, :2]  # augmentation leaves the first two features alone
    bias = np.zeros(2, np.float32)
    looks_at = [np.float32(8) * np.eye(6, dtype=np.float32)[[2 * i, 2 * i + 1]] for i in range(3)]
    experts = [LinearHead(weight, bias, cosine=True) for weight in looks_at]
    weights = aggregation_weights(experts, views[0], views[1])
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > weights[1:].max()
    np.testing.assert_array_equal(weights, aggregation_weights(experts, views[0], views[1]))
    assert weights.min() > 0.05
    longer = aggregation_weights(experts, views[0], views[1], epochs=1000)
    assert longer[0] > 0.8
    assert 0.04 < longer.min() < 0.05  # where it stops
    expected = sum(w * e.logits(views[0]) for w, e in zip(weights, experts, strict=True))
    np.testing.assert_allclose(aggregated(experts, weights).logits(views[0]), expected, atol=1e-4)


def test_views_of_other_chips_are_refused() -> None:
    head = LinearHead(np.ones((2, 3), np.float32), np.zeros(2, np.float32), cosine=True)
    with pytest.raises(DataError, match=r"Two views of the same chips have equal shapes.*\(4, 3\) and \(5, 3\)"):
        aggregation_weights([head] * 3, np.ones((4, 3), np.float32), np.ones((5, 3), np.float32))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tau": -1.0}, "tau of SADE must be at least 0; received -1.0"),
        ({"scale": 0.0}, "scale of a cosine head must be positive; received 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fit_method("sade", long_tail(), settings)

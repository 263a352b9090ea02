from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.debias.methods.ldam import ldam, margins
from torchgeo_debias.errors import ConfigError

from .test_balanced_softmax import long_tail


def test_margins_fall_with_the_fourth_root_of_the_count() -> None:
    table = ClassTable.from_counts({"a": 1296, "b": 16, "c": 1})
    np.testing.assert_allclose(margins(table, 0.5), [0.5 / 6, 0.25, 0.5], rtol=1e-6)


def test_a_rare_background_widens_no_margin_and_narrows_none() -> None:
    table = ClassTable.from_counts({"a": 1296, "other": 1, "b": 16}, background="other")
    np.testing.assert_allclose(margins(table, 0.5), [0.5 / 3, 0.5, 0.5], rtol=1e-6)


def test_the_logit_of_the_own_class_is_lowered_by_its_margin() -> None:
    loss = ldam(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.tensor([9.0, 0.5]))
    assert loss.item() == pytest.approx(math.log(math.exp(1.0) + math.exp(1.5)) - 1.5)


def test_without_margins_and_weights_it_is_a_cosine_head_under_cross_entropy() -> None:
    data = long_tail()
    plain = fit_method("cosine", data, {"scale": 30.0, "tau": 0.0})
    np.testing.assert_array_equal(fit_method("ldam", data, {"max_margin": 0.0, "beta": 0.0}).weight, plain.weight)


def test_the_head_is_better_by_the_stated_objective_than_its_neighbours() -> None:
    data = long_tail()
    unit = (data.features / np.linalg.norm(data.features, axis=1, keepdims=True)).astype(np.float64)
    counts, own = np.array([60, 15, 4]), (np.arange(79), data.labels)
    margin = 0.5 * (4 / counts) ** 0.25
    weights = 1 / (1 - 0.9999**counts)
    weights *= 79 / (weights @ counts)
    means = np.stack([data.features[data.labels == c].mean(axis=0, dtype=np.float64) for c in range(3)])
    start = 30 * means / np.linalg.norm(means, axis=1, keepdims=True)

    def objective(weight: np.ndarray) -> float:
        weight = 30 * weight / np.linalg.norm(weight, axis=1, keepdims=True)
        z = unit @ weight.T
        z[own] -= 30 * margin[data.labels]
        loss = np.logaddexp.reduce(z, axis=1) - z[own]
        return float((weights[data.labels] * loss).sum() + np.square(weight - start).sum() / (2 * unit.shape[1]))

    found = fit_method("ldam", data).weight.astype(np.float64)
    assert objective(found) < objective(start)
    rng = np.random.default_rng(0)
    assert all(objective(found) < objective(found + rng.normal(size=found.shape)) for _ in range(20))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_margin": -0.1}, "largest margin must be at least 0; received -0.1"),
        ({"scale": 0.0}, "scale of the logits must be positive; received 0.0"),
        ({"beta": 1.0}, "beta of the effective number must lie in 0..1, below 1; received 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fit_method("ldam", long_tail(), settings)

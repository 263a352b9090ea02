from __future__ import annotations

import numpy as np
import pytest

from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.errors import ConfigError

from .test_balanced_softmax import long_tail


def test_the_logits_are_the_scale_times_a_cosine() -> None:
    data = long_tail()
    head = fit_method("cosine", data, {"scale": 12.0})
    assert head.cosine
    assert not head.bias.any()
    rows = head.weight / np.linalg.norm(head.weight, axis=1, keepdims=True)
    unit = data.features / np.linalg.norm(data.features, axis=1, keepdims=True)
    np.testing.assert_allclose(head.logits(data.features), 12 * unit @ rows.T, rtol=1e-4, atol=1e-4)


def test_the_head_is_better_by_the_stated_objective_than_its_neighbours_and_its_start() -> None:
    data = long_tail()
    scale, shift = 25.0, np.log(np.array([60, 15, 4]) / 79 * 3)
    unit = (data.features / np.linalg.norm(data.features, axis=1, keepdims=True)).astype(np.float64)
    means = np.stack([data.features[data.labels == c].mean(axis=0, dtype=np.float64) for c in range(3)])
    start = scale * means / np.linalg.norm(means, axis=1, keepdims=True)

    def objective(weight: np.ndarray) -> float:
        weight = scale * weight / np.linalg.norm(weight, axis=1, keepdims=True)
        z = unit @ weight.T + shift
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), data.labels]
        return float(loss.sum() + np.square(weight - start).sum() / (2 * unit.shape[1]))

    found = fit_method("cosine", data).weight.astype(np.float64)
    assert objective(found) < objective(start)
    rng = np.random.default_rng(0)
    assert all(objective(found) < objective(found + rng.normal(size=found.shape)) for _ in range(20))


def test_more_adjustment_finds_more_of_the_rare_class() -> None:
    data = long_tail()
    found = [
        (fit_method("cosine", data, {"tau": tau}).logits(data.features).argmax(axis=1) == 2).sum() for tau in (0, 2)
    ]
    assert found[0] < found[1]


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale of a cosine head must be positive; received 0"):
        fit_method("cosine", long_tail(), {"scale": 0})

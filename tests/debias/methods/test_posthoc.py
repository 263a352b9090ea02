from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from tests.debias.methods.test_contract import make
from torchgeo_debias.debias import fit_head
from torchgeo_debias.debias.methods import fit_method


def test_adjustment_divides_probabilities_by_priors() -> None:
    samples = make([60, 25, 10, 4])
    plain = np.exp(fit_method("ce", samples).logits(samples.features).astype(np.float64))
    adjusted = np.exp(fit_method("la", samples).logits(samples.features).astype(np.float64))
    expected = plain / samples.table.priors
    np.testing.assert_allclose(
        adjusted / adjusted.sum(axis=1, keepdims=True), expected / expected.sum(axis=1, keepdims=True), rtol=1e-4
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_rows_are_divided_by_their_length_and_bias_is_dropped(tau: float) -> None:
    samples = make([60, 25, 10, 4])
    scaler = StandardScaler().fit(samples.features)
    plain = fit_head(samples.features, samples.labels, 4).weight * scaler.scale_
    length = np.linalg.norm(plain, axis=1, keepdims=True)
    head = fit_method("tau-norm", samples, {"tau": tau})
    rows = head.weight * scaler.scale_
    np.testing.assert_allclose(rows / rows[0, 0], (plain / length**tau) / (plain / length**tau)[0, 0], rtol=1e-3)
    middle = head.logits(scaler.mean_[None].astype(np.float32))
    np.testing.assert_allclose(middle, 0, atol=1e-5)
    assert np.linalg.norm(rows, axis=1).mean() == pytest.approx(length.mean(), rel=0.3)


def test_features_that_say_nothing_give_logits_of_zero() -> None:
    samples = make([20, 8])
    flat = samples._replace(features=np.ones_like(samples.features))
    assert not fit_method("tau-norm", flat).logits(flat.features).any()

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.debias.methods.reslt import reslt_loss
from torchgeo_debias.errors import ConfigError

from .test_balanced_softmax import long_tail


def test_the_loss_is_that_of_the_sum_and_of_each_branch_over_its_own_samples() -> None:
    # Two samples: one of the head, in the first branch alone, one of the tail, in all three.
    logits = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]])
    labels, members = torch.tensor([0, 1]), torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])

    def ce(own: float, other: float) -> float:
        return float(np.log1p(np.exp(other - own)))

    together = (ce(3.0, 3.0) + ce(1.0, 0.5)) / 2
    each = (ce(1.0, 0.0) + ce(1.0, 0.0) + ce(0.0, 0.5) + ce(0.0, 0.0)) / 4
    assert reslt_loss(logits, labels, members, 0.3).item() == pytest.approx(0.7 * together + 0.3 * each)


def test_without_losses_of_their_own_three_branches_are_plain_cross_entropy() -> None:
    data = long_tail()
    head = fit_method("reslt", data, {"beta": 0.0})
    scaled = StandardScaler().fit_transform(data.features)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(scaled, data.labels)
    logits = head.logits(data.features).astype(np.float64)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, reference.predict_proba(scaled), atol=2e-3)
    plain = fit_method("ce", data).logits(data.features)
    np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), plain - plain.mean(1, keepdims=True), atol=0.02)


def test_branches_of_their_own_find_more_of_the_rare_class() -> None:
    data = long_tail()
    found = [
        (fit_method("reslt", data, {"beta": beta}).logits(data.features).argmax(axis=1) == 2).sum()
        for beta in (0.0, 0.99)
    ]
    assert found[0] < found[1]


def test_a_beta_beyond_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"beta of ResLT must lie between 0 and 1; received 1.5"):
        fit_method("reslt", long_tail(), {"beta": 1.5})

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.debias.methods.focal import focal
from torchgeo_debias.errors import ConfigError

from .test_solver import samples


def test_half_a_chance_counts_a_quarter_with_gamma_2() -> None:
    loss = focal(torch.zeros(1, 2), torch.tensor([0]), 2.0)
    assert loss.item() == pytest.approx(0.25 * math.log(2))


def test_gamma_0_is_cross_entropy() -> None:
    logits, labels = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    torch.testing.assert_close(
        focal(logits, labels, 0.0), torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_is_finite_where_the_answer_is_sure(gamma: float) -> None:
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4], [40.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(focal(logits, torch.zeros(3, dtype=torch.int64), gamma).sum(), logits)
    assert slope.isfinite().all()


def test_the_head_is_where_the_slope_of_the_stated_objective_vanishes() -> None:
    data = samples()
    head = fit_method("focal", data, {"gamma": 2.0})
    scaler = StandardScaler().fit(data.features)
    x = scaler.transform(data.features).astype(np.float64)
    weight = head.weight * scaler.scale_
    bias = head.bias + head.weight @ scaler.mean_

    def objective(w: np.ndarray, b: np.ndarray) -> float:
        z = x @ w.T + b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        own = (p / p.sum(axis=1, keepdims=True))[np.arange(len(x)), data.labels]
        return float((-((1 - own) ** 2) * np.log(own)).sum() + np.square(w).sum() / 2)

    rng = np.random.default_rng(0)
    for _ in range(20):
        dw, db = rng.normal(size=weight.shape), rng.normal(size=bias.shape)
        step = 1e-3
        slope = (objective(weight + step * dw, bias + step * db) - objective(weight - step * dw, bias - step * db)) / (
            2 * step
        )
        assert abs(slope) < 0.01


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gamma of the focal loss must be at least 0; received -1"):
        fit_method("focal", samples(), {"gamma": -1})

"""Linear heads: fitted as logistic regression on stored features, or handed over from training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Logits ``features @ weight.T + bias``.

    Attributes:
        weight: (C, D) float32.
        bias: (C,) float32.
        cosine: Whether features are brought to unit length first; the rows of ``weight`` are then unit vectors times
            a scale. A feature of zeros stays one.
    """

    weight: Array
    bias: Array
    cosine: bool = False

    def logits(self, features: Array) -> Array:
        """(N, C) of features (N, D)."""
        return (normalize(features) if self.cosine else features) @ self.weight.T + self.bias

    def shifted(self, by: Array) -> LinearHead:
        """The head with ``by`` of shape (C,) added to its logits."""
        return replace(self, bias=self.bias + by)


def fit_head(
    features: Array, labels: npt.NDArray[np.int64], n_classes: int, weights: Floats | None = None
) -> LinearHead:
    """Multinomial logistic regression (C = 1) on standardised features, with the scaling folded into the weights.

    Args:
        features: (N, D).
        labels: (N,) class ids, every class at least once.
        n_classes: C.
        weights: (N,) of the samples in the loss; 1 each where left out.
    """
    scaler = StandardScaler().fit(features)
    return folded(*logistic(scaler.transform(features), labels, n_classes, weights), scaler)


def logistic(
    features: Floats, labels: npt.NDArray[np.int64], n_classes: int, weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Weight (C, D) and bias (C,) that minimise ``sum_i w_i CE_i + |W|^2 / 2``, for features taken as they are."""
    # Of two classes scikit-learn fits the difference of the rows alone, whose square is twice that of both.
    model = LogisticRegression(C=2.0 if n_classes == 2 else 1.0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loss is flat long before lbfgs says so
        model.fit(features, labels, sample_weight=weights)
    coef, intercept = model.coef_, model.intercept_
    if n_classes == 2:  # scikit-learn keeps one row for two classes
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return coef, intercept


def folded(weight: Floats, bias: Floats, scaler: StandardScaler) -> LinearHead:
    """The head on plain features that says what ``weight`` (C, D) and ``bias`` (C,) say on scaled ones."""
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))

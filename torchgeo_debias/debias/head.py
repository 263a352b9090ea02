"""Linear heads: fitted as logistic regression on stored features, or handed over from training."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

Array = npt.NDArray[np.float32]


class LinearHead(NamedTuple):
    """Logits ``features @ weight.T + bias``.

    Attributes:
        weight: (C, D) float32.
        bias: (C,) float32.
    """

    weight: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """(N, C) of features (N, D)."""
        return features @ self.weight.T + self.bias

    def shifted(self, by: Array) -> LinearHead:
        """The head with ``by`` of shape (C,) added to its logits."""
        return LinearHead(self.weight, self.bias + by)


def fit_head(features: Array, labels: npt.NDArray[np.int64], n_classes: int) -> LinearHead:
    """Multinomial logistic regression (C = 1) on standardised features, with the scaling folded into the weights.

    Args:
        features: (N, D).
        labels: (N,) class ids, every class at least once.
        n_classes: C.
    """
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1.0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loss is flat long before lbfgs says so
        model.fit(scaler.transform(features), labels)
    coef, intercept = model.coef_, model.intercept_
    if n_classes == 2:  # scikit-learn keeps one row for two classes
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = coef / scaler.scale_
    bias = intercept - weight @ scaler.mean_
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))

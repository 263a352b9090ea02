"""Heads that minimise another loss than cross-entropy: found by L-BFGS on all samples at once, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.preprocessing import normalize
from torch import Tensor

from torchgeo_debias.debias.centres import class_means
from torchgeo_debias.debias.head import Array, Floats
from torchgeo_debias.debias.samples import Samples

#: From logits (N, rows) to the sum of the samples' losses.
Objective = Callable[[Tensor], Tensor]


def minimise(function: Callable[[Tensor], Tensor], start: Floats) -> Floats:
    """Where a smooth function is least, by SciPy's L-BFGS, as scikit-learn's logistic regression; gradients by torch.

    It draws nothing and shares no state with other calls. Where there are several minima it is the one that the
    descent from ``start`` leads to. (The L-BFGS of torch would do, but importing torch's optimisers takes seconds.)

    Args:
        function: From an array of the shape of ``start``, float64, to a number of the order of 1.
        start: Where the descent begins.
    """

    def value_and_gradient(flat: Floats) -> tuple[float, Floats]:
        with torch.enable_grad():
            point = torch.tensor(flat.reshape(start.shape), dtype=torch.float64, requires_grad=True)
            value = function(point)
            (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy().ravel()

    options = {"maxiter": 1000, "maxfun": 5000, "gtol": 1e-6, "ftol": 64 * np.finfo(float).eps}
    found = minimize(value_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return cast(Floats, found.x.reshape(start.shape))


def fit_linear(features: Floats, objective: Objective, rows: int, biases: int | None = None) -> tuple[Floats, Floats]:
    """Weight (rows, D) and bias (rows,) that minimise ``objective(features @ W.T + b) + |W|^2 / 2``.

    The counterpart of :func:`~torchgeo_debias.debias.head.logistic` for other losses.

    Args:
        features: (N, D), taken as they are.
        objective: See :data:`Objective`.
        rows: Logits of a sample; more than classes where several branches are fitted together.
        biases: How many of the rows, the first ones, have a bias; all where left out.
    """
    x = torch.tensor(np.column_stack([features, np.ones(len(features))]), dtype=torch.float64)
    free = torch.ones(rows, x.shape[1], dtype=torch.float64)
    free[rows if biases is None else biases :, -1] = 0

    def total(point: Tensor) -> Tensor:
        return (objective((point * free @ x.T).T) + point[:, :-1].square().sum() / 2) / len(x)

    found = minimise(total, np.zeros((rows, x.shape[1])))
    return found[:, :-1], found[:, -1]


def fit_cosine(samples: Samples, objective: Objective, scale: float) -> Array:
    """Weight (C, D) float32 of a cosine head: rows of length ``scale``, for features of unit length, without a bias.

    The length of a row is fixed, so that the ridge of linear heads, which keeps rows short, cannot act. Here it keeps
    them near the directions of the class means M instead, where the descent begins, too: ``|W - scale M|^2 / (2 D)``
    is added to the objective. The ``D`` makes for the same footing: standardised features are about ``sqrt(D)`` times
    as long as unit ones. (Who stops after a few epochs needs no ridge to keep something of the start; this solver
    stops at the minimum.)

    Args:
        samples: Their features are brought to unit length and not standardised: the cosine is that of the features.
        objective: See :data:`Objective`.
        scale: Of the logits, which lie between ``-scale`` and ``scale``.
    """
    x = torch.tensor(normalize(samples.features.astype(np.float64)))
    means = directions(samples)
    begin = torch.tensor(scale * means)

    def total(point: Tensor) -> Tensor:
        weight = scale * F.normalize(point, dim=1)
        return (objective((weight @ x.T).T) + (weight - begin).square().sum() / (2 * x.shape[1])) / len(x)

    found = minimise(total, means)
    weight: Array = (scale * normalize(found)).astype(np.float32)
    return weight


def directions(samples: Samples) -> Floats:
    """(C, D) float64, the direction of the mean feature of each class; an arbitrary one where that mean is zero."""
    means = class_means(samples.features.astype(np.float64), samples.labels, len(samples.table.names))
    means[~means.any(axis=1)] = 1.0
    found: Floats = normalize(means)
    return found


def targets(samples: Samples) -> Tensor:
    """The labels (N,) as a tensor."""
    return torch.tensor(samples.labels, dtype=torch.int64)

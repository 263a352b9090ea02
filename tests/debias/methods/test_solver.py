from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods.solver import directions, fit_cosine, fit_linear, minimise
from torchgeo_debias.debias.samples import Samples


def samples(n: int = 90, classes: int = 3, d: int = 6) -> Samples:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    features = (rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))).astype(np.float32)
    return Samples(features, labels, ClassTable.from_labels(labels, [f"c{i}" for i in range(classes)]))


def test_the_minimum_of_a_quadratic_is_that_of_its_equations() -> None:
    rng = np.random.default_rng(1)
    root, aim = rng.normal(size=(5, 5)), rng.normal(size=5)
    matrix = root @ root.T + np.eye(5)

    def value(x: Tensor) -> Tensor:
        return x @ torch.tensor(matrix) @ x / 2 - torch.tensor(aim) @ x

    with torch.no_grad():  # as a caller in evaluation may have set
        found = minimise(value, np.zeros(5))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, aim), atol=1e-5)


@pytest.mark.parametrize("classes", [3, 5])
def test_cross_entropy_has_the_weights_of_scikit_learn(classes: int) -> None:
    data = samples(classes=classes)
    labels = torch.tensor(data.labels)
    weight, bias = fit_linear(data.features, lambda z: F.cross_entropy(z, labels, reduction="sum"), classes)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(data.features.astype(float), data.labels)
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-3)
    np.testing.assert_allclose(bias - bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-3)


def test_the_global_seed_plays_no_part() -> None:
    data = samples()
    labels = torch.tensor(data.labels)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(fit_linear(data.features, lambda z: F.cross_entropy(z, labels, reduction="sum"), 3)[0].tobytes())
    assert found[0] == found[1]


def test_rows_of_a_cosine_head_have_the_length_of_the_scale() -> None:
    data = samples()
    labels = torch.tensor(data.labels)
    weight = fit_cosine(data, lambda z: F.cross_entropy(z, labels, reduction="sum"), 20.0)
    assert weight.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(weight, axis=1), 20.0, rtol=1e-5)


def test_a_cosine_head_without_a_loss_stays_at_the_class_means() -> None:
    data = samples()
    means = np.stack([data.features[data.labels == c].mean(axis=0) for c in range(3)])
    weight = fit_cosine(data, lambda z: z.sum() * 0, 10.0)
    np.testing.assert_allclose(weight, 10 * means / np.linalg.norm(means, axis=1, keepdims=True), rtol=1e-4)


def test_the_ridge_of_a_cosine_head_weighs_what_it_says() -> None:
    # One class of two moves: its row turns by an angle whose loss and ridge are in balance, found on a fine grid here.
    features = np.array([[1, 0], [0, 1]], np.float32)
    data = Samples(features, np.array([0, 1]), ClassTable.from_counts({"a": 1, "b": 1}))
    weight = fit_cosine(data, lambda z: -3.0 * z[0, 1], 2.0)
    turn = np.linspace(0, np.pi / 2, 100_001)
    row = 2 * np.stack([np.sin(turn), np.cos(turn)], axis=1)
    total = -3 * row[:, 0] + np.square(row - [0, 2]).sum(axis=1) / 4
    np.testing.assert_allclose(weight[1], row[total.argmin()], atol=1e-3)
    np.testing.assert_allclose(weight[0], [2, 0], atol=1e-5)


def test_a_class_whose_mean_is_zero_has_a_direction_all_the_same() -> None:
    features = np.array([[1, 0], [-1, 0], [0, 2]], np.float32)
    data = Samples(features, np.array([0, 0, 1]), ClassTable.from_counts({"a": 2, "b": 1}))
    np.testing.assert_allclose(np.linalg.norm(directions(data), axis=1), 1)
    labels = torch.tensor(data.labels)
    assert np.isfinite(fit_cosine(data, lambda z: F.cross_entropy(z, labels, reduction="sum"), 5.0)).all()

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import LinearHead, fit_head, logit_adjustment
from torchgeo_debias.debias.methods.solver import fit_linear


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_folded_head_says_what_scikit_learn_says(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 200)
    labels[:classes] = np.arange(classes)
    scale = 10.0 ** rng.integers(-3, 4, 6)
    z = ((rng.normal(size=(classes, 6))[labels] + rng.normal(size=(200, 6))) * scale + 5 * scale).astype(np.float32)
    z[:, 3] = 7.5  # a column that says nothing
    head = fit_head(z, labels, classes)
    # Of two classes scikit-learn fits one row, the difference of ours: half the ridge is the same one.
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=2.0 if classes == 2 else 1.0, max_iter=1000))
    reference.fit(z, labels)
    assert head.weight.shape == (classes, 6)
    assert head.weight.dtype == head.bias.dtype == np.float32
    logits = head.logits(z).astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, reference.predict_proba(z), atol=2e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_ridge_is_half_the_square_of_all_rows_whatever_the_number_of_classes(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    z = (rng.normal(size=(classes, 4))[labels] + rng.normal(size=(60, 4))).astype(np.float32)
    scaler = StandardScaler().fit(z)
    weight, _ = fit_linear(
        scaler.transform(z), lambda logits: F.cross_entropy(logits, torch.from_numpy(labels), reduction="sum"), classes
    )
    np.testing.assert_allclose(fit_head(z, labels, classes).weight * scaler.scale_, weight, atol=1e-3)


def test_shifting_moves_the_logits_alone() -> None:
    head = LinearHead(np.ones((2, 3), np.float32), np.zeros(2, np.float32))
    moved = head.shifted(np.array([1, -2], np.float32))
    z = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(moved.logits(z) - head.logits(z), np.tile([1, -2], (4, 1)))
    assert not head.bias.any()


def test_a_cosine_head_sees_directions_alone() -> None:
    rows = np.array([[3, 0], [0, 3]], np.float32)
    head = LinearHead(rows, np.array([0, 1], np.float32), cosine=True)
    z = np.array([[3, 4], [300, 400], [0, 0]], np.float32)
    np.testing.assert_allclose(head.logits(z), np.array([[1.8, 3.4], [1.8, 3.4], [0, 1]]), rtol=1e-6)
    assert head.shifted(np.ones(2, np.float32)).cosine
    np.testing.assert_allclose(head.shifted(np.ones(2, np.float32)).logits(z) - head.logits(z), 1, rtol=1e-6)


def test_a_weight_of_two_is_a_sample_twice() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    z = rng.normal(size=(60, 4)).astype(np.float32)
    z -= z.mean(axis=0)
    twice = np.concatenate([np.arange(60)] * 2)  # every sample, so that the scaling stays
    weighted, doubled = fit_head(z, labels, 3, np.full(60, 2.0)), fit_head(z[twice], labels[twice], 3)
    np.testing.assert_allclose(weighted.logits(z), doubled.logits(z), atol=2e-3)
    assert np.abs(weighted.weight - fit_head(z, labels, 3).weight).max() > 0.01  # the ridge does not double


def test_adjustment_is_that_of_the_counts() -> None:
    table = ClassTable.from_counts({"a": 75, "b": 20, "c": 5})
    np.testing.assert_allclose(logit_adjustment(table, 1.0), np.log(3 * np.array([0.75, 0.2, 0.05])), rtol=1e-5)
    np.testing.assert_allclose(logit_adjustment(table, 0.5), np.log(3 * np.array([0.75, 0.2, 0.05])) / 2, rtol=1e-5)
    assert not logit_adjustment(table, 0.0).any()
    assert np.isfinite(logit_adjustment(ClassTable.from_counts({"a": 5, "b": 0}), 1.0)).all()


def test_adjusting_afterwards_undoes_the_prior() -> None:
    # Two classes that features do not tell apart: plain logits say the common one, adjusted ones neither.
    labels = np.repeat([0, 1], [90, 10])
    table = ClassTable.from_counts({"a": 90, "b": 10})
    head = fit_head(np.zeros((100, 2), np.float32), labels, 2)
    plain, adjusted = head.logits(np.zeros((1, 2), np.float32)), head.shifted(-logit_adjustment(table, 1.0)).bias
    assert plain[0, 0] - plain[0, 1] == pytest.approx(np.log(9), abs=1e-3)
    assert adjusted[0] == pytest.approx(adjusted[1], abs=1e-3)


def test_background_keeps_its_share() -> None:
    table = ClassTable.from_counts({"a": 60, "b": 20, "background": 20}, background="background")
    np.testing.assert_allclose(logit_adjustment(table, 1.0), np.log([0.6 / 0.4, 0.2 / 0.4, 1.0]), rtol=1e-5, atol=1e-7)

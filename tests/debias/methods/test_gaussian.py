from __future__ import annotations

import numpy as np
import pytest

from tests.debias.methods.test_contract import make
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods.gaussian import (
    TailCalibSettings,
    VirtualSettings,
    draws,
    tailcalib_features,
    virtual_features,
)
from torchgeo_debias.debias.samples import Samples


def test_draws_have_that_covariance() -> None:
    factor = np.array([[2.0, 1.0], [0.0, 0.5]])
    drawn = draws(40000, factor, np.random.default_rng(0))
    np.testing.assert_allclose(np.cov(drawn.T), factor.T @ factor, atol=0.1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.05)


def _two_heads_and_a_single() -> Samples:
    """Two head classes of different shape, four smaller ones; the last has one sample, near the second head class."""
    rng = np.random.default_rng(0)
    counts = [4000, 3000, 5, 4, 3, 1]
    labels = np.repeat(np.arange(6), counts)
    means = np.array([[-20.0, 0], [20, 0], [0, 40], [0, 60], [0, 80], [24, 0]])
    scale = np.array([[1.0, 4], [3, 0.5], [1, 1], [1, 1], [1, 1], [0, 0]])
    features = means[labels] + scale[labels] * rng.normal(size=(len(labels), 2))
    return Samples(features.astype(np.float32), labels, ClassTable.from_labels(labels, list("abcdef")))


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_rare_class_borrows_the_spread_of_the_nearest_head_class(alpha: float) -> None:
    samples = _two_heads_and_a_single()
    z = samples.features.astype(np.float64)
    drawn, labels = tailcalib_features(z, samples, TailCalibSettings(alpha=alpha), np.random.default_rng(1))
    assert np.bincount(labels, minlength=6).tolist() == [0, 1000, 3995, 3996, 3997, 3999]
    single = drawn[labels == 5]
    np.testing.assert_allclose(single.mean(axis=0), z[-1], atol=0.2)  # nearest mean: its own
    np.testing.assert_allclose(np.cov(single.T), np.cov(z[samples.labels == 1].T) + alpha, atol=0.5)


def test_two_nearest_classes_are_averaged() -> None:
    samples = _two_heads_and_a_single()
    z = samples.features.astype(np.float64)
    drawn, labels = tailcalib_features(z, samples, TailCalibSettings(k=2), np.random.default_rng(1))
    heads = [z[samples.labels == c] for c in (0, 1)]
    single = drawn[labels == 5]
    np.testing.assert_allclose(single.mean(axis=0), (2 * z[-1] + heads[1].mean(axis=0)) / 3, atol=0.2)
    np.testing.assert_allclose(np.cov(single.T), (np.cov(heads[0].T) + np.cov(heads[1].T)) / 2, atol=0.5)


def test_every_sample_of_a_class_is_drawn_around() -> None:
    samples = make([40, 7], dim=2)
    apart = samples.features.astype(np.float64)
    apart[40:] = 1000.0 * (50 + np.arange(7))[:, None]  # far from the head, so that the nearest mean is their own
    drawn, labels = tailcalib_features(apart, samples, TailCalibSettings(), np.random.default_rng(0))
    around = 2 * drawn - apart[40:].mean(axis=0)
    at = np.round(around.mean(axis=1) / 1000).astype(int) - 50
    assert len(labels) == 33
    assert set(np.bincount(at, minlength=7).tolist()) == {4, 5}


def test_virtual_features_have_the_blended_covariance() -> None:
    samples = make([200, 60, 9], dim=3)
    z = samples.features.astype(np.float64)
    settings = VirtualSettings(draws=40000, ridge=0.3, prior=8.0)
    drawn = virtual_features(z, samples, settings, np.random.default_rng(0)).reshape(3, -1, 3)
    groups = [z[samples.labels == c] for c in range(3)]
    pooled = sum((len(g) - 1) * np.cov(g.T) for g in groups) / (len(z) - 3)
    for cloud, group in zip(drawn, groups, strict=True):
        own = (len(group) - 1) / (len(group) - 1 + 8.0)
        np.testing.assert_allclose(cloud.mean(axis=0), group.mean(axis=0), atol=0.05)
        expected = own * np.cov(group.T) + (1 - own) * pooled + 0.3 * np.eye(3)
        np.testing.assert_allclose(np.cov(cloud.T), expected, atol=0.08)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.debias import Clustering
from torchgeo_debias.debias.centres import class_means, cluster_weights, debiased_centres, memberships

# Two clusters; class 0 has 6 of 8 features in the first, class 1 one of each.
LABELS = np.array([0] * 8 + [1] * 2)
Z = np.array([[0], [0], [0], [0], [0], [0], [10], [10], [0], [10]], np.float32)
CLUSTERS = Clustering(np.array([[0], [10]], np.float32), (Z[:, 0] > 5).astype(np.int64))


def test_weights_by_counts() -> None:
    weights = cluster_weights(Z, LABELS, 3, CLUSTERS)
    np.testing.assert_allclose(weights, np.array([[6 / 8, 2 / 8], [1 / 2, 1 / 2], [0, 0]]))


def test_class_balanced_weights_by_hand() -> None:
    # The first cluster has 7 of 10 features, but 5/8 of balanced classes; the second 3 of 10, but 3/8.
    swollen = np.array([0.7 / (5 / 8), 0.3 / (3 / 8)])
    expected = np.array([[6 / 8, 2 / 8], [1 / 2, 1 / 2]]) / swollen
    weights = cluster_weights(Z, LABELS, 3, CLUSTERS, "class-balanced")
    np.testing.assert_allclose(weights[:2], expected / expected.sum(axis=1, keepdims=True))
    assert weights[1, 0] < 0.5  # what the head class fills counts for less
    assert not weights[2].any()


def test_of_equally_large_classes_the_balanced_weights_are_the_counts() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    z = rng.normal(size=(100, 3)).astype(np.float32)
    clusters = Clustering(z[:5], rng.integers(0, 5, 100))
    balanced = cluster_weights(z, labels, 4, clusters, "class-balanced")
    np.testing.assert_allclose(balanced, cluster_weights(z, labels, 4, clusters))


def test_memberships_of_independent_coordinates_are_those_of_a_mixture_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0] * 50, [0.5] * 50], np.float32)
    part = rng.integers(0, 2, 4000)
    z = (centres[part] + rng.normal(scale=0.8, size=(4000, 50))).astype(np.float32)
    belong = memberships(z, Clustering(centres, part))
    far = np.square(z[:, None] - centres).sum(axis=2)
    density = np.exp(-(far - far.min(axis=1, keepdims=True)) / (2 * 0.8**2))
    np.testing.assert_allclose(belong, density / density.sum(axis=1, keepdims=True), atol=0.03)


def test_coordinates_that_hang_together_count_once() -> None:
    rng = np.random.default_rng(0)
    part = rng.integers(0, 2, 4000)
    once = (3.0 * part[:, None] + rng.normal(size=(4000, 1))).astype(np.float32)
    centres = np.array([[0], [3]], np.float32)
    alone = memberships(once, Clustering(centres, part))
    copied = memberships(np.repeat(once, 300, axis=1), Clustering(np.repeat(centres, 300, axis=1), part))
    np.testing.assert_allclose(copied, alone, atol=1e-6)
    assert 0.1 < alone[:, 0].mean() < 0.9
    assert ((alone > 0.01) & (alone < 0.99)).any()


def test_without_any_spread_memberships_are_hard() -> None:
    np.testing.assert_array_equal(memberships(Z, CLUSTERS), np.eye(2)[CLUSTERS.assignment])
    np.testing.assert_array_equal(
        cluster_weights(Z, LABELS, 2, CLUSTERS, "soft"), cluster_weights(Z, LABELS, 2, CLUSTERS, "counts")
    )


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["counts", "class-balanced", "soft"]),
    centre=st.sampled_from(["clusters", "global"]),
)
def test_weights_are_shares_and_centres_lie_between_those_of_the_clusters(seed: int, kind: Any, centre: Any) -> None:
    rng = np.random.default_rng(seed)
    n, k, c = int(rng.integers(1, 40)), int(rng.integers(1, 6)), int(rng.integers(1, 6))
    z = (rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    labels = rng.integers(0, c, n)
    clusters = Clustering(z[rng.integers(0, n, k)], rng.integers(0, k, n))
    weights = cluster_weights(z, labels, c, clusters, kind)
    present = np.bincount(labels, minlength=c) > 0
    assert weights.shape == (c, k)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), present)
    means = class_means(z, labels, c)
    centres = debiased_centres(means, weights, clusters, centre)
    assert np.array_equal(np.isfinite(centres).all(axis=1), present)
    points = clusters.centres if centre == "clusters" else means[present]
    slack = 1e-5 * np.abs(z).max()
    assert (centres[present] >= points.min(axis=0) - slack).all()
    assert (centres[present] <= points.max(axis=0) + slack).all()


def test_means_of_classes() -> None:
    means = class_means(Z, LABELS, 3)
    np.testing.assert_allclose(means[:2], [[2.5], [5.0]])
    assert np.isnan(means[2]).all()
    assert means.dtype == np.float32
    whole = debiased_centres(means, cluster_weights(Z, LABELS, 3, CLUSTERS), CLUSTERS, "global")
    np.testing.assert_allclose(whole[:2], [[3.75], [3.75]])
    mixed = debiased_centres(means, cluster_weights(Z, LABELS, 3, CLUSTERS), CLUSTERS)
    np.testing.assert_allclose(mixed[:2], [[2.5], [5.0]])


@pytest.mark.parametrize("kind", ["counts", "class-balanced", "soft"])
def test_a_class_of_one_sample_leans_most_on_its_own_cluster(kind: Any) -> None:
    rng = np.random.default_rng(1)
    part = np.repeat([0, 1], [60, 41])
    z = (6 * part[:, None] + rng.normal(size=(101, 4))).astype(np.float32)
    labels = np.repeat([0, 1], [100, 1])
    clusters = Clustering(np.stack([z[part == k].mean(axis=0) for k in (0, 1)]), part)
    weights = cluster_weights(z, labels, 2, clusters, kind)
    assert weights[1, 1] > 0.99

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.cluster import KMeans

from torchgeo_debias.debias import kmeans as module
from torchgeo_debias.debias.kmeans import kmeans

Array = npt.NDArray[np.float32]


def blobs(count: int = 3000, parts: int = 12, dim: int = 16, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    shares = 20.0 ** -np.linspace(0, 1, parts)
    part = rng.choice(parts, count, p=shares / shares.sum())
    return (rng.normal(size=(parts, dim))[part] + rng.normal(size=(count, dim))).astype(np.float32)


def inertia(z: Array, centres: Array, assignment: npt.NDArray[np.int64]) -> float:
    return float(np.square(z - centres[assignment]).sum(dtype=np.float64))


@pytest.mark.parametrize("seed", range(3))
def test_inertia_is_that_of_scikit_learn(seed: int) -> None:
    z = blobs(6000, seed=seed)
    ours = kmeans(z, 16, seed)
    assert inertia(z, ours.centres, ours.assignment) < 1.03 * KMeans(16, n_init=4, random_state=seed).fit(z).inertia_


def test_each_feature_is_in_the_nearest_cluster_and_centres_are_means() -> None:
    z = blobs() + 100  # far from the origin
    centres, assignment, passes = kmeans(z, 8, tolerance=0.0)
    apart = np.square(z[:, None].astype(np.float64) - centres).sum(axis=2)
    assert np.array_equal(apart.argmin(axis=1), assignment)
    assert centres.dtype == np.float32
    assert passes > 2
    means = np.stack([z[assignment == j].mean(axis=0) for j in range(8)])
    np.testing.assert_allclose(centres, means, rtol=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z = blobs()
    whole = kmeans(z, 8)
    monkeypatch.setattr(module, "CHUNK", 16 * 7)
    parts = kmeans(z, 8)
    assert np.array_equal(whole.assignment, parts.assignment)
    np.testing.assert_allclose(whole.centres, parts.centres, rtol=1e-5, atol=1e-6)


def test_a_seed_repeats_it() -> None:
    z = blobs()
    one, two = kmeans(z, 8, seed=3), kmeans(z, 8, seed=3)
    assert one.centres.tobytes() == two.centres.tobytes()
    assert np.array_equal(one.assignment, two.assignment)


def test_an_empty_cluster_goes_on_from_the_farthest_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad:
        """A start whose last centre no feature is near to."""

        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def fit(self, sample: Array) -> Bad:
            self.cluster_centers_ = np.array([[0.0, 0], [1e3, 1e3]])
            return self

    monkeypatch.setattr(module, "KMeans", Bad)
    z = np.array([[0, 0], [0, 1], [1, 0], [9, 9]], np.float32)
    fit = kmeans(z, 2)
    assert fit.assignment.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(fit.centres, np.array([[1 / 3, 1 / 3], [9, 9]]), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_features_come_to_an_end() -> None:
    fit = kmeans(np.full((50, 3), 2.5, np.float32), 4)
    assert np.array_equal(fit.centres[fit.assignment], np.full((50, 3), 2.5, np.float32))


def test_the_features_stay_as_they_are() -> None:
    z = blobs(200)
    before = z.copy()
    kmeans(z, 4)
    assert np.array_equal(z, before)

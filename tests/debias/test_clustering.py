from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from torchgeo_debias.debias import clustering
from torchgeo_debias.debias.clustering import Backend, choose_n_clusters, cluster, squared_distances
from torchgeo_debias.errors import ConfigError

Array = npt.NDArray[np.float32]


def clouds(sizes: tuple[int, ...], seed: int = 0, dim: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=20, size=(len(sizes), dim))
    return np.concatenate([rng.normal(c, 1, (n, dim)) for c, n in zip(centres, sizes, strict=True)]).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    k=st.integers(1, 12),
    rho=st.floats(1.0, 4.0),
    seed=st.integers(0, 100),
)
def test_every_cluster_has_its_least_size_and_where_that_binds_the_mean_as_centre(
    sizes: list[int], k: int, rho: float, seed: int
) -> None:
    z = clouds(tuple(sizes), seed)
    centres, assignment = cluster(z, k, rho, seed)
    used = min(k, len(z))
    counts = np.bincount(assignment, minlength=used)
    assert centres.shape == (used, 3)
    assert centres.dtype == np.float32
    assert counts.sum() == len(z)
    assert counts.min() >= int(len(z) / (used * rho))
    if np.array_equal(assignment, cluster(z, k, None, seed).assignment):
        return  # scikit-learn stops a little before its centres are the means
    for j in np.flatnonzero(counts):
        np.testing.assert_allclose(centres[j], z[assignment == j].mean(axis=0), rtol=1e-3, atol=1e-3)


def test_the_bound_takes_effect() -> None:
    z = clouds((200, 200, 4))
    assert np.bincount(cluster(z, 3, None).assignment).min() == 4
    assert np.bincount(cluster(z, 3, 1.0).assignment).min() >= 134


def test_without_a_bound_it_is_plain_kmeans() -> None:
    z = clouds((50, 20, 5))
    plain = KMeans(4, n_init=4, random_state=3).fit(z)
    ours = cluster(z, 4, None, seed=3)
    assert np.array_equal(ours.assignment, plain.labels_)
    np.testing.assert_allclose(ours.centres, plain.cluster_centers_, rtol=1e-6)


def test_more_clusters_than_features() -> None:
    z = np.eye(4, dtype=np.float32)
    centres, assignment = cluster(z, 32)
    assert centres.shape == (4, 4)
    assert sorted(assignment) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_equal_features_come_to_an_end(scale: float) -> None:
    # An auction of equal offers would raise its price by one tiny step at a time.
    z = np.repeat(np.array([[0, 0], [1, 0]], dtype=np.float32) * scale, [60, 40], axis=0)
    assert np.bincount(cluster(z, 4, 1.0).assignment).tolist() == [25, 25, 25, 25]


def test_a_seed_repeats_a_clustering() -> None:
    z = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    one, two = cluster(z, 8, 1.2, seed=1), cluster(z, 8, 1.2, seed=1)
    assert np.array_equal(one.assignment, two.assignment)
    assert np.array_equal(one.centres, two.centres)


@pytest.mark.parametrize(("k", "rho", "word"), [(0, 2.0, "clusters"), (4, 0.5, "rho")])
def test_nonsense_is_refused(k: int, rho: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        cluster(np.eye(8, dtype=np.float32), k, rho)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of auto, sklearn, torch; received 'faiss'"):
        cluster(np.eye(8, dtype=np.float32), 4, backend="faiss")  # type: ignore[arg-type]


def test_torch_finds_what_scikit_learn_finds() -> None:
    z = clouds((300, 200, 100, 50))
    one, two = cluster(z, 4, backend="sklearn"), cluster(z, 4, backend="torch")
    order = [int(np.square(two.centres - centre).sum(axis=1).argmin()) for centre in one.centres]
    assert sorted(order) == [0, 1, 2, 3]
    assert np.array_equal(np.array(order)[one.assignment], two.assignment)
    np.testing.assert_allclose(two.centres[order], one.centres, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "sklearn", "torch"])
def test_the_bound_holds_for_many_features(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "LARGE", 1000)
    monkeypatch.setattr(clustering, "BLOCK", 100)
    z = clouds((2000, 400, 20))
    plain = cluster(z, 6, None, backend=backend)
    inertia = np.square(z - plain.centres[plain.assignment]).sum()
    assert inertia < 1.2 * KMeans(6, n_init=4, random_state=0).fit(z).inertia_
    assert np.bincount(cluster(z, 6, 1.2, backend=backend).assignment).min() >= int(2420 / (6 * 1.2))


def test_distances_in_blocks_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    z = clouds((50, 20))
    monkeypatch.setattr(clustering, "BLOCK", 10)
    apart = np.square(z[:, None].astype(np.float64) - z[:5]).sum(axis=2)
    np.testing.assert_allclose(squared_distances(z, z[:5]), apart, rtol=1e-9, atol=1e-9)


def test_the_chosen_number_of_clusters_is_that_of_the_clouds() -> None:
    assert choose_n_clusters(clouds((60, 60, 60, 60, 60, 60, 60, 60), dim=8)) == 8
    assert choose_n_clusters(clouds((100, 100), dim=8)) == 2


def test_the_chosen_number_has_the_largest_silhouette() -> None:
    z = np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32)
    chosen = choose_n_clusters(z, least=3, seed=1)
    scores = {k: silhouette_score(z, KMeans(k, n_init=4, random_state=1).fit(z).labels_) for k in (3, 6, 12, 24)}
    assert scores[chosen] == max(scores.values())


def test_the_number_is_chosen_within_its_bounds_and_the_same_again() -> None:
    z = clouds((3000, 40), dim=2)  # more than the sample
    assert choose_n_clusters(z, least=5, seed=2) == choose_n_clusters(z, least=5, seed=2) >= 5
    assert choose_n_clusters(z[:20], least=5) == 5  # too few for any larger candidate
    assert choose_n_clusters(z[:3], least=5) == 3
    assert choose_n_clusters(np.ones((200, 4), np.float32), least=3) == 3

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from torchgeo_debias.debias import cluster
from torchgeo_debias.debias.clustering import assign_at_least
from torchgeo_debias.errors import ConfigError

Array = npt.NDArray[np.float32]


def clouds(sizes: tuple[int, ...], seed: int = 0, dim: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=20, size=(len(sizes), dim))
    return np.concatenate([rng.normal(c, 1, (n, dim)) for c, n in zip(centres, sizes, strict=True)]).astype(np.float32)


def optimum(cost: npt.NDArray[np.float64], least: int) -> float:
    """Cost of the best assignment, as a square problem: ``least`` seats a column, the other rows sit anywhere."""
    rows, columns = cost.shape
    anywhere = np.repeat(cost.min(axis=1, keepdims=True), rows - columns * least, axis=1)
    seats = np.concatenate([np.repeat(cost, least, axis=1), anywhere], axis=1)
    return float(seats[linear_sum_assignment(seats)].sum())


@settings(deadline=None, max_examples=150)
@given(
    columns=st.integers(1, 6),
    least=st.integers(0, 5),
    spare=st.integers(0, 15),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["real", "integer", "duplicates", "huge and tiny", "zero"]),
)
def test_assignment_is_the_cheapest_that_fills_every_column(
    columns: int, least: int, spare: int, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    rows = max(1, columns * least + spare)
    cost = {
        "real": rng.random((rows, columns)),
        "integer": rng.integers(0, 3, (rows, columns)).astype(float),
        "duplicates": rng.random((3, columns))[rng.integers(0, 3, rows)],
        "huge and tiny": rng.random((rows, columns)) * 10.0 ** rng.integers(-12, 12, (1, columns)),
        "zero": np.zeros((rows, columns)),
    }[kind]
    choice = assign_at_least(cost, least)
    assert np.bincount(choice, minlength=columns).min() >= least
    assert cost[np.arange(rows), choice].sum() == pytest.approx(optimum(cost, least), rel=1e-9, abs=1e-9 * cost.max())


def test_assignment_refuses_too_few_rows() -> None:
    with pytest.raises(ConfigError, match="3 features cannot fill 2 clusters with at least 2 each"):
        assign_at_least(np.zeros((3, 2)), 2)


def test_assignment_leaves_its_input_alone() -> None:
    cost = np.random.default_rng(0).random((20, 4))
    before = cost.copy()
    assign_at_least(cost, 5)
    assert np.array_equal(cost, before)


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


def test_features_whose_squares_overflow_float32_come_to_an_end() -> None:
    z = np.repeat(np.array([[0, 0], [1, 0]], dtype=np.float32) * 1e22, [60, 40], axis=0)
    cost = np.abs(z[:, :1].astype(np.float64) - [[0, 0, 0, 1e22]]) ** 2
    assert np.bincount(assign_at_least(cost, 25)).tolist() == [25, 25, 25, 25]


def test_a_seed_repeats_a_clustering() -> None:
    z = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    one, two = cluster(z, 8, 1.2, seed=1), cluster(z, 8, 1.2, seed=1)
    assert np.array_equal(one.assignment, two.assignment)
    assert np.array_equal(one.centres, two.centres)


@pytest.mark.parametrize(("k", "rho", "word"), [(0, 2.0, "clusters"), (4, 0.5, "rho")])
def test_nonsense_is_refused(k: int, rho: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        cluster(np.eye(8, dtype=np.float32), k, rho)

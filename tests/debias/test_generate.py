from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import Calibration, DebiasSettings, calibrate, generate
from torchgeo_debias.debias.generate import ledoit_wolf_spread, root
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError, DataError

TABLE = ClassTable.from_counts({"a": 120, "b": 40, "c": 3})


def made(dim: int = 4, **values: Any) -> tuple[Calibration, Samples]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), TABLE.counts)
    mix = rng.normal(size=(dim, dim))
    z = (rng.normal(scale=4, size=(3, dim))[labels] + rng.normal(size=(len(labels), dim)) @ mix).astype(np.float32)
    settings = DebiasSettings(n_clusters=4, pull=0.5, **values)
    return calibrate(z, labels, TABLE, settings), Samples(z, labels, TABLE)


@pytest.mark.parametrize("n", [4, 50])
def test_a_root_gives_the_covariance(n: int) -> None:
    z = np.random.default_rng(0).normal(size=(n, 6))
    factor = root(z - z.mean(axis=0), n - 1)
    assert len(factor) <= 6
    np.testing.assert_allclose(factor.T @ factor, np.cov(z.T), atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 40])
def test_the_covariance_is_that_of_ledoit_and_wolf(rows: int) -> None:
    residuals = np.random.default_rng(rows).normal(size=(rows, 12)).astype(np.float32)
    spread = ledoit_wolf_spread(residuals, rows)
    assert len(spread.root) <= 12
    found = spread.root.T @ spread.root + spread.noise**2 * np.eye(12)
    exact = residuals.astype(np.float64)
    expected = np.eye(12) * np.square(exact).mean() if rows == 1 else ledoit_wolf(exact, assume_centered=True)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0


def test_draws_have_the_covariance_that_is_said() -> None:
    residuals = np.random.default_rng(0).normal(size=(30, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    spread = ledoit_wolf_spread(residuals.astype(np.float32), 30)
    drawn = spread.draw(100_000, np.random.default_rng(2))
    said = spread.root.T @ spread.root + spread.noise**2 * np.eye(4)
    np.testing.assert_allclose(np.cov(drawn.T), said, atol=0.03 * np.abs(said).max())


@pytest.mark.parametrize("covariance", ["pooled", "clusters"])
@pytest.mark.parametrize("moves", ["samples", "mean"])
def test_draws_lie_around_the_means_after_calibration(covariance: Any, moves: Any) -> None:
    calibration, samples = made(moves=moves)
    features, labels = generate(calibration, samples, 20_000, covariance=covariance)
    assert features.dtype == np.float32
    for c in range(3):
        own = samples.features[samples.labels == c].mean(axis=0)
        expected = own if c < 2 else (own + calibration.centres[2]) / 2
        np.testing.assert_allclose(features[labels == c].mean(axis=0), expected, atol=0.15)


def test_pooled_draws_have_the_covariance_within_classes() -> None:
    calibration, samples = made()
    features, labels = generate(calibration, samples, 50_000)
    residuals = (
        samples.features - np.stack([samples.features[samples.labels == c].mean(0) for c in range(3)])[samples.labels]
    )
    within = residuals.T @ residuals / (len(residuals) - 3)
    for c in range(3):
        np.testing.assert_allclose(np.cov(features[labels == c].T), within, atol=0.1 * np.abs(within).max())


def test_draws_from_clusters_have_the_covariance_of_the_mixture() -> None:
    calibration, samples = made()
    features, labels = generate(calibration, samples, 50_000, covariance="clusters")
    centres, assignment = calibration.clusters
    for c in range(3):
        weights = calibration.weights[c]
        gap = centres - weights @ centres
        expected = np.einsum("k,ki,kj->ij", weights, gap, gap)
        for k in np.flatnonzero(weights):
            members = samples.features[assignment == k]
            n = len(members)
            expected += weights[k] * ledoit_wolf(members.astype(np.float64))[0] * n / (n - 1)
        np.testing.assert_allclose(np.cov(features[labels == c].T), expected, atol=0.1 * np.abs(expected).max())


@pytest.mark.parametrize("covariance", ["pooled", "clusters"])
def test_fewer_features_than_dimensions(covariance: Any) -> None:
    calibration, samples = made(dim=300)
    features, _ = generate(calibration, samples, 400, covariance=covariance)
    assert np.isfinite(features).all()
    assert np.linalg.matrix_rank(features[800:] - features[800:].mean(axis=0)) == 300


@pytest.mark.parametrize("covariance", ["pooled", "clusters"])
def test_as_many_as_asked_for_and_the_same_again_whatever_the_global_seed(covariance: Any) -> None:
    calibration, samples = made()
    np.random.seed(0)  # noqa: NPY002 (the global one is the point)
    features, labels = generate(calibration, samples, np.array([0, 5, 9]), seed=4, covariance=covariance)
    assert np.bincount(labels, minlength=3).tolist() == [0, 5, 9]
    np.random.seed(1)  # noqa: NPY002
    again, _ = generate(calibration, samples, np.array([0, 5, 9]), seed=4, covariance=covariance)
    assert features.tobytes() == again.tobytes()
    other, _ = generate(calibration, samples, np.array([0, 5, 9]), seed=5, covariance=covariance)
    assert not np.array_equal(features, other)
    none, of = generate(calibration, samples, 0, covariance=covariance)
    assert none.shape == (0, 4)
    assert of.shape == (0,)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("covariance", ["pooled", "clusters"])
def test_equal_features_are_drawn_as_they_are(covariance: Any) -> None:
    labels = np.repeat(np.arange(3), TABLE.counts)
    z = np.full((len(labels), 5), 2, np.float32)
    calibration = calibrate(z, labels, TABLE, DebiasSettings(n_clusters=4, pull=0.5))
    features, _ = generate(calibration, Samples(z, labels, TABLE), 7, covariance=covariance)
    np.testing.assert_allclose(features, 2)


@pytest.mark.parametrize(("n", "covariance", "word"), [(-1, "pooled", "0 or more"), (1, "own", "one of pooled")])
def test_nonsense_is_refused(n: int, covariance: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        generate(*made(), n, covariance=covariance)


def test_a_class_without_a_sample_is_refused() -> None:
    labels = np.repeat([0, 1], [9, 4])
    z = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32)
    table = ClassTable.from_counts({"a": 9, "b": 4, "c": 0})
    calibration = calibrate(z, labels, table, DebiasSettings(n_clusters=2))
    with pytest.raises(DataError, match="No training sample of c"):
        generate(calibration, Samples(z, labels, table), 5)

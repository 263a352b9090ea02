from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import DebiasSettings, calibrate, cluster
from torchgeo_debias.debias.clustering import choose_n_clusters
from torchgeo_debias.errors import ConfigError

TABLE = ClassTable.from_counts({"a": 40, "b": 10, "c": 4})


def long_tail(seed: int = 0, dim: int = 5) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), TABLE.counts)
    centres = rng.normal(scale=3, size=(3, dim))
    return (centres[labels] + rng.normal(size=(len(labels), dim))).astype(np.float32), labels


def test_a_worked_example() -> None:
    # Two clusters on a line, {0, 0, 0, 1} and {10, 10, 11}. Class b has two members in the first and one in the second:
    # its de-biased centre is 2/3 * 0.25 + 1/3 * 31/3.
    z = np.array([[0], [0], [10], [11], [0], [1], [10]], dtype=np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    table = ClassTable.from_counts({"a": 4, "b": 3}, groups={"a": "head", "b": "tail"})
    result = calibrate(z, labels, table, DebiasSettings(n_clusters=2, rho=None, pull=0.5))
    centre = 2 / 3 * 0.25 + 1 / 3 * 31 / 3
    assert np.isnan(result.centres[0]).all()
    assert result.centres[1, 0] == pytest.approx(centre)
    np.testing.assert_array_equal(result.targets[:4], z[:4])
    np.testing.assert_allclose(result.targets[4:, 0], [centre / 2, (1 + centre) / 2, (10 + centre) / 2], rtol=1e-6)
    assert result.pull.tolist() == [0, 0.5]
    assert len(set(result.clusters.assignment[[0, 1, 4, 5]])) == len(set(result.clusters.assignment[[2, 3, 6]])) == 1


def test_further_features_are_moved_to_the_same_centres() -> None:
    z, labels = long_tail()
    result = calibrate(z, labels, TABLE, DebiasSettings(n_clusters=4, pull=0.25, target="middle+tail"))
    np.testing.assert_array_equal(result.moved(z, labels), result.targets)
    others, kinds = z[:6] + 1, np.array([2, 0, 1, 2, 0, 1])
    expected = [
        one if kind == 0 else 0.75 * one + 0.25 * result.centres[kind] for one, kind in zip(others, kinds, strict=True)
    ]
    np.testing.assert_allclose(result.moved(others, kinds), expected, rtol=1e-5, atol=1e-6)


def test_the_global_centre_weighs_every_class_alike() -> None:
    z, labels = long_tail()
    result = calibrate(z, labels, TABLE, DebiasSettings(centre="global", pull=1.0))
    means = np.stack([z[labels == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(result.centres[2], means.mean(axis=0), rtol=1e-5)


def test_the_pull_is_that_of_the_schedule_for_the_classes_asked_for() -> None:
    table = ClassTable.from_counts({"a": 400, "b": 20, "c": 10, "other": 1}, background="other")
    labels = np.repeat(np.arange(4), table.counts)
    z = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)

    def pull(**values: Any) -> Any:
        return calibrate(z, labels, table, DebiasSettings(n_clusters=4, **values)).pull.tolist()

    assert pull() == [0, 0, 0.75, 0]
    assert pull(gamma0=20) == [0, 0, 0.5, 0]
    assert pull(target="middle+tail") == [0, 0.5, 0.75, 0]
    assert pull(target=20) == [0, 0, 0.75, 0]
    assert pull(target=21, pull="sqrt") == pytest.approx([0, 1 - 0.5**0.5, 0.5, 0])
    assert pull(target=1000, pull=0.3) == [0.3, 0.3, 0.3, 0]


def test_how_rare_background_is_does_not_change_the_pull_of_objects() -> None:
    rng = np.random.default_rng(0)
    settings = DebiasSettings(n_clusters=3, pull="linear", gamma0=4.0, target="middle+tail")
    pulls = []
    for background in (1, 30):
        counts = {"a": 80, "b": 10, "c": 4, "other": background}
        labels = np.repeat(np.arange(4), list(counts.values()))
        table = ClassTable.from_counts(counts, background="other")
        z = rng.normal(size=(len(labels), 3)).astype(np.float32)
        pulls.append(calibrate(z, labels, table, settings).pull)
    # The straight line from 0 at a ratio of 4 to 1 - 4 / 20 at one of 20.
    np.testing.assert_allclose(pulls, [[0, 0.8 * 4 / 16, 0.8, 0]] * 2)


def test_pull_zero_changes_nothing_and_pull_one_collapses() -> None:
    z, labels = long_tail()
    before = z.copy()
    none = calibrate(z, labels, TABLE, DebiasSettings(n_clusters=4, pull=0.0))
    assert np.array_equal(none.targets, z)
    assert none.targets is not z
    all_the_way = calibrate(z, labels, TABLE, DebiasSettings(n_clusters=4, pull=1.0))
    np.testing.assert_allclose(
        all_the_way.targets[labels == 2], np.tile(all_the_way.centres[2], (4, 1)), rtol=1e-5, atol=1e-5
    )
    assert np.array_equal(z, before)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    pull=st.sampled_from(["ratio", "sqrt", "linear", "shrinkage"]) | st.floats(0, 1),
    gamma0=st.floats(0.5, 20),
    centre=st.sampled_from(["clusters", "global"]),
    weighting=st.sampled_from(["counts", "class-balanced", "soft"]),
    rho=st.none() | st.floats(1, 4),
)
def test_head_classes_never_move_and_rare_ones_go_the_stated_share(
    seed: int, pull: Any, gamma0: float, centre: Any, weighting: Any, rho: float | None
) -> None:
    z, labels = long_tail(seed)
    settings_ = DebiasSettings(6, rho, weighting, centre, pull, gamma0)
    result = calibrate(z, labels, TABLE, settings_, seed)
    assert np.array_equal(result.targets[labels < 2], z[labels < 2])
    assert result.targets.dtype == np.float32
    share = result.pull[2]
    assert 0 <= share <= 1  # so that targets are convex combinations
    if share > 0:
        expected = (1 - share) * z[labels == 2] + share * result.centres[2]
        np.testing.assert_allclose(result.targets[labels == 2], expected, rtol=1e-4, atol=1e-4)


def test_labels_have_no_say_in_the_clusters() -> None:
    z, labels = long_tail()
    shuffled = np.random.default_rng(0).permutation(labels)
    settings_ = DebiasSettings(n_clusters=6)
    one, two = calibrate(z, labels, TABLE, settings_), calibrate(z, shuffled, TABLE, settings_)
    assert np.array_equal(one.clusters.assignment, two.clusters.assignment)
    assert np.array_equal(one.clusters.assignment, cluster(z, 6).assignment)


def test_a_class_of_one_sample_and_one_of_none() -> None:
    z = np.random.default_rng(0).normal(size=(31, 4)).astype(np.float32)
    table = ClassTable.from_counts({"a": 30, "b": 1, "c": 0}, groups={"a": "head", "b": "tail", "c": "tail"})
    labels = np.repeat([0, 1], [30, 1])
    result = calibrate(z, labels, table, DebiasSettings(n_clusters=3, gamma0=10))
    # Its whole weight lies on the one cluster it is in.
    clusters = cluster(z, 3)
    np.testing.assert_allclose(result.centres[1], clusters.centres[result.clusters.assignment[30]], rtol=1e-5)
    assert np.isfinite(result.targets).all()
    assert np.isnan(result.centres[2]).all()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    pull=st.sampled_from(["ratio", "shrinkage"]) | st.floats(0, 1),
    weighting=st.sampled_from(["counts", "class-balanced", "soft"]),
)
def test_a_class_moved_as_a_whole_keeps_its_spread_and_has_the_same_mean_as_one_pulled(
    seed: int, pull: Any, weighting: Any
) -> None:
    z, labels = long_tail(seed)
    pulled = calibrate(z, labels, TABLE, DebiasSettings(6, weighting=weighting, pull=pull, gamma0=2, target=11))
    shifted = calibrate(
        z, labels, TABLE, DebiasSettings(6, weighting=weighting, pull=pull, gamma0=2, target=11, moves="mean")
    )
    for c in range(3):
        own = labels == c
        np.testing.assert_allclose(np.cov(shifted.targets[own].T), np.cov(z[own].T), rtol=1e-3, atol=1e-4)
        mean = pulled.targets[own].mean(axis=0)
        for found in (shifted.targets[own].mean(axis=0), shifted.moved_means[c], pulled.moved_means[c]):
            np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-4)
    step = shifted.pull[2] * (shifted.centres[2] - z[labels == 2].mean(axis=0)) if shifted.pull[2] else np.zeros(5)
    np.testing.assert_allclose(shifted.moved(z[:2], np.array([2, 2])), z[:2] + step, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 1000),
    pull=st.sampled_from(["ratio", "shrinkage"]),
    weighting=st.sampled_from(["counts", "class-balanced", "soft"]),
    moves=st.sampled_from(["samples", "mean"]),
)
def test_the_order_of_samples_and_of_classes_does_not_matter(seed: int, pull: Any, weighting: Any, moves: Any) -> None:
    # Two clusters that K-means finds in any order of the features.
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), TABLE.counts)
    z = (20 * rng.integers(0, 2, len(labels))[:, None] + rng.normal(size=(len(labels), 4))).astype(np.float32)
    z[:2] = [[0] * 4, [20] * 4]
    options = DebiasSettings(2, None, weighting, pull=pull, gamma0=2, moves=moves)
    before = calibrate(z, labels, TABLE, options)
    rows, classes = rng.permutation(len(z)), rng.permutation(3)
    names = {TABLE.names[c]: TABLE.counts[c] for c in classes}
    groups = {TABLE.names[c]: TABLE.groups[c] for c in classes}
    renamed = classes.argsort()[labels]
    after = calibrate(z[rows], renamed[rows], ClassTable.from_counts(names, groups), options)
    np.testing.assert_allclose(after.targets, before.targets[rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after.pull, before.pull[classes], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(after.weights.max(axis=1), before.weights.max(axis=1)[classes], rtol=1e-5)


def test_shrinkage_brings_rare_classes_nearer_to_their_true_means() -> None:
    """Classes that mix four attributes: centres that many samples hold are better known than means of two."""
    counts = dict(zip("abcdefghijkl", [150, 140, 130, 120, 3, 3, 3, 3, 2, 2, 2, 2], strict=True))
    table = ClassTable.from_counts(counts)
    labels = np.repeat(np.arange(12), table.counts)
    raw, shrunk = 0.0, 0.0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        attributes = rng.normal(size=(4, 32))
        truth = attributes[np.arange(12) % 4] + rng.normal(scale=0.25, size=(12, 32))
        z = (truth[labels] + rng.normal(size=(len(labels), 32))).astype(np.float32)
        options = DebiasSettings(n_clusters=4, pull="shrinkage", target=10, moves="mean")
        result = calibrate(z, labels, table, options, seed)
        assert result.pull[8] > result.pull[4] > 0
        raw += float(np.square(result.means[4:] - truth[4:]).sum())
        shrunk += float(np.square(result.moved_means[4:] - truth[4:]).sum())
    assert shrunk < 0.5 * raw


def test_the_number_of_clusters_can_be_left_to_the_data() -> None:
    z, labels = long_tail()
    result = calibrate(z, labels, TABLE, DebiasSettings(n_clusters="auto", rho=None))
    assert len(result.clusters.centres) == choose_n_clusters(z, 2)
    more = ClassTable.from_counts({str(c): 6 for c in range(9)})
    again = calibrate(z, np.repeat(np.arange(9), 6), more, DebiasSettings(n_clusters="auto", rho=None))
    assert len(again.clusters.centres) >= 3


def test_fewer_features_than_clusters() -> None:
    z, labels = long_tail()
    few, of = z[[0, 1, 40, 50]], labels[[0, 1, 40, 50]]
    table = ClassTable.from_counts({"a": 2, "b": 1, "c": 1})
    result = calibrate(few, of, table, DebiasSettings(pull=0.5))
    # Each is a cluster of its own, so that nothing is borrowed.
    np.testing.assert_allclose(result.targets, few, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("pull", [0.9, "shrinkage"])
@pytest.mark.parametrize("weighting", ["counts", "class-balanced", "soft"])
def test_equal_features_stay_where_they_are(pull: Any, weighting: Any) -> None:
    z = np.full((54, 4), 3, np.float32)
    result = calibrate(z, np.repeat([0, 1, 2], TABLE.counts), TABLE, DebiasSettings(pull=pull, weighting=weighting))
    assert np.array_equal(result.targets, z)
    np.testing.assert_allclose(result.weights.sum(axis=1), 1)


@pytest.mark.parametrize(
    "values",
    [
        {"pull": 1.5},
        {"pull": -0.1},
        {"pull": "cube"},
        {"gamma0": 0.0},
        {"n_clusters": "many"},
        {"target": 0},
        {"target": "head"},
        {"weighting": "even"},
        {"moves": "all"},
        {"backend": "faiss"},
    ],
)
def test_nonsense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DebiasSettings(**values)


def test_settings_survive_json() -> None:
    odd = DebiasSettings("auto", None, "soft", "global", "shrinkage", 3.0, "mean", 30, "torch")
    assert DebiasSettings.from_json(odd.to_json()) == odd
    plain = DebiasSettings(7, pull=0.25, target="middle+tail")
    assert DebiasSettings.from_json(plain.to_json()) == plain
    assert DebiasSettings.from_json({}) == DebiasSettings()

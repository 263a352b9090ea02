from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import DebiasSettings, calibrate, cluster, pulls
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
    assert len(set(result.assignment[[0, 1, 4, 5]])) == len(set(result.assignment[[2, 3, 6]])) == 1


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


def test_the_pull_grows_with_the_imbalance_ratio() -> None:
    table = ClassTable.from_counts(
        {"a": 400, "b": 40, "c": 20, "d": 10},
        groups={"a": "tail", "b": "tail", "c": "tail", "d": "tail"},
    )
    assert pulls(table, DebiasSettings()).tolist() == [0, 0, 0.5, 0.75]
    assert pulls(table, DebiasSettings(gamma0=20)).tolist() == [0, 0, 0, 0.5]
    assert pulls(table, DebiasSettings(pull=0.3)).tolist() == [0.3] * 4


def test_only_the_groups_asked_for_are_pulled() -> None:
    table = ClassTable.from_counts({"a": 400, "b": 20, "c": 10, "other": 1}, background="other")
    assert (pulls(table, DebiasSettings(pull=0.5)) > 0).tolist() == [False, False, True, False]
    both = pulls(table, DebiasSettings(pull=0.5, target="middle+tail"))
    assert (both > 0).tolist() == [False, True, True, False]


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
    pull=st.none() | st.floats(0, 1),
    gamma0=st.floats(0.5, 20),
    centre=st.sampled_from(["clusters", "global"]),
    rho=st.none() | st.floats(1, 4),
)
def test_head_classes_never_move_and_rare_ones_go_the_stated_share(
    seed: int, pull: float | None, gamma0: float, centre: Any, rho: float | None
) -> None:
    z, labels = long_tail(seed)
    settings_ = DebiasSettings(n_clusters=6, rho=rho, centre=centre, pull=pull, gamma0=gamma0)
    result = calibrate(z, labels, TABLE, settings_, seed)
    assert np.array_equal(result.targets[labels < 2], z[labels < 2])
    assert result.targets.dtype == np.float32
    share = result.pull[2]
    if share > 0:
        expected = (1 - share) * z[labels == 2] + share * result.centres[2]
        np.testing.assert_allclose(result.targets[labels == 2], expected, rtol=1e-4, atol=1e-4)


def test_labels_have_no_say_in_the_clusters() -> None:
    z, labels = long_tail()
    shuffled = np.random.default_rng(0).permutation(labels)
    settings_ = DebiasSettings(n_clusters=6)
    one, two = calibrate(z, labels, TABLE, settings_), calibrate(z, shuffled, TABLE, settings_)
    assert np.array_equal(one.assignment, two.assignment)
    assert np.array_equal(one.assignment, cluster(z, 6).assignment)


def test_a_class_of_one_sample_and_one_of_none() -> None:
    z = np.random.default_rng(0).normal(size=(31, 4)).astype(np.float32)
    table = ClassTable.from_counts({"a": 30, "b": 1, "c": 0}, groups={"a": "head", "b": "tail", "c": "tail"})
    labels = np.repeat([0, 1], [30, 1])
    result = calibrate(z, labels, table, DebiasSettings(n_clusters=3, gamma0=10))
    # Its whole weight lies on the one cluster it is in.
    clusters = cluster(z, 3)
    np.testing.assert_allclose(result.centres[1], clusters.centres[result.assignment[30]], rtol=1e-5)
    assert np.isfinite(result.targets).all()
    assert np.isnan(result.centres[2]).all()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_features_stay_where_they_are() -> None:
    result = calibrate(
        np.zeros((54, 4), np.float32), np.repeat([0, 1, 2], TABLE.counts), TABLE, DebiasSettings(pull=0.9)
    )
    assert not result.targets.any()


@pytest.mark.parametrize("values", [{"pull": 1.5}, {"pull": -0.1}, {"gamma0": 0.0}])
def test_nonsense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DebiasSettings(**values)


def test_settings_survive_json() -> None:
    odd = DebiasSettings(7, None, "global", 0.25, 3.0, "middle+tail")
    assert DebiasSettings.from_json(odd.to_json()) == odd

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.pulls import scheduled_pulls, shrinkage_pulls, targeted

TABLE = ClassTable.from_counts({"a": 400, "b": 20, "c": 10, "other": 1}, background="other")


def test_the_pull_grows_with_the_imbalance_ratio() -> None:
    ratios = np.array([1.0, 10, 20, 40])
    assert scheduled_pulls(ratios, "ratio", 10).tolist() == [0, 0, 0.5, 0.75]
    assert scheduled_pulls(ratios, "ratio", 20).tolist() == [0, 0, 0, 0.5]
    np.testing.assert_allclose(scheduled_pulls(ratios, "sqrt", 10), [0, 0, 1 - 0.5**0.5, 0.5])
    np.testing.assert_allclose(scheduled_pulls(ratios, "linear", 10), [0, 0, 0.25, 0.75])


@settings(deadline=None, max_examples=100)
@given(
    ratios=st.lists(st.floats(1, 1e6) | st.just(np.inf), min_size=1, max_size=8),
    schedule=st.sampled_from(["ratio", "sqrt", "linear"]),
    gamma0=st.floats(0.5, 100),
)
def test_schedules_rise_from_gamma0_and_end_within_one(ratios: list[float], schedule: Any, gamma0: float) -> None:
    ordered = np.sort(np.array(ratios))
    pull = scheduled_pulls(ordered, schedule, gamma0)
    assert (np.diff(pull) >= -1e-12).all()
    assert pull.min() >= 0
    assert pull.max() <= 1
    assert not pull[ordered <= gamma0].any()
    assert (pull[np.isinf(ordered)] == 1).all()
    if schedule == "linear":
        finite = np.isfinite(ordered)
        assert (pull[finite] <= scheduled_pulls(ordered, "ratio", gamma0)[finite] + 1e-9).all()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tail", [False, False, True, False]),
        ("middle+tail", [False, True, True, False]),
        (20, [False, False, True, False]),
        (21, [False, True, True, False]),
        (1000, [True, True, True, False]),
    ],
)
def test_only_the_classes_asked_for_move(target: Any, expected: list[bool]) -> None:
    assert targeted(TABLE, target).tolist() == expected


def shrink(rng: np.random.Generator, counts: list[int], tau: float, noise: float, dim: int = 40) -> Any:
    """Draw true means around centres and features around them; centres, truth, means and the pulls."""
    classes = len(counts)
    centres = rng.normal(scale=3, size=(classes, dim))
    truth = centres + tau * rng.normal(size=(classes, dim))
    labels = np.repeat(np.arange(classes), counts)
    z = (truth[labels] + noise * rng.normal(size=(len(labels), dim))).astype(np.float32)
    means = np.stack([z[labels == c].mean(axis=0) for c in range(classes)])
    return centres, truth, means, shrinkage_pulls(z, labels, means, centres.astype(np.float32))


@pytest.mark.parametrize(("tau", "noise"), [(0.5, 1.0), (1.0, 1.0), (0.2, 2.0), (2.0, 1.0)])
def test_shrinkage_finds_the_best_pull_and_beats_the_plain_mean(tau: float, noise: float) -> None:
    counts = [200, 100, 50, 20, 10, 5, 4, 3, 2, 1]
    best = noise**2 / np.array(counts) / (noise**2 / np.array(counts) + tau**2)
    raw = shrunk = 0.0
    for seed in range(10):
        centres, truth, means, pull = shrink(np.random.default_rng(seed), counts, tau, noise)
        np.testing.assert_allclose(pull[5:], best[5:], atol=0.15)  # it matters, and can be known, for the rare ones
        moved = means + pull[:, None] * (centres - means)
        raw += np.square(means - truth)[5:].sum()
        shrunk += np.square(moved - truth)[5:].sum()
    assert shrunk < raw
    if tau <= noise / 2:
        assert shrunk < 0.75 * raw


def test_shrinkage_by_hand() -> None:
    # Squares within: 2 of class a and 8 of class b, over one degree of freedom each. Both are 4 from their centres.
    z = np.array([[-1], [1], [8], [12]], np.float32)
    labels = np.array([0, 0, 1, 1])
    means, centres = np.array([[0], [10]], np.float32), np.array([[4], [6]], np.float32)
    noise = (2 + 8) / 2 / 2
    np.testing.assert_allclose(shrinkage_pulls(z, labels, means, centres), [noise / 16] * 2)


def test_means_nearer_to_their_centres_than_chance_are_pulled_all_the_way() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 8)).astype(np.float32)
    labels = np.repeat([0, 1, 2], 10)
    means = np.stack([z[labels == c].mean(axis=0) for c in range(3)])
    assert shrinkage_pulls(z, labels, means, means).tolist() == [1, 1, 1]


def test_shrinkage_without_any_spread_within_classes_leaves_them() -> None:
    z = np.eye(3, dtype=np.float32)
    assert not shrinkage_pulls(z, np.arange(3), z, np.zeros_like(z)).any()
    twice = np.repeat(z, 2, axis=0)
    assert not shrinkage_pulls(twice, np.repeat(np.arange(3), 2), z, np.zeros_like(z)).any()


def test_shrinkage_knows_classes_without_a_sample() -> None:
    z = np.array([[0], [2], [5]], np.float32)
    means = np.array([[1], [np.nan], [5]], np.float32)
    centres = np.array([[1], [np.nan], [4]], np.float32)
    pull = shrinkage_pulls(z, np.array([0, 0, 2]), means, centres)
    assert pull[1] == 0
    assert 0 < pull[0] <= pull[2] <= 1


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 1e3]), shift=st.floats(-5, 5))
def test_shrinkage_does_not_depend_on_units_or_origin(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), [20, 6, 3, 1])
    z = (rng.normal(size=(4, 5))[labels] + rng.normal(size=(30, 5))).astype(np.float32)
    means = np.stack([z[labels == c].mean(axis=0) for c in range(4)])
    centres = (means + rng.normal(size=(4, 5))).astype(np.float32)
    pull = shrinkage_pulls(z, labels, means, centres)
    assert (np.diff(pull) >= 0).all()  # rarer is less certain
    moved = [((values + shift) * scale).astype(np.float32) for values in (z, means, centres)]
    np.testing.assert_allclose(shrinkage_pulls(moved[0], labels, *moved[1:]), pull, rtol=1e-3, atol=1e-4)


def test_classes_without_a_centre_stay_and_do_not_count() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 4, 3])
    z = (rng.normal(size=(3, 6))[labels] + rng.normal(size=(57, 6))).astype(np.float32)
    means = np.stack([z[labels == c].mean(axis=0) for c in range(3)])
    centres = means + np.array([[0], [1], [1.5]], np.float32)  # the first as near as a class that fills its cluster
    all_three = shrinkage_pulls(z, labels, means, centres)
    centres[0] = np.nan
    rare = shrinkage_pulls(z, labels, means, centres)
    assert rare[0] == 0
    assert (rare[1:] < all_three[1:]).all()

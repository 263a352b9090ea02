from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.splits import MIN_TRAIN, split_by_source, split_sources
from torchgeo_debias.errors import ConfigError


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 80))
    labels = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    sources = draw(st.lists(st.sampled_from([f"s{i}" for i in range(12)]), min_size=n, max_size=n))
    return np.asarray(labels, dtype=np.int64), np.asarray(sources)


@given(labelled(), st.floats(0.05, 0.9), st.integers(0, 5))
def test_sources_stay_together_and_no_class_leaves_training(
    data: tuple[np.ndarray, np.ndarray], share: float, seed: int
) -> None:
    labels, sources = data
    held = split_sources(labels, sources, share, seed)
    assert not set(sources[held]) & set(sources[~held])
    for c in np.unique(labels):
        total = (labels == c).sum()
        assert (labels[~held] == c).sum() >= min(total, MIN_TRAIN)


@given(st.integers(3, 60), st.integers(0, 5))
def test_images_of_their_own_are_split_exactly(n: int, seed: int) -> None:
    labels = np.repeat(np.arange(3), n)
    held = split_sources(labels, np.asarray([f"{i}" for i in range(3 * n)]), 0.2, seed)
    for c in range(3):
        assert abs(held[labels == c].sum() - 0.2 * n) <= 0.5


def test_rare_class_spread_over_sources_is_held_out_too() -> None:
    rng = np.random.default_rng(0)
    sources = np.repeat([f"scene{i}" for i in range(50)], 20)
    labels = np.zeros(1000, dtype=np.int64)
    labels[rng.choice(1000, 10, replace=False)] = 1
    held = split_sources(labels, sources, 0.2, seed=1)
    assert 1 <= held[labels == 1].sum() <= 3
    assert 0.15 < held.mean() < 0.25


def test_seed_decides_and_repeats() -> None:
    labels, sources = np.zeros(40, dtype=np.int64), np.asarray([f"{i}" for i in range(40)])
    first = split_sources(labels, sources, 0.25, seed=3)
    assert (first == split_sources(labels, sources, 0.25, seed=3)).all()
    assert (first != split_sources(labels, sources, 0.25, seed=4)).any()


def test_two_large_sources_still_give_a_held_out_part() -> None:
    held = split_sources(np.zeros(20, dtype=np.int64), np.repeat(["a", "b"], 10), 0.2, seed=0)
    assert held.sum() == 10


def test_one_source_is_never_held_out() -> None:
    assert not split_sources(np.zeros(9, dtype=np.int64), np.repeat(["a"], 9), 0.5, seed=0).any()


def test_split_by_source_gives_indices_of_all_chips() -> None:
    labels = np.repeat(np.arange(2), 10)
    chips = Chips(
        np.zeros((20, 1, 8, 8), dtype=np.uint8),
        np.ones((20, 8, 8), dtype=bool),
        labels,
        np.asarray([f"{i // 2}" for i in range(20)]),
        ClassTable.from_labels(labels, ["a", "b"]),
        ChipSpec(8),
        ("gray",),
    )
    train, held = split_by_source(chips, 0.2, seed=0)
    assert sorted([*train, *held]) == list(range(20))
    assert np.bincount(labels[held]).tolist() == [2, 2]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_sources(np.zeros(3, dtype=np.int64), np.asarray(["a", "b", "c"]), share, 0)

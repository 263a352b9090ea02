from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.splits import BLOCKS, MIN_TRAIN, split_apart, split_by_source, split_sources
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


def placed(labels: np.ndarray, corners: np.ndarray, sides: np.ndarray) -> Chips:
    n = len(labels)
    return Chips(
        np.zeros((n, 1, 8, 8), dtype=np.uint8),
        np.ones((n, 8, 8), dtype=bool),
        labels,
        np.full(n, "scene:0_0"),
        ClassTable.from_labels(labels, ["a", "b", "c"]),
        ChipSpec(8),
        ("gray",),
        np.column_stack([corners, corners + sides[:, None]]).astype(np.float64),
    )


def share_ground(one: np.ndarray, other: np.ndarray) -> bool:
    width, height = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return bool(width > 0 and height > 0)


@given(st.integers(2, 120), st.integers(0, 9), st.floats(0.1, 0.6))
def test_no_pixel_is_in_both_parts(n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.7, 0.2, 0.1])
    chips = placed(labels, rng.integers(-60, 60, (n, 2)), rng.integers(4, 9, n))
    split = split_apart(chips, share, seed)
    assert sorted([*split.kept, *split.held, *split.left_out]) == list(range(n))
    assert chips.ground is not None

    def near(i: int) -> bool:
        assert chips.ground is not None
        return any(share_ground(chips.ground[i], chips.ground[k]) for k in split.kept)

    assert not any(near(i) for i in split.held)
    assert all(near(i) for i in split.left_out)
    for c in range(3):
        assert (labels[split.kept] == c).sum() >= min((labels == c).sum(), MIN_TRAIN)
    again = split_apart(chips, share, seed)
    assert all(np.array_equal(a, b) for a, b in zip(split[:3], again[:3], strict=True))


def test_blocks_are_as_wide_as_a_test_of_every_class_allows() -> None:
    at = np.arange(0, 4000, 20)
    wide = placed(np.arange(200) % 3, np.column_stack([at, np.zeros(200, int)]), np.full(200, 10))
    assert split_apart(wide, 0.2, 0).windows == BLOCKS[0] == 8
    # All of the rare class within a few windows: wide blocks would leave it whole in training.
    labels = np.zeros(200, dtype=np.int64)
    labels[100:104] = 1
    labels[104:150] = 2
    narrow = split_apart(placed(labels, np.column_stack([at, np.zeros(200, int)]), np.full(200, 10)), 0.2, 0)
    assert narrow.windows is not None
    assert narrow.windows < 8
    assert set(labels[narrow.held]) == {0, 1, 2}
    one = split_sources(labels, np.asarray([f"{x // 80}" for x in at + 5]), 0.2, 0)
    assert not (labels[one] == 1).any()


def test_chips_without_ground_are_split_by_their_sources() -> None:
    labels = np.repeat(np.arange(3), 10)
    chips = placed(labels, np.zeros((30, 2)), np.ones(30))
    loose = Chips(
        chips.images, chips.valid, labels, np.asarray([f"{i}" for i in range(30)]), chips.table, chips.spec, chips.bands
    )
    split = split_apart(loose, 0.2, 4)
    kept, held = split_by_source(loose, 0.2, 4)
    assert (split.kept.tolist(), split.held.tolist()) == (kept.tolist(), held.tolist())
    assert (len(split.left_out), split.windows) == (0, None)


def test_chips_on_one_place_cannot_be_held_out() -> None:
    chips = placed(np.zeros(9, dtype=np.int64), np.zeros((9, 2)), np.full(9, 5))
    assert len(split_apart(chips, 0.5, 0).held) == 0


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_sources(np.zeros(3, dtype=np.int64), np.asarray(["a", "b", "c"]), share, 0)

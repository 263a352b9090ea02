from __future__ import annotations

import logging

import numpy as np
import pytest

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.longtail import long_tail, long_tail_counts
from torchgeo_debias.errors import ConfigError


def make_chips(counts: dict[str, int], background: str | None = None) -> Chips:
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    n = len(labels)
    images = np.arange(n, dtype=np.uint16).reshape(n, 1, 1, 1) * np.ones((1, 1, 8, 8), dtype=np.uint16)
    return Chips(
        images,
        np.ones((n, 8, 8), dtype=bool),
        labels,
        np.asarray([f"{i}" for i in range(n)]),
        ClassTable.from_labels(labels, list(counts), background),
        ChipSpec(8),
        ("gray",),
    )


@pytest.mark.parametrize(("imbalance", "total"), [(1, 1680), (20, 549), (40, 464), (80, 402)])
def test_counts_of_the_uc_merced_testbed(imbalance: float, total: int) -> None:
    counts = long_tail_counts(80, 21, imbalance)
    assert counts.sum() == total
    assert counts[0] == 80
    assert counts[-1] == 80 / imbalance
    assert (np.diff(counts) <= 0).all()


def test_counts_round_half_up_and_never_vanish() -> None:
    assert long_tail_counts(10, 2, 4).tolist() == [10, 3]
    assert long_tail_counts(5, 3, 1000).tolist() == [5, 1, 1]
    assert long_tail_counts(7, 1, 10).tolist() == [7]


def test_long_tail_follows_the_curve_and_the_seed() -> None:
    chips = make_chips({f"c{i}": 30 for i in range(5)})
    one, two = long_tail(chips, 10, seed=0), long_tail(chips, 10, seed=1)
    assert sorted(one.table.counts, reverse=True) == long_tail_counts(30, 5, 10).tolist()
    assert one.table.counts != two.table.counts
    again = long_tail(chips, 10, seed=0)
    assert (again.sources == one.sources).all()
    # chips keep their own label and order
    assert (np.diff(one.sources.astype(int)) > 0).all()
    assert (one.labels == one.sources.astype(int) // 30).all()


def test_min_count_lifts_the_rarest() -> None:
    chips = make_chips({f"c{i}": 20 for i in range(4)})
    assert min(long_tail(chips, 20, seed=0).table.counts) == 2
    assert min(long_tail(chips, 20, seed=0, min_count=1).table.counts) == 1


def test_class_with_too_few_keeps_all_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    chips = make_chips({"big": 50, "small": 5})
    with caplog.at_level(logging.WARNING):
        tailed = long_tail(chips, 2, seed=0, n_max=50)
    assert tailed.table.counts[1] == 5
    assert "small has 5 chips" in caplog.text


def test_background_is_left_whole() -> None:
    chips = make_chips({"background": 40, "a": 20, "b": 20}, background="background")
    tailed = long_tail(chips, 10, seed=0)
    assert tailed.table.counts[0] == 40
    assert sorted(tailed.table.counts[1:]) == [2, 20]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        long_tail_counts(10, 3, 0.5)
    with pytest.raises(ConfigError, match="at least one class"):
        long_tail_counts(0, 3, 2)

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.tiling.plan import Axis, Box, TilePlan

SIZES = st.integers(1, 24)
OVERLAPS = st.floats(0, 0.95)


@settings(deadline=None)
@given(width=SIZES, height=SIZES, window=st.floats(1, 30), overlap=OVERLAPS)
def test_own_parts_cover_every_pixel_once(width: int, height: int, window: float, overlap: float) -> None:
    hits = np.zeros((height, width), dtype=int)
    for tile in TilePlan.of(width, height, window, overlap):
        own, read = tile.own, tile.window
        hits[own.row_off : own.row_off + own.height, own.col_off : own.col_off + own.width] += 1
        assert read.col_off <= own.col_off
        assert min(read.col_off + read.width, width) >= own.col_off + own.width
        assert min(read.row_off + read.height, height) >= own.row_off + own.height
    assert (hits == 1).all()


@settings(deadline=None)
@given(width=SIZES, height=SIZES, window=st.floats(1, 30), overlap=OVERLAPS)
def test_ids_are_unique_in_reading_order_and_stable(width: int, height: int, window: float, overlap: float) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    tiles = list(plan)
    assert [t.id for t in tiles] == list(range(len(plan)))
    assert tiles == list(TilePlan.of(width, height, window, overlap))
    assert all(a.row <= b.row for a, b in pairwise(tiles))


@settings(deadline=None)
@given(length=SIZES, window=st.integers(1, 30), data=st.data())
def test_shares_are_the_covered_part_of_each_cell(length: int, window: int, data: st.DataObject) -> None:
    axis = Axis(length, window, data.draw(st.integers(1, window)))
    expected = np.zeros((axis.tiles, axis.cells))
    for tile in range(axis.tiles):
        pixels = np.arange(tile * axis.step, min(tile * axis.step + window, length))
        np.add.at(expected[tile], pixels // axis.step, 1)
    expected /= [axis.cell(c)[1] for c in range(axis.cells)]
    found = np.zeros_like(expected)
    for tile in range(axis.tiles):
        for cell, weight in axis.shares(tile):
            found[tile, cell] = weight
    np.testing.assert_allclose(found, expected)
    assert (found.max(axis=0) > 0).all()


@settings(deadline=None)
@given(width=SIZES, height=SIZES, window=st.integers(1, 30), overlap=OVERLAPS)
def test_settled_rows_are_reached_by_no_later_tile(width: int, height: int, window: int, overlap: float) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    for tile in plan:
        still_open = min(share.cell for row in range(tile.row, plan.rows.tiles) for share in plan.rows.shares(row))
        assert plan.settled(tile.id) <= still_open
    assert plan.settled(len(plan)) == plan.rows.cells


def test_without_overlap_a_cell_is_its_tile() -> None:
    plan = TilePlan.of(100, 50, 39.6)
    assert [t.window for t in plan][:3] == [Box(0, 0, 40, 40), Box(40, 0, 40, 40), Box(80, 0, 40, 40)]
    assert len(plan) == plan.columns.cells * plan.rows.cells == 6
    assert [tuple(s) for s in plan.columns.shares(1)] == [(1, 1.0)]


@pytest.mark.parametrize(("window", "overlap", "word"), [(0.4, 0.0, "pixel"), (10, 1.0, "below 1"), (10, -0.1, "0")])
def test_refuses_impossible_plans(window: float, overlap: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TilePlan.of(10, 10, window, overlap)

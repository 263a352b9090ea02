from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.tiling.plan import Axis, Box, TilePlan

SIZES = st.integers(1, 24)
OVERLAPS = st.floats(0, 0.9)


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
@given(
    width=SIZES, height=st.integers(1, 60), window=st.integers(1, 20), overlap=OVERLAPS,
    block=st.sampled_from([1, 2, 16, 5000]), batch=st.integers(1, 9),
)  # fmt: skip
def test_bands_hold_every_row_of_tiles_once(
    width: int, height: int, window: int, overlap: float, block: int, batch: int
) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    bands = plan.bands(block, batch)
    assert [band.number for band in bands] == list(range(len(bands)))
    assert [row for band in bands for row in band.rows] == list(range(plan.rows.tiles))
    assert [band.top for band in bands] == [0, *[band.bottom for band in bands[:-1]]]
    assert bands[-1].bottom == height
    assert all(band.rows.start % plan.group(batch) == 0 for band in bands)


def test_bands_follow_the_blocks_of_the_file() -> None:
    plan = TilePlan.of(8192, 8192, 100)
    for block, height in [(256, 512), (512, 512), (600, 600), (1024, 1024), (1, 512), (8192, 512)]:
        for above, band in pairwise(plan.bands(block, 4)):
            assert above.top // height < band.top // height
            assert band.top - band.top // height * height < 100


@settings(deadline=None)
@given(width=SIZES, height=SIZES, window=st.integers(1, 30), overlap=OVERLAPS)
def test_the_halo_is_all_that_reaches_in_from_above(width: int, height: int, window: int, overlap: float) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    for row in range(plan.rows.tiles):
        top = plan.rows.own(row)[0]
        reaching = [r for r in range(row) if r * plan.rows.step + window > top]
        assert reaching == list(range(max(row - plan.halo, 0), row))


@settings(deadline=None)
@given(width=SIZES, height=SIZES, window=st.integers(1, 12), overlap=OVERLAPS, data=st.data())
def test_tiles_that_reach_a_wanted_cell(
    width: int, height: int, window: int, overlap: float, data: st.DataObject
) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    flags = st.lists(st.booleans(), min_size=plan.columns.cells, max_size=plan.columns.cells)
    wanted = [np.array(data.draw(flags)) for _ in range(plan.rows.cells)]
    for row in range(plan.rows.tiles):
        expected = [
            column
            for column in range(plan.columns.tiles)
            if any(wanted[down.cell][across.cell] for down in plan.rows.shares(row)
                   for across in plan.columns.shares(column))
        ]  # fmt: skip
        assert plan.reached(row, wanted.__getitem__).tolist() == expected


def test_without_overlap_a_cell_is_its_tile() -> None:
    plan = TilePlan.of(100, 50, 39.6)
    assert [t.window for t in plan][:3] == [Box(0, 0, 40, 40), Box(40, 0, 40, 40), Box(80, 0, 40, 40)]
    assert len(plan) == plan.columns.cells * plan.rows.cells == 6
    assert [tuple(s) for s in plan.columns.shares(1)] == [(1, 1.0)]


@pytest.mark.parametrize(
    ("window", "overlap", "word"), [(0.4, 0.0, "pixel"), (10, 1.0, "between 0 and"), (10, -0.1, "0")]
)
def test_refuses_impossible_plans(window: float, overlap: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TilePlan.of(10, 10, window, overlap)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 400), window=st.integers(1, 90), overlap=st.floats(0, 0.9), data=st.data())
def test_whatever_is_no_longer_than_the_overlap_lies_in_the_tile_whose_core_has_its_middle(
    length: int, window: int, overlap: float, data: st.DataObject
) -> None:
    axis = TilePlan.of(length, 1, window, overlap).columns
    middle = data.draw(st.floats(0, length, exclude_max=True))
    reach = data.draw(st.floats(0, axis.overlap)) / 2
    cores = [axis.core(tile) for tile in range(axis.tiles)]
    (owner,) = [tile for tile, (begin, end) in enumerate(cores) if begin <= middle < end]
    start = owner * axis.step
    assert middle - reach >= start or owner == 0
    assert middle + reach <= start + window or owner == axis.tiles - 1
    assert all(one[1] == other[0] for one, other in pairwise(cores))

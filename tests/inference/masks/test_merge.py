from __future__ import annotations

import numpy as np
import pytest

from torchgeo_debias.inference.masks.merge import Instance, InstanceMerger, Joining
from torchgeo_debias.inference.masks.pieces import Bounds, Piece, on_raster, pack, rows
from torchgeo_debias.inference.masks.predictor import FoundMask
from torchgeo_debias.tiling.parts import join
from torchgeo_debias.tiling.plan import TilePlan

# Two tiles of 20 pixels side by side, which share the columns 10 to 20.
PLAN = TilePlan.of(30, 20, 20, 0.5)


def piece(column: int, left: int, top: int, right: int, bottom: int, score: float = 0.9) -> Piece:
    """A full rectangle, in pixels of the raster."""
    bounds = Bounds(left, top, right, bottom)
    return Piece(bounds, np.ones((bottom - top, right - left), bool), score, 0, column)


def merged(*pieces: Piece, joining: Joining = Joining()) -> list[Instance]:  # noqa: B008 - it never changes
    merger = InstanceMerger(PLAN, joining)
    return [*merger.add(0, pieces), *merger.finish()]


def test_a_whole_mask_goes_before_the_pieces_of_others() -> None:
    # The left tile cuts an object at its rim and sees it two pixels too high; the right one holds it.
    found = merged(piece(0, 15, 3, 20, 12, 0.99), piece(1, 15, 5, 25, 12, 0.9))
    assert [one.polygon.bounds for one in found] == [(15, 5, 25, 12)]
    assert (found[0].score, found[0].cut) == (0.9, False)


def test_of_two_whole_masks_the_surer_one_is_taken() -> None:
    found = merged(piece(0, 12, 3, 18, 12, 0.8), piece(1, 12, 4, 18, 12, 0.9))
    assert [one.polygon.bounds for one in found] == [(12, 4, 18, 12)]
    alike = merged(piece(0, 12, 3, 18, 12), piece(1, 12, 4, 18, 12))
    assert [one.polygon.bounds for one in alike] == [(12, 3, 18, 12)]


def test_pieces_that_no_tile_holds_whole_are_united() -> None:
    found = merged(piece(0, 2, 3, 20, 12, 0.8), piece(1, 10, 3, 28, 12, 0.9))
    assert [one.polygon.bounds for one in found] == [(2, 3, 28, 12)]
    assert found[0].polygon.area == 26 * 9
    assert len(found[0].polygon.exterior.coords) == 5
    assert found[0].cut
    assert found[0].score == pytest.approx(0.85)


def test_a_whole_part_within_a_larger_object_stays_an_object_of_its_own() -> None:
    # A window, which both tiles see whole, on a roof, which both cut.
    roof = piece(0, 2, 3, 20, 15), piece(1, 10, 3, 28, 15)
    window = piece(0, 13, 6, 16, 9), piece(1, 13, 6, 16, 9)
    found = merged(roof[0], window[0], roof[1], window[1])
    assert [one.polygon.bounds for one in found] == [(2, 3, 28, 15), (13, 6, 16, 9)]
    # Also where one tile alone sees the window.
    assert len(merged(roof[0], window[0], roof[1])) == 2
    assert len(merged(*roof, window[1])) == 2


def test_a_bay_that_parts_an_object_in_one_tile_does_not_part_it_in_two() -> None:
    arms = piece(0, 12, 2, 20, 5), piece(0, 12, 10, 20, 12)
    pixels = np.ones((10, 18), bool)
    pixels[3:8, :10] = False
    whole = Piece(Bounds(12, 2, 30, 12), pixels[:, :18], 0.9, 0, 1)
    found = merged(*arms, whole)
    assert len(found) == 1
    assert found[0].polygon.area == pixels.sum()
    # The larger arm is alike enough by itself, the smaller one goes by what it lies in.
    assert len(merged(*arms, whole, joining=Joining(alike=0.99))) == 1
    # It must be known to go on: an arm that ends before the rim is an object of its own.
    ends = piece(0, 12, 10, 19, 12)
    assert len(merged(arms[0], ends, whole)) == 2


def test_likeness_decides() -> None:
    pair = piece(0, 5, 0, 20, 10), piece(1, 10, 4, 28, 14)  # in the strip 60 of 140 pixels
    assert len(merged(*pair, joining=Joining(alike=0.5))) == 2
    assert len(merged(*pair, joining=Joining(alike=0.4))) == 1


def test_what_lies_behind_all_objects_does_not_swallow_what_one_tile_alone_sees() -> None:
    ground = piece(0, 0, 0, 20, 20), piece(1, 10, 0, 30, 20)
    # The right tile cuts two objects at its rim, which the left one takes for ground.
    cars = piece(1, 10, 3, 14, 6), piece(1, 10, 12, 15, 15)
    found = merged(ground[0], ground[1], *cars)
    assert [one.polygon.bounds for one in found] == [(0, 0, 30, 20), (10, 3, 14, 6), (10, 12, 15, 15)]
    assert [one.polygon.bounds for one in merged(*ground, *cars, joining=Joining(most=500))] == [
        (10, 3, 14, 6), (10, 12, 15, 15)
    ]  # fmt: skip


def test_objects_of_too_many_pixels_are_left_out_once_they_are_put_together() -> None:
    plan = TilePlan.of(20, 2000, 20, 0.5)

    def bars(most: float) -> tuple[list[Instance], int]:
        """One through all tiles, and one through three of them; and how many outlines were kept at a time."""
        merger, found, kept = InstanceMerger(plan, Joining(most=most)), list[Instance](), 0
        for row in range(plan.rows.tiles):
            top = row * 10
            long = Piece(Bounds(2, top, 6, top + 20), np.ones((20, 4), bool), 0.9, row, 0)
            ends = Bounds(10, max(top, 1010), 14, min(top + 20, 1045))
            short = [] if ends.empty else [Piece(ends, np.ones((ends.bottom - ends.top, 4), bool), 0.9, row, 0)]
            found += merger.add(row, [long, *short])
            kept = max(kept, sum(len(group.pieces) for group in merger._groups.values()))
        return [*found, *merger.finish()], kept

    assert sorted(one.polygon.bounds for one in bars(8000)[0]) == [(2, 0, 6, 2000), (10, 1010, 14, 1045)]
    some, kept = bars(7999)
    assert [one.polygon.bounds for one in some] == [(10, 1010, 14, 1045)]
    some, kept = bars(400)
    assert [one.polygon.bounds for one in some] == [(10, 1010, 14, 1045)]
    assert kept < 15
    assert bars(139)[0] == []
    assert len(bars(140)[0]) == 1


def test_a_whole_mask_of_too_many_pixels_is_left_out() -> None:
    one = piece(0, 2, 2, 9, 9)
    assert len(merged(one, joining=Joining(most=49))) == 1
    assert merged(one, joining=Joining(most=48)) == []


def test_the_largest_part_of_a_mask_is_taken() -> None:
    pixels = np.zeros((10, 9), bool)
    pixels[:4], pixels[6:] = True, True
    found = merged(Piece(Bounds(0, 0, 9, 10), pixels, 0.9, 0, 0))
    assert [one.polygon.bounds for one in found] == [(0, 0, 9, 4)]


def test_objects_leave_memory_once_nothing_can_reach_them() -> None:
    plan = TilePlan.of(20, 2000, 20, 0.5)
    merger = InstanceMerger(plan, Joining())
    given = 0
    for row in range(plan.rows.tiles):
        top = row * 10
        square = Piece(Bounds(4, top + 2, 9, top + 7), np.ones((5, 5), bool), 0.9, row, 0)
        above = [] if row == 0 else [Piece(Bounds(4, top, 9, top + 0 + 1), np.ones((1, 5), bool), 0.9, row, 0)]
        given += sum(1 for _ in merger.add(row, [square, *above]))
        assert len(merger._live) <= 2
        assert len(merger._groups) <= 4
        assert len(merger._parent) <= 6
    assert given > plan.rows.tiles


def test_masks_come_out_of_a_part_as_they_went_in() -> None:
    rng = np.random.default_rng(0)
    plan = TilePlan.of(70, 70, 32, 0.25)
    sent, parts = [], []
    for tile in plan:
        masks = [FoundMask(rng.random((32, 32)) < share, share) for share in rng.choice([0.001, 0.01, 0.5], 3)]
        kept = [found for found in masks if 2 <= found.mask.sum()]
        parts.append(on_raster(pack(masks, 2), tile))
        sent += [(tile, found) for found in kept]
    back = [piece for _, pieces in rows(join(parts)) for piece in pieces]
    assert len(back) == len(sent)
    for (tile, found), got in zip(sent, back, strict=True):
        canvas = np.zeros((150, 150), bool)
        canvas[tile.window.row_off :, tile.window.col_off :][:32, :32] = found.mask
        bounds = got.bounds
        assert np.array_equal(canvas[bounds.top : bounds.bottom, bounds.left : bounds.right], got.pixels)
        assert canvas.sum() == got.pixels.sum()
        assert (got.row, got.column) == (tile.row, tile.column)
        assert got.score == pytest.approx(found.score)

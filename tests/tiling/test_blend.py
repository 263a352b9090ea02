from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchgeo_debias.tiling.area import Area, Wanted
from torchgeo_debias.tiling.blend import PixelMerger, blend_weights
from torchgeo_debias.tiling.maps import SCORE_NODATA
from torchgeo_debias.tiling.plan import Axis, Tile, TilePlan

NODATA = 255
Scores = dict[int, npt.NDArray[np.float32]]
Bools = npt.NDArray[np.bool_]


class Result(NamedTuple):
    ids: npt.NDArray[np.int64]
    percent: npt.NDArray[np.int64]


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    window = draw(st.integers(1, 40))
    return Axis(draw(st.integers(1, 150)), window, draw(st.integers(1, window)))


def dense(axis: Axis) -> npt.NDArray[np.float64]:
    """Weights of all tiles on all pixels of an axis, (tiles, length), as ramps over the overlap alone."""
    overlap = axis.window - axis.step
    weights = np.zeros((axis.tiles, axis.length))
    for tile, pixel in np.ndindex(weights.shape):
        place = pixel - tile * axis.step
        if 0 <= place < axis.window:
            weights[tile, pixel] = min(place + 1, axis.window - place, overlap + 1)
    weights /= weights.sum(axis=0)
    return weights


@given(axes())
def test_weights_are_positive_and_sum_to_one(axis: Axis) -> None:
    total = np.zeros(axis.length)
    for tile in range(axis.tiles):
        weights = blend_weights(axis, tile)
        assert weights.shape == (axis.window,)
        assert (weights > 0).all()
        assert (weights <= 1).all()
        part = total[tile * axis.step : tile * axis.step + axis.window]
        part += weights[: len(part)]
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(axes())
def test_weights_are_ramps_over_the_overlap(axis: Axis) -> None:
    expected = dense(axis)
    for tile in range(axis.tiles):
        start = tile * axis.step
        length = min(axis.window, axis.length - start)
        np.testing.assert_allclose(blend_weights(axis, tile)[:length], expected[tile, start : start + length], 1e-5)


def test_a_pixel_that_one_tile_sees_is_its_alone() -> None:
    axis = Axis(20, 10, 6)
    for tile, alone in ((0, slice(0, 6)), (1, slice(4, 6)), (2, slice(4, 8))):
        np.testing.assert_array_equal(blend_weights(axis, tile)[alone], 1)
    np.testing.assert_allclose(blend_weights(axis, 0)[6:], [0.8, 0.6, 0.4, 0.2], rtol=1e-6)


def window_of(tile: Tile) -> tuple[slice, slice]:
    box = tile.window
    return slice(box.row_off, box.row_off + box.height), slice(box.col_off, box.col_off + box.width)


def tiles_of(wanted: Wanted) -> Iterator[Tile]:
    for row in range(wanted.plan.rows.tiles):
        yield from wanted.plan.row(row, wanted.columns(row).tolist())


def random_scores(plan: TilePlan, classes: int, seed: int) -> Scores:
    shape = (classes, plan.rows.window, plan.columns.window)
    rng = np.random.default_rng(seed)
    return {tile.id: rng.dirichlet(np.ones(classes), shape[1:]).transpose(2, 0, 1).astype("f4") for tile in plan}


def merge(
    wanted: Wanted, scores: Scores, valid: Bools, min_score: float = 0.0, with_scores: bool = True
) -> dict[str, npt.NDArray[Any]]:
    """What the merger makes of all tiles, fed as the engine does."""
    plan = wanted.plan
    classes = len(next(iter(scores.values())))
    merger = PixelMerger(wanted, classes, np.uint8, NODATA, min_score, with_scores)
    parts = []
    for row in range(plan.rows.tiles):
        for tile in plan.row(row, wanted.columns(row).tolist()):
            own = valid[window_of(tile)][: tile.own.height, : tile.own.width]
            merger.add(tile, own, (scores[tile.id].copy(),) if valid[window_of(tile)].any() else None)
        parts.append(merger.settle(row))
        assert len(parts[-1]["ids"]) == plan.rows.own(row)[1]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check(wanted: Wanted, scores: Scores, valid: Bools, min_score: float) -> None:
    """Compare with one sum over the whole raster, in which a tile that is left out is as if it did not exist."""
    plan = wanted.plan
    height, width = valid.shape
    down, across = dense(plan.rows), dense(plan.columns)
    classes = len(next(iter(scores.values())))
    total, weight = np.zeros((classes, height, width)), np.zeros((height, width))
    for tile in tiles_of(wanted):
        place = window_of(tile)
        if valid[place].any():
            share = np.outer(down[tile.row][place[0]], across[tile.column][place[1]])
            total[:, *place] += scores[tile.id][:, : share.shape[0], : share.shape[1]] * share
            weight[place] += share
    mask = wanted.area.mask(0, height, width)
    counts = valid if mask is None else valid & mask
    np.testing.assert_allclose(weight[counts], 1)  # no pixel that counts lies on a tile that was left out

    found = merge(wanted, scores, valid, min_score)
    order = np.sort(np.concatenate([total, np.zeros((1, height, width))]), axis=0)
    clear = ~counts | ((order[-1] - order[-2] > 1e-5) & (np.abs(order[-1] - min_score) > 1e-5))
    counts &= order[-1] >= min_score
    np.testing.assert_array_equal(found["ids"][clear], np.where(counts, total.argmax(axis=0), NODATA)[clear])
    hundredths = order[-1] * 100
    clear &= ~counts | (np.abs(hundredths % 1 - 0.5) > 1e-3)
    np.testing.assert_array_equal(
        found["percent"][clear], np.where(counts, np.rint(hundredths), SCORE_NODATA)[clear]
    )  # fmt: skip
    assert clear.mean() > 0.9 or clear.size < 100
    assert found["ids"].dtype == found["percent"].dtype == np.uint8


boxes = st.builds(
    lambda left, top, width, height: (left, top, width, height),
    *[st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)],
)


@settings(max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), window=st.integers(1, 14), overlap=st.floats(0, 0.9),
    classes=st.integers(1, 4), gaps=st.lists(boxes, max_size=3), area=st.none() | st.lists(boxes, max_size=3),
    min_score=st.sampled_from([0.0, 0.4, 0.6]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_plan_equals_one_sum_over_the_whole_raster(
    height: int, width: int, window: int, overlap: float, classes: int, gaps: list[Any], area: list[Any] | None,
    min_score: float, seed: int,
) -> None:  # fmt: skip
    plan = TilePlan.of(width, height, window, overlap)
    valid = np.ones((height, width), bool)
    for x, y, w, h in gaps:
        valid[y : y + h, x : x + w] = False
    shape = None if area is None else shapely.union_all([shapely.box(x, y, x + w, y + h) for x, y, w, h in area])
    check(Wanted(plan, Area(shape)), random_scores(plan, classes, seed), valid, min_score)


@pytest.mark.parametrize(
    ("height", "width", "window", "overlap"),
    [
        pytest.param(1, 1, 1, 0.0, id="one pixel"),
        pytest.param(3, 5, 9, 0.0, id="smaller than a tile"),
        pytest.param(3, 5, 9, 0.7, id="smaller than a tile, with overlap"),
        pytest.param(20, 9, 9, 0.5, id="one column"),
        pytest.param(9, 9, 9, 0.9, id="one tile"),
        pytest.param(10, 10, 9, 0.9, id="a last tile that hangs over"),
        pytest.param(21, 22, 10, 0.8, id="many"),
    ],
)
def test_rims_and_corners(height: int, width: int, window: int, overlap: float) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    rng = np.random.default_rng(0)
    for valid in (np.ones((height, width), bool), rng.random((height, width)) < 0.3, np.zeros((height, width), bool)):
        check(Wanted(plan, Area()), random_scores(plan, 3, 0), valid, 0)


@settings(max_examples=50)
@example(height=1, width=10, window=9, overlap=0.5, winner=0, score=0.999, strict=True)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), window=st.integers(1, 14), overlap=st.floats(0, 0.9),
    winner=st.integers(0, 2), score=st.sampled_from([0.4, 0.5, 0.7, 0.999, 1.0]), strict=st.booleans(),
)  # fmt: skip
def test_a_constant_input_gives_a_constant_output(
    height: int, width: int, window: int, overlap: float, winner: int, score: float, strict: bool
) -> None:
    plan = TilePlan.of(width, height, window, overlap)
    constant = np.full((3, window, window), (1 - score) / 2, dtype=np.float32)
    constant[winner] = score
    scores = dict.fromkeys(range(len(plan)), constant)
    found = merge(Wanted(plan, Area()), scores, np.ones((height, width), bool), score if strict else 0.0)
    assert (found["ids"] == winner).all()
    assert (found["percent"] == round(score * 100)).all()


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_neighbours_do_not_feel_tiles_that_are_left_out(overlap: float) -> None:
    plan = TilePlan.of(50, 50, 10, overlap)
    scores = random_scores(plan, 3, 0)
    full = merge(Wanted(plan, Area()), scores, np.ones((50, 50), bool))
    hole = np.ones((50, 50), bool)
    hole[12:36, 15:41] = False
    inside = np.zeros((50, 50), bool)
    inside[5:22, 8:31] = True
    area = Area(shapely.box(8, 5, 31, 22))
    for kept, found in (
        (hole, merge(Wanted(plan, Area()), scores, hole)),
        (inside, merge(Wanted(plan, area), scores, np.ones((50, 50), bool))),
        (hole & inside, merge(Wanted(plan, area), scores, hole)),
    ):
        for name, nodata in (("ids", NODATA), ("percent", SCORE_NODATA)):
            np.testing.assert_array_equal(found[name], np.where(kept, full[name], nodata))


@settings(max_examples=40)
@given(overlap=st.sampled_from([0.3, 0.5, 0.8]), seed=st.integers(0, 999), skipped=st.booleans())
def test_no_tile_speaks_for_pixels_that_it_does_not_see(overlap: float, seed: int, skipped: bool) -> None:
    # Footprints that are a hair too small leave tiles out on which there are valid pixels.
    plan = TilePlan.of(22, 21, 6, overlap)
    rng = np.random.default_rng(seed)
    merger = PixelMerger(Wanted(plan, Area()), len(plan), np.uint16, 65535, 0.0, False)
    sees = np.zeros((len(plan), 21, 22), bool)
    parts = []
    for row in range(plan.rows.tiles):
        for tile in plan.row(row):
            own = np.ones((tile.own.height, tile.own.width), bool)
            if rng.random() < 0.6:
                sees[tile.id][window_of(tile)] = True
                says = np.zeros((len(plan), 6, 6), np.float32)
                says[tile.id] = 1
                merger.add(tile, own, (says,))
            elif not skipped:
                merger.add(tile, ~own, None)
        parts.append(merger.settle(row)["ids"])
    ids = np.concatenate(parts)
    rows, columns = np.nonzero(ids != 65535)
    assert sees[ids[rows, columns], rows, columns].all()


def test_low_scores_are_left_out_in_both_maps() -> None:
    plan = TilePlan.of(30, 30, 8, 0.5)
    scores = random_scores(plan, 3, 0)
    valid = np.ones((30, 30), bool)
    everything = merge(Wanted(plan, Area()), scores, valid)
    some = merge(Wanted(plan, Area()), scores, valid, min_score=0.505)
    kept = everything["percent"] > 50
    assert 0.1 < kept.mean() < 0.9
    for name, nodata in (("ids", NODATA), ("percent", SCORE_NODATA)):
        np.testing.assert_array_equal(some[name], np.where(kept, everything[name], nodata))


def test_without_scores() -> None:
    plan = TilePlan.of(30, 30, 8, 0.5)
    scores = random_scores(plan, 3, 0)
    valid = np.ones((30, 30), bool)
    wanted = Wanted(plan, Area(shapely.box(3, 3, 20, 20)))
    found = merge(wanted, scores, valid, 0.5, with_scores=False)
    assert set(found) == {"ids"}
    np.testing.assert_array_equal(found["ids"], merge(wanted, scores, valid, 0.5)["ids"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_types_of_ids(dtype: type[np.integer[Any]]) -> None:
    nodata = np.iinfo(dtype).max
    merger = PixelMerger(Wanted(TilePlan.of(4, 4, 4), Area()), 2, dtype, int(nodata), 0.0, False)
    (tile,) = TilePlan.of(4, 4, 4)
    merger.add(tile, np.eye(4, dtype=bool), (np.zeros((2, 4, 4), np.float32),))
    np.testing.assert_array_equal(merger.settle(0)["ids"], np.where(np.eye(4, dtype=bool), 0, nodata).astype(dtype))


def test_the_scores_that_were_given_stay_as_they_were() -> None:
    plan = TilePlan.of(30, 30, 8, 0.5)
    scores = random_scores(plan, 2, 0)
    before = {number: array.copy() for number, array in scores.items()}
    merger = PixelMerger(Wanted(plan, Area()), 2, np.uint8, NODATA, 0.0, True)
    for row, tiles in itertools.groupby(plan, key=lambda tile: tile.row):
        for tile in tiles:
            merger.add(tile, np.ones((tile.own.height, tile.own.width), bool), (scores[tile.id],))
        merger.settle(row)
    for number, array in before.items():
        np.testing.assert_array_equal(scores[number], array)

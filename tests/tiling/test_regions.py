from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes
from scipy import ndimage

from torchgeo_debias.tiling import regions as module
from torchgeo_debias.tiling.maps import SCORE_NODATA
from torchgeo_debias.tiling.regions import Regions, regions

NODATA = 255
Ids = npt.NDArray[np.uint8]


def strips(ids: Ids, cuts: Sequence[int] = ()) -> Iterator[tuple[int, Ids]]:
    """One buffer for all strips, as a careless caller may do."""
    edges = [0, *cuts, len(ids)]
    buffer = np.empty_like(ids)
    for top, bottom in pairwise(edges):
        buffer[: bottom - top] = ids[top:bottom]
        yield top, buffer[: bottom - top]


def joined(batches: Iterator[Regions]) -> Regions:
    parts = list(batches)
    assert all(len(part.ids) for part in parts)
    return Regions(*map(np.concatenate, zip(*parts, strict=True))) if parts else Regions(*np.empty((4, 0), object))


def whole(ids: Ids, skip: int | None) -> list[tuple[int, bytes]]:
    mask = (ids != NODATA) & (ids != skip)
    found = shapes(ids, mask=mask, connectivity=4)
    return sorted((int(c), shapely.normalize(shapely.geometry.shape(g)).wkb) for g, c in found if c != NODATA)


def plain(found: Regions) -> list[tuple[int, bytes]]:
    wkb: list[bytes] = [shapely.to_wkb(g) for g in shapely.normalize(found.geometries)]
    return sorted(zip(found.ids.tolist(), wkb, strict=True))


def check(ids: Ids, cuts: Sequence[int], skip: int | None = None) -> Regions:
    found = joined(regions(strips(ids, cuts), NODATA, skip=skip))
    assert plain(found) == whole(ids, skip)
    assert shapely.is_valid(found.geometries).all()
    assert (shapely.area(found.geometries) == found.pixels).all()
    return found


@st.composite
def maps(draw: st.DrawFn, classes: Sequence[int] = (0, 1, 2, NODATA)) -> Ids:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    picked = draw(st.sampled_from([classes[:2], classes]))
    flat = draw(st.lists(st.sampled_from(picked), min_size=height * width, max_size=height * width))
    return np.array(flat, np.uint8).reshape(height, width)


@st.composite
def cut_maps(draw: st.DrawFn) -> tuple[Ids, list[int], list[int]]:
    ids = draw(maps())
    cut = st.sets(st.integers(1, len(ids) - 1) if len(ids) > 1 else st.nothing())
    return ids, sorted(draw(cut)), sorted(draw(cut))


@settings(deadline=None, max_examples=300)
@given(case=cut_maps(), skip=st.sampled_from([None, 0, 2]))
def test_equal_to_the_polygons_of_the_whole_map_however_it_is_cut(
    case: tuple[Ids, list[int], list[int]], skip: int | None
) -> None:
    ids, cuts, others = case
    found = check(ids, cuts, skip)
    again = joined(regions(strips(ids, others), NODATA, skip=skip))
    assert shapely.to_wkb(again.geometries).tolist() == shapely.to_wkb(found.geometries).tolist()
    assert again.ids.tolist() == found.ids.tolist()
    assert again.pixels.tolist() == found.pixels.tolist()


@settings(deadline=None)
@given(case=cut_maps(), seed=st.integers(0, 99))
def test_scores_are_means_over_the_pixels_that_have_one(case: tuple[Ids, list[int], list[int]], seed: int) -> None:
    ids, cuts, _ = case
    rng = np.random.default_rng(seed)
    percent = np.where(rng.random(ids.shape) < 0.6, rng.integers(0, 101, ids.shape), SCORE_NODATA).astype(np.uint8)
    for part in regions(strips(ids, cuts), NODATA, scores=strips(percent, cuts)):
        for geometry, pixels, score in zip(part.geometries, part.pixels, part.scores, strict=True):
            own = rasterize([geometry], ids.shape, dtype=np.uint8).astype(bool)
            has = percent[own & (percent != SCORE_NODATA)]
            assert own.sum() == pixels
            assert np.isnan(score) if not len(has) else score == pytest.approx(has.mean() / 100)


@settings(deadline=None)
@given(ids=maps(classes=(0, 1, 2, 3)))
def test_order_is_by_last_row_then_first_pixel(ids: Ids) -> None:
    found = joined(regions(strips(ids), NODATA))
    owner = rasterize([(g, k) for k, g in enumerate(found.geometries)], ids.shape, dtype=np.int32)
    places = [np.argwhere(owner == k).tolist() for k in range(len(found.ids))]
    keys = [(pixels[-1][0], *pixels[0]) for pixels in places]
    assert keys == sorted(keys)


def drawn(text: str) -> Ids:
    return np.array([[int(c == "#") for c in line] for line in text.split()], np.uint8)


RING = drawn("##### #...# #.#.# #...# #####")
TOUCHING_CORNERS = drawn("##.. ##.. ..## ..##")
LOOP_THAT_TOUCHES_ITSELF = drawn("###. #..# #.## ####")
HOLES_THAT_TOUCH = drawn("##### #.### ##.## ###.# #####")
COMB = drawn("####### #.#.#.# #.#.#.# ####### #.#.#.# #.....#")
SPIRAL = drawn("######## .......# ######.# #....#.# #.##.#.# #.####.# #......# ########")
CHECKERS = drawn("#.#.# .#.#. #.#.# .#.#.")


@pytest.mark.parametrize(
    "ids",
    [
        RING, RING.T.copy(), TOUCHING_CORNERS, TOUCHING_CORNERS[:, ::-1].copy(), LOOP_THAT_TOUCHES_ITSELF,
        LOOP_THAT_TOUCHES_ITSELF[::-1].copy(), HOLES_THAT_TOUCH, HOLES_THAT_TOUCH[:, ::-1].copy(), COMB,
        COMB[::-1].copy(), SPIRAL, SPIRAL.T.copy(), CHECKERS, np.zeros((6, 4), np.uint8), np.zeros((1, 1), np.uint8),
        np.array([[1], [1], [0], [1]], np.uint8), np.array([[1, 1, 0, 1]], np.uint8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("every", [1, 2, 3, 99])
def test_shapes_that_are_hard_to_join(ids: Ids, every: int) -> None:
    check(ids, range(every, len(ids), every))
    check(ids, range(every, len(ids), every), skip=0)


@pytest.mark.parametrize("pixels", [1, 40, 300])
def test_slices_within_a_strip_leave_no_seam(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_PIXELS", pixels)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((60, 40)), 2)
    ids = np.digitize(noise, np.quantile(noise, [0.3, 0.6])).astype(np.uint8)
    percent = (ids * 30).astype(np.uint8)
    found = check(ids, [25])
    scored = joined(regions(strips(ids, [25]), NODATA, scores=strips(percent, [25])))
    np.testing.assert_allclose(scored.scores, found.ids * 0.3)
    assert np.isnan(found.scores).all()


def test_outer_rings_run_counter_clockwise_with_north_up() -> None:
    (ring,) = joined(regions(strips(RING), NODATA, skip=0)).geometries[-1:]
    upright = shapely.transform(ring, lambda xy: xy * [1, -1])
    assert upright.exterior.is_ccw
    assert not upright.interiors[0].is_ccw


def test_what_is_finished_is_given_out_before_the_next_strip_is_read() -> None:
    read = 0

    def counted() -> Iterator[tuple[int, Ids]]:
        nonlocal read
        for read in range(1, 101):
            yield (read - 1) * 4, np.array([[0, 7], [0, 8], [0, 9], [0, 7]], np.uint8)

    batches = regions(counted(), NODATA)
    assert next(batches).ids.tolist() == [7, 8, 9]
    assert read == 1
    second = next(batches)
    assert (second.ids.tolist(), second.pixels.tolist()) == ([7, 8, 9], [2, 1, 1])
    assert read == 2
    *_, last = batches
    assert last.ids.tolist() == [0, 7]
    assert last.geometries[0].equals_exact(shapely.box(0, 0, 1, 400), normalize=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_ids_of_any_integer_type(dtype: type[np.integer]) -> None:
    found = joined(regions([(0, np.array([[3, 3, 0]], dtype))], 0))
    assert (found.ids.tolist(), found.pixels.tolist()) == ([3], [2])
    assert found.ids.dtype == found.pixels.dtype == np.int64


def test_nothing_in_nothing_out() -> None:
    assert not list(regions([], NODATA))
    assert not list(regions([(0, np.full((3, 3), NODATA, np.uint8))], NODATA))


@pytest.mark.parametrize(
    ("ids_at", "scores_at"), [((1,), None), ((0, 3), None), ((0, 1), None), ((0, 2), (0, 1)), ((0,), (0, 2))]
)
def test_strips_that_do_not_follow_each_other_are_refused(
    ids_at: tuple[int, ...], scores_at: tuple[int, ...] | None
) -> None:
    strip = np.zeros((2, 2), np.uint8)
    scores = None if scores_at is None else [(row, strip) for row in scores_at]
    with pytest.raises(ValueError, match=r"does not begin at row|shorter|longer"):
        list(regions([(row, strip) for row in ids_at], NODATA, scores=scores))

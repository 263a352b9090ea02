from __future__ import annotations

import json
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.objects.making import coordinates, image, object_set
from torchgeo_debias.boxes.convert import oriented_to_horizontal, to_corners, to_polygons
from torchgeo_debias.data.objects import ArrayPicture, ObjectSet, ObjectTiles, TileSpec
from torchgeo_debias.errors import ConfigError


def scene(seed: int, oriented: bool, width: int, height: int, n: int = 12) -> ObjectSet:
    """Boxes of all sizes, some of which stick out of the image."""
    rng = np.random.default_rng(seed)
    centre, sides = rng.uniform(0, [width, height], (n, 2)), rng.uniform(1, 40, (n, 2))
    boxes = np.column_stack([centre, sides, rng.uniform(0, 180, n)])
    picture = ArrayPicture(coordinates(width, height))
    return object_set(
        image(
            boxes if oriented else oriented_to_horizontal(boxes),
            rng.integers(0, 2, n).tolist(),
            ignored=(rng.random(n) < 0.2).tolist(),
            picture=picture,
        )
    )


@settings(max_examples=60)
@given(
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    size=st.integers(40, 64),
    overlap=st.sampled_from([0.0, 0.25, 0.6]),
    scale=st.sampled_from([0.5, 0.77, 1.0, 2.5]),
)
def test_tiles_cover_every_pixel_and_overlap_enough(
    width: int, height: int, size: int, overlap: float, scale: float
) -> None:
    spec = TileSpec(size, overlap=overlap, scale=scale)
    side = spec.side(None)
    assert abs(side - size / scale) <= 0.5
    blank = object_set(image([], picture=ArrayPicture(np.zeros((1, height, width), np.uint8))))
    windows = [tile.window for tile in ObjectTiles(blank, spec)]
    seen = np.zeros((height, width), int)
    for column, row, edge in windows:
        seen[row : row + edge, column : column + edge] += 1
        assert edge == side
        assert column + edge <= max(width, edge)
        assert row + edge <= max(height, edge)
    assert seen.min() >= 1
    assert len(set(windows)) == len(windows)
    assert (len(windows) == 1) == (max(width, height) <= side)
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        assert all(b - a <= max(side * (1 - overlap) + 1e-9, 1) for a, b in pairwise(starts))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    oriented=st.booleans(),
    scale=st.sampled_from([0.5, 0.77, 1.0, 2.5]),
    least=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_objects_of_a_tile_are_those_that_shapely_sees_in_it(
    seed: int, oriented: bool, scale: float, least: float
) -> None:
    objects = scene(seed, oriented, 90, 70)
    whole = objects.images[0]
    polygons = to_polygons(whole.boxes)
    spec = TileSpec(40, scale=scale, min_visible=least)
    tiles = ObjectTiles(objects, spec)
    for i, tile in enumerate(tiles):
        column, row, side = tile.window
        shown = shapely.box(column, row, min(column + side, 90), min(row + side, 70))
        share = shapely.area(shapely.intersection(polygons, shown)) / shapely.area(polygons)
        sure = abs(share - least) > 2e-6
        expected = np.flatnonzero(share > 1e-9)
        back = to_corners(tile.boxes) * (side / 40) + [column, row]
        assert len(tile.boxes) == len(expected)
        np.testing.assert_allclose(back, to_corners(whole.boxes[expected]), atol=1e-9)
        np.testing.assert_array_equal(tile.labels, whole.labels[expected])
        ignored = whole.ignored[expected] | (share[expected] < least)
        np.testing.assert_array_equal(tile.ignored[sure[expected]], ignored[sure[expected]])
        np.testing.assert_array_equal(tiles.labels_of(i), tile.labels[~tile.ignored])
        np.testing.assert_array_equal(tiles.shown(i).objects, expected)
        np.testing.assert_allclose(tiles.shown(i).share, share[expected], atol=1e-6)


def test_objects_are_numbered_over_all_images() -> None:
    first, second = [[1, 1, 9, 9], [20, 20, 30, 30]], [[1, 1, 9, 9]]
    objects = object_set(image(first), image([], name="b"), image(second, name="c"))
    tiles = ObjectTiles(objects, TileSpec(64))
    assert [tiles.shown(i).objects.tolist() for i in range(3)] == [[0, 1], [], [2]]


def test_pixels_of_a_tile_are_those_of_its_window() -> None:
    for tile in ObjectTiles(scene(1, False, 90, 70), TileSpec(32)):
        column, row, side = tile.window
        assert (side, tile.image.shape) == (32, (2, 32, 32))
        assert tile.image.dtype == np.uint16
        assert tile.valid.all()
        assert (tile.image[0] == np.arange(column + 1, column + 33)).all()
        assert (tile.image[1] == np.arange(row + 1, row + 33)[:, None]).all()


def test_a_small_image_is_padded_on_the_right_and_below() -> None:
    (tile,) = ObjectTiles(object_set(image([[2, 3, 12, 9]])), TileSpec(64))
    assert tile.window == (0, 0, 64)
    np.testing.assert_array_equal(tile.image[:, :40, :60], coordinates(60, 40))
    expected = np.zeros((64, 64), bool)
    expected[:40, :60] = True
    np.testing.assert_array_equal(tile.valid, expected)
    assert not tile.image[:, ~expected].any()
    np.testing.assert_array_equal(tile.boxes, [[2, 3, 12, 9]])


@pytest.mark.parametrize(("scale", "size"), [(0.37, 64), (0.5, 64), (1.9, 192)])
def test_boxes_follow_their_objects_when_tiles_are_resampled(scale: float, size: int) -> None:
    """The centre of mass of a bright rectangle, which resampling keeps, is the centre of its box."""
    pixels = np.zeros((1, 200, 300), np.float32)
    boxes = [[40, 30, 71, 52], [210, 120, 260, 181]]
    for x0, y0, x1, y1 in boxes:
        pixels[0, y0:y1, x0:x1] = 1
    found = 0
    for tile in ObjectTiles(object_set(image(boxes, picture=ArrayPicture(pixels))), TileSpec(size, scale=scale)):
        # Only where the whole of just one object is seen its mass can be told.
        if len(tile.boxes) == 1 and (tile.boxes[0, :2] > 2).all() and (tile.boxes[0, 2:] < size - 2).all():
            mass = tile.image[0].astype(float)
            y, x = np.mgrid[:size, :size] + 0.5
            centre = (tile.boxes[0, :2] + tile.boxes[0, 2:]) / 2
            assert np.allclose([(x * mass).sum() / mass.sum(), (y * mass).sum() / mass.sum()], centre, atol=0.02)
            assert mass.sum() == pytest.approx(np.prod(tile.boxes[0, 2:] - tile.boxes[0, :2]), rel=0.01)
            found += 1
    assert found >= 1


def test_resolution_decides_the_scale_where_it_is_known() -> None:
    spec = TileSpec(64, scale=3.0, gsd=0.5)
    assert spec.side(0.25) == 128
    assert spec.side(1.0) == 32
    assert spec.side(None) == TileSpec(64, scale=3.0).side(0.25) == 21
    picture = ArrayPicture(coordinates(60, 40), gsd=1.0)
    tile = ObjectTiles(object_set(image([[10, 5, 20, 15]], picture=picture)), spec)[0]
    np.testing.assert_array_equal(tile.boxes, [[20, 10, 40, 30]])


def test_only_the_window_of_a_tile_is_read() -> None:
    class Watched(ArrayPicture):
        calls: list[tuple[int, int, int, int]] = []  # noqa: RUF012

        def read(self, col_off: int, row_off: int, width: int, height: int) -> Any:
            self.calls.append((col_off, row_off, width, height))
            return super().read(col_off, row_off, width, height)

    tiles = ObjectTiles(object_set(image([[2, 3, 12, 9]], picture=Watched(coordinates(90, 70)))), TileSpec(32))
    assert [tiles.labels_of(i).tolist() for i in range(2)] == [[0], []]
    assert not Watched.calls
    column, row, side = tiles[3].window
    assert Watched.calls == [(column, row, side, side)]


def test_objects_on_nodata_are_not_taught() -> None:
    valid = np.ones((40, 60), bool)
    valid[:, 30:] = False
    picture = ArrayPicture(coordinates(60, 40), valid)
    boxes = [[2, 2, 12, 12], [40, 2, 50, 12], [26, 20, 34, 30], [26, 20, 42, 30], [20, 5, 38, 10]]
    horizontal = ObjectTiles(object_set(image(boxes, picture=picture)), TileSpec(64))[0]
    assert horizontal.ignored.tolist() == [False, True, False, True, False]
    slanted = [[28, 20, 20, 2, 45], [33, 20, 20, 2, 45]]
    oriented = ObjectTiles(object_set(image(slanted, picture=picture)), TileSpec(128, scale=2))[0]
    assert oriented.ignored.tolist() == [False, True]


def test_padding_hides_nothing_that_is_on_the_image() -> None:
    """Of a box that sticks out of the image, what lies outside counts as unseen once, not twice."""
    (tile,) = ObjectTiles(object_set(image([[54, 10, 64, 20], [57, 10, 67, 20]])), TileSpec(64))
    assert tile.ignored.tolist() == [False, True]


def test_empty_tiles_are_thinned_by_seed() -> None:
    objects = object_set(
        image([[2, 2, 9, 9]], picture=ArrayPicture(coordinates(320, 320))),
        image([[2, 2, 9, 9]], name="b", ignored=[True]),
    )
    every = ObjectTiles(objects, TileSpec(32, overlap=0.0))
    assert len(every) == 100 + 4
    few = [ObjectTiles(objects, TileSpec(32, overlap=0.0), keep_empty=0.25, seed=seed) for seed in (0, 0, 1)]
    windows = [[(tile.image_index, tile.window) for tile in tiles] for tiles in few]
    assert [len(one) for one in windows] == [1 + 26] * 3
    assert windows[0] == windows[1] != windows[2]
    assert windows[0][0] == (0, (0, 0, 32))
    assert windows[0] == sorted(windows[0], key=lambda w: (w[0], w[1][1], w[1][0]))
    assert len(ObjectTiles(objects, TileSpec(32, overlap=0.0), keep_empty=0.0)) == 1


def test_objects_that_no_tile_teaches_are_counted() -> None:
    """A box of 50 x 36 pixels shows no more than 20 x 20 of it in a tile of 20."""
    objects = object_set(
        image([[2, 2, 9, 9], [5, 2, 55, 38], [10, 20, 20, 30]], [0, 1, 1]),
        image([[5, 2, 55, 38], [0, 0, 60, 40], [1, 1, 59, 39]], [1, 0, 2], name="b", ignored=[False, True, False]),
        names=["a", "b", "c", "d"],
    )
    tiles = ObjectTiles(objects, TileSpec(20))
    assert tiles.untaught().tolist() == [0, 2, 1, 0]
    assert tiles.untaught().dtype == np.int64
    taught = {int(label) for tile in tiles for label in tile.labels[~tile.ignored]}
    assert taught == {0, 1}
    assert not ObjectTiles(objects, TileSpec(64)).untaught().any()
    assert not ObjectTiles(object_set(image([])), TileSpec(64)).untaught().any()


def test_tiles_travel_and_specs_are_plain() -> None:
    spec = TileSpec(32, overlap=0.5, gsd=0.3)
    assert TileSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    tiles = ObjectTiles(scene(3, True, 90, 70), spec)
    again = pickle.loads(pickle.dumps(tiles))
    for one, other in zip(tiles, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert (one.image_index, one.window) == (other.image_index, other.window)
    with pytest.raises(IndexError):
        tiles[len(tiles)]


@pytest.mark.parametrize(
    ("spec", "gsd", "words"),
    [
        (TileSpec(448, gsd=0.1), 10.0, r"448 pixels at 0.1 m per pixel of images of 10 m per pixel .* 4.48 pixels"),
        (TileSpec(448, gsd=0.5), 10.0, r"0.5 m per pixel of images of 10 m .* 20 times as large"),
        (TileSpec(32, scale=4.0), None, r"at scale 4 per pixel would show 8 pixels"),
    ],
)
def test_images_far_coarser_than_the_tiles_are_refused(spec: TileSpec, gsd: float | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        spec.side(gsd)
    picture = ArrayPicture(coordinates(60, 40), gsd=gsd)
    with pytest.raises(ConfigError, match=words):
        ObjectTiles(object_set(image([[2, 2, 9, 9]], picture=picture)), spec)
    assert TileSpec(448, gsd=0.5).side(8.0) == 28
    assert TileSpec(8).side(None) == 8


@pytest.mark.parametrize(
    ("spec", "gsd"), [(TileSpec(448, gsd=1e9), 1.0), (TileSpec(448, scale=1e-9), None), (TileSpec(448, gsd=80.0), 1.0)]
)
def test_images_far_finer_than_the_tiles_are_refused(spec: TileSpec, gsd: float | None) -> None:
    with pytest.raises(ConfigError, match="at most 32768 can be read"):
        spec.side(gsd)
    assert TileSpec(448, gsd=64.0).side(1.0) == 28672


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 4}, "must be 8 to 4096 pixels wide"),
        ({"size": 4097}, "must be 8 to 4096 pixels wide"),
        ({"size": 32.0}, r"whole number of pixels; received 32\.0"),
        ({"size": True}, "whole number of pixels"),
        ({"overlap": 1.0}, "share of their side below 1"),
        ({"scale": 0.0}, "must be positive"),
        ({"gsd": -1.0}, "must be positive"),
        ({"min_visible": 0.0}, "between 0 and 1"),
    ],
)
def test_odd_specs_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TileSpec(**{"size": 32, **options})
    with pytest.raises(ConfigError, match="empty tiles"):
        ObjectTiles(scene(0, False, 50, 50), TileSpec(32), keep_empty=2)

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.stats
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from torch.utils.data import DataLoader
from torchgeo.datasets import GeoDataset, IntersectionDataset, RasterDataset, VectorDataset, stack_samples
from torchgeo.samplers import GridGeoSampler, Units

from torchgeo_debias.data.geo_samplers import ClassBalancedGeoSampler, InBoundsGridGeoSampler
from torchgeo_debias.errors import ConfigError, LabelError

from .test_layers import ORIGIN, at, coordinates, make_raster


class Scenes(RasterDataset):  # type: ignore[misc]
    filename_glob = "scene_*.tif"
    filename_regex = r"scene_(?P<date>\d{8})"


@pytest.fixture
def scenes(tmp_path: Path) -> RasterDataset:
    make_raster(tmp_path / "scene_20200101.tif", coordinates())
    east = Affine(2, 0, ORIGIN[0] + 1000, 0, -2, ORIGIN[1])
    make_raster(tmp_path / "scene_20210101.tif", coordinates() + 1000, transform=east)
    return Scenes(tmp_path)


def objects() -> gpd.GeoDataFrame:
    places = [at(50.3 + i, 50.2) for i in range(20)] + [at(600.3, 100)] + [at(5000, 50)]
    frame = gpd.GeoDataFrame({"kind": ["common"] * 20 + ["rare", "lost"]}, geometry=places, crs="EPSG:32632")
    return frame.to_crs("EPSG:4326")


def test_classes_alternate_and_windows_read_what_they_name(scenes: RasterDataset) -> None:
    sampler = ClassBalancedGeoSampler(scenes, objects(), "kind", size=16, length=40, seed=1)
    assert len(sampler) == 40
    loader = DataLoader(scenes, sampler=sampler, batch_size=1, collate_fn=stack_samples)
    rare = 0
    for batch in loader:
        image = batch["image"][0]
        assert image.shape == (2, 16, 16)
        assert image.min() > 0
        if image.min() > 1000:
            rare += 1
            # the point in column 101 of the eastern raster, read without resampling
            assert image[0, 0].tolist() == list(range(1093, 1109))
    assert 10 <= rare <= 30


def test_epochs_units_and_default_length(scenes: RasterDataset) -> None:
    sampler = ClassBalancedGeoSampler(scenes, objects(), "kind", size=64, units=Units.CRS)
    assert len(sampler) == 21
    first = list(sampler)
    assert first == list(sampler)
    x, y, t = first[0]
    assert (x.stop - x.start, y.stop - y.start) == pytest.approx((64, 64))
    assert t.start.year in (2020, 2021)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_objects_elsewhere_are_refused(scenes: RasterDataset) -> None:
    far = objects().set_geometry([shapely.Point(0, 0)] * 22)
    with pytest.raises(LabelError, match="None of the 22 labelled objects lies on Scenes"):
        ClassBalancedGeoSampler(scenes, far, "kind", size=16)


def test_draws_are_balanced(scenes: RasterDataset) -> None:
    sampler = ClassBalancedGeoSampler(scenes, objects(), "kind", size=16, length=1000)
    rare = np.mean([x.start > ORIGIN[0] + 900 for x, _, _ in sampler])
    assert 0.44 < rare < 0.56


# Size in pixels and origin of files; the last is in degrees.
GRIDS = [(2.0, (500_000.0, 5_000_000.0)), (0.3, (431_207.7, 5_000_000.1)), (8.983e-5, (-71.1, 42.3))]


class Files(GeoDataset):  # type: ignore[misc]
    """An index without files behind it."""

    def __init__(self, footprints: list[Any], res: float, years: list[int] | None = None) -> None:
        starts = [datetime(year, 1, 1) for year in years or [2020] * len(footprints)]
        spans = pd.IntervalIndex.from_arrays(starts, [s.replace(month=12) for s in starts], closed="both")
        self.index = gpd.GeoDataFrame(geometry=footprints, index=spans.rename("datetime"), crs="EPSG:32632")
        self._res = (res, res)

    def __getitem__(self, query: Any) -> dict[str, Any]:
        raise NotImplementedError


def whole_file(width: int, height: int, res: float, origin: tuple[float, float]) -> Any:
    return shapely.box(origin[0], origin[1] - height * res, origin[0] + width * res, origin[1])


def as_pixels(windows: Any, res: float, origin: tuple[float, float]) -> npt.NDArray[np.int64]:
    """(N, 4) left, top, right, bottom in pixels from the origin; refuses what is not on the pixel grid."""
    edges = np.array([(x.start, y.stop, x.stop, y.start) for x, y, _ in windows])
    pixels = (edges - np.tile(origin, 2)) / res * [1, -1, 1, -1]
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)
    whole: npt.NDArray[np.int64] = np.rint(pixels).astype(np.int64)
    return whole


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    overlap=st.integers(0, 11),
    grid=st.sampled_from(GRIDS),
)
def test_the_grid_covers_every_pixel_and_never_leaves_the_file(
    shape: tuple[int, int], size: tuple[int, int], overlap: int, grid: tuple[float, tuple[float, float]]
) -> None:
    (height, width), (res, origin) = shape, grid
    stride = (max(size[0] - overlap, 1), max(size[1] - overlap, 1))
    sampler = InBoundsGridGeoSampler(Files([whole_file(width, height, *grid)], res), size, stride)
    windows = as_pixels(sampler, res, origin)
    assert len(sampler) == len(windows) == len(np.unique(windows, axis=0))
    left, top, right, bottom = windows.T
    assert ((right - left == size[1]) & (bottom - top == size[0])).all()
    assert left.min() == top.min() == 0
    assert (bottom.max(), right.max()) == (max(height, size[0]), max(width, size[1]))
    assert list(zip(top, left, strict=True)) == sorted(zip(top, left, strict=True))
    seen = np.zeros((bottom.max(), right.max()), int)
    for x0, y0, x1, y1 in windows:
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1 or overlap
    assert seen.all()
    # regular but for the last
    for starts, step in ((top, stride[0]), (left, stride[1])):
        assert set(np.diff(np.unique(starts))[:-1]) <= {step}


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.integers(1, 20),
    jitter=st.sampled_from([0.0, 0.3, 1.0]),
    place=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)),
    grid=st.sampled_from(GRIDS[:2]),
)
def test_windows_hold_their_object_and_stay_inside(
    shape: tuple[int, int], size: int, jitter: float, place: tuple[float, float], grid: Any
) -> None:
    (height, width), (res, origin) = shape, grid
    column, row = place[0] * width, place[1] * height
    point = shapely.Point(origin[0] + column * res, origin[1] - row * res)
    labels = gpd.GeoDataFrame({"kind": ["a"]}, geometry=[point], crs="EPSG:32632")
    dataset = Files([whole_file(width, height, *grid)], res)
    sampler = ClassBalancedGeoSampler(dataset, labels, "kind", size, length=20, jitter=jitter)
    left, top, right, bottom = as_pixels(sampler, res, origin).T
    assert ((right - left == size) & (bottom - top == size)).all()
    for low, high, centre, side in ((left, right, column, width), (top, bottom, row, height)):
        assert ((low >= 0) & (high <= max(side, size))).all()
        assert ((low <= centre + 1e-6) & (high >= centre - 1e-6)).all()
        if jitter == 0:
            wanted = np.clip(centre - size / 2, 0, max(side - size, 0))
            assert (abs(low - wanted) <= 0.5 + 1e-6).all()


def test_jitter_moves_the_object_evenly_over_its_share_of_the_window() -> None:
    dataset = Files([whole_file(400, 400, *GRIDS[0])], 2.0)
    labels = gpd.GeoDataFrame({"kind": ["a"]}, geometry=[at(200, 200)], crs="EPSG:32632")
    for jitter, reach in ((0.0, 0), (0.5, 16), (1.0, 32)):
        sampler = ClassBalancedGeoSampler(dataset, labels, "kind", 64, length=5000, seed=3, jitter=jitter)
        windows = as_pixels(sampler, *GRIDS[0])
        shift = windows[:, :2] + 32 - 200
        assert (shift.min(), shift.max()) == (-reach, reach)
        assert abs(shift.mean(axis=0)).max() < 1
        assert list(sampler) == list(sampler)
        if reach:
            assert abs((shift[:, 0] * shift[:, 1]).mean()) < 0.02 * reach**2
            sampler.set_epoch(1)
            assert not np.array_equal(as_pixels(sampler, *GRIDS[0]), windows)


def test_classes_are_drawn_evenly_and_fast() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.choice(5, 20_000, p=[0.9, 0.06, 0.03, 0.009, 0.001])
    points = shapely.points(ORIGIN[0] + 100 + rng.random(20_000) + 2000 * kinds, ORIGIN[1] - 100)
    files = [whole_file(100, 100, 2.0, (ORIGIN[0] + 2000 * i, ORIGIN[1])) for i in range(5)]
    labels = gpd.GeoDataFrame({"kind": kinds}, geometry=points, crs="EPSG:32632")
    sampler = ClassBalancedGeoSampler(Files(files, 2.0), labels, "kind", 32, length=100_000, jitter=0.5)
    start = time.process_time()
    drawn = Counter(int((x.start - ORIGIN[0]) // 2000) for x, _, _ in sampler)
    assert time.process_time() - start < 1
    assert drawn.total() == len(sampler) == 100_000
    assert scipy.stats.chisquare(list(drawn.values())).pvalue > 1e-3


def test_the_first_file_that_holds_an_object_gives_the_time() -> None:
    files = [whole_file(100, 100, 2.0, (ORIGIN[0] + 100 * i, ORIGIN[1])) for i in (0, 1, 0)]
    labels = gpd.GeoDataFrame({"kind": ["a", "b"]}, geometry=[at(75, 50), at(120, 50)], crs="EPSG:32632")
    sampler = ClassBalancedGeoSampler(Files(files, 2.0, [2018, 2019, 2020]), labels, "kind", 10, length=50)
    assert {(x.start, t.start.year) for x, _, t in sampler} == {(ORIGIN[0] + 140, 2018), (ORIGIN[0] + 230, 2019)}


@pytest.fixture
def tiles(tmp_path: Path) -> RasterDataset:
    """Two tiles side by side, a third that is smaller than the windows, all holding their own pixel numbers."""
    make_raster(tmp_path / "scene_20200101.tif", coordinates(37, 50))
    east = (ORIGIN[0] + 100, ORIGIN[1])
    make_raster(tmp_path / "scene_20200102.tif", coordinates(50, 41) + 100, east)
    make_raster(tmp_path / "scene_20200103.tif", coordinates(9, 30) + 200, (ORIGIN[0] + 3000, ORIGIN[1]))
    return Scenes(tmp_path)


def read(dataset: GeoDataset, sampler: Any) -> list[npt.NDArray[np.float32]]:
    loader = DataLoader(dataset, sampler=sampler, batch_size=2, collate_fn=stack_samples)
    return [image for batch in loader for image in batch["image"].numpy()]


def test_the_grid_reads_whole_windows_without_padding(tiles: RasterDataset) -> None:
    sampler = InBoundsGridGeoSampler(tiles, 16, 12)
    images = read(tiles, sampler)
    corners = [(col, row) for row in (0, 12, 21) for col in (0, 12, 24, 34)]
    corners += [(100 + col, 100 + row) for row in (0, 12, 24, 34) for col in (0, 12, 24, 25)]
    corners += [(200 + col, 200) for col in (0, 12, 14)]
    assert len(images) == len(sampler) == len(corners)
    for image, (col, row) in zip(images, corners, strict=True):
        columns, rows = np.meshgrid(np.arange(col, col + 16) + 1, np.arange(row, row + 16) + 1)
        if row == 200:  # lower than the window: rows of padding below
            rows[9:], columns[9:] = 0, 0
        np.testing.assert_array_equal(image, [columns, rows])


@pytest.mark.parametrize(("gsd", "origin", "crs"), [(0.3, GRIDS[1][1], "EPSG:32632"), (*GRIDS[2], "EPSG:4326")])
@pytest.mark.parametrize("up", ["north", "south"])
def test_odd_pixels_and_south_up_rasters(
    tmp_path: Path, gsd: float, origin: tuple[float, float], crs: str, up: str
) -> None:
    pixels = coordinates(45, 61)
    south_up = Affine(gsd, 0, origin[0], 0, gsd, origin[1] - 45 * gsd)
    profile = {"transform": south_up} if up == "south" else {"gsd": gsd}
    make_raster(
        tmp_path / "scene_20200101.tif", pixels[:, ::-1] if up == "south" else pixels, origin, crs=crs, **profile
    )
    dataset = Scenes(tmp_path)
    sampler = InBoundsGridGeoSampler(dataset, 20, 15)
    corners = [(col, row) for row in (0, 15, 25) for col in (0, 15, 30, 41)]
    for image, (col, row) in zip(read(dataset, sampler), corners, strict=True):
        np.testing.assert_array_equal(image, pixels[:, row : row + 20, col : col + 20])


def test_balanced_windows_at_the_rim_hold_no_padding(tiles: RasterDataset) -> None:
    places = [at(0.2, 0.2), at(49.9, 36.9), at(50.1, 0.1), at(90.5, 49.5)]
    labels = gpd.GeoDataFrame({"kind": ["a", "b", "a", "b"]}, geometry=places, crs="EPSG:32632")
    sampler = ClassBalancedGeoSampler(tiles, labels, "kind", (14, 16), length=30, jitter=0.8)
    for image in read(tiles, sampler):
        assert image.shape == (2, 14, 16)
        assert image.min() > 0
        # neither resampled nor across the border of two files
        assert (np.diff(image[0], axis=1) == 1).all()
        assert (np.diff(image[1], axis=0) == 1).all()


def test_a_grid_that_fits_is_that_of_torchgeo(tmp_path: Path) -> None:
    make_raster(tmp_path / "scene_20200101.tif", coordinates(48, 64))
    dataset = Scenes(tmp_path)
    for stride in (16, 8):
        theirs = GridGeoSampler(dataset, 16, stride)
        ours = InBoundsGridGeoSampler(dataset, 16, stride)
        assert len(ours) == len(theirs)
        assert sorted(map(str, ours)) == sorted(map(str, theirs))


def test_units_of_the_crs(tiles: RasterDataset) -> None:
    ours = InBoundsGridGeoSampler(tiles, (32, 24), 20, units=Units.CRS)
    assert list(ours) == list(InBoundsGridGeoSampler(tiles, (16, 12), 10))


def test_an_area_of_interest_keeps_the_windows_it_shares(tiles: RasterDataset) -> None:
    full = list(InBoundsGridGeoSampler(tiles, 10))
    # the second column of windows of the first tile, edge to edge, and a corner of the window right of it
    strip, corner = at(10, 0, 10, 37), at(25, 8, 4)
    area = shapely.union(strip, corner)
    sampler = InBoundsGridGeoSampler(tiles, 10, roi=area)
    kept = as_pixels(sampler, 2.0, ORIGIN)[:, :2].tolist()
    assert len(sampler) == len(kept)
    assert kept == [[10, 0], [20, 0], [10, 10], [20, 10], [10, 20], [10, 27]]
    assert all(window in full for window in sampler)


def test_windows_off_a_slanted_footprint_are_left_out() -> None:
    (left, bottom, right, top) = whole_file(40, 40, *GRIDS[0]).bounds
    triangle = shapely.Polygon([(left, bottom), (left, top), (right, top)])
    windows = as_pixels(InBoundsGridGeoSampler(Files([triangle], 2.0), 10), *GRIDS[0])
    assert windows[:, :2].tolist() == [[10 * col, 10 * row] for row in range(4) for col in range(4 - row)]


def test_unions_keep_the_grid_of_each_file(tmp_path: Path) -> None:
    for name, shift in (("west", 0), ("east", 101)):  # half a pixel off
        (tmp_path / name).mkdir()
        make_raster(tmp_path / name / "scene_20200101.tif", coordinates(20, 20), (ORIGIN[0] + shift, ORIGIN[1]))
    both = Scenes(tmp_path / "west") | Scenes(tmp_path / "east")
    sampler = InBoundsGridGeoSampler(both, 8)
    assert [x.start - ORIGIN[0] for x, _, _ in sampler] == [*[0, 16, 24] * 3, *[101, 117, 125] * 3]
    for image in read(both, sampler):
        assert (np.diff(image[0], axis=1) == 1).all()
        assert image.min() > 0


def test_overlaps_keep_the_pixels_of_the_raster_of_their_time(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    make_raster(tmp_path / "images" / "scene_20200101.tif", coordinates(40, 40))
    make_raster(tmp_path / "images" / "scene_20210101.tif", coordinates(40, 40), (ORIGIN[0] + 0.5, ORIGIN[1] - 0.8))
    make_raster(tmp_path / "masks" / "scene_20210101.tif", coordinates(40, 40), (ORIGIN[0] + 7.3, ORIGIN[1] - 9.1))
    both = Scenes(tmp_path / "images") & Scenes(tmp_path / "masks")
    x, y, t = next(iter(InBoundsGridGeoSampler(both, 8)))
    assert (x.start - ORIGIN[0], y.stop - ORIGIN[1]) == pytest.approx((8.5, -10.8))
    assert t.start.year == 2021


@pytest.mark.parametrize("vector_first", [False, True])
@pytest.mark.parametrize("spatial_only", [False, True])
def test_intersections_with_vectors_keep_the_pixels_of_the_raster(
    tmp_path: Path, vector_first: bool, spatial_only: bool
) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    make_raster(images / "scene_20200101.tif", coordinates(60, 60))
    shapes = gpd.GeoDataFrame({"kind": ["a", "b"]}, geometry=[at(3.3, 5.7, 9), at(31.2, 30.1, 11.5)], crs="EPSG:32632")
    shapes.to_file(labels / "labels.gpkg")
    scenes, vectors = Scenes(images), VectorDataset(labels, res=(2.0, 2.0))
    parts = (vectors, scenes) if vector_first else (scenes, vectors)
    both = IntersectionDataset(*parts, spatial_only=spatial_only)
    grid = InBoundsGridGeoSampler(both, 16, 12)
    # whole pixels of the labels' bounds: columns 4 to 42, rows 6 to 41
    corners = [(col, row) for row in (6, 18, 25) for col in (4, 16, 26)]
    pixels = coordinates(60, 60)
    for query, (col, row) in zip(grid, corners, strict=True):
        sample = both[query]
        np.testing.assert_array_equal(sample["image"], pixels[:, row : row + 16, col : col + 16])
        assert sample["mask"].shape[-2:] == (16, 16)
    balanced = ClassBalancedGeoSampler(both, shapes, "kind", 16, length=20, jitter=1)
    for query in balanced:
        image = both[query]["image"].numpy()
        assert image.shape == (2, 16, 16)
        assert (np.diff(image[0], axis=1) == 1).all()
        (left, top), (right, bottom) = image.min(axis=(1, 2)), image.max(axis=(1, 2))
        assert 4 < left < right <= 42
        assert 6 < top < bottom <= 41


def test_options_that_cannot_be_carried_out() -> None:
    dataset = Files([whole_file(40, 40, *GRIDS[0])], 2.0)
    for size in (0, -3, 2.5, float("nan")):
        with pytest.raises(ConfigError, match="The size must be whole pixels"):
            InBoundsGridGeoSampler(dataset, size)
    with pytest.raises(ConfigError, match="stride 9 is wider than the size 8"):
        InBoundsGridGeoSampler(dataset, 8, 9)
    with pytest.raises(ConfigError, match="No part of Files lies in the area"):
        InBoundsGridGeoSampler(dataset, 8, roi=shapely.box(0, 0, 1, 1))
    with pytest.raises(ConfigError, match="has no resolution"):
        InBoundsGridGeoSampler(Files([whole_file(40, 40, *GRIDS[0])], 0.0), 8)
    labels = gpd.GeoDataFrame({"kind": ["a"]}, geometry=[at(3, 3)], crs="EPSG:32632")
    for jitter in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="jitter is a share of the window"):
            ClassBalancedGeoSampler(dataset, labels, "kind", 8, jitter=jitter)

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import geometry_mask, rasterize
from rasterio.transform import Affine, from_origin

from tests.tiling.rasters import UTM
from torchgeo_debias.errors import ConfigError, LabelError
from torchgeo_debias.tiling import area as area_module
from torchgeo_debias.tiling._place import apply
from torchgeo_debias.tiling.area import Area, AreaLike, Wanted, area_digest, in_memory
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import TilePlan

WIDTH, HEIGHT = 40, 30
GRID = Grid(WIDTH, HEIGHT, CRS.from_string(UTM), from_origin(500_000, 5_400_000, 2, 2))
DEGREES = Grid(WIDTH, HEIGHT, CRS.from_epsg(4326), from_origin(8.9, 48.75, 2e-5, 1e-5))
MOSCOW = Grid(WIDTH, HEIGHT, CRS.from_epsg(32637), from_origin(400_000, 6_170_000, 2, 2))

_HOLE = shapely.box(5.25, 5.25, 30.25, 20.75).difference(shapely.box(10.25, 9.25, 20.75, 15.25))
SHAPES = {
    "triangle": shapely.Polygon([(3.3, 2.2), (33.1, 7.9), (12.7, 27.4)]),
    "hole": _HOLE,
    "two": shapely.union(shapely.box(1.1, 1.2, 4.3, 4.4), shapely.Polygon([(20.1, 11.2), (38.3, 28.4), (19.6, 27.7)])),
    "island in a hole": shapely.union(_HOLE, shapely.box(13.25, 11.25, 16.75, 13.25)),
    "partly off": shapely.box(-7.3, -5.1, 8.8, 12.2),
    "all around": shapely.box(-50, -50, 90, 90),
    "within a pixel": shapely.box(7.4, 8.4, 7.6, 8.6),
}


def on_map(pixels: Any, grid: Grid = GRID) -> Any:
    """A geometry in the CRS of the raster, from pixels."""

    def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.column_stack(apply(grid.transform, points[:, 0], points[:, 1]))

    return shapely.transform(pixels, place)


def layer(*pixels: Any, grid: Grid = GRID) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=[on_map(shape, grid) for shape in pixels], crs=grid.crs.to_wkt())


def cells(area: Area, plan: TilePlan) -> npt.NDArray[np.bool_]:
    return np.stack([area.cells(plan, row) for row in range(plan.rows.cells)])


def mask(area: Area, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.bool_]:
    found = area.mask(0, height, width)
    assert found is not None
    return found


def cells_by_overlay(pixels: Any, plan: TilePlan) -> npt.NDArray[np.bool_]:
    def box(row: int, column: int) -> Any:
        (top, height), (left, width) = plan.rows.cell(row), plan.columns.cell(column)
        return shapely.box(left, top, left + width, top + height)

    return np.array(
        [
            [pixels.intersection(box(row, column)).area > 1e-4 for column in range(plan.columns.cells)]
            for row in range(plan.rows.cells)
        ]
    )


def centres_within(pixels: Any, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(pixels, columns, rows)
    return inside


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("grid", [GRID, DEGREES], ids=["metres", "degrees"])
@pytest.mark.parametrize(("window", "overlap"), [(7, 0.0), (10, 0.5), (100, 0.75)])
def test_cells_are_those_that_overlap_the_area(name: str, grid: Grid, window: int, overlap: float) -> None:
    plan = TilePlan.of(WIDTH, HEIGHT, window, overlap)
    area = Area.of(layer(SHAPES[name], grid=grid), grid)
    np.testing.assert_array_equal(cells(area, plan), cells_by_overlay(SHAPES[name], plan))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("grid", [GRID, DEGREES], ids=["metres", "degrees"])
def test_pixels_are_those_with_their_centre_in_the_area(name: str, grid: Grid) -> None:
    area = Area.of(layer(SHAPES[name], grid=grid), grid)
    found = mask(area)
    np.testing.assert_array_equal(found, centres_within(SHAPES[name]))
    burnt = rasterize([on_map(SHAPES[name], grid)], (HEIGHT, WIDTH), transform=grid.transform)
    np.testing.assert_array_equal(found, burnt.astype(bool))


boxes = st.builds(
    lambda left, top, width, height: shapely.box(left, top, left + width, top + height),
    *[st.integers(-10, 90).map(lambda n: n / 2), st.integers(-10, 70).map(lambda n: n / 2)],
    *[st.integers(1, 60).map(lambda n: n / 2)] * 2,
)


@settings(max_examples=40)
@given(
    added=st.lists(boxes, min_size=1, max_size=4),
    taken=st.lists(boxes, max_size=3),
    window=st.integers(1, 12),
    overlap=st.floats(0, 0.8),
    cut=st.integers(1, HEIGHT - 1),
)
def test_any_area(added: list[Any], taken: list[Any], window: int, overlap: float, cut: int) -> None:
    shape = shapely.union_all(added).difference(shapely.union_all(taken))
    area = Area(shape)
    plan = TilePlan.of(WIDTH, HEIGHT, window, overlap)
    np.testing.assert_array_equal(cells(area, plan), cells_by_overlay(shape, plan))
    found = mask(area)
    # Edges run through centres here, so that it must not matter in which strip a pixel is looked at either.
    parts = [area.mask(0, cut, WIDTH), area.mask(cut, HEIGHT - cut, WIDTH)]
    np.testing.assert_array_equal(np.concatenate([part for part in parts if part is not None]), found)
    step = plan.rows.step
    np.testing.assert_array_less(found, cells(area, plan).repeat(step, 0).repeat(step, 1)[:HEIGHT, :WIDTH] + 0.5)


@settings(max_examples=40)
@given(added=st.lists(boxes, max_size=3), window=st.integers(1, 12), overlap=st.floats(0, 0.8))
def test_a_wanted_cell_has_all_its_tiles_and_no_tile_is_there_for_nothing(
    added: list[Any], window: int, overlap: float
) -> None:
    plan = TilePlan.of(WIDTH, HEIGHT, window, overlap)
    wanted = Wanted(plan, Area(shapely.union_all(added)))
    expected = {
        (tile.row, tile.column)
        for tile in plan
        if any(
            wanted.cells(down.cell)[across.cell]
            for down in plan.rows.shares(tile.row)
            for across in plan.columns.shares(tile.column)
        )
    }
    found = {(row, column) for row in range(plan.rows.tiles) for column in wanted.columns(row).tolist()}
    assert found == expected
    assert len(wanted) == len(expected)


def test_points_in_the_area_are_held() -> None:
    square = shapely.box(10, 20, 30, 40)
    area = Area.of(layer(square, shapely.box(50, 50, 60, 60)), GRID)
    points = np.array([[20.0, 30.0], [55.0, 55.0], [45.0, 45.0], [20.0, 41.0], [9.0, 30.0], [-5.0, 30.0]])
    assert area.holds(points).tolist() == [True, True, False, False, False, False]
    assert pickle.loads(pickle.dumps(area)).holds(points).tolist() == area.holds(points).tolist()
    assert Area().holds(points).all()


def test_without_an_area_everything_is_wanted() -> None:
    plan = TilePlan.of(WIDTH, HEIGHT, 7, 0.3)
    area = Area.of(None, GRID)
    assert area.mask(0, HEIGHT, WIDTH) is None
    assert cells(area, plan).all()
    assert len(Wanted(plan, area)) == len(plan)


@pytest.mark.parametrize(
    "shape",
    [
        shapely.box(WIDTH, 0, WIDTH + 5, HEIGHT),
        shapely.box(-5, -5, 0, HEIGHT),
        shapely.box(0, HEIGHT, WIDTH, HEIGHT + 3),
        shapely.box(-9, -9, WIDTH, 0),
        shapely.box(1000, 1000, 1100, 1100),
        shapely.box(-1100, 10, -1000, 20),
    ],
)
def test_nothing_is_wanted_off_the_raster_nor_where_only_edges_touch(shape: Any) -> None:
    area = Area.of(layer(shape), GRID)
    assert len(Wanted(TilePlan.of(WIDTH, HEIGHT, 7, 0.5), area)) == 0
    assert not mask(area).any()


def test_neighbours_of_an_area_are_not_wanted_for_a_common_edge() -> None:
    plan = TilePlan.of(WIDTH, HEIGHT, 10)
    assert cells(Area.of(layer(shapely.box(10, 10, 20, 20)), GRID), plan).sum() == 1


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32633", "EPSG:3035"])
def test_layers_in_another_crs(crs: str) -> None:
    shape = SHAPES["island in a hole"]
    area = Area.of(layer(shape).to_crs(crs), GRID)
    np.testing.assert_array_equal(mask(area), centres_within(shape))


def test_straight_edges_become_curves_in_another_crs() -> None:
    # Over the 800 km of this raster, a parallel bends by 12 km.
    grid = Grid(WIDTH, HEIGHT, CRS.from_string(UTM), from_origin(100_000, 5_030_000, 20_000, 2_000))
    north = gpd.GeoDataFrame(geometry=[shapely.box(-10, 44.9, 30, 60)], crs=4326)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    eastings, northings = apply(grid.transform, columns.ravel(), rows.ravel())
    centres = gpd.GeoSeries(gpd.points_from_xy(eastings, northings), crs=UTM).to_crs(4326)
    expected = (centres.y > 44.9).to_numpy().reshape(HEIGHT, WIDTH)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(mask(Area.of(north, grid)), expected)


@pytest.mark.parametrize(
    ("shape", "crs"),
    [
        (shapely.box(-180, -90, 180, 90), 4326),
        (shapely.box(0, -90, 360, 90), 4326),
        (shapely.box(27, 42, 180, 80), 4326),
        (shapely.box(-2e7, -2e7, 2e7, 2e7), 3857),
    ],
    ids=["world", "world from 0", "half a continent", "world in metres"],
)
def test_layers_that_reach_far_beyond_the_crs_of_the_raster(shape: Any, crs: int) -> None:
    area = Area.of(gpd.GeoDataFrame(geometry=[shape], crs=crs), MOSCOW)
    assert mask(area).all()
    assert cells(area, TilePlan.of(WIDTH, HEIGHT, 7)).all()


def test_degrees_counted_from_0_to_360() -> None:
    west = Grid(WIDTH, HEIGHT, CRS.from_epsg(32612), from_origin(500_000, 4_000_000, 2, 2))
    turned = layer(SHAPES["two"], grid=west).to_crs(4326)
    turned.geometry = turned.geometry.translate(xoff=360)
    np.testing.assert_array_equal(mask(Area.of(turned, west)), centres_within(SHAPES["two"]))


def test_across_the_antimeridian() -> None:
    grid = Grid(WIDTH, HEIGHT, CRS.from_epsg(32601), from_origin(166_100, 50, 5_000, 5_000))  # just east of 180 degrees
    here = gpd.GeoDataFrame(geometry=[shapely.box(-179, -0.5, -178, 0), shapely.box(179, -1, 180, 0)], crs=4326)
    found = cells(Area.of(here, grid), TilePlan.of(WIDTH, HEIGHT, 1))
    assert found[:11, 23:44].all()
    assert not found[:, :22].any()


def test_a_layer_of_another_place() -> None:
    far = gpd.GeoDataFrame(geometry=[shapely.box(100, 10, 101, 11)], crs=4326)
    assert not mask(Area.of(far, GRID)).any()
    assert len(Wanted(TilePlan.of(WIDTH, HEIGHT, 7), Area.of(far, GRID))) == 0


def test_a_small_layer_on_a_raster_of_the_world() -> None:
    world = Grid(360, 180, CRS.from_epsg(4326), from_origin(-180, 90, 1, 1))
    state = gpd.GeoDataFrame(geometry=[shapely.box(10.2, 45.2, 15.8, 50.8)], crs=4326)
    found = mask(Area.of(state.to_crs(32633), world), 180, 360)
    np.testing.assert_array_equal(np.argwhere(found).min(axis=0), [39, 190])
    np.testing.assert_array_equal(np.argwhere(found).max(axis=0), [44, 195])
    assert found.sum() == 36


def test_bounds_are_in_the_crs_of_the_raster() -> None:
    bounds = on_map(shapely.box(3, 4, 10, 9)).bounds
    area = Area.of(bounds, GRID)
    np.testing.assert_array_equal(mask(area), centres_within(shapely.box(3, 4, 10, 9)))
    np.testing.assert_array_equal(mask(Area.of(list(bounds), GRID)), mask(area))


def test_a_layer_is_the_union_of_its_features() -> None:
    pair = layer(shapely.box(2.2, 2.2, 12.2, 12.2), shapely.box(8.2, 8.2, 20.2, 25.2), shapely.Polygon())
    np.testing.assert_array_equal(
        mask(Area.of(pair, GRID)),
        centres_within(shapely.box(2.2, 2.2, 12.2, 12.2)) | centres_within(shapely.box(8.2, 8.2, 20.2, 25.2)),
    )


def test_crumpled_polygons_count_by_what_they_cover() -> None:
    bow = shapely.Polygon([(2, 2.2), (20, 14.2), (20, 2.2), (2, 14.2)])
    spike = shapely.Polygon([(22.2, 20.2), (28.2, 20.2), (28.2, 25.2), (39, 25.5), (28.2, 25.2), (22.2, 25.2)])
    area = Area.of(layer(bow, spike), GRID)
    expected = centres_within(shapely.make_valid(bow)) | centres_within(shapely.box(22.2, 20.2, 28.2, 25.2))
    np.testing.assert_array_equal(mask(area), expected)
    assert not cells(area, TilePlan.of(WIDTH, HEIGHT, 10))[2, 3]


def test_heights_do_not_matter() -> None:
    flat, high = SHAPES["two"], shapely.force_3d(SHAPES["two"], 300)
    for crs in (UTM, "EPSG:4326"):
        there = layer(high).to_crs(crs)
        np.testing.assert_array_equal(mask(Area.of(there, GRID)), centres_within(flat))


def test_footprints_bound_what_is_computed_but_not_what_is_painted() -> None:
    plan = TilePlan.of(WIDTH, HEIGHT, 5)
    footprints = [on_map(shapely.box(0, 0, 10, 30)), on_map(shapely.box(20, 0, 25, 30))]
    area = Area.of(None, GRID, footprints)
    assert area.mask(0, HEIGHT, WIDTH) is None
    np.testing.assert_array_equal(cells(area, plan)[0], [1, 1, 0, 0, 1, 0, 0, 0])
    both = Area.of(layer(shapely.box(5, 0, 40, 7)), GRID, footprints)
    np.testing.assert_array_equal(cells(both, plan)[:, 1], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(cells(both, plan)[0], [0, 1, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(mask(both), centres_within(shapely.box(5, 0, 40, 7)))
    assert not cells(Area.of(None, GRID, []), plan).any()


def write(path: Path, frame: gpd.GeoDataFrame) -> Path:
    pyogrio.write_dataframe(frame, path, layer="fields")
    return path


@pytest.mark.parametrize("name", ["area.gpkg", "area.geojson", "area.shp", "area.fgb"])
def test_files(name: str, tmp_path: Path) -> None:
    frame = layer(SHAPES["hole"]).to_crs(4326).assign(kind="field")
    path = write(tmp_path / name, frame)
    np.testing.assert_array_equal(mask(Area.of(path, GRID)), centres_within(SHAPES["hole"]))
    np.testing.assert_array_equal(mask(Area.of(str(path), GRID)), centres_within(SHAPES["hole"]))


@pytest.mark.filterwarnings("error::UserWarning")
def test_plain_tables_beside_the_layer_do_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), tmp_path / "area.gpkg", layer="a_styles")
    pyogrio.write_dataframe(layer(SHAPES["hole"]), tmp_path / "area.gpkg", layer="fields", append=True)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(mask(Area.of(tmp_path / "area.gpkg", GRID)), centres_within(SHAPES["hole"]))
        assert not caplog.records
        pyogrio.write_dataframe(layer(SHAPES["two"]), tmp_path / "area.gpkg", layer="woods", append=True)
        np.testing.assert_array_equal(mask(Area.of(tmp_path / "area.gpkg", GRID)), centres_within(SHAPES["hole"]))
    assert "fields, woods" in caplog.text


def points(folder: Path) -> AreaLike:
    return write(folder / "points.gpkg", gpd.GeoDataFrame(geometry=[shapely.Point(1, 2)], crs=4326))


def mixed(folder: Path) -> AreaLike:
    return layer(SHAPES["hole"], shapely.LineString([(0, 0), (5, 5)]))


def empty(folder: Path) -> AreaLike:
    return layer()


def degenerate(folder: Path) -> AreaLike:
    return layer(shapely.Polygon([(0, 0), (5, 5), (10, 10)]))


def homeless(folder: Path) -> AreaLike:
    return write(folder / "homeless.shp", gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]))


def drawing(folder: Path) -> AreaLike:
    return gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs='LOCAL_CS["drawing",UNIT["metre",1]]')


def moon(folder: Path) -> AreaLike:
    return gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="IAU_2015:30100")


def table(folder: Path) -> AreaLike:
    (folder / "table.csv").write_text("a,b\n1,2\n")
    return folder / "table.csv"


def text(folder: Path) -> AreaLike:
    (folder / "area.gpkg").write_text("no layer")
    return folder / "area.gpkg"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (points, "points.gpkg must have polygons and nothing else"),
        (mixed, "of 2 features must have polygons"),
        (empty, "must have polygons"),
        (degenerate, "must have polygons"),
        (table, "table.csv must have polygons"),
        (homeless, "homeless.shp has no coordinate reference system"),
        (drawing, "no coordinate reference system on the earth"),
        (moon, "no coordinate reference system on the earth"),
        (text, "area.gpkg cannot be read"),
        (lambda folder: folder / "gone.gpkg", "There is no area layer at .*gone.gpkg"),
        (lambda folder: str(folder / "gone.gpkg"), "There is no area layer at .*gone.gpkg"),
    ],
)
def test_refuses_layers_that_are_no_area(make: Callable[[Path], AreaLike], sentence: str, tmp_path: Path) -> None:
    area = make(tmp_path)
    with pytest.raises(LabelError, match=sentence):
        Area.of(area, GRID)
    with pytest.raises(LabelError, match=sentence):
        Area.of(in_memory(area), GRID)


@pytest.mark.parametrize(
    "bounds",
    [
        (0, 0, 10),
        (0, 0, 10, 10, 5),
        (10, 0, 0, 10),
        (0, 10, 10, 0),
        (0, 0, 0, 10),
        (0, 0, np.nan, 10),
        (0, 0, np.inf, 1),
    ],
)
def test_refuses_bounds_that_are_none(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="left, bottom, right, top"):
        Area.of(bounds, GRID)
    with pytest.raises(ConfigError, match="left, bottom, right, top"):
        area_digest(bounds)


def test_digests_tell_areas_apart(tmp_path: Path) -> None:
    hole, two = layer(SHAPES["hole"]), layer(SHAPES["two"])
    path = write(tmp_path / "hole.gpkg", hole)
    assert area_digest(None) is None
    assert area_digest(path) == area_digest(path) == area_digest(str(path))
    areas: list[AreaLike] = [path, two, hole.to_crs(4326), hole.set_crs(32633, allow_override=True)]
    areas += [(0, 0, 10, 10), (0, 0, 10, 10.000001)]
    assert len({area_digest(area) for area in areas}) == len(areas)
    assert area_digest((0, 0, 10, 10)) == area_digest([0, 0, 10, 10])


def test_a_mask_looks_only_at_the_parts_that_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).integers(0, 1000, (2, 200))
    parts = shapely.get_parts(shapely.union_all(shapely.box(x, y, x + 3, y + 3)))
    area = Area(shapely.multipolygons(parts))
    tops, bottoms = shapely.bounds(parts)[:, 1::2].T
    given: list[list[Any]] = []

    def spy(shapes: list[Any], *args: Any, **options: Any) -> Any:
        given.append(shapes)
        return geometry_mask(shapes, *args, **options)

    monkeypatch.setattr(area_module, "geometry_mask", spy)
    monkeypatch.setattr(shapely, "bounds", None)  # asked once for all rows
    strips = [area.mask(top, 50, 1003) for top in range(0, 1000, 50)]
    assert [len(shapes) for shapes in given] == [
        ((tops < top + 50) & (bottoms > top)).sum() for top in range(0, 1000, 50)
    ]
    whole = geometry_mask(list(parts), (1000, 1003), Affine.identity(), invert=True)
    np.testing.assert_array_equal(np.concatenate([strip for strip in strips if strip is not None]), whole)


def test_areas_can_be_sent_to_other_processes() -> None:
    plan = TilePlan.of(WIDTH, HEIGHT, 7, 0.5)
    wanted = Wanted(plan, Area.of(layer(SHAPES["two"]), GRID, [on_map(shapely.box(0, 0, 25, 25))]))
    wanted.columns(0)
    copied = pickle.loads(pickle.dumps(wanted))
    for row in range(plan.rows.tiles):
        np.testing.assert_array_equal(copied.columns(row), wanted.columns(row))
    np.testing.assert_array_equal(mask(copied.area), mask(wanted.area))

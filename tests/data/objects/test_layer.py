from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from tests.data.objects.making import coordinates
from torchgeo_debias.boxes.convert import polygons_to_oriented, to_polygons
from torchgeo_debias.data.objects import ObjectSet, ObjectTiles, TileSpec, objects_from_layer, picture
from torchgeo_debias.data.objects import layer as layer_module
from torchgeo_debias.data.synthetic import Scene
from torchgeo_debias.errors import ConfigError, DataError, LabelError
from torchgeo_debias.tiling.source import RasterSource

GSD = 2.0
NORTH_UP = Affine(GSD, 0, 500_000, 0, -GSD, 5_000_000)
CRS = "EPSG:32632"


def write_raster(path: Path, transform: Affine = NORTH_UP, width: int = 100, height: int = 60, count: int = 2) -> Path:
    array = np.repeat(coordinates(width, height), 2, axis=0)[:count]
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint16", crs=CRS, transform=transform
    ) as target:
        target.write(array)
    return path


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("raster") / "scene.tif")


def on_map(shape: Any, transform: Affine = NORTH_UP) -> Any:
    """A shape in pixels of the raster (column, row) on the map."""
    t = transform
    return shapely.transform(shape, lambda p: np.column_stack([p @ [t.a, t.b] + t.c, p @ [t.d, t.e] + t.f]))


def layer(shapes: list[Any], classes: list[Any] | None = None, transform: Affine = NORTH_UP) -> gpd.GeoDataFrame:
    """Shapes given in pixels, as a layer on the map."""
    names = ["ship"] * len(shapes) if classes is None else classes
    return gpd.GeoDataFrame({"kind": names}, geometry=[on_map(one, transform) for one in shapes], crs=CRS)


def tilted(x: float, y: float, length: float = 20, width: float = 6, angle: float = 30) -> Any:
    box = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return shapely.affinity.rotate(box, angle)


def gap(boxes: np.ndarray, expected: list[Any]) -> float:
    """The largest distance between the corners of boxes and of the expected rectangles, pixels."""
    assert len(boxes) == len(expected)
    return float(np.max(shapely.hausdorff_distance(to_polygons(boxes), np.array(expected))))


def test_polygons_become_boxes_in_pixels(raster: Path) -> None:
    shapes = [tilted(30, 20), shapely.Polygon([(50, 10), (70, 10), (60, 30)])]
    labels = layer(shapes, ["ship", "barge"])
    oriented = objects_from_layer([raster], labels, "kind", oriented=True)
    (one,) = oriented.images
    assert (oriented.table.names, one.labels.tolist()) == (("barge", "ship"), [1, 0])
    assert gap(one.boxes, [shapes[0], shapely.minimum_rotated_rectangle(shapes[1])]) < 1e-6
    assert (one.name, one.source, one.picture.width, one.picture.height) == ("scene", "scene", 100, 60)
    assert oriented.gsd == pytest.approx(GSD, rel=0.01)
    upright = objects_from_layer([raster], labels, "kind", oriented=False)
    assert gap(upright.images[0].boxes, [shapely.box(*shape.bounds) for shape in shapes]) < 1e-6
    np.testing.assert_array_equal(upright.images[0].picture.read(7, 3, 1, 1)[0].ravel(), [8, 8])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:25833"])
def test_layers_in_any_crs(raster: Path, tmp_path: Path, crs: str) -> None:
    labels = layer([tilted(30, 20), tilted(70, 40, angle=100)])
    labels.to_crs(crs).to_file(tmp_path / "labels.gpkg")
    one = objects_from_layer([raster], tmp_path / "labels.gpkg", "kind", oriented=True).images[0]
    assert gap(one.boxes, [tilted(30, 20), tilted(70, 40, angle=100)]) < 0.1


@pytest.mark.parametrize(
    "transform",
    [
        Affine(GSD, 0, 500_000, 0, GSD, 5_000_000),
        Affine(-GSD, 0, 500_000, 0, -GSD, 5_000_000),
        NORTH_UP @ Affine.rotation(30),
    ],
    ids=["south up", "mirrored", "rotated"],
)
def test_boxes_lie_on_their_objects_however_the_raster_is_stored(tmp_path: Path, transform: Affine) -> None:
    """Objects are painted into the file as stored; on the pixels that are handed out, boxes must hold them."""
    pixels = np.zeros((1, 120, 160), np.uint8)
    rectangles = [(30, 40, 60, 50), (100, 70, 112, 100)]
    for x0, y0, x1, y1 in rectangles:
        pixels[0, y0:y1, x0:x1] = 255
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=1, height=120, width=160, dtype="uint8", crs=CRS,
        transform=transform,
    ) as target:  # fmt: skip
        target.write(pixels)
    labels = layer([shapely.box(*one) for one in rectangles], transform=transform)
    one = objects_from_layer([tmp_path / "a.tif"], labels, "kind", oriented=True).images[0]
    shown, _ = one.picture.read(0, 0, one.picture.width, one.picture.height)
    y, x = np.mgrid[: one.picture.height, : one.picture.width] + 0.5
    for polygon, (x0, y0, x1, y1) in zip(to_polygons(one.boxes), rectangles, strict=True):
        assert polygon.area == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-6)
        assert shown[0][shapely.contains_xy(polygon.buffer(-1.5), x, y)].min() > 200
        around = shapely.contains_xy(polygon.buffer(5), x, y) & ~shapely.contains_xy(polygon.buffer(1.5), x, y)
        assert shown[0][around].max() < 50


def test_multi_polygons_are_taken_apart_and_crossing_ones_repaired(
    raster: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bow = shapely.Polygon([(10, 10), (30, 20), (30, 10), (10, 20)])
    pair = shapely.MultiPolygon([shapely.box(40, 10, 50, 14), shapely.box(60, 30, 66, 50)])
    objects = objects_from_layer([raster], layer([bow, pair], ["bow", "pair"]), "kind", oriented=True)
    one = objects.images[0]
    assert gap(one.boxes, [shapely.box(10, 10, 30, 20), *pair.geoms]) < 1e-6
    assert objects.table.counts == (1, 2)
    assert "repaired 1 polygons that cross" in caplog.text


def test_what_has_no_extent_is_refused(raster: Path) -> None:
    with pytest.raises(LabelError, match="has 1 features of the kind Point, but boxes need an extent"):
        objects_from_layer([raster], layer([tilted(30, 20), shapely.Point(5, 5)]), "kind", oriented=True)
    line = shapely.LineString([(1, 1), (5, 5)])
    with pytest.raises(LabelError, match="kind LineString"):
        objects_from_layer([raster], layer([line]), "kind", oriented=True)
    flat = shapely.Polygon([(1, 1), (5, 5), (9, 9), (1, 1)])
    with pytest.raises(LabelError, match="has 1 polygons without area, the first is number 2"):
        objects_from_layer([raster], layer([tilted(30, 20), flat]), "kind", oriented=False)


def test_objects_outside_are_left_out_and_those_at_the_rim_ignored(
    raster: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = [shapely.box(x, 10, x + 10, 20) for x in (-12, -8, -2, 50, 93, 97, 120)]
    one = objects_from_layer([raster], layer(shapes), "kind", oriented=False).images[0]
    assert one.boxes[:, 0].round(6).tolist() == [-8, -2, 50, 93, 97]
    assert one.ignored.tolist() == [True, False, False, False, True]
    assert "left out 2 objects outside the rasters" in caplog.text
    with pytest.raises(LabelError, match=r"No object of The layer lies on a raster: .*scene\.tif \(500000"):
        objects_from_layer([raster], layer(shapes[:1]), "kind", oriented=False)


def test_an_object_on_two_rasters_is_one_of_each(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / "west.tif"),
        write_raster(tmp_path / "east.tif", NORTH_UP @ Affine.translation(100, 0)),
    ]
    shapes = [shapely.box(20, 10, 30, 20), shapely.box(94, 30, 104, 40), shapely.box(150, 10, 160, 20)]
    objects = objects_from_layer(paths, layer(shapes), "kind", oriented=False)
    one, other = objects.images
    np.testing.assert_allclose(one.boxes, [[20, 10, 30, 20], [94, 30, 104, 40]], atol=1e-6)
    np.testing.assert_allclose(other.boxes, [[-6, 30, 4, 40], [50, 10, 60, 20]], atol=1e-6)
    assert (one.ignored.tolist(), other.ignored.tolist()) == ([False, False], [True, False])
    assert objects.table.counts == (3,)
    kept, held = objects.split(0.4, 0)
    assert (len(kept), len(held)) in ((1, 1), (2, 0))


@pytest.mark.parametrize("block", [None, 30 * GSD])
def test_rasters_that_teach_the_same_object_stay_together(
    tmp_path: Path, block: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """East overlaps west by 40 columns, south touches west, far lies on its own."""
    offsets = {"west": (0, 0), "east": (60, 0), "south": (0, 60), "far": (300, 0)}
    paths = [write_raster(tmp_path / f"{name}.tif", NORTH_UP @ Affine.translation(*by)) for name, by in offsets.items()]
    corners = [(5, 5), (65, 5), (84, 34), (125, 25), (20, 57), (40, 80), (310, 10), (380, 40)]
    labels = layer([shapely.box(x, y, x + 5, y + 5) for x, y in corners])
    objects = objects_from_layer(paths, labels, "kind", oriented=False, block=block)
    assert "2 objects are taught by more than one image" in caplog.text
    sources = {one.name: one.source for one in objects.images}
    if block is None:
        assert sources == {"west": "west", "east": "west", "south": "south", "far": "far"}
    joined = {name for name, source in sources.items() if list(sources.values()).count(source) > 1}
    if block is not None:
        both = {"west:2", "east:0", "west:3", "east:1"}  # of west the last block is narrow, and lies on another of east
        assert joined == {f"{name}_{row}" for name in both for row in (0, 1)}
        assert sources["east:1_0"] == "west:3_0" != sources["east:0_0"] == "west:2_0"
    for seed in range(6):
        sides = objects.split(0.5, seed)
        ground: list[set[tuple[float, ...]]] = [set(), set()]  # centres of what is taught on the map of west
        for own, part in zip(ground, sides, strict=True):
            for one in (objects.images[i] for i in part):
                name, _, place = one.name.partition(":")
                column, row = map(int, place.split("_")) if place else (0, 0)
                move = np.array(offsets[name]) + np.array([column, row]) * (30 if block else 0)
                own |= {tuple(c) for c in (one.boxes[~one.ignored][:, :2] + move).round(3).tolist()}
        assert not ground[0] & ground[1]


def raster_elsewhere(path: Path, bounds: tuple[float, float, float, float], crs: str) -> Path:
    """A raster in another CRS on the ground of some pixels (left, top, right, bottom) of `NORTH_UP`."""
    ground = gpd.GeoSeries([on_map(shapely.box(*bounds))], crs=CRS).to_crs(crs).total_bounds
    write_raster(path, Affine(GSD, 0, ground[0], 0, -GSD, ground[3]), *(np.ptp(ground.reshape(2, 2), 0) // GSD))
    with rasterio.open(path, "r+") as target:
        target.crs = crs
    return path


def test_rasters_that_share_ground_stay_together_whatever_they_teach(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No object lies on two of them, so that what they teach joins none."""
    paths = [
        write_raster(tmp_path / "west.tif"),
        write_raster(tmp_path / "east.tif", NORTH_UP @ Affine.translation(99, 0)),  # one column in common
        write_raster(tmp_path / "below.tif", NORTH_UP @ Affine.translation(0, 60)),  # an edge in common
        write_raster(tmp_path / "far.tif", NORTH_UP @ Affine.translation(500, 0)),
        raster_elsewhere(tmp_path / "zone.tif", (590, 10, 650, 40), "EPSG:32633"),
    ]
    corners = [(5, 5), (110, 5), (20, 80), (520, 10), (620, 20)]
    labels = layer([shapely.box(x, y, x + 5, y + 5) for x, y in corners])
    objects = objects_from_layer(paths, labels, "kind", oriented=False)
    assert {one.name: one.source for one in objects.images} == {
        "west": "west", "east": "west", "below": "below", "far": "far", "zone": "far",
    }  # fmt: skip
    assert "4 of 5 images share ground or objects with others" in caplog.text
    pixel = GSD**2
    for one, other in ((0, 2), (1, 2), (0, 3)):
        assert shapely.intersection(objects.images[one].ground, objects.images[other].ground).area == 0
    assert objects.images[0].ground.area == pytest.approx(99.5 * 59.5 * pixel)


def test_blocks_of_one_raster_share_no_ground(raster: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = objects_from_layer([raster], layer([tilted(30, 20)]), "kind", oriented=True, block=10 * GSD)
    assert {one.source for one in objects.images} >= {"scene:0_0", "scene:9_5"}
    assert len({one.source for one in objects.images}) == len(objects)
    assert "share ground" not in caplog.text


def test_where_ground_would_join_all_images_a_warning_says_that_a_split_shares_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write_raster(tmp_path / f"{i}.tif", NORTH_UP @ Affine.translation(90 * i, 0)) for i in range(6)]
    shapes = [shapely.box(x, y, x + 5, y + 5) for x in range(30, 540, 90) for y in (10, 30)]
    objects = objects_from_layer(paths, layer(shapes), "kind", oriented=False)
    assert [one.source for one in objects.images] == [one.name for one in objects.images]
    assert "no split can keep it apart" in caplog.text


def test_an_area_may_be_as_wide_as_the_earth(tmp_path: Path) -> None:
    """The area is in the degrees of the first raster; the second, in metres, shows a part of the earth."""
    first = write_raster(tmp_path / "first.tif", Affine(1e-5, 0, 9.5, 0, -1e-5, 45.0))
    with rasterio.open(first, "r+") as target:
        target.crs = "EPSG:4326"
    paths = [first, write_raster(tmp_path / "second.tif")]
    area = shapely.box(-180, -90, 180, 90)
    objects = objects_from_layer(paths, layer([tilted(30, 20)]), "kind", oriented=True, area=area)
    assert [len(one.boxes) for one in objects.images] == [0, 1]
    assert not objects.images[1].ignored.any()
    assert objects.images[1].picture.read(0, 0, 100, 60)[1].all()


def test_objects_that_stand_twice_in_a_layer_count_once(raster: Path, caplog: pytest.LogCaptureFixture) -> None:
    shapes = [tilted(30, 20), tilted(60, 20), tilted(30, 20), tilted(30, 20)]
    objects = objects_from_layer([raster], layer(shapes, ["ship", "ship", "ship", "barge"]), "kind", oriented=True)
    assert (objects.table.names, objects.table.counts) == (("barge", "ship"), (1, 2))
    assert gap(objects.images[0].boxes, [shapes[0], shapes[1], shapes[3]]) < 1e-6
    assert "left out 1 objects that stand twice" in caplog.text
    assert "outside the rasters" not in caplog.text


def test_a_raster_is_opened_and_its_boxes_are_made_once_for_all_blocks(raster: Path) -> None:
    with (
        patch.object(picture, "RasterSource", wraps=RasterSource) as shown,
        patch.object(layer_module, "RasterSource", wraps=RasterSource) as placed,
        patch.object(layer_module, "polygons_to_oriented", wraps=polygons_to_oriented) as boxes,
    ):
        objects = objects_from_layer([raster], layer([tilted(30, 20)]), "kind", oriented=True, block=10 * GSD)
    assert len(objects) == 60
    assert (shown.call_count, placed.call_count, boxes.call_count) == (1, 1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": float("nan")}, "side of a block is a length .* received nan"),
        ({"block": float("inf")}, "side of a block is a length .* received inf"),
        ({"block": -4.0}, r"side of a block is a length .* received -4\.0"),
        ({"area": "POLYGON ((0 0, 1 0, 1 1, 0 0))"}, "is a polygon of shapely .* received 'POLYGON"),
        ({"area": shapely.LineString([(0, 0), (1, 1)])}, "is a polygon of shapely .* received <LINESTRING"),
    ],
)
def test_odd_options_are_refused(raster: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        objects_from_layer([raster], layer([tilted(30, 20)]), "kind", oriented=True, **options)


def test_infinite_coordinates_are_told_as_such(raster: Path) -> None:
    labels = layer([tilted(30, 20), tilted(60, 20)])
    labels.loc[1, "geometry"] = shapely.Polygon([(500_000, 4_999_990), (float("inf"), 4_999_990), (500_010, 4_999_900)])
    with pytest.raises(LabelError, match="has 1 polygons with infinite coordinates, the first is number 2"):
        objects_from_layer([raster], labels, "kind", oriented=True)


@pytest.mark.parametrize("oriented", [True, False])
def test_blocks_of_a_raster_can_be_held_out(raster: Path, oriented: bool) -> None:
    shapes = [shapely.box(x, y, x + 8, y + 5) for x, y in [(10, 10), (37, 20), (70, 37), (85, 50), (5, 45)]]
    options: dict[str, Any] = {"oriented": oriented, "block": 40 * GSD}
    objects = objects_from_layer([raster], layer(shapes), "kind", **options)
    assert [one.name for one in objects.images] == [f"scene:{x}_{y}" for y in (0, 1) for x in (0, 1, 2)]
    sizes = [(one.picture.width, one.picture.height) for one in objects.images]
    assert sizes == [(40, 40), (40, 40), (20, 40), (40, 20), (40, 20), (20, 20)]
    expected = {"0_0": [0, 1], "1_0": [1, 2], "2_0": [], "0_1": [4], "1_1": [2], "2_1": [3]}
    for one in objects.images:
        column, row = map(int, one.name.partition(":")[2].split("_"))
        own = expected[f"{column}_{row}"]
        if own:
            moved = [shapely.affinity.translate(shapes[i], -40 * column, -40 * row) for i in own]
            assert gap(one.boxes, moved) < 1e-6
        assert one.picture.read(3, 2, 1, 1)[0].ravel().tolist() == [40 * column + 4] * 2
        inside = shapely.box(40 * column, 40 * row, 40 * column + 40, 40 * row + 40)
        assert one.ignored.tolist() == [shapes[i].intersection(inside).area < 20 for i in own]
    kept, held = objects.split(0.4, 0)
    assert len(kept)
    assert len(held)
    cut = objects_from_layer([raster], layer(shapes), "kind", area=on_map(shapely.box(45, 5, 95, 38)), **options)
    assert [one.name for one in cut.images] == ["scene:1_0", "scene:2_0"]
    assert [(one.picture.width, one.picture.height) for one in cut.images] == [(35, 33), (15, 33)]
    with pytest.raises(ConfigError, match="smaller than a pixel"):
        objects_from_layer([raster], layer(shapes), "kind", oriented=True, block=0.5)


def test_rasters_of_equal_names_and_unequal_bands(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "scene.tif", count=2 if name == "a" else 3)
    both = [tmp_path / name / "scene.tif" for name in ("a", "b")]
    labels = layer([tilted(30, 20)])
    objects = objects_from_layer(both, labels, "kind", oriented=True, bands=[1])
    assert [one.name for one in objects.images] == [path.as_posix() for path in both]
    with pytest.raises(DataError, match="All images must be alike"):
        objects_from_layer(both, labels, "kind", oriented=True)
    with pytest.raises(ConfigError, match="at least one raster"):
        objects_from_layer([], labels, "kind", oriented=True)


def test_labels_are_complete_within_the_area_only(raster: Path, caplog: pytest.LogCaptureFixture) -> None:
    area = shapely.Polygon([(20, 10), (80, 10), (80, 50), (50, 30), (20, 50)])
    shapes = [shapely.box(x, y, x + 8, y + 4) for x, y in [(30, 15), (45, 42), (46, 29), (17, 12), (13, 20), (85, 12)]]
    objects = objects_from_layer([raster], layer(shapes), "kind", oriented=False, area=on_map(area))
    (one,) = objects.images
    assert (one.picture.width, one.picture.height) == (60, 40)
    corner = np.array([20, 10, 20, 10])
    kept = [shape for shape in shapes if shape.intersection(area).area > 0]
    np.testing.assert_allclose(one.boxes + corner, [shape.bounds for shape in kept], atol=1e-6)
    share = [shape.intersection(area).area / shape.area for shape in kept]
    assert one.ignored.tolist() == [s < 0.5 for s in share]
    assert sum(one.ignored) == 1
    assert "left out 2 objects outside the rasters or the area" in caplog.text
    pixels, valid = one.picture.read(0, 0, 60, 40)
    x, y = np.meshgrid(np.arange(60) + 20.5, np.arange(40) + 10.5)
    sure = ~shapely.intersects_xy(area.boundary.buffer(1e-6), x, y)
    np.testing.assert_array_equal(valid[sure], np.asarray(shapely.contains_xy(area, x, y))[sure])
    np.testing.assert_array_equal(pixels[0], np.where(valid, x + 0.5, 0))


def test_an_area_in_the_crs_of_the_first_raster_and_off_the_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [
        write_raster(tmp_path / "west.tif"),
        write_raster(tmp_path / "east.tif", NORTH_UP @ Affine.translation(100, 0)),
    ]
    shapes = [shapely.box(20, 10, 30, 20), shapely.box(150, 10, 160, 20)]
    objects = objects_from_layer(paths, layer(shapes), "kind", oriented=False, area=on_map(shapely.box(5, 5, 60, 50)))
    assert [one.name for one in objects.images] == ["west"]
    assert "east.tif: left out, the area of the labels does not touch it" in caplog.text
    with pytest.raises(LabelError, match="lies on a raster within the given area"):
        objects_from_layer(paths, layer(shapes), "kind", oriented=False, area=on_map(shapely.box(300, 5, 400, 50)))


def test_objects_without_a_class_are_ignored_and_background_is_none(
    raster: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = [tilted(x, 30) for x in (15, 40, 65, 85)]
    objects = objects_from_layer([raster], layer(shapes, ["10", None, "background", "9"]), "kind", oriented=True)
    assert objects.table.names == ("9", "10")
    assert objects.table.counts == (1, 1)
    assert gap(objects.images[0].boxes, [shapes[0], shapes[1], shapes[3]]) < 1e-6
    assert objects.images[0].ignored.tolist() == [False, True, False]
    assert "left out 1 objects of the class background" in caplog.text
    with pytest.raises(LabelError, match="no object but background"):
        objects_from_layer([raster], layer(shapes[:1], ["background"]), "kind", oriented=True)


def test_ids_of_a_trained_model(raster: Path) -> None:
    labels = layer([tilted(30, 20), tilted(60, 30)], ["ship", "barge"])
    objects = objects_from_layer([raster], labels, "kind", oriented=True, names=["ship", "yacht", "barge"])
    assert objects.images[0].labels.tolist() == [0, 2]
    with pytest.raises(LabelError, match="class 'barge', which is none of ship, yacht"):
        objects_from_layer([raster], labels, "kind", oriented=True, names=["ship", "yacht"])
    with pytest.raises(ConfigError, match="yacht stands more than once"):
        objects_from_layer([raster], labels, "kind", oriented=True, names=["yacht", "barge", "yacht"])
    with pytest.raises(LabelError, match="has no field 'sort'"):
        objects_from_layer([raster], labels, "sort", oriented=True)
    with pytest.raises(LabelError, match="is empty"):
        objects_from_layer([raster], labels[:0], "kind", oriented=True)


def scene_objects(scene: Scene, labels: Path, area: Any = None) -> ObjectSet:
    return objects_from_layer([scene.raster], labels, "class", oriented=True, area=area)


def test_the_synthetic_scene_is_a_set_of_objects(tiny_scene: Scene) -> None:
    frame = gpd.read_file(tiny_scene.labels)
    with rasterio.open(tiny_scene.raster) as source:
        left, bottom, right, top = source.bounds
        inverse, size = ~source.transform, source.width
    west = shapely.box(left, bottom, (left + right) / 2, top)
    objects = scene_objects(tiny_scene, tiny_scene.labels, west)
    (one,) = objects.images
    assert dict(zip(objects.table.names, objects.table.counts, strict=True)) == frame["class"].value_counts().to_dict()
    assert (one.picture.width, one.picture.height) == (size // 2, size)
    pixels = [on_map(shape, inverse) for shape in frame.geometry]
    assert gap(one.boxes, [shapely.minimum_rotated_rectangle(shape) for shape in pixels]) < 1e-4
    # Every object is taught by some tile as a whole, since none is longer than the overlap.
    tiles = ObjectTiles(objects, TileSpec(256, min_visible=1.0))
    seen = [tile.boxes[~tile.ignored][:, :2] + tile.window[:2] for tile in tiles]
    assert len(np.unique(np.concatenate(seen).round(3), axis=0)) == len(frame)
    truth = scene_objects(tiny_scene, tiny_scene.truth)
    assert truth.table.names == objects.table.names
    assert set(truth.table.counts) == {4}


@pytest.mark.real_data
def test_trees_of_an_aerial_image_come_back_through_the_map(real_data: Path) -> None:
    """Boxes that people drew in pixels, carried to the map in degrees, are those boxes again."""
    raster = real_data / "rasters" / "deepforest_OSBS_029.tif"
    rows = (raster.with_suffix(".csv")).read_text().splitlines()[1:]
    drawn = np.array([[float(word) for word in row.split(",")[1:5]] for row in rows])
    with rasterio.open(raster) as source:
        transform, crs, size = source.transform, source.crs, source.shape
    frame = gpd.GeoDataFrame(
        {"kind": ["Tree"] * len(drawn)}, geometry=[on_map(shapely.box(*box), transform) for box in drawn], crs=crs
    )
    objects = objects_from_layer([raster], frame.to_crs("EPSG:4326"), "kind", oriented=False)
    (one,) = objects.images
    inside = (drawn[:, 0] < size[1]) & (drawn[:, 1] < size[0]) & (drawn[:, 2] > 0) & (drawn[:, 3] > 0)
    np.testing.assert_allclose(one.boxes, drawn[inside], atol=0.05)
    assert objects.gsd == pytest.approx(0.1, rel=0.02)
    shown = [tile.image.std() for tile in ObjectTiles(objects, TileSpec(128, gsd=0.2))]
    assert min(shown) > 5

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.data.layers import BACKGROUND, chips_from_layer, cut_chips, read_layer
from torchgeo_debias.errors import ConfigError, DataError, LabelError, RasterError
from torchgeo_debias.progress import Progress
from torchgeo_debias.tiling.source import RasterSource

ORIGIN = (500_000.0, 5_000_000.0)
GSD = 2.0
SITE = 'LOCAL_CS["site",UNIT["foot",0.3048]]'


def make_raster(path: Path, array: np.ndarray, origin: tuple[float, float] = ORIGIN, **profile: Any) -> Path:
    gsd = profile.pop("gsd", GSD)
    profile = {"crs": "EPSG:32632", "transform": Affine(gsd, 0, origin[0], 0, -gsd, origin[1]), **profile}
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, **profile
    ) as target:
        target.write(array)
    return path


def coordinates(height: int = 200, width: int = 200) -> np.ndarray:
    """A raster whose bands hold each pixel's own column and row, counted from 1."""
    row, col = np.mgrid[1 : height + 1, 1 : width + 1]
    return np.stack([col, row]).astype(np.uint16)


def at(col: float, row: float, width: float = 0, height: float = 0) -> Any:
    """A point, or box by its upper left corner, given in pixels of the raster, as a map geometry."""
    x, y = ORIGIN[0] + col * GSD, ORIGIN[1] - row * GSD
    if not width:
        return shapely.Point(x, y)
    return shapely.box(x, y - (height or width) * GSD, x + width * GSD, y)


def layer(classes: list[Any], geometries: list[Any], **columns: Any) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"kind": classes, **columns}, geometry=geometries, crs="EPSG:32632")


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raster(tmp_path_factory.mktemp("raster") / "scene.tif", coordinates(), nodata=0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(col=st.integers(-5, 204), row=st.integers(-5, 204), side=st.sampled_from([8, 16, 24]))
def test_a_window_round_a_point_shows_those_pixels(raster: Path, col: int, row: int, side: int) -> None:
    spec = ChipSpec(side, window=side)
    with RasterSource(raster) as source:
        images, valid, kept = cut_chips(source, gpd.GeoSeries([at(col, row)], crs="EPSG:32632"), spec)
    columns, rows = np.arange(side) + col - side // 2 + 1, np.arange(side) + row - side // 2 + 1
    inside = ((rows >= 1) & (rows <= 200))[:, None] & ((columns >= 1) & (columns <= 200))
    assert len(kept) == inside.any()
    if len(kept):
        np.testing.assert_array_equal(valid[0], inside)
        np.testing.assert_array_equal(images[0, 0], np.where(inside, columns, 0))
        np.testing.assert_array_equal(images[0, 1], np.where(inside, rows[:, None], 0))


def test_cut_chips_keeps_the_order_and_drops_what_has_no_data(raster: Path) -> None:
    places = gpd.GeoSeries(
        [at(150, 180), None, at(900, 900), at(20, 30), shapely.Point(), at(100, 5)], crs="EPSG:32632"
    )
    with RasterSource(raster) as source:
        images, _, kept = cut_chips(source, places, ChipSpec(8, window=8))
    assert kept.tolist() == [0, 3, 5]
    assert images[:, 0, 4, 4].tolist() == [151, 21, 101]


def test_polygons_are_fitted_and_sources_are_blocks(raster: Path) -> None:
    objects = layer(["b", "a"], [at(20, 40, 20, 10), at(150, 150, 8)])
    chips = chips_from_layer([raster], objects, "kind", ChipSpec(10, margin=0.25), block=100 * GSD)
    assert chips.table.names == ("a", "b")
    assert chips.labels.tolist() == [1, 0]
    assert chips.sources.tolist() == ["scene:0_0", "scene:1_1"]
    assert chips.spec.gsd == pytest.approx(GSD, rel=0.01)
    assert chips.images.dtype == np.uint16
    assert chips.bands == ("band_1", "band_2")
    # box of 20 x 10 at (20, 40): square of 30 round (30, 45)
    np.testing.assert_allclose(chips.images[0].mean(axis=(1, 2)), [30.5, 45.5], atol=0.3)
    assert np.ptp(chips.images[0, 0]) == pytest.approx(27, abs=1)


def test_windows_are_known_on_the_ground_of_the_first_raster(raster: Path, tmp_path: Path) -> None:
    objects = layer(["b", "a", "a"], [at(20, 40, 20, 10), at(150, 150, 8), at(300, 100, 8)])
    degrees = gpd.GeoSeries([at(280, 80, 60)], crs="EPSG:32632").to_crs(4326).total_bounds
    step = (degrees[2] - degrees[0]) / 100
    east = make_raster(
        tmp_path / "east.tif", coordinates(100, 100), crs="EPSG:4326",
        transform=Affine(step, 0, degrees[0], 0, -step, degrees[3]),
    )  # fmt: skip
    chips = chips_from_layer([raster, east], objects, "kind", ChipSpec(10, margin=0.25))
    assert chips.ground is not None
    expected = [at(15, 30, 30).bounds, at(148, 148, 12).bounds]
    np.testing.assert_allclose(chips.ground[:2], expected)
    # Through degrees: half of the longest side and its margin round the centre, but for the pixels of the raster.
    centre = (chips.ground[2, :2] + chips.ground[2, 2:]) / 2
    np.testing.assert_allclose(centre, at(304, 104).coords[0], atol=2)
    assert np.ptp(chips.ground[2].reshape(2, 2), axis=0).min() >= 12 * GSD * 0.9
    assert chips.subset([2, 0]).ground is not None
    np.testing.assert_array_equal(chips.subset([2, 0]).ground, chips.ground[[2, 0]])


def test_default_blocks_are_eight_windows(raster: Path) -> None:
    objects = layer(["a"] * 3, [at(63, 10), at(65, 10), at(199, 130)])
    chips = chips_from_layer([raster], objects, "kind", ChipSpec(8, window=8))
    assert chips.sources.tolist() == ["scene:0_0", "scene:1_0", "scene:3_2"]


def test_labels_in_another_crs_and_file_formats(raster: Path, tmp_path: Path) -> None:
    objects = layer(["a", "b"], [at(50, 60, 10), at(120, 130, 10)])
    here = chips_from_layer([raster], objects, "kind", ChipSpec(10, window=10))
    for suffix in ("gpkg", "geojson", "shp", "parquet"):
        path = tmp_path / f"labels.{suffix}"
        there = objects.to_crs("EPSG:4326")
        if suffix == "parquet":
            there.to_parquet(path)
        else:
            there.to_file(path)
        chips = chips_from_layer([raster], path, "kind", ChipSpec(10, window=10))
        np.testing.assert_allclose(chips.images.astype(int), here.images.astype(int), atol=1)


def test_multi_points_are_taken_apart_but_multi_polygons_are_not(raster: Path) -> None:
    points = shapely.MultiPoint([at(20, 20), at(100, 100)])
    polygons = shapely.MultiPolygon([at(20, 20, 4), at(40, 20, 4)])
    chips = chips_from_layer([raster], layer(["p", "q"], [points, polygons]), "kind", ChipSpec(8, window=8))
    assert chips.table.counts == (2, 1)
    assert chips.images[chips.labels == 1][0, 0, 4, 4] == 33


def test_metres_are_metres_on_every_raster(tmp_path: Path) -> None:
    coarse = make_raster(tmp_path / "coarse.tif", coordinates())
    fine = make_raster(tmp_path / "fine.tif", coordinates(400, 400), (ORIGIN[0] + 1000, ORIGIN[1]), gsd=0.5)
    objects = layer(["a", "b"], [at(100, 100), shapely.Point(ORIGIN[0] + 1100, ORIGIN[1] - 100)])
    spec = ChipSpec(16, window=32, unit="m")
    chips = chips_from_layer([coarse, fine], objects, "kind", spec)
    assert np.ptp(chips.images[0, 0]) == 15
    assert np.ptp(chips.images[1, 0]) == pytest.approx(60, abs=1)
    assert chips.spec.gsd == pytest.approx(1.25, rel=0.01)


def test_geographic_raster(tmp_path: Path) -> None:
    degrees = 1e-4
    path = make_raster(
        tmp_path / "geo.tif", coordinates(), crs="EPSG:4326", transform=Affine(degrees, 0, 9, 0, -degrees, 45)
    )
    point = gpd.GeoDataFrame({"kind": ["a"]}, geometry=[shapely.Point(9.01, 44.99)], crs="EPSG:4326").to_crs(3857)
    chips = chips_from_layer([path], point, "kind", ChipSpec(8, window=8))
    assert chips.images[0, :, 4, 4].tolist() == [101, 101]
    assert chips.spec.gsd == pytest.approx(9.5, rel=0.05)


def test_overlapping_rasters_give_each_object_once_from_where_there_is_data(tmp_path: Path) -> None:
    array = coordinates()
    array[:, :, 100:] = 0
    west = make_raster(tmp_path / "west.tif", array, nodata=0)
    whole = make_raster(tmp_path / "whole.tif", coordinates(), nodata=0)
    objects = layer(["a", "a"], [at(50, 50), at(150, 50)])
    chips = chips_from_layer([west, whole], objects, "kind", ChipSpec(8, window=8))
    assert [source.split(":")[0] for source in chips.sources] == ["west", "whole"]


def test_objects_without_data_or_class_are_left_out_and_counted(raster: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = layer(
        ["a", None, " ", "a ", "lost", "a"],
        [at(50, 50), at(60, 60), at(70, 70), at(80, 80), at(900, 900), None],
    )
    with caplog.at_level(logging.WARNING):
        chips = chips_from_layer([raster], objects, "kind", ChipSpec(8, window=8))
    assert chips.table.names == ("a",)
    assert chips.table.counts == (2,)
    for sentence in ("1 features without geometry", "2 features without a value", "1 objects outside", "lost"):
        assert sentence in caplog.text


def test_whole_numbers_beside_nulls_are_named_and_ordered_as_numbers(raster: Path) -> None:
    objects = layer([10, None, 2], [at(50, 50), at(60, 60), at(70, 70)])
    assert objects["kind"].dtype == float
    chips = chips_from_layer([raster], objects, "kind", ChipSpec(8, window=8))
    assert chips.table.names == ("2", "10")
    assert chips.labels.tolist() == [1, 0]


def test_background_keeps_clear_of_every_object(raster: Path) -> None:
    # labelled and unlabelled objects alike must not be shown as background
    objects = layer(["a", "b", None], [at(40, 40, 30), at(150, 60, 8), at(60, 130, 60)])
    chips = chips_from_layer([raster], objects, "kind", ChipSpec(16, window=16), background=40)
    assert chips.table.names == ("a", "b", BACKGROUND)
    assert chips.table.groups[2] == "background"
    assert chips.table.counts[2] == 40
    for image in chips.images[chips.labels == 2]:
        (left, top), (right, bottom) = image[:, 0, 0].astype(int) - 1, image[:, -1, -1].astype(int)
        window = shapely.box(left - 4, top - 4, right + 4, bottom + 4)
        assert not any(
            window.intersects(box)
            for box in (shapely.box(40, 40, 70, 70), shapely.box(150, 60, 158, 68), shapely.box(60, 130, 120, 190))
        )


def test_background_is_seeded_and_stays_in_the_area(raster: Path) -> None:
    objects = layer(["a", "a"], [at(20, 20, 10), at(180, 20, 10)])
    west = at(0, 0, 100, 200)

    def cut(seed: int) -> Any:
        return chips_from_layer([raster], objects, "kind", ChipSpec(8), background=25, area=west, seed=seed)

    one = cut(0)
    assert one.table.counts == (1, 25)
    assert one.images[:, 0].max() <= 100
    np.testing.assert_array_equal(one.images, cut(0).images)
    assert (one.images != cut(1).images).any()


@pytest.mark.parametrize("globe", [(-180, -90, 180, 90), (0, -90, 360, 90)])
def test_an_area_wider_than_the_crs_of_a_further_raster_is_cut_to_it(
    raster: Path, tmp_path: Path, globe: tuple[float, float, float, float]
) -> None:
    degrees = gpd.GeoSeries([at(400, 80, 60)], crs="EPSG:32632").to_crs(4326).total_bounds
    step = (degrees[2] - degrees[0]) / 100
    place = Affine(step, 0, degrees[0], 0, -step, degrees[3])
    first = make_raster(tmp_path / "first.tif", coordinates(100, 100), crs="EPSG:4326", transform=place, nodata=0)
    objects = layer(["a"] * 3, [at(20, 30, 10), at(150, 160, 10), at(420, 100, 10)])

    def cut(area: Any) -> Any:
        spec = ChipSpec(8, window=20, unit="m")
        return chips_from_layer([first, raster], objects, "kind", spec, background=20, area=area)

    wide, everywhere = cut(shapely.box(*globe)), cut(None)
    assert wide.table.counts == everywhere.table.counts == (3, 20)
    np.testing.assert_array_equal(wide.sources, everywhere.sources)
    np.testing.assert_array_equal(wide.images, everywhere.images)
    # Where the area ends on the second raster, it ends there: the polar cap down to the middle row of pixels.
    middle = gpd.GeoSeries([at(100, 100)], crs="EPSG:32632").to_crs(4326).y.iloc[0]
    cap = cut(shapely.box(-180, middle, 180, 90))
    second = np.char.startswith(cap.sources, "scene") & (cap.labels == 0)
    assert cap.images[second][:, 1].max() < 50
    assert second.sum() == 1


def test_background_sides_follow_the_objects_when_fitted(raster: Path) -> None:
    objects = layer(["a", "b"], [at(20, 20, 10), at(100, 100, 40)])
    chips = chips_from_layer([raster], objects, "kind", ChipSpec(8, margin=0), background=30)
    spans = np.ptp(chips.images[chips.labels == 2][:, 0].astype(int), axis=(1, 2))
    assert set(np.round(spans / 10)) == {1, 4} or set(np.round(spans / 9)) == {1, 4}


def test_no_room_for_background_is_said(raster: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="no room for background"):
        chips_from_layer([raster], layer(["a"], [at(0, 0, 200)]), "kind", ChipSpec(8, window=8), background=5)


def test_progress_ends_at_the_total(raster: Path) -> None:
    reports: list[Progress] = []
    objects = layer(["a"] * 3, [at(50, 50), at(60, 60), at(900, 60)])
    chips_from_layer([raster], objects, "kind", ChipSpec(8, window=8), background=4, progress=reports.append)
    assert Progress("read chips", 3, 3) in reports
    assert reports[-1] == Progress("read background", 4, 4)
    assert all(0 <= r.done <= r.total for r in reports)


def test_read_layer_keeps_index_and_columns() -> None:
    frame = layer(["a", None], [at(1, 1), at(2, 2)], name=["x", "y"]).set_axis([7, 9])
    assert read_layer(frame).index.tolist() == [7, 9]
    assert read_layer(frame, "kind").index.tolist() == [7]
    assert read_layer(frame)["name"].tolist() == ["x", "y"]


def _file(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.gpkg", r"no layer at .*none\.gpkg"),
        (_file("bad.gpkg", "nonsense"), r"bad\.gpkg cannot be read as a vector layer"),
        (_file("table.csv", "kind,x\na,1\n"), r"table\.csv has no geometry"),
        (lambda _: layer(["a"], [at(1, 1)]).set_crs(None, allow_override=True), "no coordinate reference system"),
        (lambda _: layer(["a"], [at(1, 1)]).set_crs(SITE, allow_override=True), r"without a place on the earth \(site"),
        (lambda _: layer(["a"], [at(1, 1)]).set_crs("ESRI:104905", allow_override=True), "without a place .*Mars"),
        (lambda _: layer(["a"], [at(1, 1)]).set_crs(4978, allow_override=True), "without a place .*WGS 84"),
        (lambda _: layer([], []), "is empty"),
        (lambda _: layer(["a"], [None]), "none has a geometry"),
        (lambda _: layer([None], [at(1, 1)]), "No feature of The layer has a value in the field 'kind'"),
        (lambda _: layer(["a"], [at(1, 1)]).rename(columns={"kind": "type"}), "no field 'kind'; its fields are: type"),
        (lambda _: layer(["a"], [at(1, 1)]).rename(columns={"kind": "type"}), r"fields are: type\.$"),
        (lambda _: layer(["a"], [at(900, 900)]), "No object of The layer lies on a raster: the layer spans"),
        (lambda _: layer(["a"], [at(900, 900)]).to_crs(4326), "EPSG:4326, .*scene.tif .*EPSG:32632"),
    ],
)
def test_bad_layers_are_refused(raster: Path, tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        chips_from_layer([raster], make(tmp_path), "kind", ChipSpec(8, window=8))


def test_other_refusals(raster: Path, tmp_path: Path) -> None:
    objects = layer(["a"], [at(50, 50)])
    spec = ChipSpec(8, window=8)
    with pytest.raises(ConfigError, match="chip window"):
        chips_from_layer([raster], objects, "kind", ChipSpec(8))
    with pytest.raises(ConfigError, match="at least one raster"):
        chips_from_layer([], objects, "kind", spec)
    with pytest.raises(RasterError, match="no coordinate reference system"):
        chips_from_layer([make_raster(tmp_path / "x.tif", coordinates(), crs=None)], objects, "kind", spec)
    three = make_raster(tmp_path / "three.tif", np.ones((3, 20, 20), dtype=np.uint8))
    with pytest.raises(DataError, match=r"three\.tif has 3 bands of uint8 and .*scene\.tif has 2 of uint16"):
        chips_from_layer([raster, three], objects, "kind", spec)
    first, other = (make_raster(tmp_path / name, np.ones((3, 20, 20), "u1")) for name in ("rgb.tif", "turned.tif"))
    for path, names in [(first, "rgb"), (other, "gbr")]:
        with rasterio.open(path, "r+") as target:
            target.descriptions = tuple(names)
    with pytest.raises(DataError, match=r"turned\.tif has the bands of .*rgb\.tif in another order.*--bands 3,1,2;"):
        chips_from_layer([first, other], layer(["a"], [at(5, 5)]), "kind", spec)
    with pytest.raises(LabelError, match="within the given area"):
        chips_from_layer([raster], objects, "kind", spec, area=at(100, 100, 20))
    with pytest.raises(LabelError, match="must have polygons"):
        chips_from_layer([raster], objects, "kind", spec, area=at(100, 100))
    empty = make_raster(tmp_path / "empty.tif", np.zeros((1, 200, 200), dtype=np.uint8), nodata=0)
    with pytest.raises(LabelError, match="lies on nodata"):
        chips_from_layer([empty], objects, "kind", spec)


@pytest.mark.real_data
def test_trees_of_a_real_orthophoto(real_data: Path) -> None:
    folder = real_data / "rasters"
    boxes = pd.read_csv(folder / "deepforest_OSBS_029.csv")
    with RasterSource(folder / "deepforest_OSBS_029.tif") as source:
        corners = [source.transform @ (x, y) for x, y in boxes[["xmin", "ymin"]].to_numpy()]
        ends = [source.transform @ (x, y) for x, y in boxes[["xmax", "ymax"]].to_numpy()]
        geometry = [shapely.box(*a, *b) for a, b in zip(corners, ends, strict=True)]
        trees = gpd.GeoDataFrame(boxes[["label"]], geometry=geometry, crs=source.crs.to_wkt())
        whole, _ = source.read(0, 0, source.width, source.height)
    chips = chips_from_layer(
        [folder / "deepforest_OSBS_029.tif"], trees.to_crs(4326), "label", ChipSpec(32, margin=0.1), background=20
    )
    assert chips.table.names == ("Tree", BACKGROUND)
    assert chips.table.counts[0] == len(boxes)
    assert chips.spec.gsd == pytest.approx(0.1, rel=0.02)
    first = boxes.iloc[0]
    crop = whole[:, first.ymin : first.ymax, first.xmin : first.xmax].mean()
    assert chips.images[0].mean() == pytest.approx(crop, rel=0.1)


def test_plain_tables_beside_the_layer_are_passed_over(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "styled.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="a_table")
    points = gpd.GeoDataFrame({"class": ["a"]}, geometry=[shapely.Point(1, 2)], crs="EPSG:32633")
    points.to_file(path, layer="points", mode="a")
    assert list(read_layer(path)["class"]) == ["a"]
    assert not [w for w in recwarn if "layer" in str(w.message)]


def test_each_raster_is_a_domain(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("optical", "radar")]
    for folder in folders:
        folder.mkdir()
    right = (ORIGIN[0] + 200 * GSD, ORIGIN[1])
    rasters = [  # of one name, as two sensors in their own folders may have
        make_raster(folders[0] / "scene.tif", coordinates()),
        make_raster(folders[1] / "scene.tif", coordinates(), origin=right),
    ]
    things = layer(["a", "b", "a"], [at(50, 50), at(250, 50), at(270, 90)])
    chips = chips_from_layer(rasters, things, "kind", ChipSpec(8, window=8), background=6)
    assert chips.domains is not None
    left = chips.ground[:, 0] < right[0]  # type: ignore[index]
    assert len(set(chips.domains[left])) == len(set(chips.domains[~left])) == 1
    assert len(set(chips.domains)) == 2

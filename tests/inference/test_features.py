from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely import MultiPolygon, Point, box

from tests.inference.fakes import TABLE, ByColour, mosaic
from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import Cancelled, ConfigError, LabelError, OutputError, RasterError
from torchgeo_debias.inference.features import classify_features
from torchgeo_debias.inference.predictor import Prediction
from torchgeo_debias.progress import Progress

IDS = np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]])
FITTED = ChipSpec(size=8, margin=0.0)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """Three by three cells of 20 m."""
    return write_raster(tmp_path / "m.tif", mosaic(IDS, 10))


def footprints(**attributes: Any) -> gpd.GeoDataFrame:
    """One footprint of 16 m in each cell of the raster, in reading order."""
    cells = [
        box(500_002 + x * 20, 5_399_982 - y * 20, 500_018 + x * 20, 5_399_998 - y * 20)
        for y in range(3)
        for x in range(3)
    ]
    return gpd.GeoDataFrame({"name": [f"house {i}" for i in range(9)], **attributes}, geometry=cells, crs=UTM)


def saved(frame: gpd.GeoDataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


def read(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer=path.stem)


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".geojson"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_feature_keeps_its_own_and_gets_a_class(
    tmp_path: Path, raster: Path, ending: str, batch_size: int
) -> None:
    given = footprints(floors=np.arange(9), built=pd.date_range("2020-01-01", periods=9))
    layer = saved(given, tmp_path / "houses.gpkg")
    out = tmp_path / f"out{ending}"
    summary = classify_features(raster, layer, ByColour(FITTED, twin=True), out, batch_size=batch_size)
    found = read(out)
    if ending == ".geojson":
        assert found.crs.to_epsg() == 4326
        found = found.to_crs(UTM)
    assert found.crs.to_epsg() == 32632
    assert found.geometry.geom_equals_exact(given.geometry, 0.02).all()
    for column in ("name", "floors"):
        assert found[column].tolist() == given[column].tolist()
    assert pd.to_datetime(found["built"]).dt.date.tolist() == given["built"].dt.date.tolist()
    assert found["class_id"].tolist() == IDS.ravel().tolist()
    assert found["class"].tolist() == [TABLE.names[i] for i in IDS.ravel()]
    assert found["group"].tolist() == [TABLE.groups[i] for i in IDS.ravel()]
    # The tenth that background had is shared out: 0.7 / 0.9 and 0.4 / 0.8.
    assert found["score"].tolist() == pytest.approx([0.7 / 0.9] * 9)
    assert found["score_raw"].tolist() == pytest.approx([0.4 / 0.8] * 9)
    assert set(found["class_raw"]) == {"red"}
    assert summary.counts == {"red": 3, "green": 3, "blue": 3, "none": 0}
    assert (summary.tiles, summary.skipped, summary.files) == (9, 0, (out,))


def test_features_without_pixels_get_nulls(tmp_path: Path) -> None:
    pixels = mosaic(IDS, 10)
    pixels[:, :10, :10] = 0
    raster = write_raster(tmp_path / "m.tif", pixels, nodata=0)
    frame = footprints()
    frame.loc[8, "geometry"] = box(600_000, 5_399_000, 600_010, 5_399_010)
    model = ByColour(FITTED)
    summary = classify_features(raster, saved(frame, tmp_path / "h.gpkg"), model, tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    missing = found["class"].isna()
    assert missing.tolist() == [True] + [False] * 7 + [True]
    assert found.loc[missing, ["class_id", "score", "group"]].isna().all(axis=None)
    assert (summary.tiles, summary.skipped, len(model.seen)) == (9, 2, 7)
    assert sum(summary.counts.values()) == 7


@pytest.mark.parametrize("shift", [100_000, 0])
def test_a_layer_without_any_pixel_is_refused(tmp_path: Path, shift: float) -> None:
    raster = write_raster(tmp_path / "m.tif", np.zeros((3, 30, 30), np.uint8), nodata=0)
    frame = footprints()
    frame.geometry = frame.translate(shift)
    layer = saved(frame.to_crs("EPSG:4326"), tmp_path / "h.gpkg")
    before = os.listdir(tmp_path)
    with pytest.raises(LabelError, match=r"No feature of .*h\.gpkg .* EPSG:4326, .*m\.tif .* EPSG:32632; check"):
        classify_features(raster, layer, ByColour(FITTED), tmp_path / "out.gpkg")
    assert sorted(os.listdir(tmp_path)) == sorted(before)


def test_bands_of_the_same_names_need_the_same_order(tmp_path: Path, raster: Path) -> None:
    layer = saved(footprints(), tmp_path / "h.gpkg")
    turned = write_raster(tmp_path / "bgr.tif", mosaic(IDS, 10)[::-1])
    with rasterio.open(turned, "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red")
    with pytest.raises(RasterError, match=r"bgr\.tif .*\(blue, green, red\) .*\(red, green, blue\).*--bands 3,2,1\.$"):
        classify_features(turned, layer, ByColour(FITTED), tmp_path / "out.gpkg")
    classify_features(turned, layer, ByColour(FITTED), tmp_path / "out.gpkg", bands=[3, 2, 1])
    assert read(tmp_path / "out.gpkg")["class_id"].tolist() == IDS.ravel().tolist()


def test_the_layer_may_have_another_crs(tmp_path: Path, raster: Path) -> None:
    given = footprints().to_crs("EPSG:4326")
    classify_features(raster, saved(given, tmp_path / "h.geojson"), ByColour(FITTED), tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    assert found.crs.to_epsg() == 4326
    assert found.geometry.geom_equals_exact(given.geometry, 1e-6).all()
    assert found["class_id"].tolist() == IDS.ravel().tolist()


def test_several_rasters_cover_a_layer_together(tmp_path: Path) -> None:
    pixels = mosaic(IDS, 10)
    west = write_raster(tmp_path / "w.tif", pixels[:, :, :10])
    east = write_raster(tmp_path / "e.tif", pixels[:, :, 10:], transform=from_origin(500_020, 5_400_000, 2, 2))
    layer = saved(footprints(), tmp_path / "h.gpkg")
    steps: list[Progress] = []
    classify_features([west, east], layer, ByColour(FITTED), tmp_path / "out.gpkg", progress=steps.append)
    assert read(tmp_path / "out.gpkg")["class_id"].tolist() == IDS.ravel().tolist()
    assert [s.done for s in steps] == [0, 3, 9, 9]


def test_the_first_raster_with_data_has_the_say(tmp_path: Path, raster: Path) -> None:
    red = mosaic(np.zeros((3, 3), dtype=int), 10)
    red[:, :10] = 0
    first = write_raster(tmp_path / "red.tif", red, nodata=0)
    layer = saved(footprints(), tmp_path / "h.gpkg")
    classify_features([first, raster], layer, ByColour(FITTED), tmp_path / "out.gpkg")
    assert read(tmp_path / "out.gpkg")["class_id"].tolist() == [*IDS[0], *[0] * 6]


def test_points_need_a_window(tmp_path: Path, raster: Path) -> None:
    points = footprints()
    points.geometry = points.centroid
    layer = saved(points, tmp_path / "p.gpkg")
    with pytest.raises(ConfigError, match="train with a chip window"):
        classify_features(raster, layer, ByColour(FITTED), tmp_path / "out.gpkg")
    assert not (tmp_path / "out.gpkg").exists()
    classify_features(raster, layer, ByColour(ChipSpec(size=8, window=12, unit="m")), tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    assert found["class_id"].tolist() == IDS.ravel().tolist()
    assert set(found.geom_type) == {"Point"}


def test_mixed_geometries_are_kept(tmp_path: Path, raster: Path) -> None:
    frame = footprints()
    frame.loc[3, "geometry"] = MultiPolygon([frame.geometry[3]])
    frame.loc[5, "geometry"] = Point(500_050, 5_399_970)
    layer = saved(frame, tmp_path / "h.parquet")
    classify_features(raster, layer, ByColour(ChipSpec(size=8, window=8)), tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    assert found.geom_type.tolist() == frame.geom_type.tolist()
    assert found["class_id"].tolist() == IDS.ravel().tolist()


def test_single_and_multi_polygons_become_multi_in_a_geopackage(tmp_path: Path, raster: Path) -> None:
    frame = footprints()
    frame.loc[3, "geometry"] = MultiPolygon([frame.geometry[3]])
    layer = saved(frame, tmp_path / "h.parquet")
    classify_features(raster, layer, ByColour(FITTED), tmp_path / "out.gpkg")
    found = read(tmp_path / "out.gpkg")
    assert set(found.geom_type) == {"MultiPolygon"}
    assert found.area.tolist() == pytest.approx(frame.area.tolist())


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_attributes_that_clash_are_kept_under_another_name(tmp_path: Path, raster: Path, ending: str) -> None:
    frame = footprints(Class=["mine"] * 9, score=7, class_raw="x", fid=5, score_label="taken")
    layer = saved(frame, tmp_path / "h.parquet")
    classify_features(raster, layer, ByColour(FITTED), tmp_path / f"out{ending}")
    found = read(tmp_path / f"out{ending}")
    assert set(found["Class_label"]) == {"mine"}
    assert set(found["score_label_label"]) == {7}
    assert set(found["score_label"]) == {"taken"}
    assert set(found["class_raw_label"]) == {"x"}
    assert set(found["fid_label"]) == {5}
    assert found["class_id"].tolist() == IDS.ravel().tolist()


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_attributes_that_differ_by_case_alone_are_told_apart(tmp_path: Path, raster: Path, ending: str) -> None:
    frame = footprints(Name="second", NAME="third", name_label="taken", Class="a", CLASS="b")
    layer = saved(frame, tmp_path / "h.geojson")
    classify_features(raster, layer, ByColour(FITTED), tmp_path / f"out{ending}")
    found = read(tmp_path / f"out{ending}")
    assert found["name"].tolist() == frame["name"].tolist()
    given = {"Name_label_label": "second", "NAME_label_label_label": "third", "name_label": "taken"}
    for name, value in (given | {"Class_label": "a", "CLASS_label_label": "b"}).items():
        assert set(found[name]) == {value}


def test_a_model_sure_of_background_says_nothing_of_objects(tmp_path: Path, raster: Path) -> None:
    class Sure(ByColour):
        def predict(self, images: Any, valid: Any) -> Prediction:
            return Prediction(np.tile(np.array([0, 0, 0, 1], np.float32), (len(images), 1)))

    classify_features(raster, saved(footprints(), tmp_path / "h.gpkg"), Sure(FITTED), tmp_path / "out.parquet")
    found = read(tmp_path / "out.parquet")
    assert found["score"].tolist() == pytest.approx([1 / 3] * 9)
    assert "none" not in set(found["class"])


def test_refusals_leave_nothing_behind(tmp_path: Path, raster: Path) -> None:
    layer = saved(footprints(), tmp_path / "h.gpkg")
    empty = saved(footprints()[:0], tmp_path / "empty.gpkg")
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "a.gpkg"

    def cancel(progress: Progress) -> None:
        if progress.done == 4:
            raise Cancelled("stopped")

    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ConfigError, "at least one raster", ([], layer, ByColour(FITTED), out), {}),
        (RasterError, "no raster at", (folder / "no.tif", layer, ByColour(FITTED), out), {}),
        (RasterError, "--bands", (raster, layer, ByColour(FITTED, bands=("grey",)), out), {}),
        (RasterError, "trained on int16", (raster, layer, ByColour(FITTED, dtype="int16"), out), {}),
        (LabelError, "empty", (raster, empty, ByColour(FITTED), out), {}),
        (LabelError, "no layer at", (raster, folder / "no.gpkg", ByColour(FITTED), out), {}),
        (OutputError, "must end in", (raster, layer, ByColour(FITTED), folder / "a.shp"), {}),
        (OutputError, "destroy the input", (raster, layer, ByColour(FITTED), layer), {}),
        (ZeroDivisionError, "", (raster, layer, ByColour(FITTED, fail_at=1), out), {"batch_size": 4}),
        (Cancelled, "stopped", (raster, layer, ByColour(FITTED), out), {"batch_size": 4, "progress": cancel}),
    ]
    for kind, words, arguments, options in cases:
        with pytest.raises(kind, match=words):
            classify_features(*arguments, **options)
        assert os.listdir(folder) == []


@pytest.mark.real_data
def test_tree_boxes_of_neon(real_data: Path, tmp_path: Path) -> None:
    raster = real_data / "rasters" / "deepforest_OSBS_029.tif"
    boxes = pd.read_csv(raster.with_suffix(".csv"))
    with_crs = gpd.GeoDataFrame(boxes, geometry=_on_map(boxes, raster), crs="EPSG:32617")
    out = tmp_path / "trees.gpkg"
    summary = classify_features(raster, saved(with_crs, tmp_path / "t.gpkg"), ByColour(FITTED), out)
    found = read(out)
    assert len(found) == len(boxes) == summary.tiles
    assert summary.skipped == 0
    assert found["class"].isin(TABLE.names[:3]).all()
    assert found["xmin"].tolist() == boxes["xmin"].tolist()


def _on_map(boxes: pd.DataFrame, raster: Path) -> list[Any]:
    with rasterio.open(raster) as dataset:
        t = dataset.transform
    return [
        box(t.c + b.xmin * t.a, t.f + b.ymax * t.e, t.c + b.xmax * t.a, t.f + b.ymin * t.e) for b in boxes.itertuples()
    ]


def test_memory_is_one_batch(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "m.tif", noise((3, 30, 30)))
    frame = gpd.GeoDataFrame(geometry=[footprints().geometry[4]] * 200, crs=UTM)
    model = ByColour(FITTED)
    classify_features(raster, saved(frame, tmp_path / "h.gpkg"), model, tmp_path / "out.gpkg", batch_size=16)
    assert model.calls == [16] * 12 + [8]

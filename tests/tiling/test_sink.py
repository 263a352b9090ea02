from __future__ import annotations

import importlib.util
import json
import os
import resource
import sqlite3
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import rasterio.shutil
from shapely import LineString, Point, box

from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.tiling import sink as sink_module
from torchgeo_debias.tiling.palette import palette
from torchgeo_debias.tiling.sink import ClassMapSink, VectorSink
from torchgeo_debias.tiling.source import RasterSource

FIELDS = {"class": "str", "class_id": "Int32", "score": "float64"}
TABLE = ClassTable.from_counts({"sea & sky": 50, "ship <1>": 9, "none": 90, 'pad "x"': 1}, background="none")


def features(n: int, start: int = 0) -> gpd.GeoDataFrame:
    ids = np.arange(start, start + n)
    columns = {
        "class": pd.Series([TABLE.names[i % 4] for i in ids], dtype="str"),
        "class_id": pd.array(ids % 4, dtype="Int32"),
        "score": ids / (start + n),
    }
    cells = [box(500_000 + i, 5_400_000, 500_001 + i, 5_400_001) for i in ids.tolist()]
    return gpd.GeoDataFrame(columns, geometry=cells, crs=UTM)


def _write_and_fail(sink: VectorSink) -> None:
    sink.write(features(3))
    raise KeyError


def _write_and_stop(sink: ClassMapSink) -> None:
    sink.write(0, np.zeros((10, 270), dtype=int))
    raise ValueError("stop")


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Writing more than ``size`` bytes to one file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".geojson", ".GPKG"])
@pytest.mark.parametrize("flush", [5, 10_000])
def test_parts_come_back_as_one_layer(tmp_path: Path, ending: str, flush: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "_FLUSH_ROWS", flush)
    path = tmp_path / f"map of things{ending}"
    with VectorSink(path, UTM, FIELDS, table=TABLE) as sink:
        for start in range(0, 21, 3):
            sink.write(features(3, start))
        assert not path.exists()
    found = gpd.read_parquet(path) if ending == ".parquet" else gpd.read_file(path, layer="map of things")
    wanted = pd.concat([features(3, start) for start in range(0, 21, 3)], ignore_index=True)
    if ending == ".geojson":
        assert found.crs.to_epsg() == 4326
        assert found.total_bounds[0] == pytest.approx(9.0, abs=1e-3)
        found = found.to_crs(UTM)
    assert found.crs.to_epsg() == 32632
    assert found.geometry.geom_equals_exact(wanted.geometry, 0.02).all()
    for field in FIELDS:
        assert found[field].tolist() == pytest.approx(wanted[field].tolist())
    assert os.listdir(tmp_path) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".geojson"])
def test_an_empty_layer_has_its_fields(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"none{ending}"
    with VectorSink(path, UTM, FIELDS, table=TABLE):
        pass
    found = gpd.read_parquet(path) if ending == ".parquet" else gpd.read_file(path, layer="none")
    assert len(found) == 0
    assert ending == ".geojson" or list(found.columns) == [*FIELDS, "geometry"]


def test_geopackage_is_of_version_1_2_and_styled(tmp_path: Path) -> None:
    path = tmp_path / "objects.gpkg"
    with VectorSink(path, UTM, FIELDS, table=TABLE) as sink:
        sink.write(features(4))
    assert {name for name, _ in pyogrio.list_layers(path)} == {"objects", "layer_styles"}
    assert pyogrio.read_info(path, layer="objects")["geometry_type"] == "Polygon"
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10200,)
        row = database.execute(
            "SELECT f_table_schema, f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
    ((schema, layer, column, default, qml),) = row
    assert (schema, layer, column, default) == ("", "objects", "geom", 1)
    style = ET.fromstring(qml.split("\n", 1)[1])
    renderer = style.find("renderer-v2")
    assert renderer is not None
    assert renderer.get("attr") == "class"
    assert [c.get("value") for c in renderer.iter("category")] == list(TABLE.names)
    colours = [o.get("value") for o in renderer.iter("Option") if o.get("name") == "color"]
    assert colours == [f"{r},{g},{b},255" for r, g, b in palette(4, TABLE.background)]


@pytest.mark.parametrize(
    ("geometry_type", "geometry", "layer"),
    [
        ("Point", Point(0, 0), "SimpleMarker"),
        ("MultiPoint Z", Point(0, 0, 1), "SimpleMarker"),
        ("LineString", LineString([(0, 0), (1, 1)]), "SimpleLine"),
        ("Unknown", Point(0, 0), None),
    ],
)
def test_style_goes_by_geometry(tmp_path: Path, geometry_type: str, geometry: Any, layer: str | None) -> None:
    path = tmp_path / "a.gpkg"
    row = features(1).set_geometry([geometry], crs=UTM)
    with VectorSink(path, UTM, FIELDS, geometry_type, TABLE) as sink:
        sink.write(row)
    names = {name for name, _ in pyogrio.list_layers(path)}
    assert names == ({"a", "layer_styles"} if layer else {"a"})
    if layer:
        with sqlite3.connect(path) as database:
            assert f'class="{layer}"' in database.execute("SELECT styleQML FROM layer_styles").fetchone()[0]


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".geojson"])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_FLUSH_ROWS", 1)
    path = tmp_path / f"a{ending}"
    path.write_text("old")
    with pytest.raises(KeyError), VectorSink(path, UTM, FIELDS, table=TABLE) as sink:
        _write_and_fail(sink)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("ending", "flush"), [(".gpkg", 1), (".gpkg", 10_000), (".parquet", 1), (".geojson", 1)])
@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, ending: str, flush: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_FLUSH_ROWS", flush)
    path = tmp_path / f"a{ending}"
    _write_all(path)
    needed = path.stat().st_size
    path.unlink()
    with disk_of(int(needed * share)), pytest.raises(OutputError, match=f"a{ending} failed, is the disk full"):
        _write_all(path)
    assert os.listdir(tmp_path) == []


def _write_all(path: Path) -> None:
    with VectorSink(path, UTM, FIELDS, table=TABLE) as sink:
        for start in range(0, 3000, 500):
            sink.write(features(500, start))


def test_refuses_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.gpkg").mkdir()
    for path, words in [
        (tmp_path / "a.shp", "must end in .gpkg, .parquet, .geojson"),
        (tmp_path / "missing" / "a.gpkg", "existing folder"),
        (tmp_path / "folder.gpkg", "is a folder"),
        (Path("/proc/a.gpkg"), "existing folder"),
    ]:
        with pytest.raises(OutputError, match=words):
            VectorSink(path, UTM, FIELDS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torchgeo-debias\[parquet\]"):
        VectorSink(tmp_path / "a.parquet", UTM, FIELDS)
    assert os.listdir(tmp_path) == ["folder.gpkg"]


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return write_raster(folder / "in.tif", noise((1, 300, 270)))


@pytest.mark.parametrize(
    ("classes", "dtype", "nodata"), [(4, "uint8", 255), (255, "uint8", 255), (256, "uint16", 65535)]
)
def test_class_map(tmp_path: Path, raster: Path, classes: int, dtype: str, nodata: int) -> None:
    table = ClassTable.from_counts({f"class {i}": i + 1 for i in range(classes)}, background="class 1")
    path = tmp_path / "map.tif"
    ids = np.random.default_rng(0).integers(0, classes, (300, 270))
    with RasterSource(raster) as source, ClassMapSink(path, source, table) as sink:
        ids[5:9, 5:9] = sink.nodata
        for row in range(0, 300, 77):
            sink.write(row, ids[row : row + 77])
    with rasterio.open(path) as found, rasterio.open(raster) as given:
        assert (found.crs, found.transform, found.bounds, found.shape) == (
            given.crs,
            given.transform,
            given.bounds,
            given.shape,
        )
        assert (found.dtypes[0], found.nodata) == (dtype, nodata)
        assert found.profile["tiled"]
        np.testing.assert_array_equal(found.read(1), ids)
        colours = found.colormap(1)
        assert [colours[i][:3] for i in range(classes)] == palette(classes, table.background)
        assert json.loads(found.tags()["CLASS_NAMES"]) == list(table.names)
    assert sorted(os.listdir(tmp_path)) == ["in", "map.tif", "map.tif.aux.xml"]
    rasterio.shutil.copy(path, tmp_path / "seen.vrt", driver="VRT")
    names = [c.text for c in ET.parse(tmp_path / "seen.vrt").iter("Category")]
    assert names == list(table.names)


def test_class_map_is_all_or_nothing(tmp_path: Path, raster: Path) -> None:
    path = tmp_path / "map.tif"
    with RasterSource(raster) as source:
        with pytest.raises(ValueError, match="stop"), ClassMapSink(path, source, TABLE) as sink:
            _write_and_stop(sink)
        with pytest.raises(OutputError, match=r"must end in \.tif"):
            ClassMapSink(tmp_path / "map.png", source, TABLE)
        assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.999])
def test_class_map_on_a_full_disk(tmp_path: Path, raster: Path, share: float) -> None:
    path = tmp_path / "map.tif"
    _write_map(path, raster)
    needed = path.stat().st_size
    path.unlink()
    (tmp_path / "map.tif.aux.xml").unlink()
    with disk_of(int(needed * share)), pytest.raises(OutputError, match="is the disk full"):
        _write_map(path, raster)
    assert os.listdir(tmp_path) == ["in"]


def _write_map(path: Path, raster: Path) -> None:
    with RasterSource(raster) as source, ClassMapSink(path, source, TABLE) as sink:
        sink.write(0, np.random.default_rng(0).integers(0, 4, (300, 270)))

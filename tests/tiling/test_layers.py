from __future__ import annotations

import datetime
import json
import os
import sqlite3
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyogrio.raw import write_arrow
from pyproj import CRS
from shapely import LineString, MultiPoint, Point, Polygon, box

from tests.tiling.disks import disk_of, small_disk
from tests.tiling.rasters import UTM
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import Cancelled, OutputError
from torchgeo_debias.tiling import layers
from torchgeo_debias.tiling.layers import VECTOR_FORMATS, check_layer_path, write_layer
from torchgeo_debias.tiling.palette import palette

FIELDS = {"class": "string", "class_id": "Int32", "score": "float64"}
TABLE = ClassTable.from_counts({"sea & sky": 50, "ship <1>": 9, "none": 90, 'pad "x"': 1}, background="none")

every_format = pytest.mark.parametrize("ending", VECTOR_FORMATS)
every_ogr_format = pytest.mark.parametrize("ending", [".gpkg", ".fgb", ".geojson"])


def features(n: int, start: int = 0) -> gpd.GeoDataFrame:
    ids = np.arange(start, start + n)
    columns = {
        "class": pd.Series([TABLE.names[i % 4] for i in ids], dtype="string"),
        "class_id": pd.array(ids % 4, dtype="Int32"),
        "score": ids / 7,
    }
    cells = [box(500_000 + i, 5_400_000, 500_001 + i, 5_400_001) for i in ids.tolist()]
    return gpd.GeoDataFrame(columns, geometry=cells, crs=UTM)


def write(path: Path, *parts: gpd.GeoDataFrame, **options: Any) -> int:
    given: dict[str, Any] = {"crs": UTM, "fields": FIELDS, "table": TABLE}
    return write_layer(path, parts, **given | options)


def read(path: Path) -> gpd.GeoDataFrame:
    """In the order of the geometries from west to east, since FlatGeobuf stores them in one of its own."""
    found = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer=path.stem)
    return found.iloc[found.geometry.bounds["minx"].argsort(kind="stable")].reset_index(drop=True)


@pytest.mark.parametrize("ending", [*VECTOR_FORMATS, ".GPKG"])
@pytest.mark.parametrize("rows", [5, 10_000])
def test_parts_come_back_as_one_layer(tmp_path: Path, ending: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", rows)
    path = tmp_path / f"map of things{ending}"

    def parts() -> Iterator[gpd.GeoDataFrame]:
        for start, end in [(0, 0), (0, 3), (3, 3), (3, 4), (4, 18), (18, 21)]:
            yield features(end - start, start)
            assert not path.exists()

    assert write_layer(path, parts(), crs=UTM, fields=FIELDS, table=TABLE) == 21
    found, wanted = read(path), features(21)
    if ending == ".geojson":
        assert found.crs.to_epsg() == 4326
        assert found.total_bounds[0] == pytest.approx(9.0, abs=1e-3)
        found = found.to_crs(UTM)
    assert found.crs.to_epsg() == 32632
    assert found.geometry.hausdorff_distance(wanted.geometry).max() < 0.02
    for field in FIELDS:
        assert found[field].tolist() == pytest.approx(wanted[field].tolist())
    assert os.listdir(tmp_path) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(0, 9), max_size=8), rows=st.integers(1, 10))
def test_batches_hold_all_features_in_order_and_no_more_than_they_may(lengths: list[int], rows: int) -> None:
    starts = np.cumsum([0, *lengths])
    parts = [features(n, start) for n, start in zip(lengths, starts.tolist(), strict=False)]
    encoder = layers._Encoder(Path("a.fgb"), features(1), CRS(UTM), "Polygon", "FlatGeobuf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_BATCH_ROWS", rows)
        batches = list(encoder.batches(layers._merged(parts)))
    scores = [score for batch in batches for score in batch["score"].to_pylist()]
    assert scores == (np.arange(starts[-1]) / 7).tolist()
    assert all(batch.num_rows <= rows for batch in batches)
    # At worst every other batch is short.
    assert len(batches) <= 2 * (starts[-1] // rows) + 1
    assert encoder.rows == encoder.located == starts[-1]


def test_parts_are_pulled_one_batch_ahead_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", 10)
    made = 0

    def parts() -> Iterator[gpd.GeoDataFrame]:
        nonlocal made
        for made in range(1, 101):
            yield features(5, 5 * made)

    encoded: list[int] = []
    encode = layers._Encoder._encode

    def spy(self: Any, frame: gpd.GeoDataFrame) -> Any:
        encoded.append(made - (len(encoded) + 1) * 2)
        return encode(self, frame)

    monkeypatch.setattr(layers._Encoder, "_encode", spy)
    for ending in VECTOR_FORMATS:
        encoded.clear()
        assert write_layer(tmp_path / f"a{ending}", parts(), crs=UTM, fields=FIELDS) == 500
        assert encoded == [0] * 50


@every_format
def test_an_empty_layer_has_its_fields(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"none{ending}"
    assert write(path) == 0
    found = gpd.read_parquet(path) if ending == ".parquet" else gpd.read_file(path, layer="none")
    assert len(found) == 0
    # GeoJSON has no fields without features.
    assert ending == ".geojson" or list(found.columns) == [*FIELDS, "geometry"]
    if ending == ".parquet":
        assert found.dtypes[list(FIELDS)].astype(str).to_dict() == FIELDS
    assert found.crs.to_epsg() == (4326 if ending == ".geojson" else 32632)


def test_geopackage_is_of_version_1_2_indexed_and_styled(tmp_path: Path) -> None:
    path = tmp_path / "objects.gpkg"
    write(path, features(4))
    assert {name for name, _ in pyogrio.list_layers(path)} == {"objects", "layer_styles"}
    assert pyogrio.read_info(path, layer="objects")["geometry_type"] == "Polygon"
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10200,)
        assert database.execute("SELECT count(*) FROM rtree_objects_geom").fetchone() == (4,)
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
    write(path, features(1).set_geometry([geometry], crs=UTM), geometry_type=geometry_type)
    names = {name for name, _ in pyogrio.list_layers(path)}
    assert names == ({"a", "layer_styles"} if layer else {"a"})
    if layer:
        with sqlite3.connect(path) as database:
            assert f'class="{layer}"' in database.execute("SELECT styleQML FROM layer_styles").fetchone()[0]


def test_geoparquet_says_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", 1)
    path = tmp_path / "a.parquet"
    shapes = [Point(3, 4), None, Polygon(), Point(-1, 5, 9), MultiPoint([(0, 0), (7, 1)])]
    write(path, features(5).set_geometry(gpd.GeoSeries(shapes, crs=UTM)), geometry_type="Unknown")
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    (column,) = geo["columns"].values()
    assert (geo["version"], geo["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["geometry_types"] == ["MultiPoint", "Point", "Point Z"]
    assert column["bbox"] == [-1, 0, 7, 5]
    assert CRS.from_json_dict(column["crs"]) == CRS(UTM)
    assert gpd.read_parquet(path).geometry.to_wkt().tolist()[3] == "POINT Z (-1 5 9)"
    # Readers that know nothing of GeoParquet but the extension types of Arrow see the geometry as well.
    assert gpd.GeoDataFrame.from_arrow(pq.read_table(path)).crs.to_epsg() == 32632


def attributes() -> gpd.GeoDataFrame:
    """Of three features, the second with nothing but nulls where the type has them."""
    days = pd.Series(["2020-01-01", None, "2021-06-07"])
    columns: dict[str, Any] = {
        "text": pd.Series(["a", None, 'ü \n"{'], dtype="string"),
        "objects": pd.Series(["a", None, "c"], dtype="object"),
        "category": pd.Categorical(["a", None, "b"]),
        "uint8": np.array([0, 1, 255], dtype="uint8"),
        "uint64": np.array([0, 1, 2**60], dtype="uint64"),
        "int64": np.array([0, 1, -(2**60)]),
        "Int16": pd.array([1, None, 3], dtype="Int16"),
        "float32": np.array([0.5, np.nan, 2], dtype="float32"),
        "bool": [True, False, True],
        "boolean": pd.array([True, None, False], dtype="boolean"),
        "moment": pd.to_datetime(days) + pd.Timedelta("1h"),
        "zoned": pd.to_datetime(days).dt.tz_localize("Europe/Berlin"),
        "day": [datetime.date(2020, 1, 1), None, datetime.date(2021, 6, 7)],
        "list": [[1, 2], None, []],
        "names": [["a"], None, ["b", "c"]],
        "struct": [{"a": 1, "b": [{"c": "x"}]}, None, {"a": 2, "b": []}],
        "duration": pd.to_timedelta(["1h", None, "3s"]),
        "nothing": [None, None, None],
        "mixed": ["a", None, 1.5],
    }
    return gpd.GeoDataFrame(columns, geometry=[Point(i, 0) for i in range(3)], crs="EPSG:4326")


@every_ogr_format
def test_attributes_of_every_type_survive_in_gis_formats(tmp_path: Path, ending: str) -> None:
    given = attributes()
    path = tmp_path / f"a{ending}"
    write(path, given, crs=given.crs, geometry_type="Point")
    found = read(path)
    assert list(found.columns) == list(given.columns)
    for name in ("text", "objects", "category"):
        assert found[name].isna().tolist() == [False, True, False]
        assert found[name].dropna().tolist() == given[name].dropna().tolist()
    for name in ("uint8", "uint64", "int64", "bool"):
        assert found[name].tolist() == given[name].tolist(), name
    for name in ("Int16", "float32", "boolean"):
        assert found[name].astype("Float64").tolist() == given[name].astype("Float64").tolist(), name
    assert found["moment"].tolist() == given["moment"].tolist()
    assert found["zoned"].tolist() == given["zoned"].dt.tz_convert("UTC").tolist()
    assert pd.to_datetime(found["day"]).dt.date.dropna().tolist() == [given["day"][0], given["day"][2]]
    for name in ("list", "names", "struct"):
        values = [json.loads(v) if isinstance(v, str) else v for v in (found[name][0], found[name][2])]
        assert [list(v) if isinstance(v, np.ndarray) else v for v in values] == [given[name][0], given[name][2]], name
    assert found["duration"].dropna().tolist() == ["1:00:00", "0:00:03"]
    assert found["nothing"].isna().all()
    assert found["mixed"].dropna().tolist() == ["a", "1.5"]


def test_geoparquet_keeps_types(tmp_path: Path) -> None:
    given = attributes()
    write(tmp_path / "a.parquet", given, given, crs=given.crs)
    found = gpd.read_parquet(tmp_path / "a.parquet")
    assert list(found.columns) == list(given.columns)
    kept = [name for name in given if name not in ("geometry", "objects", "list", "names", "struct", "mixed")]
    wanted = pd.concat([given, given], ignore_index=True)
    pd.testing.assert_frame_equal(pd.DataFrame(found[kept]), pd.DataFrame(wanted[kept]))
    assert [list(v) for v in found["list"].dropna()] == [[1, 2], []] * 2


@every_format
def test_a_column_that_begins_with_nulls_has_the_type_of_what_follows(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", 2)
    given = features(6)
    given["days"] = [None, None, None, None, 7, 8]
    given["days"] = given["days"].astype("object")
    write(tmp_path / f"a{ending}", given)
    assert read(tmp_path / f"a{ending}")["days"].dropna().tolist() == [7, 8]


@every_format
def test_values_of_another_type_in_a_later_part_are_refused(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", 2)
    other = features(2).assign(score="high")
    with pytest.raises(OutputError, match="type that differs from the first ones"):
        write(tmp_path / f"a{ending}", features(2), other)
    assert os.listdir(tmp_path) == []


@every_format
@pytest.mark.parametrize("depth", ["", " Z"])
def test_single_geometries_become_multi_where_the_layer_is(tmp_path: Path, ending: str, depth: str) -> None:
    z = (5,) if depth else ()
    square = Polygon([(9, 1, *z), (9.5, 1, *z), (9.5, 2, *z)])
    given = features(2).set_geometry(gpd.GeoSeries([square, square.union(square)], crs="EPSG:4326"))
    write(tmp_path / f"a{ending}", given, crs="EPSG:4326", geometry_type=f"MultiPolygon{depth}")
    found = read(tmp_path / f"a{ending}")
    assert set(found.geom_type) == {"MultiPolygon"}
    assert found.has_z.all() == bool(depth)
    assert found.set_crs(None, allow_override=True).area.tolist() == pytest.approx([0.25, 0.25])


def test_the_name_of_the_geometry_and_further_geometries_are_kept(tmp_path: Path) -> None:
    given = features(3).rename_geometry("outline")
    given["centre"] = given.centroid
    write(tmp_path / "a.parquet", given)
    found = gpd.read_parquet(tmp_path / "a.parquet")
    assert found.active_geometry_name == "outline"
    assert found["centre"].tolist() == given["centre"].to_wkt().tolist()
    write(tmp_path / "a.gpkg", given)
    assert read(tmp_path / "a.gpkg")["centre"].tolist() == given["centre"].to_wkt().tolist()


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".fgb"])
def test_a_crs_without_a_number_survives(tmp_path: Path, ending: str) -> None:
    crs = CRS.from_proj4("+proj=laea +lat_0=47.3 +lon_0=8.1 +datum=WGS84 +units=m")
    write(tmp_path / f"a{ending}", features(2).set_crs(crs, allow_override=True), crs=crs)
    assert read(tmp_path / f"a{ending}").to_crs("EPSG:4326").total_bounds == pytest.approx(
        features(2).set_crs(crs, allow_override=True).to_crs("EPSG:4326").total_bounds
    )


@every_format
@pytest.mark.parametrize("error", [KeyError("x"), Cancelled("stop"), OSError("of the source"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_error_of_a_part_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, ending: str, error: BaseException, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", 2)
    path = tmp_path / f"a{ending}"
    path.write_text("old")

    def parts() -> Iterator[gpd.GeoDataFrame]:
        for i in range(before):
            yield features(3, 3 * i)
        raise error

    with pytest.raises(type(error)) as caught:
        write_layer(path, parts(), crs=UTM, fields=FIELDS)
    assert caught.value is error
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "old"


def thousands(path: Path) -> int:
    return write(path, *(features(500, start) for start in range(0, 3000, 500)))


@every_format
@pytest.mark.parametrize("rows", [500, 10_000])
@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, ending: str, rows: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_BATCH_ROWS", rows)
    path = tmp_path / f"a{ending}"
    thousands(path)
    needed = path.stat().st_size
    path.unlink()
    with (
        disk_of(int(needed * share)),
        pytest.raises(OutputError, match=f"a{ending} failed, is the disk full.*[^.]\\.$"),
    ):
        thousands(path)
    assert os.listdir(tmp_path) == []


@every_format
def test_on_a_disk_of_any_size_there_is_either_the_whole_file_or_none(tmp_path: Path, ending: str) -> None:
    whole = tmp_path / f"a{ending}"
    thousands(whole)
    needed = whole.stat().st_size
    outcomes = set()
    for share in (0.05, 0.3, 0.6, 0.9, 0.97, 1.02, 1.3, 1.9, 2.5):
        with small_disk(tmp_path / "disk", int(needed * share)) as disk:
            try:
                thousands(disk / whole.name)
            except OutputError:
                assert os.listdir(disk) == []
                outcomes.add("none")
            else:
                found, wanted = read(disk / whole.name), read(whole)
                assert found.drop(columns="geometry").equals(wanted.drop(columns="geometry"))
                assert found.geometry.geom_equals(wanted.geometry).all()
                outcomes.add("whole")
    assert outcomes == {"whole", "none"}


@every_ogr_format
def test_what_gdal_fails_to_write_in_silence_is_noticed(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(reader: Any, file: Path, **options: Any) -> None:
        write_arrow(reader, file, **options)
        if ending == ".gpkg":
            with sqlite3.connect(file) as database:
                database.execute("DELETE FROM rtree_a_geom WHERE id = 7")
        else:
            os.truncate(file, file.stat().st_size - 40)

    monkeypatch.setattr(layers, "write_arrow", forgetful)
    with pytest.raises(OutputError, match="is the disk full"):
        write(tmp_path / f"a{ending}", features(30))
    assert os.listdir(tmp_path) == []


def test_refuses_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.gpkg").mkdir()
    (tmp_path / "so!").mkdir()

    def parts() -> Iterator[gpd.GeoDataFrame]:
        raise AssertionError("asked for features")
        yield

    for path, words in [
        (tmp_path / "a.shp", "must end in .gpkg, .parquet, .fgb, .geojson"),
        (tmp_path / "missing" / "a.gpkg", "existing folder"),
        (tmp_path / "folder.gpkg", "is a folder"),
        (Path("/proc/a.gpkg"), "existing folder"),
        (tmp_path / f"{'x' * 243}.gpkg", "a shorter name"),
        (tmp_path / f"{'x' * 300}.gpkg", "a shorter name"),
        (tmp_path / os.fsdecode(b"\xff.gpkg"), "UTF-8"),
        (tmp_path / "a\0b.gpkg", "UTF-8"),
        (tmp_path / "so!" / "a.gpkg", "has the character '!'"),
    ]:
        with pytest.raises(OutputError, match=words):
            check_layer_path(path)
        with pytest.raises(OutputError, match=words):
            write_layer(path, parts(), crs=UTM, fields=FIELDS)
    assert sorted(os.listdir(tmp_path)) == ["folder.gpkg", "so!"]

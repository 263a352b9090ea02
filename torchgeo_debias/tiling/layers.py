"""Writing vector layers of any length in batches, whatever the format."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from pyogrio.raw import write_arrow
from pyproj import CRS

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import OutputError
from torchgeo_debias.tiling.geopackage import (
    add_default_style,
    check_closed,
    class_style,
    count_rows,
    remove_journals,
)
from torchgeo_debias.tiling.staging import Staging, check_target, destination

VECTOR_FORMATS = (".gpkg", ".parquet", ".fgb", ".geojson")

_BATCH_ROWS = 20_000
# GDAL's errors come as RuntimeError and as subclasses of it.
_WRITE_ERRORS = (RuntimeError, pa.ArrowException, sqlite3.Error)

_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
_OPTIONS: dict[str, dict[str, Any]] = {
    # GDAL 3.6, which QGIS 3.40 has on Debian, warns about GeoPackages newer than 1.2.
    "GPKG": {"dataset_options": {"VERSION": "1.2"}, "layer_options": {"SPATIAL_INDEX": "YES"}},
    "FlatGeobuf": {"layer_options": {"SPATIAL_INDEX": "YES"}},
    "GeoJSON": {"layer_options": {"RFC7946": "YES"}},
}
# Names that GDAL or SQLite refuse, or that are taken by the table of styles.
_NO_LAYER = re.compile(r"\W|gpkg|sqlite_|layer_styles$", re.IGNORECASE)
# What pyogrio takes for something else than a part of a path.
_NO_FOLDER = set("!\n\r\t")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_JSON_FIELD = {"ARROW:extension:name": "arrow.json", "ARROW:extension:metadata": ""}

# In the order of shapely's type ids; a linear ring is stored as a line.
_KINDS = (
    "Point",
    "LineString",
    "LineString",
    "Polygon",
    "MultiPoint",
    "MultiLineString",
    "MultiPolygon",
    "GeometryCollection",
)
_COLLECT: dict[shapely.GeometryType, Any] = {
    shapely.GeometryType.POINT: shapely.multipoints,
    shapely.GeometryType.LINESTRING: shapely.multilinestrings,
    shapely.GeometryType.POLYGON: shapely.multipolygons,
}


def check_layer_path(path: Path) -> None:
    """Refuse a name under which no layer can be written, before any work is done for it.

    Raises:
        OutputError: If the ending is not one of :data:`VECTOR_FORMATS`, no file can have the name, the folder takes no
            files, or another program writes to the GeoPackage that is there.
    """
    path = Path(path)
    check_target(path, VECTOR_FORMATS)
    target = destination(path)
    if path.suffix.lower() in _DRIVERS and (odd := _NO_FOLDER.intersection(str(target.parent))):
        raise OutputError(
            f"Cannot write {str(path)!r}: its folder has the character {min(odd)!r} in its name; choose another one."
        )
    if path.suffix.lower() == ".gpkg":
        check_closed(target)


def write_layer(
    path: Path,
    parts: Iterable[gpd.GeoDataFrame],
    *,
    crs: Any,  # noqa: ANN401 - whatever pyproj understands
    fields: Mapping[str, Any],
    geometry_type: str = "Polygon",
    table: ClassTable | None = None,
) -> int:
    """Write features as they come; the file name's ending chooses the format.

    - ``.gpkg``: GeoPackage 1.2 with one layer named like the file (``layer_`` goes before names that no layer can
      have, such as ``gpkg_`` or ``-1``), a spatial index and, given a class table, a default
      style that colours it in QGIS.
    - ``.parquet``: GeoParquet 1.1, geometry as WKB.
    - ``.fgb``: FlatGeobuf with a spatial index, in the order of which the features are stored.
    - ``.geojson``: GeoJSON after RFC 7946, which knows only longitude and latitude: **geometry is reprojected to
      EPSG:4326**.

    Parts may be of any length; some twenty thousand features are in memory at a time, besides what GDAL keeps of every
    feature for a spatial index: about 70 bytes for GeoPackage and 250 for FlatGeobuf. An existing file is replaced only
    when the new one is complete; after an error, one raised by ``parts`` included, nothing is left behind.

    GeoParquet keeps every type that Arrow has. In the other formats lists and structures become JSON, times with a
    zone become UTC, and durations become text.

    Args:
        path: Final name.
        parts: Features in ``crs``, all with the same fields. Empty parts are passed over.
        crs: Of every geometry.
        fields: pandas dtype by field name of a layer that stays empty; otherwise the first part has the say.
        geometry_type: OGR name such as ``Polygon`` or ``MultiPolygon Z``; ``Unknown`` where mixed. For a ``Multi``
            type, single geometries become collections of one.
        table: Classes for the style, which goes by the field ``class``.

    Returns:
        Number of features written.

    Raises:
        OutputError: If the ending is unknown, the folder cannot be written to, the disk takes no more, or a later part
            has values of another type than the first.
    """
    path = Path(path)
    check_layer_path(path)
    driver = _DRIVERS.get(path.suffix.lower())
    layer = _layer_name(path)
    with Staging(path, _WRITE_ERRORS) as staging:
        frames = _merged(staging.watch(parts))
        first = next(frames, None)
        if first is None:
            columns = {name: pd.Series(dtype=dtype) for name, dtype in fields.items()}
            first = gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries([], crs=crs), crs=crs)
        encoder = _Encoder(path, first, CRS.from_user_input(crs), geometry_type, driver)
        batches = staging.watch(encoder.batches(chain([first], frames)))
        if driver is None:
            _write_parquet(staging.file, encoder, batches)
        else:
            _write_ogr(staging.file, layer, encoder, batches, driver, geometry_type)
        if driver == "GPKG":
            if table is not None and (style := class_style(table, geometry_type)) is not None:
                add_default_style(staging.file, layer, style)
            check_closed(staging.target)
            remove_journals(staging.target)
    return encoder.rows


def _merged(parts: Iterable[gpd.GeoDataFrame]) -> Iterator[gpd.GeoDataFrame]:
    """Parts joined until they make up a batch at least, since every batch has a cost of its own."""
    waiting: list[gpd.GeoDataFrame] = []
    for part in parts:
        if len(part):
            waiting.append(part)
        if sum(map(len, waiting)) >= _BATCH_ROWS:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


class _Encoder:
    """Turns features into Arrow batches that all have the schema of the first ones, and keeps count of them.

    Attributes:
        schema: Of the batches; the geometry, as WKB, comes last.
        geometry: Name of its column.
        crs: Of the geometry in the batches.
        rows: Features so far.
        located: Those of them whose geometry is neither missing nor empty.
        kinds: Types of geometry so far, as GeoParquet calls them.
        bounds: (left, bottom, right, top) of all so far; NaN while there is none.
    """

    def __init__(self, path: Path, first: gpd.GeoDataFrame, crs: CRS, geometry_type: str, driver: str | None) -> None:
        self._path = path
        self._multi = geometry_type.startswith("Multi")
        self.geometry = str(first.active_geometry_name)
        self.crs = CRS.from_epsg(4326) if driver == "GeoJSON" else crs
        self._texts: list[str] = []
        self._texts = [str(name) for name, column in self._attributes(first).items() if _is_mixed(column)]
        self._given = pa.Schema.from_pandas(self._attributes(first), preserve_index=False)
        kept = self._given if driver is None else pa.schema([_ogr_field(field) for field in self._given])
        wkb = {
            "ARROW:extension:name": "geoarrow.wkb",
            "ARROW:extension:metadata": json.dumps({"crs": self.crs.to_json_dict()}),
        }
        self.schema = kept.append(pa.field(self.geometry, pa.binary(), metadata=wkb))
        self.rows = self.located = 0
        self.kinds: set[str] = set()
        self.bounds = np.full(4, np.nan)

    def batches(self, frames: Iterable[gpd.GeoDataFrame]) -> Iterator[pa.RecordBatch]:
        for frame in frames:
            for start in range(0, len(frame), _BATCH_ROWS):
                # Columns of joined parts come in a chunk a part, of which each would become a batch.
                yield from self._encode(frame.iloc[start : start + _BATCH_ROWS]).combine_chunks().to_batches()

    def _encode(self, frame: gpd.GeoDataFrame) -> pa.Table:
        try:
            given = pa.Table.from_pandas(self._attributes(frame), self._given, preserve_index=False)
            columns = [_converted(column, field.type) for column, field in zip(given, self.schema, strict=False)]
        except pa.ArrowException as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise OutputError(
                f"Cannot write {self._path}: an attribute has values of a type that differs from the first ones or "
                f"that the format does not hold ({reason})."
            ) from error
        geometries = self._geometries(frame)
        self._count(geometries)
        wkb = pa.array(shapely.to_wkb(geometries, flavor="iso"), pa.binary())
        return pa.Table.from_arrays([*columns, wkb], schema=self.schema)

    def _attributes(self, frame: gpd.GeoDataFrame) -> pd.DataFrame:
        columns = {str(name): column for name, column in frame.items() if name != frame.active_geometry_name}
        for name, column in columns.items():
            if isinstance(column, gpd.GeoSeries):
                columns[name] = column.to_wkt()
            elif name in self._texts:
                columns[name] = column.astype("string")
        return pd.DataFrame(columns, index=frame.index)

    def _geometries(self, frame: gpd.GeoDataFrame) -> npt.NDArray[np.object_]:
        geometries: npt.NDArray[np.object_] = np.array(frame.geometry.to_crs(self.crs).array)
        if self._multi:
            kinds = shapely.get_type_id(geometries)
            for kind, collect in _COLLECT.items():
                single = np.flatnonzero(kinds == kind)
                geometries[single] = collect(geometries[single], indices=np.arange(len(single)))
        return geometries

    def _count(self, geometries: npt.NDArray[np.object_]) -> None:
        located = geometries[~(shapely.is_missing(geometries) | shapely.is_empty(geometries))]
        self.rows += len(geometries)
        self.located += len(located)
        for deep in (False, True):
            ids = shapely.get_type_id(located[shapely.has_z(located) == deep])
            self.kinds |= {_KINDS[i] + " Z" * deep for i in np.unique(ids)}
        if len(located):
            left, bottom, right, top = shapely.total_bounds(located)
            self.bounds[:2] = np.fmin(self.bounds[:2], (left, bottom))
            self.bounds[2:] = np.fmax(self.bounds[2:], (right, top))


def _is_mixed(column: pd.Series) -> bool:
    """Whether a column has objects of several types, which no format holds but as text."""
    try:
        pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return True
    return False


def _ogr_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, _ogr_type(field.type), metadata=_JSON_FIELD if pa.types.is_nested(field.type) else None)


def _ogr_type(given: pa.DataType) -> pa.DataType:
    """The type nearest to ``given`` that OGR can make a field of."""
    if pa.types.is_dictionary(given):
        return _ogr_type(given.value_type)
    if pa.types.is_nested(given) or pa.types.is_duration(given) or pa.types.is_null(given):
        return pa.string()
    if pa.types.is_timestamp(given) and given.tz is not None:
        return pa.timestamp(given.unit, "UTC")
    return pa.int64() if pa.types.is_uint64(given) else given


def _converted(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if column.type == wanted:
        return column
    if pa.types.is_nested(column.type):
        texts = [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
    elif pa.types.is_duration(column.type):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
    else:
        return column.cast(wanted)
    return pa.chunked_array([texts], wanted)


def _write_parquet(file: Path, encoder: _Encoder, batches: Iterator[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(file, encoder.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
        # https://geoparquet.org/releases/v1.1.0/
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": sorted(encoder.kinds),
            "crs": encoder.crs.to_json_dict(),
        }
        if encoder.located:
            column["bbox"] = encoder.bounds.tolist()
        geo = {"version": "1.1.0", "primary_column": encoder.geometry, "columns": {encoder.geometry: column}}
        writer.add_key_value_metadata({"geo": json.dumps(geo)})


def _layer_name(path: Path) -> str:
    name = _CONTROL.sub("_", path.stem)
    return f"layer_{name}" if _NO_LAYER.match(name) else name


def _write_ogr(
    file: Path, layer: str, encoder: _Encoder, batches: Iterator[pa.RecordBatch], driver: str, geometry_type: str
) -> None:
    epsg = encoder.crs.to_epsg()
    write_arrow(
        pa.RecordBatchReader.from_batches(encoder.schema, batches),
        file,
        layer=layer,
        driver=driver,
        geometry_name=encoder.geometry,
        geometry_type=geometry_type,
        crs=f"EPSG:{epsg}" if epsg else encoder.crs.to_wkt(),
        **_OPTIONS[driver],
    )
    # GDAL may report no failure to write the last part of a file, or its index, on a full disk.
    if not _is_complete(file, layer, encoder, driver):
        raise OSError("the file read back lacks features or their index")


def _is_complete(file: Path, layer: str, encoder: _Encoder, driver: str) -> bool:
    if driver == "GPKG":
        index = f"rtree_{layer}_geom_rowid"
        return (count_rows(file, layer), count_rows(file, index)) == (encoder.rows, encoder.located)
    if driver == "FlatGeobuf":
        return _read_last_number(file) == encoder.rows
    with file.open("rb") as lines:
        features, end = 0, [b"", b""]
        for line in lines:
            features += line.startswith(b'{ "type": "Feature", ')
            end = [end[1], line]
    return features == encoder.rows and [line.strip() for line in end] == [b"]", b"}"]


def _read_last_number(flatgeobuf: Path) -> int | None:
    """How many features the header tells of, if the last of them can be read; so the file has its full length."""
    found: int = pyogrio.read_info(flatgeobuf, force_feature_count=True)["features"]
    if not found:
        return 0
    try:
        last = pyogrio.read_dataframe(flatgeobuf, fids=[found - 1])
    except (RuntimeError, ValueError):
        return None
    return found if len(last) == 1 else None

"""Opening a vector layer and checking that it can serve as labels or as features."""

from __future__ import annotations

import logging
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from torchgeo_debias.errors import LabelError

_log = logging.getLogger(__name__)


def read_layer(source: Path | gpd.GeoDataFrame, class_field: str | None = None) -> gpd.GeoDataFrame:
    """Read a vector layer and check that it can serve as labels or as features to classify.

    Features without geometry and, where ``class_field`` is given, without a class are left out and counted in the
    log. Everything else, the index included, stays as it is.

    Args:
        source: A file that GDAL's vector drivers open (GeoPackage, GeoJSON, Shapefile ...; its first layer with
            geometries), a GeoParquet file, or a frame.
        class_field: Name of the class attribute; None for features without classes. Its values become text without
            surrounding blanks; whole numbers lose a ``.0``.

    Returns:
        The features that are of use, at least one.

    Raises:
        LabelError: If the file is missing or unreadable, the layer has no CRS on the earth or no feature of use, or
            there is no such field.
    """
    name, frame = open_layer(source)
    return frame if class_field is None else with_class(name, frame, class_field)


def open_layer(source: Path | gpd.GeoDataFrame) -> tuple[str, gpd.GeoDataFrame]:
    """The name of a layer for error sentences, and its features that have a geometry; see :func:`read_layer`."""
    name, frame = ("The layer", source) if isinstance(source, gpd.GeoDataFrame) else (str(source), _read(Path(source)))
    if not len(frame):
        raise LabelError(f"{name} is empty: it has no feature.")
    if not isinstance(frame, gpd.GeoDataFrame) or frame.active_geometry_name is None:
        raise LabelError(f"{name} has no geometry, only a table; give a layer of points, boxes or polygons.")
    if frame.crs is None:
        raise LabelError(f"{name} has no coordinate reference system; assign the right one to the layer first.")
    if not _on_earth(frame.crs):
        raise LabelError(
            f"{name} has a coordinate reference system without a place on the earth ({frame.crs.name}); assign the "
            "right one to the layer first."
        )
    usable = ~(frame.geometry.isna() | frame.geometry.is_empty)
    if not usable.any():
        raise LabelError(f"{name} has {len(frame)} features, but none has a geometry.")
    if not usable.all():
        _log.warning("%s: left out %d features without geometry.", name, int((~usable).sum()))
    return name, frame[usable]


def with_class(name: str, frame: gpd.GeoDataFrame, class_field: str) -> gpd.GeoDataFrame:
    """The features of ``frame`` that have a class, which becomes text; see :func:`read_layer`."""
    if class_field not in frame or class_field == frame.active_geometry_name:
        fields = ", ".join(str(c) for c in frame.columns if c != frame.active_geometry_name)
        raise LabelError(f"{name} has no field {class_field!r}; its fields are: {fields or 'none'}.")
    values = frame[class_field]
    if pd.api.types.is_float_dtype(values.dtype) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # whole numbers beside nulls arrive as floats
    classes = values.astype("string").str.strip().replace("", pd.NA)
    if classes.isna().all():
        raise LabelError(f"No feature of {name} has a value in the field {class_field!r}.")
    if classes.isna().any():
        _log.warning("%s: left out %d features without a value in %s.", name, int(classes.isna().sum()), class_field)
    return frame.assign(**{class_field: classes})[classes.notna()]


def _on_earth(crs: CRS) -> bool:
    try:
        Transformer.from_crs(crs, "EPSG:4326")
    except ProjError:  # of another planet
        return False
    return bool(crs.is_geographic or crs.is_projected)


def _read(path: Path) -> gpd.GeoDataFrame:
    if not path.exists():
        raise LabelError(f"There is no layer at {path}; check the path.")
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            return gpd.read_parquet(path)
        return pyogrio.read_dataframe(path, layer=_first_spatial(path))
    except ImportError as error:
        raise LabelError(f"{path} is a Parquet file, which needs pyarrow: install torchgeo-debias[parquet].") from error
    except (DataSourceError, DataLayerError, OSError, ValueError) as error:
        raise LabelError(f"{path} cannot be read as a vector layer ({error}); give another file.") from error


def _first_spatial(path: Path) -> str:
    """Name of the first layer with geometries; beside it a GeoPackage may hold plain tables, such as its styles."""
    layers = pyogrio.list_layers(path)
    spatial = [str(name) for name, kind in layers if kind is not None]
    if len(spatial) > 1:
        _log.warning("%s has the layers %s; reading %s.", path, ", ".join(spatial), spatial[0])
    return spatial[0] if spatial else str(layers[0][0])

"""Writing layers and class maps so that a file under its final name is always complete."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import rasterio
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.tiling.geopackage import add_default_style, class_style, has_table
from torchgeo_debias.tiling.palette import palette
from torchgeo_debias.tiling.source import RasterSource

VECTOR_FORMATS = (".gpkg", ".parquet", ".geojson")
RASTER_FORMATS = (".tif", ".tiff")

_FLUSH_ROWS = 20_000
_WRITE_ERRORS = (OSError, DataLayerError, DataSourceError, RasterioError, sqlite3.Error)


class _Sink:
    """A file that is written in a folder of its own beside the target and moved there once it is complete."""

    def __init__(self, path: Path, formats: tuple[str, ...]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in formats:
            raise OutputError(f"Cannot write {self.path}: the name must end in {', '.join(formats)}.")
        if self.path.is_dir():
            raise OutputError(f"Cannot write {self.path}: it is a folder; give the name of a file.")
        try:
            # In the same folder, since only within one file system does a move happen at once.
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path}: {error.strerror or error}; choose an existing folder you may write to."
            ) from error
        self._staged = self._folder / self.path.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._complete()
                self._publish()
            else:
                self._abandon()
        except _WRITE_ERRORS as failure:
            raise self._failed(failure) from failure
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _complete(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Let go of open files before their folder is removed."""

    def _publish(self) -> None:
        companions = [file for file in self._folder.iterdir() if file != self._staged]
        for file in [*companions, self._staged]:
            os.replace(file, self.path.with_name(file.name))

    def _failed(self, failure: BaseException) -> OutputError:
        reason = " ".join(str(failure).split()).rstrip(".")
        return OutputError(f"Writing {self.path} failed, is the disk full? Nothing was left behind ({reason}).")


class VectorSink(_Sink):
    """A layer of features, written in parts; the file name's ending chooses the format.

    - ``.gpkg``: GeoPackage 1.2 with one layer named like the file and, given a class table, a default style that
      colours it in QGIS. Parts go to the disk as they come.
    - ``.parquet``: GeoParquet, which needs the ``parquet`` extra. Parts wait in memory until the end.
    - ``.geojson``: GeoJSON after RFC 7946, which knows only longitude and latitude: **geometry is reprojected to
      EPSG:4326**. Parts wait in memory until the end.

    An existing file is replaced as a whole, and only when the new one is complete.
    """

    def __init__(
        self,
        path: Path,
        crs: Any,  # noqa: ANN401 - whatever pyproj understands
        fields: Mapping[str, Any],
        geometry_type: str = "Polygon",
        table: ClassTable | None = None,
    ) -> None:
        """Check that the file can be written and begin it.

        Args:
            path: Final name.
            crs: Of every geometry to come.
            fields: pandas dtype by field name of a layer that stays empty; otherwise the first part has the say.
            geometry_type: OGR name such as ``Polygon`` or ``MultiPolygon``; ``Unknown`` where mixed.
            table: Classes for the style, which goes by the field ``class``.

        Raises:
            OutputError: If the ending is unknown or the folder cannot be written to.
            ConfigError: If a GeoParquet file is wanted but pyarrow is not installed.
        """
        if Path(path).suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            raise ConfigError(
                f"Writing {path} needs pyarrow; install it with 'pip install torchgeo-debias[parquet]' or choose .gpkg."
            )
        columns = {name: pd.Series(dtype=dtype) for name, dtype in fields.items()}
        self._empty = gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries([], crs=crs), crs=crs)
        super().__init__(path, VECTOR_FORMATS)
        self._format = self.path.suffix.lower()
        self._geometry_type = geometry_type
        self._table = table
        self._parts: list[gpd.GeoDataFrame] = []
        self._waiting = self._rows = 0
        self._begun = False

    def write(self, features: gpd.GeoDataFrame) -> None:
        """Add features in the CRS of the sink, all parts with the same fields.

        Raises:
            OutputError: If the disk takes no more.
        """
        self._parts.append(features)
        self._waiting += len(features)
        self._rows += len(features)
        if self._format == ".gpkg" and self._waiting >= _FLUSH_ROWS:
            try:
                self._append()
            except _WRITE_ERRORS as failure:
                raise self._failed(failure) from failure

    def _complete(self) -> None:
        if self._format == ".gpkg":
            self._append()
            self._check()
            style = None if self._table is None else class_style(self._table, self._geometry_type)
            if style is not None:
                add_default_style(self._staged, self.path.stem, style)
            return
        features = self._take()
        if self._format == ".parquet":
            features.to_parquet(self._staged)
            return
        pyogrio.write_dataframe(
            features.to_crs("EPSG:4326"),
            self._staged,
            driver="GeoJSON",
            layer=self.path.stem,
            geometry_type=self._geometry_type,
            layer_options={"RFC7946": "YES"},
        )
        self._check()

    def _append(self) -> None:
        # GDAL 3.6, which QGIS 3.40 has on Debian, warns about GeoPackages newer than 1.2.
        options = {} if self._begun else {"dataset_options": {"VERSION": "1.2"}}
        pyogrio.write_dataframe(
            self._take(),
            self._staged,
            driver="GPKG",
            layer=self.path.stem,
            geometry_type=self._geometry_type,
            promote_to_multi=self._geometry_type.startswith("Multi"),
            append=self._begun,
            **options,
        )
        self._begun = True

    def _check(self) -> None:
        # GDAL may report no failure to write the last part of a file, or the index, on a full disk.
        found = pyogrio.read_info(self._staged, layer=self.path.stem, force_feature_count=True)["features"]
        indexed = self._format != ".gpkg" or has_table(self._staged, f"rtree_{self.path.stem}_geom")
        if found != self._rows or not indexed:
            raise OSError("the file read back lacks features or their index")

    def _take(self) -> gpd.GeoDataFrame:
        parts = self._parts or [self._empty]
        self._parts, self._waiting = [], 0
        return gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), crs=self._empty.crs)


class ClassMapSink(_Sink):
    """A GeoTIFF of class ids on the pixel grid of a raster, written in bands of rows.

    uint8 with nodata 255, or uint16 with nodata 65535 for more than 255 classes; tiled, deflate, with a colour table.
    Class names are in the metadata item ``CLASS_NAMES`` (JSON, in the order of ids) and, for the legend of GIS
    programs, as category names in the companion file ``<name>.aux.xml``.

    Attributes:
        dtype: Of the ids.
        nodata: Stands where there is no class.
    """

    def __init__(self, path: Path, raster: RasterSource, table: ClassTable) -> None:
        """Check that the file can be written and begin it.

        Args:
            path: Final name, ``.tif`` or ``.tiff``.
            raster: Gives size, CRS and transform.
            table: The classes.

        Raises:
            OutputError: If the ending is another one or the folder cannot be written to.
        """
        super().__init__(path, RASTER_FORMATS)
        classes = len(table.names)
        self.dtype = np.dtype(np.uint8 if classes <= 255 else np.uint16)
        self.nodata = 255 if classes <= 255 else 65535
        self._table = table
        self._width = raster.width
        self._pixels = np.zeros(self.nodata, dtype=np.int64)
        try:
            self._dataset = rasterio.open(
                self._staged,
                "w",
                driver="GTiff",
                width=raster.width,
                height=raster.height,
                count=1,
                dtype=self.dtype,
                crs=raster.crs,
                transform=raster.transform,
                nodata=self.nodata,
                compress="deflate",
                tiled=True,
                blockxsize=256,
                blockysize=256,
                bigtiff="if_safer",
            )
            colours = palette(classes, table.background)
            self._dataset.write_colormap(1, {i: (*c, 255) for i, c in enumerate(colours)} | {self.nodata: (0, 0, 0, 0)})
            self._dataset.set_band_description(1, "class")
            self._dataset.update_tags(CLASS_NAMES=json.dumps(table.names))
        except _WRITE_ERRORS as failure:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self._failed(failure) from failure

    def write(self, row_off: int, ids: npt.NDArray[np.integer[Any]]) -> None:
        """Write full rows.

        Args:
            row_off: First row, pixels.
            ids: (rows, width of the raster), class ids or :attr:`nodata`.

        Raises:
            OutputError: If the disk takes no more.
        """
        self._pixels += self._count(ids)
        try:
            self._dataset.write(ids.astype(self.dtype), 1, window=Window(0, row_off, self._width, len(ids)))
        except _WRITE_ERRORS as failure:
            raise self._failed(failure) from failure

    def _complete(self) -> None:
        self._dataset.close()
        self._check()
        names = ET.Element("PAMDataset")
        categories = ET.SubElement(ET.SubElement(names, "PAMRasterBand", band="1"), "CategoryNames")
        for name in self._table.names:
            ET.SubElement(categories, "Category").text = name
        ET.ElementTree(names).write(self._staged.with_name(f"{self._staged.name}.aux.xml"), encoding="utf-8")

    def _abandon(self) -> None:
        self._dataset.close()

    def _check(self) -> None:
        # GDAL keeps blocks in memory and reports no failure to write them on closing: a full disk goes unnoticed.
        found = np.zeros_like(self._pixels)
        with rasterio.open(self._staged) as dataset:
            for _, window in dataset.block_windows(1):
                found += self._count(dataset.read(1, window=window))
        if not np.array_equal(found, self._pixels):
            raise OSError("the file read back differs from what was written")

    def _count(self, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        return np.bincount(ids.ravel(), minlength=self.nodata)[: self.nodata]

"""Reading any window of a georeferenced raster, with a mask of the pixels that hold data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import rasterio
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioIOError
from rasterio.transform import xy
from rasterio.windows import Window

from torchgeo_debias.errors import RasterError

KEPT_DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types that are passed on as they are; every other real type becomes float32."""

_NAMELESS = (ColorInterp.undefined, ColorInterp.gray, ColorInterp.palette)


class RasterSource:
    """An open raster, read window by window; use it as a context manager.

    A pixel holds data (is *valid*) where the alpha band, if there is one, is above 0, where the mask band, if there
    is one, says so, and where it is not nodata. In rasters of unsigned integers a pixel is nodata where **every** band
    read has the nodata value, since 0 and 255 are ordinary values of a single band; in signed and float rasters, whose
    nodata lies outside the range of the data, where **any** band has it.

    Attributes:
        path: The file.
        width: Columns, pixels.
        height: Rows, pixels.
        crs: Coordinate reference system (``rasterio.crs.CRS``).
        transform: Affine from pixel (column, row), measured from the outer corner, to map coordinates in ``crs``.
        dtype: Type of the pixels that :meth:`read` returns, one of :data:`KEPT_DTYPES`.
        bands: The bands read, counted from 1.
        band_names: Of the bands read: their description, else their colour (``red``), else ``band_1`` and so on.
        gsd: Metres on the ground per pixel, mean of both axes. For a geographic CRS, or a projected one whose unit is
            more than 1 % off a metre on the ground (such as Web Mercator), measured at the centre of the raster.
        bounds: (left, bottom, right, top) in ``crs``.
    """

    def __init__(self, path: Path, bands: Sequence[int] | None = None, nodata: float | None = None) -> None:
        """Open the raster and check that it can be placed on the earth.

        Args:
            path: Any raster that GDAL opens.
            bands: Bands to read, counted from 1; every band but alpha where left out. An alpha band that is named
                here is read as data and masks nothing.
            nodata: Takes the place of the nodata value in the file; NaN is added to it instead.

        Raises:
            RasterError: If the file is missing, unreadable, without CRS or position, rotated, of complex numbers, or
                lacks one of ``bands``.
        """
        self.path = Path(path)
        self._dataset = _open(self.path)
        try:
            self._check_place()
            self._choose_bands(bands)
        except RasterError:
            self._dataset.close()
            raise
        dataset = self._dataset
        self.width: int = dataset.width
        self.height: int = dataset.height
        self.crs: Any = dataset.crs
        self.transform: Any = dataset.transform
        self.bounds: tuple[float, float, float, float] = tuple(dataset.bounds)
        self._nodata, self._nan_is_nodata = self._nodata_values(nodata)

    @property
    def count(self) -> int:
        """Number of bands read."""
        return len(self.bands)

    def order_of(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """The bands that would be read in the order of ``names``, where the order is now another.

        Args:
            names: Wanted :attr:`band_names`.

        Returns:
            Bands counted from 1; None where they are in this order, where the names are not the same, or where they
            are mere numbers in an order that was asked for, which says more than such names do.
        """
        own = self.band_names
        if own == tuple(names) or sorted(own) != sorted(names) or len(set(own)) < len(own):
            return None
        if self._bands_given and own == tuple(f"band_{i}" for i in self.bands):
            return None
        return tuple(self.bands[own.index(name)] for name in names)

    def read(
        self, col_off: int, row_off: int, width: int, height: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Read one window, which may lie partly or wholly outside the raster.

        Args:
            col_off: First column, may be negative.
            row_off: First row, may be negative.
            width: Columns, positive.
            height: Rows, positive.

        Returns:
            Pixels (C, height, width) of :attr:`dtype`, 0 where invalid, and the mask (height, width), True where a
            pixel holds data.

        Raises:
            RasterError: If the file is broken here, or holds NaN although NaN is not its nodata value.
        """
        image = np.zeros((self.count, height, width), dtype=self.dtype)
        valid = np.zeros((height, width), dtype=bool)
        left, top = max(col_off, 0), max(row_off, 0)
        right, bottom = min(col_off + width, self.width), min(row_off + height, self.height)
        if left >= right or top >= bottom:
            return image, valid
        rows, columns = slice(top - row_off, bottom - row_off), slice(left - col_off, right - col_off)
        image[:, rows, columns], valid[rows, columns] = self._read_inside(Window(left, top, right - left, bottom - top))
        return image, valid

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_place(self) -> None:
        dataset = self._dataset
        if dataset.count == 0:
            example = shlex.quote((dataset.subdatasets or ["NAME"])[0])
            raise RasterError(
                f"{self.path} holds no bands of its own; save one of its sub-datasets as GeoTIFF first, for example "
                f"with: gdal_translate {example} one.tif"
            )
        no_crs = (
            f"{self.path} has no coordinate reference system on the earth; assign the right one first, for example "
            "with 'gdal_edit.py -a_srs EPSG:32632'."
        )
        if dataset.crs is None or not (dataset.crs.is_geographic or dataset.crs.is_projected):
            raise RasterError(no_crs)
        if dataset.transform.is_identity:
            raise RasterError(f"{self.path} has no position on the map; georeference it first.")
        if not dataset.transform.is_rectilinear or dataset.transform.b or dataset.transform.d:
            raise RasterError(f"{self.path} is rotated or sheared on the map; straighten it first with 'gdalwarp'.")
        try:
            self.gsd = _gsd(dataset)
        except ProjError as error:
            raise RasterError(no_crs) from error

    def _choose_bands(self, bands: Sequence[int] | None) -> None:
        dataset = self._dataset
        colours = dataset.colorinterp
        self._alpha = [i for i, colour in zip(dataset.indexes, colours, strict=True) if colour == ColorInterp.alpha]
        self._bands_given = bands is not None
        if bands is None:
            bands = [i for i in dataset.indexes if i not in self._alpha]
        if not bands or not set(bands) <= set(dataset.indexes):
            raise RasterError(
                f"{self.path} has {dataset.count} bands; --bands must name some of 1 to {dataset.count}, "
                f"received {', '.join(map(str, bands)) or 'none'}."
            )
        self.bands: tuple[int, ...] = tuple(bands)
        # GDAL takes the near infrared of many four-band files for alpha; who names that band wants its values.
        self._alpha = [i for i in self._alpha if i not in self.bands]
        stored = np.result_type(*(dataset.dtypes[i - 1] for i in self.bands))
        if stored.kind not in "uif":
            raise RasterError(f"{self.path} holds {stored} values; convert it to real numbers first.")
        self.dtype: np.dtype[Any] = stored if stored.name in KEPT_DTYPES else np.dtype(np.float32)
        self.band_names: tuple[str, ...] = tuple(
            dataset.descriptions[i - 1] or (f"band_{i}" if colours[i - 1] in _NAMELESS else str(colours[i - 1].name))
            for i in self.bands
        )
        flags = [set(dataset.mask_flag_enums[i - 1]) for i in self.bands]
        own_kinds = ({MaskFlags.all_valid}, {MaskFlags.nodata})
        self._has_mask_band = any(f not in own_kinds and MaskFlags.alpha not in f for f in flags)

    def _nodata_values(self, override: float | None) -> tuple[list[float | None], bool]:
        declared: list[float | None] = [self._dataset.nodatavals[i - 1] for i in self.bands]
        nan = any(value is not None and math.isnan(value) for value in (*declared, override))
        if override is not None and not math.isnan(override):
            declared = [override] * self.count
        return [None if value is None or math.isnan(value) else value for value in declared], nan

    def _read_inside(self, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        try:
            stored = self._dataset.read(self.bands, window=window)
            valid = np.ones(stored.shape[1:], dtype=bool)
            for band in self._alpha:
                valid &= self._dataset.read(band, window=window) > 0
            if self._has_mask_band:
                valid &= self._dataset.read_masks(self.bands, window=window).all(axis=0)
        except RasterioIOError as error:
            raise RasterError(
                f"{self.path} cannot be read at columns {window.col_off} to {window.col_off + window.width}, rows "
                f"{window.row_off} to {window.row_off + window.height}: the file seems damaged; get a fresh copy."
            ) from error
        valid &= ~self._is_nodata(stored)
        if stored.dtype.kind == "f":
            valid &= self._finite(stored, valid)
        image = stored.astype(self.dtype, copy=False)
        image[:, ~valid] = 0
        return image, valid

    def _is_nodata(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if all(value is None for value in self._nodata):
            return np.zeros(stored.shape[1:], dtype=bool)
        hits = np.zeros(stored.shape, dtype=bool)
        with np.errstate(over="ignore"):
            for hit, band, value in zip(hits, stored, self._nodata, strict=True):
                if value is not None:
                    # In the file's own type: -3.4e38 is declared as a double but stored as a float.
                    hit[:] = band == (stored.dtype.type(value) if stored.dtype.kind == "f" else value)
        every = stored.dtype.kind == "u"
        combined: npt.NDArray[np.bool_] = (np.logical_and if every else np.logical_or).reduce(hits, axis=0)
        return combined

    def _finite(self, stored: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        finite: npt.NDArray[np.bool_] = np.isfinite(stored).all(axis=0)
        if not self._nan_is_nodata and not finite[valid].all():
            raise RasterError(
                f"{self.path} holds NaN or infinite pixels that are not declared as nodata; add '--nodata nan' to "
                "leave them out."
            )
        return finite


def extent(bounds: Sequence[float], crs: CRS | rasterio.crs.CRS) -> str:
    """A rectangle (left, bottom, right, top) in ``crs``, of rasterio or pyproj, in words for a sentence."""
    left, bottom, right, top = bounds
    return f"({left:.6g}, {bottom:.6g}) to ({right:.6g}, {top:.6g}) in {crs.to_string()}"


def _open(path: Path) -> rasterio.DatasetReader:
    if not path.exists():
        raise RasterError(f"There is no raster at {path}; check the path.")
    try:
        return rasterio.open(path)
    except (RasterioIOError, CRSError) as error:
        raise RasterError(f"{path} cannot be opened as a raster; check that it is a complete image file.") from error


def _gsd(dataset: rasterio.DatasetReader) -> float:
    rows = dataset.height / 2 + np.array([0, 0, -0.5, 0.5])
    columns = dataset.width / 2 + np.array([-0.5, 0.5, 0, 0])
    to_degrees = Transformer.from_crs(CRS.from_wkt(dataset.crs.to_wkt()), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*xy(dataset.transform, rows, columns, offset="ul"))
    _, _, metres = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    ground = float(np.mean(metres))
    if dataset.crs.is_geographic:
        return ground
    across, down = dataset.res
    nominal: float = (across + down) / 2 * dataset.crs.linear_units_factor[1]
    return ground if abs(ground / nominal - 1) > 0.01 else nominal

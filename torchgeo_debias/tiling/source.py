"""Reading any window of a georeferenced raster, with a mask of the pixels that hold data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.crs
import shapely
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioIOError
from rasterio.transform import Affine
from rasterio.windows import Window

from torchgeo_debias.errors import RasterError
from torchgeo_debias.tiling._base import GridSource, Turn
from torchgeo_debias.tiling._place import extent, outline, place_crs, upright, widened
from torchgeo_debias.tiling._validity import KEPT_DTYPES, Nodata, kept_dtype, settle
from torchgeo_debias.tiling._warped import Resampler
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box

__all__ = ["KEPT_DTYPES", "RasterSource", "Source", "extent"]

_NAMELESS = (ColorInterp.undefined, ColorInterp.gray, ColorInterp.palette)


class Source(Protocol):
    """Pixels on a grid, read window by window; use it as a context manager.

    One thread at a time may use a source. ``copy.copy`` and ``pickle`` give another one of the same data with its own
    file handles, for a second thread or process. What the attributes mean is said at :class:`RasterSource`.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def grid(self) -> Grid: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def crs(self) -> rasterio.crs.CRS: ...  # noqa: D102
    @property
    def transform(self) -> Affine: ...  # noqa: D102
    @property
    def bounds(self) -> tuple[float, float, float, float]: ...  # noqa: D102
    @property
    def gsd(self) -> float: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    @property
    def bands(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def band_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def block_shape(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def footprints(self) -> list[shapely.Polygon] | None: ...  # noqa: D102

    def read(
        self, col_off: int, row_off: int, width: int, height: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels (C, height, width) of ``dtype``, 0 where invalid, and mask (height, width) of any window."""
        ...

    def order_of(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Bands that would be read in the order of ``names``; None where they are, or where names do not tell."""
        ...

    @property
    def files(self) -> list[Path]: ...  # noqa: D102

    def identity(self) -> dict[str, Any]:
        """What the pixels hang on, in JSON types: equal identities give equal pixels."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RasterSource(GridSource):
    """An open raster, read window by window; use it as a context manager.

    Rows of the grid always point east and columns south: a raster stored the other way round is turned, one that is
    rotated or sheared on the map is straightened while it is read (resampled to upright pixels of the same area).

    A pixel holds data (is *valid*) where the alpha band, if there is one, is above 0, where the mask band, if there
    is one, says so, and where it is not nodata. In rasters of unsigned integers a pixel is nodata where **every** band
    read has the nodata value, since 0 and 255 are ordinary values of a single band; in signed and float rasters, whose
    nodata lies outside the range of the data, where **any** band has it.

    Attributes:
        path: The file.
        name: The same, for sentences.
        grid: Size and place.
        width: Columns, pixels.
        height: Rows, pixels.
        crs: Coordinate reference system.
        transform: Affine from pixel (column, row), measured from the outer corner, to map coordinates in ``crs``.
        bounds: (left, bottom, right, top) in ``crs``.
        gsd: Metres on the ground per pixel, mean of both axes. For a geographic CRS, or a projected one whose unit is
            more than 1 % off a metre on the ground (such as Web Mercator), measured at the centre of the raster.
        dtype: Type of the pixels that :meth:`read` returns, one of :data:`KEPT_DTYPES`.
        bands: The bands read, counted from 1.
        band_names: Of the bands read: their description, else their colour (``red``), else ``band_1`` and so on.
        count: Number of bands read.
        block_shape: Rows and columns that are decoded at once.
        footprints: Polygons in ``crs`` outside of which there is no data; None where it may be everywhere.
    """

    def __init__(
        self,
        path: Path,
        bands: Sequence[int | str] | None = None,
        nodata: float | None = None,
        crs: object | None = None,
    ) -> None:
        """Open the raster and check that it can be placed on the earth.

        Args:
            path: Any raster that GDAL opens.
            bands: Bands to read, counted from 1, or their names (case does not matter); every band but alpha where
                left out. An alpha band that is named here is read as data and masks nothing.
            nodata: Takes the place of the nodata value in the file; NaN is added to it instead.
            crs: Stands in where the file has no coordinate reference system; anything that rasterio understands.

        Raises:
            ConfigError: If ``crs`` is no coordinate reference system.
            RasterError: If the file is missing, unreadable, without CRS or position, has another CRS than ``crs``,
                is of complex numbers, or lacks one of ``bands``.
        """
        self.path = Path(path)
        self.name = str(path)
        self._is_vrt = self.path.suffix.lower() == ".vrt"
        self._options = (None if bands is None else tuple(bands), nodata, crs)
        self._dataset = _open(self.path)
        try:
            frame = self._placed_grid(crs)
            self._choose_bands(bands)
        except BaseException:
            self._dataset.close()
            raise
        declared = self._dataset.nodatavals
        self._nodata = Nodata.of([declared[i - 1] for i in self.bands], nodata)
        self.block_shape = self._dataset.block_shapes[self.bands[0] - 1]
        self._turn: Turn | None = None
        self._straightened: Resampler | None = None
        t = frame.transform
        if t.b or t.d:
            self._place(upright(frame))
            self._straightened = Resampler(self._read_stored, frame, self.grid, self.count, self.dtype)
            self.block_shape = self._straightened.block_shape
            self.footprints = [widened(outline(frame), self.grid)]
        elif t.a < 0 or t.e > 0:
            self._turn = Turn(frame)
            self._place(self._turn.grid)
        else:
            self._place(frame)

    @property
    def files(self) -> list[Path]:
        """Every file that the pixels come from."""
        return sorted(_files(self._dataset))

    def identity(self) -> dict[str, Any]:
        """Name, size and time of every file behind the raster, where it lies, and what was asked for."""
        width, height, crs, t = self.grid
        files = [(path, path.stat()) for path in self.files]
        return {
            "files": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in files],
            "grid": [width, height, crs.to_wkt(), *t[:6]],
            "bands": list(self.bands),
            "nodata": [repr(value) for value in (*self._nodata.values, self._nodata.nan)],
            "masked": [self._alpha, self._has_mask_band],
        }

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self.path, *self._options)

    def _placed_grid(self, crs: object | None) -> Grid:
        dataset = self._dataset
        if dataset.count == 0:
            example = shlex.quote((dataset.subdatasets or ["NAME"])[0])
            raise RasterError(
                f"{self.path} holds no bands of its own; save one of its sub-datasets as GeoTIFF first, for example "
                f"with: gdal_translate {example} one.tif"
            )
        placed = place_crs(self.name, dataset.crs, crs)
        if dataset.transform.is_identity or not dataset.transform.determinant:
            raise RasterError(f"{self.path} has no position on the map; georeference it first.")
        return Grid(dataset.width, dataset.height, placed, dataset.transform)

    def _choose_bands(self, bands: Sequence[int | str] | None) -> None:
        dataset = self._dataset
        colours = dataset.colorinterp
        alpha = [i for i, colour in zip(dataset.indexes, colours, strict=True) if colour == ColorInterp.alpha]
        names = [
            text or (f"band_{i}" if colour in _NAMELESS else str(colour.name))
            for i, text, colour in zip(dataset.indexes, dataset.descriptions, colours, strict=True)
        ]
        self._bands_given = bands is not None
        if bands is None:
            chosen = [i for i in dataset.indexes if i not in alpha]
        else:
            chosen = [self._number(band, names) if isinstance(band, str) else int(band) for band in bands]
        if not chosen or not set(chosen) <= set(dataset.indexes):
            raise RasterError(
                f"{self.path} has {dataset.count} bands; --bands must name some of 1 to {dataset.count}, "
                f"received {', '.join(map(str, bands or ())) or 'none'}."
            )
        self.bands = tuple(chosen)
        self.band_names = tuple(names[i - 1] for i in chosen)
        # GDAL takes the near infrared of many four-band files for alpha; who names that band wants its values.
        self._alpha = [i for i in alpha if i not in chosen]
        stored = dataset.dtypes
        dtypes = [stored[i - 1] for i in chosen]
        self._stored_dtype, self._one_dtype = np.result_type(*dtypes), len(set(dtypes)) == 1
        self.dtype = kept_dtype(self.name, self._stored_dtype)
        masks = dataset.mask_flag_enums
        flags = [set(masks[i - 1]) for i in chosen]
        own_kinds = ({MaskFlags.all_valid}, {MaskFlags.nodata})
        self._has_mask_band = any(f not in own_kinds and MaskFlags.alpha not in f for f in flags)

    def _number(self, name: str, names: Sequence[str]) -> int:
        """The band with a description or, where none has it, a colour of that name."""
        colours = [colour.name for colour in self._dataset.colorinterp]
        for candidates in (names, colours):
            found = [i for i, candidate in enumerate(candidates, start=1) if candidate.lower() == name.lower()]
            if len(found) == 1:
                return found[0]
            if found:
                numbers = ", ".join(map(str, found))
                raise RasterError(f"{self.path} has several bands named {name} ({numbers}); give the number of one.")
        raise RasterError(f"{self.path} has no band named {name}; it has {', '.join(names)}.")

    def _read_inside(self, window: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        if self._straightened is not None:
            return self._straightened.read(window)
        if self._turn is not None:
            pixels, valid = self._read_stored(*self._turn.stored(window))
            return self._turn.back(pixels), self._turn.back(valid)
        return self._read_stored(*window)

    def _read_stored(
        self, col_off: int, row_off: int, width: int, height: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        window = Window(col_off, row_off, width, height)
        valid: npt.NDArray[np.bool_] | None = None
        try:
            stored = self._read_bands(window)
            for band in self._alpha:
                seen = self._dataset.read(band, window=window) > 0
                valid = seen if valid is None else valid & seen
            if self._has_mask_band:
                seen = self._dataset.read_masks(self.bands, window=window).all(axis=0)
                valid = seen if valid is None else valid & seen
        except RasterioIOError as error:
            raise RasterError(
                f"{self.path} cannot be read at columns {col_off} to {col_off + width}, rows {row_off} to "
                f"{row_off + height}: {'a file it refers to is missing or' if self._is_vrt else 'the file seems'} "
                "damaged; get a fresh copy."
            ) from error
        return settle(self.name, stored, self._nodata, self.dtype, valid)

    def _read_bands(self, window: Window) -> npt.NDArray[Any]:
        if self._one_dtype:
            stored: npt.NDArray[Any] = self._dataset.read(self.bands, window=window)
            return stored
        # Bands of a VRT may differ in type, which rasterio refuses to read together.
        return np.stack([self._dataset.read(band, window=window) for band in self.bands]).astype(self._stored_dtype)


def _open(path: Path) -> rasterio.DatasetReader:
    if not path.exists():
        raise RasterError(f"There is no raster at {path}; check the path.")
    try:
        return rasterio.open(path)
    except (RasterioIOError, CRSError) as error:
        raise RasterError(f"{path} cannot be opened as a raster; check that it is a complete image file.") from error


def _files(dataset: rasterio.DatasetReader) -> set[Path]:
    """The files that the pixels come from; statistics and overviews beside them come and go and change no pixel."""
    named = {Path(name) for name in dataset.files if not name.lower().endswith((".aux.xml", ".ovr"))}
    found = {path for path in named if path.is_file()}
    for path in found - {Path(dataset.name)}:
        if path.suffix.lower() == ".vrt":  # of a VRT in a VRT, GDAL names only the outer one's files
            with _open(path) as inner:
                found |= _files(inner)
    return found

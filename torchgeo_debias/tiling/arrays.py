"""Arrays in memory, or loaded window by window, as rasters."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from rasterio.transform import Affine

from torchgeo_debias.errors import RasterError
from torchgeo_debias.tiling._base import GridSource, Turn
from torchgeo_debias.tiling._place import parse_crs, place_crs
from torchgeo_debias.tiling._validity import Nodata, kept_dtype, settle
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box

_COLUMNS = frozenset({"x", "lon", "longitude"})
_ROWS = frozenset({"y", "lat", "latitude"})
_ROWS_AT_ONCE = 512
_WOBBLE = 0.1  # pixels by which coordinates may be off an even spacing: single precision is no better in degrees


class ArrayLike(Protocol):
    """What numpy, dask, zarr, HDF5 and xarray have in common; it is read by slices."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: ANN401, D102
    def __getitem__(self, key: Any, /) -> Any: ...  # noqa: ANN401


class ArraySource(GridSource):
    """An array with a place on the earth, read as if it were a raster file.

    Nodata is understood as in :class:`~torchgeo_debias.tiling.source.RasterSource`, whose attributes it has.
    Copies share the array.
    """

    def __init__(
        self,
        pixels: ArrayLike,
        transform: Affine,
        crs: object,
        band_names: Sequence[str] | None = None,
        nodata: float | None = None,
        valid: npt.NDArray[np.bool_] | None = None,
        name: str = "the array",
    ) -> None:
        """Place the array; nothing of it is read.

        Args:
            pixels: (C, H, W) or (H, W) of real numbers; types other than
                :data:`~torchgeo_debias.tiling.source.KEPT_DTYPES` are passed on as float32.
            transform: Affine from pixel (column, row), measured from the outer corner, to map coordinates in ``crs``;
                neither rotated nor sheared.
            crs: Anything that rasterio takes for a coordinate reference system.
            band_names: Of each band; ``band_1`` and so on where left out.
            nodata: Value that stands for no data; NaN is no data if this is NaN.
            valid: (H, W), False where there is no data.
            name: For sentences.

        Raises:
            ConfigError: If ``crs`` is no coordinate reference system.
            RasterError: If the array is empty, complex or rotated, or the arguments do not fit its shape.
        """
        shape = tuple(pixels.shape)
        if len(shape) not in (2, 3) or 0 in shape:
            raise RasterError(f"{name} must have the shape (bands, rows, columns) or (rows, columns); it has {shape}.")
        count, (height, width) = shape[0] if len(shape) == 3 else 1, shape[-2:]
        names = tuple(band_names) if band_names is not None else tuple(f"band_{i + 1}" for i in range(count))
        if len(names) != count:
            raise RasterError(f"{name} has {count} bands but {len(names)} band names; name each band.")
        if valid is not None and valid.shape != (height, width):
            raise RasterError(f"The mask of {name} must have the shape {height, width}; it has {valid.shape}.")
        if transform.b or transform.d or not transform.determinant:
            raise RasterError(f"{name} is rotated or sheared on the map; save it as GeoTIFF, which can be read so.")
        self.name, self.band_names, self.bands = name, names, tuple(range(1, count + 1))
        self.dtype = kept_dtype(name, np.dtype(pixels.dtype))
        self._pixels, self._valid = pixels, valid
        self._nodata = Nodata.of([None] * count, nodata)
        own = None if crs is None else parse_crs(crs)
        self._turn = Turn(Grid(width, height, place_crs(name, own, None, option="crs="), transform))
        self._place(self._turn.grid)
        self.block_shape = _block_shape(pixels, height, width)

    @classmethod
    def from_xarray(cls, array: Any, crs: object | None = None, nodata: float | None = None) -> Self:  # noqa: ANN401
        """Read an ``xarray.DataArray``, by windows if it is loaded on demand.

        Dimensions are ``y`` and ``x`` (or ``lat`` and ``lon``) and at most one more, the band, in any order. The
        coordinates are pixel centres at even distances. The CRS is looked for where CF and rioxarray keep it; names
        of the bands are the band's coordinate if it is text, else the attribute ``long_name``. In arrays of floats
        NaN is no data, and so is the fill value (``_FillValue``, ``nodata``).

        Args:
            array: The array.
            crs: Stands in where the array names none.
            nodata: Takes the place of the fill value.

        Raises:
            ConfigError: If ``crs`` is no coordinate reference system.
            RasterError: If the array cannot be placed on the earth.
        """
        name = f"the array {array.name}" if array.name else "the array"
        dims = [str(dim) for dim in array.dims]
        columns = [dim for dim in dims if dim.lower() in _COLUMNS]
        rows = [dim for dim in dims if dim.lower() in _ROWS]
        bands = [dim for dim in dims if dim not in (*columns, *rows)]
        if len(columns) != 1 or len(rows) != 1 or len(bands) > 1:
            raise RasterError(f"{name} has the dimensions {', '.join(dims)}; they must be band, y and x, or y and x.")
        array = array.transpose(*bands, *rows, *columns)
        transform = _transform(name, array, rows[0], columns[0])
        fill = array.attrs.get("_FillValue", array.attrs.get("nodata", array.encoding.get("_FillValue")))
        source = cls(
            array,
            transform,
            place_crs(name, _crs_of(array), crs, option="crs="),
            _band_names(array, bands[0]) if bands else None,
            fill if nodata is None else nodata,
            name=name,
        )
        source._nodata = source._nodata._replace(nan=True)
        return source

    @property
    def files(self) -> list[Path]:
        """None that this library knows of."""
        return []

    def identity(self) -> dict[str, Any]:
        """Digest of the pixels and the mask, the place, and what stands for no data."""
        digest = blake2b(digest_size=16)
        for top in range(0, self.height, _ROWS_AT_ONCE):
            for part in (self._pixels, self._valid):
                if part is not None:
                    digest.update(np.ascontiguousarray(part[..., top : top + _ROWS_AT_ONCE, :]).data)
        width, height, crs, t = self.grid
        return {
            "array": [digest.hexdigest(), list(self._pixels.shape), str(self._pixels.dtype), self._valid is not None],
            "grid": [width, height, crs.to_wkt(), *t[:6]],
            "turned": [self._turn.mirrored, self._turn.south_up],
            "nodata": [repr(value) for value in (*self._nodata.values, self._nodata.nan)],
        }

    def _read_inside(self, window: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        left, top, width, height = self._turn.stored(window)
        rows, columns = slice(top, top + height), slice(left, left + width)
        stored = np.array(self._pixels[..., rows, columns]).reshape(self.count, height, width)
        valid = None if self._valid is None else np.array(self._valid[rows, columns], dtype=bool)
        image, valid = settle(self.name, stored, self._nodata, self.dtype, valid)
        return self._turn.back(image), self._turn.back(valid)


def _transform(name: str, array: Any, rows: str, columns: str) -> Affine:  # noqa: ANN401
    starts, steps = [], []
    for dim in (columns, rows):
        centres = np.asarray(array.coords[dim], dtype=np.float64) if dim in array.coords else np.empty(0)
        if not len(centres):
            raise RasterError(f"{name} has no coordinates along {dim}; give it some, the centres of its pixels.")
        step = (centres[-1] - centres[0]) / (len(centres) - 1) if len(centres) > 1 else np.nan
        if np.abs(centres - centres[0] - step * np.arange(len(centres))).max() > _WOBBLE * abs(step) or step == 0:
            raise RasterError(f"The coordinates of {name} along {dim} are not evenly spaced; regrid it first.")
        starts.append(centres[0])
        steps.append(step)
    if np.isnan(steps).all():
        raise RasterError(f"{name} is a single pixel of unknown size; make an ArraySource with a transform of it.")
    # Along an axis of one pixel, it is taken to be as long as along the other.
    across = abs(steps[1]) if np.isnan(steps[0]) else steps[0]
    down = -abs(steps[0]) if np.isnan(steps[1]) else steps[1]
    return Affine(across, 0, starts[0] - across / 2, 0, down, starts[1] - down / 2)


def _crs_of(array: Any) -> Any:  # noqa: ANN401
    """The CRS as CF's grid mapping has it, or as the attribute of older readers."""
    for coordinate in array.coords.values():
        text = coordinate.attrs.get("crs_wkt") or coordinate.attrs.get("spatial_ref")
        if text:
            return parse_crs(text)
    text = array.attrs.get("crs")
    return parse_crs(text) if text else None


def _band_names(array: Any, dim: str) -> tuple[str, ...] | None:  # noqa: ANN401
    if dim in array.coords:
        values = np.asarray(array.coords[dim])
        if values.ndim == 1 and all(isinstance(value, str) for value in values.tolist()):
            return tuple(values.tolist())
    names = array.attrs.get("long_name")
    count = array.sizes[dim]
    return tuple(map(str, names)) if isinstance(names, tuple | list) and len(names) == count else None


def _block_shape(pixels: ArrayLike, height: int, width: int) -> tuple[int, int]:
    chunks = getattr(pixels, "chunks", None)  # dask and xarray: the sizes along each axis; zarr and HDF5: one size
    if chunks is None:
        return min(_ROWS_AT_ONCE, height), width
    rows, columns = (int(size[0] if isinstance(size, tuple) else size) for size in chunks[-2:])
    return rows, columns

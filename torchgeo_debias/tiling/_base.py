"""What all sources share: the grid's numbers, padding at the rim, rasters whose rows run the other way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import rasterio.crs
import shapely
from rasterio.transform import Affine

from torchgeo_debias.tiling._place import outline, pixel_metres
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box


class GridSource(ABC):
    """A source that knows how to read windows that lie inside its grid.

    A subclass calls :meth:`_place`, sets the attributes and writes :meth:`_read_inside`.

    Attributes:
        name: For sentences.
        grid: Size and place; rows point east, columns south.
        gsd: Metres on the ground per pixel, mean of both axes. For a geographic CRS, or a projected one whose unit is
            more than 1 % off a metre on the ground (such as Web Mercator), measured at the centre of the raster.
        dtype: Type of the pixels that :meth:`read` returns, one of :data:`KEPT_DTYPES`.
        bands: The bands read, counted from 1.
        band_names: Name of each band read.
        block_shape: Rows and columns that are decoded at once.
        footprints: Polygons in ``crs`` outside of which there is no data; None where it may be everywhere.
    """

    name: str
    grid: Grid
    gsd: float
    dtype: np.dtype[Any]
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    block_shape: tuple[int, int]
    footprints: list[shapely.Polygon] | None = None
    _bands_given = False

    @abstractmethod
    def _read_inside(self, window: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Pixels (C, h, w) and mask (h, w) of a window inside the grid, in arrays of the caller's own."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the pixels come from."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the pixels hang on, in JSON types: equal identities give equal pixels."""

    @property
    def width(self) -> int:
        """Columns, pixels."""
        return self.grid.width

    @property
    def height(self) -> int:
        """Rows, pixels."""
        return self.grid.height

    @property
    def crs(self) -> rasterio.crs.CRS:
        """Coordinate reference system."""
        return self.grid.crs

    @property
    def transform(self) -> Affine:
        """Affine from pixel (column, row), measured from the outer corner, to map coordinates in :attr:`crs`."""
        return self.grid.transform

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in :attr:`crs`."""
        left, bottom, right, top = outline(self.grid).bounds
        return left, bottom, right, top

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
            RasterError: If the data is broken here, or holds NaN although NaN is not its nodata value.
        """
        left, top = max(col_off, 0), max(row_off, 0)
        right, bottom = min(col_off + width, self.width), min(row_off + height, self.height)
        inside = Box(left, top, right - left, bottom - top)
        if inside == (col_off, row_off, width, height):
            return self._read_inside(inside)
        image = np.zeros((self.count, height, width), dtype=self.dtype)
        valid = np.zeros((height, width), dtype=bool)
        if left < right and top < bottom:
            rows, columns = slice(top - row_off, bottom - row_off), slice(left - col_off, right - col_off)
            image[:, rows, columns], valid[rows, columns] = self._read_inside(inside)
        return image, valid

    def close(self) -> None:  # noqa: B027  # arrays have nothing to close
        """Let go of files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _place(self, grid: Grid) -> None:
        self.grid = grid
        self.gsd = sum(pixel_metres(grid)) / 2


class Turn:
    """How a raster whose rows point west or whose columns point north is read as if they pointed east and south.

    Args:
        grid: Neither rotated nor sheared.
    """

    def __init__(self, grid: Grid) -> None:
        t, (width, height) = grid.transform, grid[:2]
        self._size = width, height
        self.mirrored, self.south_up = t.a < 0, t.e > 0
        left, top = t.c + t.a * width * self.mirrored, t.f + t.e * height * self.south_up
        self.grid = Grid(width, height, grid.crs, Affine(abs(t.a), 0, left, 0, -abs(t.e), top))

    def stored(self, window: Box) -> Box:
        """The window of the raster as stored."""
        col_off, row_off, width, height = window
        return Box(
            self._size[0] - col_off - width if self.mirrored else col_off,
            self._size[1] - row_off - height if self.south_up else row_off,
            width,
            height,
        )

    def back(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What was read there (..., h, w), turned."""
        if self.mirrored:
            pixels = pixels[..., ::-1]
        if self.south_up:
            pixels = pixels[..., ::-1, :]
        return np.ascontiguousarray(pixels)

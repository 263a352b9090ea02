"""Where the pixels of a raster lie on the earth."""

from __future__ import annotations

from typing import Any, NamedTuple


class Grid(NamedTuple):
    """Size and place of a raster, all that planning and writing need to know of it.

    Attributes:
        width: Columns, pixels.
        height: Rows, pixels.
        crs: Coordinate reference system (``rasterio.crs.CRS``).
        transform: Affine from pixel (column, row), measured from the outer corner of the raster, to map coordinates
            in ``crs``; neither rotated nor sheared.
    """

    width: int
    height: int
    crs: Any
    transform: Any

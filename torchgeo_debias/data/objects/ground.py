"""The ground that images show, and which of them share some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box

_RIM = 0.25
"""Pixels left off along the edges, so that neighbours do not meet where rounding moves them."""
_SEGMENTS = 20
"""Straight edges become curves in another CRS: so many pieces across an image are moved."""


def ground_of(windows: Sequence[tuple[Box, Any]], grid: Grid, wkt: str) -> list[Any]:
    """The ground of windows of a raster.

    Args:
        windows: Each with the part of it that counts, a polygon, both in pixels of the raster.
        grid: Of the raster.
        wkt: CRS of the result.

    Returns:
        A polygon or several in one for each, less a rim of a quarter of a pixel; empty where it has no place in the
        CRS.
    """
    boxes = np.array([(w.col_off, w.row_off, w.width, w.height) for w, _ in windows], np.float64)
    left, top, width, height = boxes.reshape(-1, 4).T
    counting = np.array([part for _, part in windows], np.object_)
    inner = shapely.box(left + _RIM, top + _RIM, left + width - _RIM, top + height - _RIM)
    t = grid.transform
    shapes = shapely.transform(shapely.intersection(counting, inner), lambda xy: xy * (t.a, t.e) + (t.c, t.f))
    if (own := grid.crs.to_wkt()) != wkt:
        step = np.maximum(width * abs(t.a), height * abs(t.e)) / _SEGMENTS
        shapes = gpd.GeoSeries(shapely.segmentize(shapes, step), crs=own).to_crs(wkt).to_numpy()
        shapes[~np.isfinite(shapely.bounds(shapes)).all(axis=1)] = shapely.Polygon()
    return list(shapes)


def sharing(some: Sequence[Any], others: Sequence[Any]) -> npt.NDArray[np.intp]:
    """Pairs (2, P) of positions in two lists of grounds, in one CRS, that share some; None stands for unknown."""
    tree = shapely.STRtree(np.asarray(others, np.object_))
    pairs: npt.NDArray[np.intp] = tree.query(np.asarray(some, np.object_), predicate="intersects")
    return pairs

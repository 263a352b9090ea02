"""Places without any object, for chips of the background class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

_CANDIDATES = 64
_POINT_GUARD = 0.5


def free_windows(
    rng: np.random.Generator,
    region: shapely.Geometry,
    objects: npt.NDArray[Any],
    sides: npt.NDArray[np.int64],
    margin: float,
) -> npt.NDArray[np.int64]:
    """Draw square windows that stay clear of all objects; geometries are in pixels of one raster.

    Args:
        rng: Of the draws.
        region: Area that must contain the windows wholly.
        objects: (N,) geometries to stay clear of.
        sides: (n,) sides of the windows wanted, at least 1.
        margin: Distance to keep from an object, as a share of the window's side. From a point, which says nothing of
            its object's extent, it is half a side.

    Returns:
        (m, 3) first column, first row and side of at most n windows, drawn evenly from the free places; fewer where
        there is little room.
    """
    left, top, right, bottom = shapely.bounds(region)
    side = np.repeat(sides, _CANDIDATES)
    fits = (side <= right - left) & (side <= bottom - top)
    side = side[fits]
    col = rng.integers(np.ceil(left), np.maximum(np.floor(right - side), np.ceil(left)), endpoint=True)
    row = rng.integers(np.ceil(top), np.maximum(np.floor(bottom - side), np.ceil(top)), endpoint=True)
    shapely.prepare(region)
    free = shapely.covers(region, shapely.box(col, row, col + side, row + side))

    guard = np.where(shapely.length(objects) > 0, margin, _POINT_GUARD)
    reach = side * guard.max(initial=0)
    near = shapely.box(col - reach, row - reach, col + side + reach, row + side + reach)
    window, item = shapely.STRtree(objects).query(near)
    gap = side[window] * guard[item]
    grown = shapely.box(col[window] - gap, row[window] - gap, (col + side)[window] + gap, (row + side)[window] + gap)
    free[window[shapely.intersects(grown, objects[item])]] = False

    order = np.arange(len(sides)).repeat(_CANDIDATES)[fits]
    _, first = np.unique(order[free], return_index=True)
    windows: npt.NDArray[np.int64] = np.column_stack([col, row, side])[free][first].astype(np.int64)
    return windows

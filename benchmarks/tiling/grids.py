"""Where contenders lay their tiles, and which pixels of their maps must therefore be equal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

TILE, STRIDE = 512, 460
OVERLAP = TILE - STRIDE
LEAST_IOU = 0.999


class Unequal(Exception):
    """Two contenders gave other answers: nothing may be compared."""


class Agreement(NamedTuple):
    """Of two class maps, away from seams.

    Attributes:
        iou: Of each class.
        share: Of the raster's pixels that was compared.
    """

    iou: tuple[float, ...]
    share: float


def starts(side: int) -> list[int]:
    """First pixels of the tiles along an axis of which the last is moved back to end with the raster."""
    return [*range(0, side - TILE, STRIDE), side - TILE]


def lay(target: npt.NDArray[np.uint8], ids: npt.NDArray[np.integer], left: int, top: int) -> None:
    """Put a tile of class ids into a whole map, without the outer half of its overlaps, as plain loops do."""
    height, width = target.shape
    half = OVERLAP // 2
    first_row, first_column = (top + half if top > 0 else 0), (left + half if left > 0 else 0)
    last_row = min(top + TILE - half if top + TILE < height else height, height)
    last_column = min(left + TILE - half if left + TILE < width else width, width)
    target[first_row:last_row, first_column:last_column] = ids[
        first_row - top : last_row - top, first_column - left : last_column - left
    ]


def agreement(ours: Path, theirs: Path, classes: int = 2) -> Agreement:
    """Compare two maps pixel by pixel, strip by strip, wherever no contender sees a seam.

    Left out are the overlaps of three grids (from the upper left corner beyond the raster's edge; the same with the
    last tile moved back; from the lower left corner, as TorchGeo's sampler lays it) and the rim of the raster, where
    some pad the image and some do not.

    Raises:
        Unequal: If the maps differ in size, or a class's intersection over union is below 0.999.
    """
    with rasterio.open(ours) as a, rasterio.open(theirs) as b:
        if a.shape != b.shape:
            raise Unequal(f"{ours.name} is of {a.shape} pixels and {theirs.name} of {b.shape}.")
        height, width = a.shape
        columns = _free(width, [*range(0, width, STRIDE), *starts(width)])
        rows = _free(height, [*range(0, height, STRIDE), *starts(height), *range(height - TILE, -TILE, -STRIDE)])
        both, either = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        for top in range(0, height, TILE):
            window = Window(0, top, width, min(TILE, height - top))
            free = np.outer(rows[top : top + TILE], columns)
            x, y = a.read(1, window=window)[free], b.read(1, window=window)[free]
            for c in range(classes):
                both[c] += np.count_nonzero((x == c) & (y == c))
                either[c] += np.count_nonzero((x == c) | (y == c))
    iou = tuple((both / np.maximum(either, 1)).tolist())
    if min(iou) < LEAST_IOU:
        raise Unequal(f"{ours.name} and {theirs.name} are not the same map: IoU of the classes {iou}.")
    return Agreement(iou, round(float(rows.mean() * columns.mean()), 3))


def _free(length: int, tiles: Iterable[int]) -> npt.NDArray[np.bool_]:
    free = np.ones(length, dtype=bool)
    for start in (*tiles, -STRIDE, length - OVERLAP):
        for first in (start, start + STRIDE):
            free[max(first, 0) : max(first + OVERLAP, 0)] = False
    return free

"""The square of pixels a chip is cut from: one rule for training labels, existing features and box data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.data.chips import ChipSpec, resize
from torchgeo_debias.errors import ConfigError

MIN_SIDE = 8
"""Smallest square that is fitted to an object, pixels of the source."""

_MAX_READ = 4096
_OVERSAMPLING = 4

ReadWindow = Callable[[int, int, int, int], tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]
"""``(col_off, row_off, width, height)`` to pixels (C, height, width) and their mask, for any window."""


def square_windows(bounds: npt.NDArray[np.float64], spec: ChipSpec, gsd: float | None) -> npt.NDArray[np.int64]:
    """The squares that chips are cut from, one around the centre of each object's bounds.

    Args:
        bounds: (N, 4) minimum column, minimum row, maximum column, maximum row of each object, pixels from the outer
            corner of the source.
        spec: With a window: a square of that side. Without one: the longest side of the bounds and ``spec.margin``
            of it on each side, at least :data:`MIN_SIDE` pixels.
        gsd: Metres per pixel of the source, None without map coordinates.

    Returns:
        (N, 3) first column, first row and side, whole pixels; squares may lie partly outside the source.

    Raises:
        ConfigError: If the spec has no window and an object no extent, as points have none.
    """
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    window = spec.window_px(gsd)
    if window is None:
        longest = (bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0)
        if not (longest > 0).all():
            raise ConfigError("Points have no extent to fit a chip to: train with a chip window (--window).")
        sides = np.maximum(np.rint(longest * (1 + 2 * spec.margin)), MIN_SIDE)
    else:
        sides = np.full(len(bounds), max(round(window), 1))
    # Half up and not to even, so that a shift by a pixel always shifts the window by one.
    corner = np.floor(centre - sides[:, None] / 2 + 0.5)
    return np.column_stack([corner, sides]).astype(np.int64)


def cut_square(
    read: ReadWindow, window: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read one square and resample it to a chip.

    A square of more than 4096 pixels a side is averaged to a few times the chip's size while it is read in bands of
    rows, so that an object as large as the raster does not need the raster in memory.

    Args:
        read: Reads any window of the source.
        window: First column, first row, side.
        size: Side of the chip, pixels.

    Returns:
        Pixels (C, size, size) in the source's dtype and their mask (size, size).
    """
    col, row, side = (int(v) for v in window)
    if side <= max(_MAX_READ, _OVERSAMPLING * size):
        return resize(*read(col, row, side, side), size)
    edges = np.rint(np.linspace(0, side, _OVERSAMPLING * size + 1)).astype(np.int64)
    rows_at_once = max(_MAX_READ**2 // side // (side // (_OVERSAMPLING * size) + 1), 1)
    bands = []
    for first in range(0, len(edges) - 1, rows_at_once):
        rows = edges[first : first + rows_at_once + 1]
        band = read(col, row + int(rows[0]), side, int(rows[-1] - rows[0]))
        bands.append(_average(*band, rows[:-1] - rows[0], edges[:-1]))
    pixels, valid = (np.concatenate(parts, axis=-2) for parts in zip(*bands, strict=True))
    return resize(pixels, valid, size)


def _average(
    pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Mean of the valid pixels of each cell; ``rows`` and ``columns`` are where the cells begin."""

    def cell_sums(values: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
        return np.add.reduceat(np.add.reduceat(values, columns, axis=-1, dtype=dtype), rows, axis=-2)

    number = cell_sums(valid, np.int64)
    mean = cell_sums(np.where(valid, pixels, 0), np.float64) / np.maximum(number, 1)
    if np.issubdtype(pixels.dtype, np.integer):
        mean = np.rint(mean)
    return mean.astype(pixels.dtype), number > 0

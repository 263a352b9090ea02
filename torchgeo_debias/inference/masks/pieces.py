"""Masks as the engine carries them: cut to their bounds, packed to bits, in pixels of the raster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.inference.masks.predictor import FoundMask, Mask
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.plan import Tile, TilePlan
from torchgeo_debias.tiling.regions import regions

_CANVAS = 2**19
"""Pixels of masks that are traced at a time."""


class Bounds(NamedTuple):
    """A window in pixels: first column and row, and those behind the last."""

    left: int
    top: int
    right: int
    bottom: int

    def shared(self, other: Bounds) -> Bounds:
        """What lies in both; empty where ``right <= left`` or ``bottom <= top``."""
        return Bounds(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    @property
    def empty(self) -> bool:
        """Whether no pixel lies in it."""
        return self.right <= self.left or self.bottom <= self.top


class Piece(NamedTuple):
    """An object, or what of it lies in one tile.

    Attributes:
        bounds: In the raster.
        pixels: True on its pixels, (rows, columns) of the bounds.
        score: How sure the model of masks is.
        row: Row of the tile in the plan.
        column: Column of the tile.
    """

    bounds: Bounds
    pixels: Mask
    score: float
    row: int
    column: int

    def within(self, window: Bounds) -> Mask:
        """Its pixels in a part of its bounds."""
        left, top = self.bounds[:2]
        return self.pixels[window.top - top : window.bottom - top, window.left - left : window.right - left]


class Packed(NamedTuple):
    """Masks of one tile.

    Attributes:
        bounds: (n, 4) :class:`Bounds` in the tile.
        scores: (n,).
        bits: Their pixels within the bounds, row by row, eight to a byte; one mask after the other, uint8.
    """

    bounds: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    bits: npt.NDArray[np.uint8]


def pack(masks: Sequence[FoundMask], least: int) -> Packed:
    """Pack the masks of at least so many pixels, one or more."""
    kept = [found for found in masks if np.count_nonzero(found.mask) >= least]
    bounds = [_bounds(found.mask) for found in kept]
    bits = [np.packbits(found.mask[b.top : b.bottom, b.left : b.right]) for found, b in zip(kept, bounds, strict=True)]
    return Packed(
        np.array(bounds, np.int64).reshape(-1, 4),
        np.array([found.score for found in kept], np.float32),
        np.concatenate([np.zeros(0, np.uint8), *bits]),
    )


def on_raster(packed: Packed, tile: Tile) -> Part:
    """The masks of a tile as arrays of a part.

    Returns:
        ``places`` (n, 2), row and column of the tile; ``bounds`` (n, 4) in the raster; ``scores`` (n,); ``bits``.
    """
    shift = np.array([tile.window.col_off, tile.window.row_off] * 2)
    place = np.tile([[tile.row, tile.column]], (len(packed.scores), 1)).astype(np.int64)
    return {"places": place, "bounds": packed.bounds + shift, "scores": packed.scores, "bits": packed.bits}


NAMES = ("places", "bounds", "scores", "bits")
"""The arrays of a part."""


def nothing() -> Part:
    """A part without masks."""
    return {
        "places": np.zeros((0, 2), np.int64),
        "bounds": np.zeros((0, 4), np.int64),
        "scores": np.zeros(0, np.float32),
        "bits": np.zeros(0, np.uint8),
    }


def rows(part: Part) -> Iterator[tuple[int, list[Piece]]]:
    """The masks of a part, one row of tiles at a time, from the top."""
    pieces: list[Piece] = []
    start = 0
    for (row, column), given, score in zip(part["places"], part["bounds"], part["scores"], strict=True):
        bounds = Bounds(*given.tolist())
        height, width = bounds.bottom - bounds.top, bounds.right - bounds.left
        end = start + -(-height * width // 8)
        flat = np.unpackbits(part["bits"][start:end], count=height * width)
        piece = Piece(bounds, flat.astype(bool).reshape(height, width), float(score), int(row), int(column))
        start = end
        if pieces and piece.row != pieces[0].row:
            yield pieces[0].row, pieces
            pieces = []
        pieces.append(piece)
    if pieces:
        yield pieces[0].row, pieces


def outlines(masks: Sequence[Mask], corners: Sequence[tuple[int, int]]) -> list[npt.NDArray[np.object_]]:
    """Polygons around the parts of masks whose pixels share edges.

    Args:
        masks: Any number of any size, each with at least one pixel.
        corners: Column and row of their upper left pixels.

    Returns:
        For each mask its polygons (n,), in the frame of the corners.
    """
    found: list[list[Any]] = [[] for _ in masks]
    # Many at a time, one below the other with a row between them: a call for each would take ten times as long.
    widest = sorted(range(len(masks)), key=lambda i: -masks[i].shape[1])
    while widest:
        width = masks[widest[0]].shape[1]
        tops = np.cumsum([0, *(len(masks[i]) + 1 for i in widest)])
        fit = max(int(np.searchsorted(tops[1:], _CANVAS // width, side="right")), 1)
        canvas = np.zeros((tops[fit], width), np.int32)
        for i, top in zip(widest[:fit], tops[:fit], strict=True):
            canvas[top : top + len(masks[i]), : masks[i].shape[1]] = np.where(masks[i], i + 1, 0)
        shifts = {i: np.array(corners[i]) - (0, top) for i, top in zip(widest[:fit], tops[:fit], strict=True)}
        for part in regions([(0, canvas)], 0):
            for i, polygon in zip((part.ids - 1).tolist(), part.geometries, strict=True):
                found[i].append(shapely.transform(polygon, partial(np.add, shifts[i])))
        widest = widest[fit:]
    return [np.array(polygons, dtype=object) for polygons in found]


def window_of(plan: TilePlan, row: int, column: int) -> Bounds:
    """The window of a tile, as far as it lies in the raster."""
    left, top = column * plan.columns.step, row * plan.rows.step
    right, bottom = left + plan.columns.window, top + plan.rows.window
    return Bounds(left, top, min(right, plan.columns.length), min(bottom, plan.rows.length))


def _bounds(mask: Mask) -> Bounds:
    columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return Bounds(int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1)

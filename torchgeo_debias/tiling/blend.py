"""Overlapping tiles of scores for each pixel, blended into one map without seams."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.engine import Answer
from torchgeo_debias.tiling.maps import SCORE_NODATA
from torchgeo_debias.tiling.plan import Axis, Tile

ROUNDING = 1e-6
"""By so much the weights on a pixel may miss a sum of 1: even scores at the threshold stay together."""


@lru_cache(maxsize=256)
def blend_weights(axis: Axis, tile: int) -> npt.NDArray[np.float32]:
    """How much each pixel of one tile counts along one axis; those of all tiles on a pixel sum to 1.

    A ramp from both ends of the tile to its middle, divided by the sum over the tiles that reach the pixel: over an
    overlap of n pixels, up to half a tile, from 1/(n + 1) to n/(n + 1). So a tile's weight is positive up to its last
    pixel, and 1 where no other tile looks: at the rim of the raster too.

    Args:
        axis: Of the plan.
        tile: Position along the axis.

    Returns:
        (window,), each in (0, 1].
    """
    places = np.arange(axis.window)
    ramp = np.minimum(places + 1, axis.window - places)
    total = np.zeros(axis.window)
    reach = -(-axis.window // axis.step) - 1
    for other in range(max(tile - reach, 0), min(tile + reach, axis.tiles - 1) + 1):
        shift = (other - tile) * axis.step
        first, last = max(shift, 0), min(shift + axis.window, axis.window)
        total[first:last] += ramp[first - shift : last - shift]
    weights: npt.NDArray[np.float32] = (ramp / total).astype(np.float32)
    return weights


class PixelMerger:
    """Blends scores (K, window, window) of tiles into class ids and the best score of each pixel.

    Only what later tiles reach is kept: the overlap to the right of one tile and, in one row as wide as the raster,
    the overlap below.
    """

    def __init__(
        self, wanted: Wanted, classes: int, dtype: npt.DTypeLike, nodata: int, min_score: float, with_scores: bool
    ) -> None:
        """Begin a map.

        Args:
            wanted: The tiles, and the area outside of which pixels are nodata.
            classes: K.
            dtype: Of the ids.
            nodata: Stands where there is no class.
            min_score: Pixels below are nodata, 0..1.
            with_scores: Whether the best scores are kept too.
        """
        plan = wanted.plan
        self._wanted = wanted
        self._plan = plan
        self._nodata = nodata
        self._dtype = np.dtype(dtype)
        self._min_score = min_score
        self._overlap = plan.rows.window - plan.rows.step
        self._below = np.zeros((classes, self._overlap, plan.columns.length), dtype=np.float32)
        self._right = np.zeros((classes, plan.rows.window, self._overlap), dtype=np.float32)
        self._with_scores = with_scores
        self._rows: dict[str, npt.NDArray[Any]] = {}
        self._column = -1

    def add(self, tile: Tile, own: npt.NDArray[np.bool_], answer: Answer | None) -> None:
        """Take the scores (K, window, window) of a tile."""
        if not self._rows:
            self._begin_row(tile.own.height)
        place = slice(tile.own.col_off, tile.own.col_off + tile.own.width)
        if answer is None or tile.column != self._column + 1:
            # No pixel that counts lies on a tile that was left out, so nothing is carried over it.
            self._forget(self._column + 1, tile.column + (answer is None))
        self._column = tile.column
        if answer is None:
            return
        (scores,) = answer
        if self._overlap:
            scores = _weighted(
                scores,
                blend_weights(self._plan.rows, tile.row),
                blend_weights(self._plan.columns, tile.column),
                self._overlap,
            )
            scores[:, :, : self._overlap] += self._right
            self._right = scores[:, :, self._plan.columns.step :].copy()
            settled = scores[:, :, : tile.own.width]
            settled[:, : self._overlap] += self._below[:, :, place]
            if tile.row < self._plan.rows.tiles - 1:
                self._below[:, :, place] = settled[:, self._plan.rows.step :]
        else:
            settled = scores[:, :, : tile.own.width]
        ids, best = _best(settled[:, : tile.own.height], self._dtype)
        valid = own if self._min_score <= 0 else own & (best >= self._min_score - ROUNDING)
        self._rows["ids"][:, place] = np.where(valid, ids, self._nodata)
        if self._with_scores:
            percent = np.rint(best * 100).clip(0, 100).astype(np.uint8)
            self._rows["percent"][:, place] = np.where(valid, percent, SCORE_NODATA)

    def settle(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """``ids`` (rows, width) and, where asked for, ``percent``, the best score of each pixel in hundredths."""
        self._forget(self._column + 1, self._plan.columns.tiles)
        top, height = self._plan.rows.own(row)
        if not self._rows:
            self._begin_row(height)
        rows, self._rows, self._column = self._rows, {}, -1
        mask = self._wanted.area.mask(top, height, self._plan.columns.length)
        if mask is not None:
            for name, nodata in (("ids", self._nodata), ("percent", SCORE_NODATA)):
                if name in rows:
                    rows[name][~mask] = nodata
        return rows

    def _begin_row(self, height: int) -> None:
        shape = (height, self._plan.columns.length)
        self._rows = {"ids": np.full(shape, self._nodata, dtype=self._dtype)}
        if self._with_scores:
            self._rows["percent"] = np.full(shape, SCORE_NODATA, dtype=np.uint8)
        self._right[:] = 0

    def _forget(self, first: int, end: int) -> None:
        if first < end and self._overlap:
            left = first * self._plan.columns.step
            right = sum(self._plan.columns.own(end - 1))
            self._below[:, :, left:right] = 0
            self._right[:] = 0


def _weighted(
    scores: npt.NDArray[np.float32], down: npt.NDArray[np.float32], across: npt.NDArray[np.float32], overlap: int
) -> npt.NDArray[np.float32]:
    """Scores (K, h, w) times the weights of their rows and columns; those in the middle of a tile are 1."""
    if 2 * overlap > len(down):
        weighted: npt.NDArray[np.float32] = scores * np.outer(down, across)
        return weighted
    scores = scores.copy()
    for rim in (slice(overlap), slice(len(down) - overlap, None)):
        scores[:, rim] *= down[rim, None]
        scores[:, :, rim] *= across[rim]
    return scores


def _best(scores: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Argmax and max over the first axis of (K, h, w): class by class, as numpy's own jumps about in memory."""
    best = scores[0].copy()
    ids = np.zeros(best.shape, dtype=dtype)
    for number in range(1, len(scores)):
        better = scores[number] > best
        np.copyto(ids, number, where=better, casting="unsafe")
        np.maximum(best, scores[number], out=best)
    return ids, best

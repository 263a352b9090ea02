"""From the predictions of tiles to rows of cells, keeping no more rows than tiles still reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.data.windows import ReadWindow
from torchgeo_debias.inference.predictor import Prediction
from torchgeo_debias.tiling.plan import Tile, TilePlan
from torchgeo_debias.tiling.source import RasterSource


@dataclass(frozen=True)
class CellRow:
    """One finished row of cells.

    Attributes:
        top: First row of pixels.
        edges: (n + 1,) columns of pixels at which the n cells begin and the last one ends.
        prediction: (n, C) probabilities, a row of NaN where a cell holds no data.
        valid: (rows, width of the raster), True where a pixel holds data.
    """

    top: int
    edges: npt.NDArray[np.int64]
    prediction: Prediction
    valid: npt.NDArray[np.bool_]

    def paint(self, ids: npt.NDArray[np.int64], nodata: int) -> npt.NDArray[np.int64]:
        """Pixels (rows, width) of the cells' ``ids`` (n,), ``nodata`` where an id is negative or a pixel not valid."""
        line = np.repeat(np.where(ids < 0, nodata, ids), np.diff(self.edges))
        return np.where(self.valid, line, nodata)


class CellRows:
    """The rows of cells of one raster, from the first tile that reaches a row to the last.

    Weighted sums are float32 and there is one bool a pixel, so that memory is the width of the raster times the rows
    of one batch of tiles.
    """

    def __init__(self, plan: TilePlan, source: RasterSource, classes: int) -> None:
        self._plan = plan
        self._source = source
        self._classes = classes
        self._sums: dict[int, list[npt.NDArray[np.float32]]] = {}
        self._weights: dict[int, npt.NDArray[np.float32]] = {}
        self._valid: dict[int, npt.NDArray[np.bool_]] = {}
        self._next = 0

    def reader(self, tile: Tile) -> ReadWindow:
        """A way to read the tile's window that remembers which pixels of the tile's own part hold data."""
        own = tile.own
        shape = (own.height, self._source.width)
        mask = self._valid.setdefault(tile.row, np.zeros(shape, dtype=bool))

        def read(col_off: int, row_off: int, width: int, height: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
            pixels, valid = self._source.read(col_off, row_off, width, height)
            rows = max(min(own.row_off + own.height - row_off, height), 0)
            first = row_off - own.row_off
            mask[first : first + rows, own.col_off : own.col_off + own.width] = valid[:rows, : own.width]
            return pixels, valid

        return read

    def add(self, tile: Tile, prediction: Prediction) -> None:
        """Lay the prediction (C,) of a tile down on its cells."""
        columns = self._plan.columns.shares(tile.column)
        span = slice(columns[0].cell, columns[-1].cell + 1)
        across = np.array([share.weight for share in columns], dtype=np.float32)
        parts = [part for part in prediction if part is not None]
        for row, down in self._plan.rows.shares(tile.row):
            if row not in self._sums:
                self._sums[row] = [np.zeros((self._plan.columns.cells, len(part)), np.float32) for part in parts]
                self._weights[row] = np.zeros(self._plan.columns.cells, np.float32)
            self._weights[row][span] += across * down
            for sums, part in zip(self._sums[row], parts, strict=True):
                sums[span] += np.outer(across * down, part)

    def settle(self, tiles_done: int) -> Iterator[CellRow]:
        """Hand out, from the top, the rows that no tile after the first ``tiles_done`` ones reaches."""
        for row in range(self._next, self._plan.settled(tiles_done)):
            yield self._finish(row)
        self._next = self._plan.settled(tiles_done)

    def _finish(self, row: int) -> CellRow:
        top, height = self._plan.rows.cell(row)
        edges = np.append(np.arange(self._plan.columns.cells) * self._plan.columns.step, self._source.width)
        # The last row of tiles owns every row of cells below it.
        tile_row = min(row, self._plan.rows.tiles - 1)
        below = top - self._plan.rows.own(tile_row)[0]
        valid = self._valid[tile_row][below : below + height]
        if row == tile_row < self._plan.rows.tiles - 1 or row == self._plan.rows.cells - 1:
            del self._valid[tile_row]
        holds_data = np.logical_or.reduceat(valid.any(axis=0), edges[:-1])
        if row not in self._sums:
            nothing = np.full((self._plan.columns.cells, self._classes), np.nan, dtype=np.float32)
            return CellRow(top, edges, Prediction(nothing), valid)
        weights = np.where(holds_data, self._weights.pop(row), 0)[:, None]
        means = [
            np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0) for sums in self._sums.pop(row)
        ]
        return CellRow(top, edges, Prediction(*means), valid)

"""From the predictions of tiles to rows of cells, keeping no more rows than tiles still reach."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchgeo_debias.evaluation.thresholds import NOTHING, Thresholds
from torchgeo_debias.inference.results import best
from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.blend import ROUNDING
from torchgeo_debias.tiling.engine import Answer
from torchgeo_debias.tiling.maps import SCORE_NODATA
from torchgeo_debias.tiling.parts import Part, join
from torchgeo_debias.tiling.plan import Tile


class CellOptions(NamedTuple):
    """What is made of the cells.

    Attributes:
        classes: Number of classes.
        twin: Whether the model answers for its biased twin as well.
        min_score: Cells below are not classified, 0..1.
        hidden: Class that gets no record, None where all do.
        dtype: numpy name of the type of the painted ids.
        nodata: Painted where there is no class.
        painted: Whether ids and scores of pixels are wanted.
        recorded: Whether records of cells are wanted.
        thresholds: Decide which class the probabilities of a cell stand for, None for the highest.
    """

    classes: int
    twin: bool
    min_score: float
    hidden: int | None
    dtype: str
    nodata: int
    painted: bool
    recorded: bool
    thresholds: Thresholds | None = None


class CellMerger:
    """Means of the probabilities of all tiles on a cell, weighted by the share of the cell that each covers.

    Memory is the width of the raster times the rows of cells that one tile reaches, float32, and one bool a pixel of
    one row of tiles.
    """

    def __init__(self, wanted: Wanted, options: CellOptions) -> None:
        self._wanted = wanted
        self._plan = wanted.plan
        self._options = options
        self._sums: dict[int, npt.NDArray[np.float32]] = {}
        self._weights: dict[int, npt.NDArray[np.float32]] = {}
        self._valid: npt.NDArray[np.bool_] | None = None

    def add(self, tile: Tile, own: npt.NDArray[np.bool_], answer: Answer | None) -> None:
        """Lay the probabilities (C,) of a tile, and those of the twin, down on its cells."""
        if self._valid is None:
            self._valid = self._nothing_valid(tile.row)
        self._valid[:, tile.own.col_off : tile.own.col_off + tile.own.width] = own
        if answer is None:
            return
        columns = self._plan.columns.shares(tile.column)
        span = slice(columns[0].cell, columns[-1].cell + 1)
        across = np.array([share.weight for share in columns], dtype=np.float32)
        values = np.concatenate(answer)
        for row, down in self._plan.rows.shares(tile.row):
            if row not in self._sums:
                self._sums[row] = np.zeros((self._plan.columns.cells, len(values)), np.float32)
                self._weights[row] = np.zeros(self._plan.columns.cells, np.float32)
            self._weights[row][span] += across * down
            self._sums[row][span] += np.outer(across * down, values)

    def settle(self, row: int) -> Part:
        """The rows of cells that begin in a row of tiles' own part.

        Returns:
            ``counts`` (rows of cells, C), cells of each class. Where painted: ``ids`` and ``percent``, (rows of
            pixels, width). Where recorded, of n cells: ``cells`` (n, 4), first column, first row, and those behind
            the last; ``classes`` and ``scores`` (n,), for models with a twin ``raw_classes`` and ``raw_scores``.
        """
        valid = self._nothing_valid(row) if self._valid is None else self._valid
        self._valid = None
        top = self._plan.rows.own(row)[0]
        # The last row of tiles owns every row of cells below it.
        last = self._plan.rows.cells if row == self._plan.rows.tiles - 1 else row + 1
        pieces = []
        for cell_row in range(row, last):
            first, height = self._plan.rows.cell(cell_row)
            pieces.append(self._finish(cell_row, valid[first - top : first - top + height]))
        return join(pieces)

    def _nothing_valid(self, row: int) -> npt.NDArray[np.bool_]:
        return np.zeros((self._plan.rows.own(row)[1], self._plan.columns.length), dtype=bool)

    def _finish(self, row: int, valid: npt.NDArray[np.bool_]) -> Part:
        options = self._options
        edges = np.append(np.arange(self._plan.columns.cells) * self._plan.columns.step, self._plan.columns.length)
        means = self._means(row, self._wanted.cells(row) & np.logical_or.reduceat(valid.any(axis=0), edges[:-1]))
        ids, scores = best(means[:, : options.classes], options.thresholds)
        ids[scores < options.min_score - ROUNDING] = NOTHING
        part: Part = {"counts": np.bincount(ids[ids >= 0], minlength=options.classes)[None]}
        top, height = self._plan.rows.cell(row)
        if options.painted:
            mask = self._wanted.area.mask(top, height, self._plan.columns.length)
            part |= self._paint(ids, scores, np.diff(edges), valid if mask is None else valid & mask)
        if options.recorded:
            take = np.flatnonzero((ids != NOTHING) & (ids != options.hidden))
            rows = np.broadcast_to(np.array([[top, top + height]]), (len(take), 2))
            part["cells"] = np.column_stack([edges[take], rows[:, 0], edges[take + 1], rows[:, 1]])
            part |= {"classes": ids[take], "scores": scores[take]}
            if options.twin:
                raw_ids, raw_scores = best(means[take, options.classes :])
                part |= {"raw_classes": raw_ids, "raw_scores": raw_scores}
        return part

    def _means(self, row: int, counts: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """(cells, C), twice as wide with a twin; rows of NaN for cells that do not count."""
        if row not in self._sums:
            width = self._options.classes * (1 + self._options.twin)
            return np.full((self._plan.columns.cells, width), np.nan, dtype=np.float32)
        sums, weights = self._sums.pop(row), np.where(counts, self._weights.pop(row), 0)[:, None]
        means: npt.NDArray[np.float32] = np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)
        return means

    def _paint(
        self,
        ids: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        widths: npt.NDArray[np.int64],
        valid: npt.NDArray[np.bool_],
    ) -> dict[str, npt.NDArray[Any]]:
        nothing = ids < 0
        percent = np.where(nothing, SCORE_NODATA, np.rint(np.nan_to_num(scores) * 100)).astype(np.uint8)
        line = np.where(nothing, self._options.nodata, ids).astype(self._options.dtype)
        return {
            "ids": np.where(valid, np.repeat(line, widths), line.dtype.type(self._options.nodata)),
            "percent": np.where(valid, np.repeat(percent, widths), np.uint8(SCORE_NODATA)),
        }

"""Where the tiles of a raster lie, and which cells of the map they speak for. All lengths in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError

LARGEST_OVERLAP = 0.9
"""Share of a tile; with more, each spot would be looked at more than a hundred times."""

_BAND_ROWS = 512
_MAX_BAND_ROWS = 4096
_BAND_PIXELS = 2**23


class Box(NamedTuple):
    """A window in pixels, from the raster's upper left corner."""

    col_off: int
    row_off: int
    width: int
    height: int


class Tile(NamedTuple):
    """One window of the plan.

    Attributes:
        id: Position in reading order, counted from 0: ``row * columns + column``.
        row: Row of tiles, from the top.
        column: Column of tiles, from the left.
        window: What is read; it may reach beyond the raster's right and lower edge.
        own: The part of the raster that is this tile's alone: those of all tiles cover every pixel exactly once.
    """

    id: int
    row: int
    column: int
    window: Box
    own: Box


class Band(NamedTuple):
    """A run of rows of tiles, the unit of work and of what a journal remembers.

    Attributes:
        number: Position from the top, counted from 0.
        rows: The rows of tiles.
        top: First row of pixels that is theirs alone.
        bottom: The row of pixels below the last of them.
    """

    number: int
    rows: range
    top: int
    bottom: int


class Share(NamedTuple):
    """How much of a cell one tile covers along one axis: ``weight`` in (0, 1], as a share of the cell's length."""

    cell: int
    weight: float


@dataclass(frozen=True)
class Axis:
    """Tiles and cells along one axis of the raster.

    Cells are ``step`` long and cover the axis once, the last one cut at its end. Tiles are ``window`` long, one
    begins with each cell, and there are just as many as reach the end.

    Attributes:
        length: Of the raster, pixels.
        window: Of a tile, pixels.
        step: From one tile to the next, and of a cell, pixels.
    """

    length: int
    window: int
    step: int

    @cached_property
    def tiles(self) -> int:
        """Number of tiles."""
        return max(math.ceil((self.length - self.window) / self.step), 0) + 1

    @cached_property
    def cells(self) -> int:
        """Number of cells."""
        return math.ceil(self.length / self.step)

    def cell(self, index: int) -> tuple[int, int]:
        """First pixel and length of a cell."""
        start = index * self.step
        return start, min(self.step, self.length - start)

    def own(self, tile: int) -> tuple[int, int]:
        """First pixel and length of the part that is a tile's alone; the last tile has the rest of the axis."""
        start = tile * self.step
        return start, self.length - start if tile == self.tiles - 1 else self.step

    @property
    def overlap(self) -> int:
        """Pixels that two neighbouring tiles share."""
        return self.window - self.step

    def core(self, tile: int) -> tuple[float, float]:
        """Where a tile's core begins and ends: the tile less half the overlap at each end that another tile shares.

        The cores of all tiles cover the axis once; at its ends they go on without end. What is shorter than the overlap
        and has its middle in the core of a tile lies in that tile wholly.
        """
        start = tile * self.step + self.overlap / 2
        return (
            start if tile > 0 else -math.inf,
            start + self.step if tile < self.tiles - 1 else math.inf,
        )

    def shares(self, tile: int) -> list[Share]:
        """The cells a tile covers, wholly or in part."""
        start = tile * self.step
        end = min(start + self.window, self.length)
        shares = []
        for index in range(tile, min(math.ceil(end / self.step), self.cells)):
            first, length = self.cell(index)
            shares.append(Share(index, (min(first + length, end) - first) / length))
        return shares


def check_overlap(overlap: float) -> None:
    """Refuse an overlap of tiles that is no share, or above :data:`LARGEST_OVERLAP`.

    Raises:
        ConfigError: If it is.
    """
    if not 0 <= overlap <= LARGEST_OVERLAP:
        raise ConfigError(
            f"The overlap of tiles must lie between 0 and {LARGEST_OVERLAP}, as each spot is looked at "
            f"1 / (1 - overlap)^2 times; received {overlap}."
        )


@dataclass(frozen=True)
class TilePlan:
    """A regular grid of square tiles over a raster, with the cells on which their predictions are laid down.

    The grid begins at the raster's upper left corner, so that ids and places depend on nothing but the three numbers.
    Without overlap a cell is its tile, cut at the raster's edge. With overlap the tiles are closer than they are
    long and several speak for one cell.

    Attributes:
        columns: The horizontal axis.
        rows: The vertical axis.
    """

    columns: Axis
    rows: Axis

    @classmethod
    def of(cls, width: int, height: int, window: float, overlap: float = 0.0) -> Self:
        """Plan a raster.

        Args:
            width: Of the raster, pixels.
            height: Of the raster, pixels.
            window: Side of a tile, pixels; rounded.
            overlap: Share of a tile that the next one covers again, see :func:`check_overlap`.

        Raises:
            ConfigError: If the overlap is out of range or the tile is smaller than a pixel.
        """
        check_overlap(overlap)
        side = round(window)
        if side < 1:
            raise ConfigError(f"A tile must be at least one pixel wide; received {window:.3g} pixels.")
        step = max(round(side * (1 - overlap)), 1)
        return cls(Axis(width, side, step), Axis(height, side, step))

    def __len__(self) -> int:
        return self.rows.tiles * self.columns.tiles

    def __iter__(self) -> Iterator[Tile]:
        """The tiles in reading order: row by row from the top, each from the left."""
        for row in range(self.rows.tiles):
            yield from self.row(row)

    @property
    def halo(self) -> int:
        """Rows of tiles above a row of tiles that reach into what is its own."""
        return math.ceil(self.rows.window / self.rows.step) - 1

    def row(self, row: int, columns: Iterable[int] | None = None) -> Iterator[Tile]:
        """The tiles of one row, from the left; only those in ``columns`` where given."""
        top, own_height = self.rows.own(row)
        for column in range(self.columns.tiles) if columns is None else columns:
            left, own_width = self.columns.own(column)
            yield Tile(
                row * self.columns.tiles + column,
                row,
                column,
                Box(left, top, self.columns.window, self.rows.window),
                Box(left, top, own_width, own_height),
            )

    def reached(self, row: int, wanted: Callable[[int], npt.NDArray[np.bool_]]) -> npt.NDArray[np.intp]:
        """Columns of the tiles of one row that cover at least one wanted cell.

        Args:
            row: Row of tiles.
            wanted: Which cells of a row of cells are wanted, (columns of cells,).
        """
        below = np.logical_or.reduce([wanted(cell) for cell, _ in self.rows.shares(row)])
        before = np.concatenate([[0], np.cumsum(below)])
        return np.flatnonzero(before[self._cell_ends] > before[: self.columns.tiles])

    @cached_property
    def _cell_ends(self) -> npt.NDArray[np.int64]:
        """Behind the last cell that each column of tiles covers."""
        return np.array([self.columns.shares(column)[-1].cell + 1 for column in range(self.columns.tiles)])

    def bands(self, block_rows: int, batch_size: int) -> list[Band]:
        """Cut the rows of tiles into bands: what is read, computed and written down as one.

        A band has the rows of tiles that begin in the same stretch of the file, a whole number of its blocks high
        (a half or a quarter of one in very wide files, for the sake of memory), so that neighbouring bands decode few
        blocks twice. Rows of few tiles come in groups that fill a batch, and a
        group stays in one band. Results do not depend on the bands.

        Args:
            block_rows: Rows of pixels that the file decodes at once.
            batch_size: Tiles in one call of the model.
        """
        group = self.group(batch_size)
        # Files of single rows, or of one block, would make a band of every row of tiles, or of all of them.
        height = block_rows * max(_BAND_ROWS // block_rows, 1) if block_rows <= _MAX_BAND_ROWS else _BAND_ROWS
        while height * self.columns.length > _BAND_PIXELS and height > 1:
            height //= 2
        starts = [
            row
            for row in range(0, self.rows.tiles, group)
            if row == 0 or row * self.rows.step // height > (row - group) * self.rows.step // height
        ]
        edges = [*starts, self.rows.tiles]
        return [
            Band(number, range(first, end), self.rows.own(first)[0], sum(self.rows.own(end - 1)))
            for number, (first, end) in enumerate(pairwise(edges))
        ]

    def group(self, batch_size: int) -> int:
        """Rows of tiles that are put into batches together: more than one where a row does not fill a batch."""
        return max(batch_size // self.columns.tiles, 1)

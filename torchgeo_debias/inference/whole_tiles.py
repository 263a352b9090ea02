"""How the tiles of a raster come before a model, one rule for pixels, boxes, masks and classes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from torchgeo_debias.data.windows import cut_square
from torchgeo_debias.tiling.engine import Cut
from torchgeo_debias.tiling.plan import Tile
from torchgeo_debias.tiling.source import Source


class _OfTiles(Protocol):
    @property
    def size(self) -> int: ...

    def use_threads(self, n: int) -> None: ...


class WholeTiles:
    """The part of a :class:`~torchgeo_debias.tiling.engine.Task` that reads.

    Attributes:
        predictor: The model, with the side of its tiles.
    """

    predictor: _OfTiles

    @property
    def size(self) -> int:
        """Side of what the model sees, pixels."""
        return self.predictor.size

    def cut(self, source: Source, tile: Tile) -> Cut:
        """Read a tile."""
        return cut_tile(source, tile, self.size)

    def use_threads(self, n: int) -> None:
        """Let the model use ``n`` threads in each call."""
        self.predictor.use_threads(n)


def cut_tile(source: Source, tile: Tile, size: int) -> Cut:
    """Read a tile, and resample it as training does (:func:`~torchgeo_debias.data.windows.cut_square`) if need be.

    Args:
        source: The raster.
        tile: Of whatever side.
        size: Side of what the model sees, pixels.
    """
    own = tile.own
    if tile.window.width == size:
        pixels, valid = source.read(*tile.window)
        return Cut(pixels, valid, valid[: own.height, : own.width])
    mask = np.zeros((own.height, own.width), dtype=bool)

    def read(col_off: int, row_off: int, width: int, height: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        pixels, valid = source.read(col_off, row_off, width, height)
        rows = max(min(own.row_off + own.height - row_off, height), 0)
        first = row_off - own.row_off
        mask[first : first + rows] = valid[:rows, : own.width]
        return pixels, valid

    square = np.array([*tile.window[:2], tile.window.width])
    return Cut(*cut_square(read, square, size), mask)

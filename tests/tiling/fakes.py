"""A source in memory that remembers what was done with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.transform import from_origin

from tests.tiling.rasters import UTM
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box


class FakeSource:
    """One band of bytes; copies share ``pixels`` and the records.

    Attributes:
        reads: Windows that were read.
        copies: Made of it and of its copies.
        closed: Whether ``close`` was called.
    """

    count = 1
    dtype = np.dtype(np.uint8)
    footprints = None

    def __init__(self, pixels: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_] | None = None) -> None:
        self.pixels = pixels
        self.valid = np.ones(pixels.shape, bool) if valid is None else valid
        self.height, self.width = pixels.shape
        self.grid = Grid(self.width, self.height, CRS.from_string(UTM), from_origin(500_000, 5_400_000, 2, 2))
        self.block_shape = (1, 1)
        self.reads: list[Box] = []
        self.copies: list[FakeSource] = []
        self.closed = False

    def __copy__(self) -> FakeSource:
        other = type(self).__new__(type(self))
        other.__dict__ |= self.__dict__
        self.copies.append(other)
        return other

    def read(
        self, col_off: int, row_off: int, width: int, height: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        if self.closed:
            raise RuntimeError("read after close")
        self.reads.append(Box(col_off, row_off, width, height))
        part = slice(row_off, row_off + height), slice(col_off, col_off + width)
        found = self.valid[part]
        spare = [(0, height - found.shape[0]), (0, width - found.shape[1])]
        valid = np.pad(found, spare)
        return np.where(valid, np.pad(self.pixels[part], spare), 0)[None], valid

    def close(self) -> None:
        self.closed = True

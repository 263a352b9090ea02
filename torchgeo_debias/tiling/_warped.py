"""Reading a source on another grid: straightened, in another CRS, finer or coarser."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling
from rasterio.warp import reproject

from torchgeo_debias.tiling._base import GridSource
from torchgeo_debias.tiling._place import apply, between, moved, widened
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box

if TYPE_CHECKING:
    from torchgeo_debias.tiling.source import Source

Pixels = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]
Reader = Callable[[int, int, int, int], Pixels]

_BLOCK = 512
_SOURCE_PIXELS = 2048  # side of the largest window read for one block
_MARGIN = 5  # pixels of the raster around those below a block: for the kernel, and for edges that curve
_CACHE_BYTES = 64 << 20
_EMPTY_BYTES = 256  # what is kept of a block without data
_COARSER = 1.1  # below this a linear kernel sees all pixels
_OPAQUE = 255


class BlockCache:
    """The blocks resampled last, of one raster or of several together."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[Hashable, Pixels | None] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Pixels | None]) -> Pixels | None:
        """The block of that key, made now if it is not kept; None for one without data."""
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        block = self._blocks[key] = make()
        self._bytes += _size(block)
        while self._bytes > _CACHE_BYTES and len(self._blocks) > 1:
            self._bytes -= _size(self._blocks.popitem(last=False)[1])
        return block


class Resampler:
    """Resamples windows of a raster to a grid, in blocks that depend on nothing but the two grids.

    Averages where a pixel of the grid covers more than one of the raster, else interpolates linearly. Pixels without
    data have no weight. An interpolated pixel holds data where its centre lies in a pixel that does, an average where
    any pixel below it does. Since the blocks are fixed, a pixel is the same whatever the window it is read with.

    Attributes:
        block_shape: Rows and columns of a block.
    """

    def __init__(
        self,
        read: Reader,
        frame: Grid,
        grid: Grid,
        count: int,
        dtype: np.dtype[Any],
        cache: BlockCache | None = None,
    ) -> None:
        """Choose kernel and blocks.

        Args:
            read: Reads (col_off, row_off, width, height) inside ``frame``.
            frame: Of the raster; may be rotated, sheared or turned.
            grid: To be filled; in any CRS.
            count: Bands.
            dtype: Of the pixels.
            cache: To be shared with others; one of its own where left out.
        """
        self._read, self._frame, self._grid = read, frame, grid
        self._count, self._dtype = count, dtype
        self._back = between(grid.crs, frame.crs) if grid.crs != frame.crs else None
        self._steps = self._source_pixels_per_pixel()
        coarsest = max(self._steps)
        self._kernel = Resampling.average if coarsest > _COARSER else Resampling.bilinear
        side = max(min(_BLOCK, int(_SOURCE_PIXELS / coarsest)), 1)
        self.block_shape = (min(side, grid.height), min(side, grid.width))
        self._cache = cache or BlockCache()

    def read(self, window: Box) -> Pixels:
        """Pixels (C, h, w) and mask (h, w) of a window inside the grid."""
        image = np.zeros((self._count, window.height, window.width), dtype=self._dtype)
        valid = np.zeros((window.height, window.width), dtype=bool)
        rows, columns = self.block_shape
        right, bottom = window.col_off + window.width, window.row_off + window.height
        for row, column in product(
            range(window.row_off // rows, -(-bottom // rows)), range(window.col_off // columns, -(-right // columns))
        ):
            block = self._cache.get((self, row, column), partial(self._resample, row, column))
            if block is None:
                continue
            top, left = row * rows, column * columns
            down = slice(max(window.row_off, top), min(bottom, top + rows))
            across = slice(max(window.col_off, left), min(right, left + columns))
            here = _shifted(down, window.row_off), _shifted(across, window.col_off)
            there = _shifted(down, top), _shifted(across, left)
            image[:, *here], valid[here] = block[0][:, *there], block[1][there]
        return image, valid

    def _resample(self, row: int, column: int) -> Pixels | None:
        rows, columns = self.block_shape
        top, left = row * rows, column * columns
        height, width = min(rows, self._grid.height - top), min(columns, self._grid.width - left)
        window, covered = self._window_below(Box(left, top, width, height))
        if window is None:
            return None
        pixels, valid = self._read(*window)
        if not valid.any():
            return None
        whole = covered and bool(valid.all())
        source = pixels if whole else np.concatenate([pixels, valid[None].astype(self._dtype) * _OPAQUE])
        alpha = {} if whole else {"src_alpha": len(source), "dst_alpha": len(source)}
        out = np.zeros((len(source), height, width), dtype=self._dtype)
        reproject(
            source,
            out,
            src_transform=moved(self._frame.transform, window.col_off, window.row_off),
            src_crs=self._frame.crs,
            dst_transform=moved(self._grid.transform, left, top),
            dst_crs=self._grid.crs,
            resampling=self._kernel,
            # Fixed, or GDAL would choose the width of the kernel anew for each block.
            XSCALE=1 / self._steps[0],
            YSCALE=1 / self._steps[1],
            SRC_ALPHA_MAX=_OPAQUE,
            DST_ALPHA_MAX=_OPAQUE,
            **alpha,
        )
        if whole:
            return out, np.ones((height, width), dtype=bool)
        image, mask = out[:-1], out[-1] > 0
        np.copyto(image, 0, where=~mask)
        return image, mask

    def _window_below(self, block: Box) -> tuple[Box | None, bool]:
        """The window of the raster that a block is made of, and whether the raster covers all of the block."""
        columns, rows = np.meshgrid(
            block.col_off + np.linspace(0, block.width, 9), block.row_off + np.linspace(0, block.height, 9)
        )
        x, y = self._to_frame(columns.ravel(), rows.ravel())
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.any():
            return None, False
        left, top = math.floor(x[finite].min()) - _MARGIN, math.floor(y[finite].min()) - _MARGIN
        right, bottom = math.ceil(x[finite].max()) + _MARGIN, math.ceil(y[finite].max()) + _MARGIN
        inside = Box(max(left, 0), max(top, 0), 0, 0)
        inside = inside._replace(
            width=min(right, self._frame.width) - inside.col_off,
            height=min(bottom, self._frame.height) - inside.row_off,
        )
        if inside.width <= 0 or inside.height <= 0:
            return None, False
        return inside, bool(finite.all()) and inside == (left, top, right - left, bottom - top)

    def _to_frame(self, columns: npt.NDArray[Any], rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        x, y = apply(self._grid.transform, columns, rows)
        if self._back is not None:
            x, y = self._back.transform(x, y)
        return apply(~self._frame.transform, x, y)

    def _source_pixels_per_pixel(self) -> tuple[float, float]:
        """Length, in pixels of the raster, of the sides of a pixel of the grid: the median over the raster."""
        shares = np.linspace(0.1, 0.9, 5)
        columns, rows = np.meshgrid(shares * self._frame.width, shares * self._frame.height)
        x, y = apply(self._frame.transform, columns.ravel(), rows.ravel())
        if self._back is not None:
            x, y = self._back.transform(x, y, direction="INVERSE")
        x, y = apply(~self._grid.transform, x, y)
        lengths = [
            np.hypot(*np.subtract(self._to_frame(x + across, y + down), self._to_frame(x - across, y - down)))
            for across, down in ((0.5, 0), (0, 0.5))
        ]
        across, down = (float(np.median(length[np.isfinite(length)])) for length in lengths)
        return across, down


class WarpedSource(GridSource):
    """A source read on another grid; see :class:`Resampler`."""

    def __init__(self, source: Source, grid: Grid, cache: BlockCache | None = None) -> None:
        """Take over ``source`` and close it in the end.

        Args:
            source: What to read.
            grid: Where; in any CRS in which the source has a place.
            cache: See :class:`Resampler`.
        """
        self._source = source
        self._place(grid)
        self.name, self.dtype = source.name, source.dtype
        self.bands, self.band_names = source.bands, source.band_names
        if source.footprints is not None and source.crs == grid.crs:
            self.footprints = [widened(footprint, grid) for footprint in source.footprints]
        self._resampler = Resampler(source.read, source.grid, grid, source.count, source.dtype, cache)
        self.block_shape = self._resampler.block_shape

    def order_of(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """As the source that is read."""
        return self._source.order_of(names)

    @property
    def files(self) -> list[Path]:
        """Those behind the source."""
        return self._source.files

    def identity(self) -> dict[str, Any]:
        """That of the source, and the grid."""
        width, height, crs, t = self.grid
        return {"source": self._source.identity(), "grid": [width, height, crs.to_wkt(), *t[:6]]}

    def close(self) -> None:
        """Close the source that is read."""
        self._source.close()

    def __copy__(self) -> Self:
        return type(self)(copy.copy(self._source), self.grid)

    def __reduce__(self) -> tuple[type[Self], tuple[Source, Grid]]:
        return type(self), (self._source, self.grid)

    def _read_inside(self, window: Box) -> Pixels:
        return self._resampler.read(window)


def _size(block: Pixels | None) -> int:
    return _EMPTY_BYTES if block is None else sum(part.nbytes for part in block)


def _shifted(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)

"""Many rasters read as one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine

from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.tiling._base import GridSource
from torchgeo_debias.tiling._place import apply, between, extent, moved, outline, widened
from torchgeo_debias.tiling._warped import BlockCache, WarpedSource
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import Box
from torchgeo_debias.tiling.source import RasterSource, Source

_OPEN_AT_MOST = 32
_SAME_PLACE = 0.01  # pixels by which a raster may be off the grid and still be read as it is
_SPARSE = 1000


class _Part(NamedTuple):
    """One raster of a mosaic.

    Attributes:
        path: The file.
        footprint: Where it lies, in the CRS of the mosaic.
        window: Its place on the mosaic's pixels.
        grid: Grid of that window, onto which it is resampled; None where its own pixels are those of the mosaic.
        identity: Of the raster.
        files: Behind the raster.
    """

    path: Path
    footprint: shapely.Polygon
    window: Box
    grid: Grid | None
    identity: dict[str, Any]
    files: list[Path]


class MosaicSource(GridSource):
    """Several rasters, in any CRS and of any resolution, as one: on the grid of the first, extended over all.

    A raster that lies on this grid is read as it is; any other is resampled to it, see
    :class:`~torchgeo_debias.tiling._warped.Resampler`. Nodata, alpha and mask are each raster's own. Where rasters
    overlap, each pixel comes from the first one in the list that has data there. Files are opened when a window
    touches them. Attributes are those of :class:`~torchgeo_debias.tiling.source.RasterSource`; in a geographic CRS,
    rasters on both sides of the antimeridian lie side by side, with longitudes beyond 180.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        bands: Sequence[int | str] | None = None,
        nodata: float | None = None,
        crs: object | None = None,
        like: Grid | None = None,
    ) -> None:
        """Look at every raster once and lay out the grid.

        Args:
            paths: At least one raster; order decides where they overlap.
            bands: Bands to read of each, counted from 1, or their names; every band but alpha where left out.
            nodata: Takes the place of the nodata value in each file; NaN is added to it instead.
            crs: Stands in where a file has no coordinate reference system.
            like: Its CRS and pixels, but not its size, take the place of those of the first raster.

        Raises:
            ConfigError: If there are no rasters or ``crs`` is no coordinate reference system.
            RasterError: If a raster cannot be used, differs from the first in number, order or type of its bands, or
                lies so far from the others that the mosaic would be all but empty.
        """
        if not paths:
            raise ConfigError("Name at least one raster.")
        self._options = (None if bands is None else tuple(bands), nodata, crs)
        self._handles: OrderedDict[int, Source] = OrderedDict()
        self._cache = BlockCache()
        self.name = str(paths[0]) if len(paths) == 1 else f"the mosaic of {paths[0]} and {len(paths) - 1} more"
        with _env(), RasterSource(paths[0], *self._options) as first:
            base = like or first.grid
            parts = [_part(first, base)]
        for path in paths[1:]:
            with _env(), RasterSource(path, *self._options) as source:
                _check_alike(source, first)
                parts.append(_part(source, base))
        self.dtype, self.bands, self.band_names = first.dtype, first.bands, first.band_names
        self.block_shape = first.block_shape
        self._bands_given = bands is not None
        self._lay_out(base, parts)

    @property
    def files(self) -> list[Path]:
        """Every file that the pixels come from."""
        return [file for part in self._parts for file in part.files]

    def identity(self) -> dict[str, Any]:
        """Those of all rasters in order, and the grid."""
        width, height, crs, t = self.grid
        rasters = [part.identity for part in self._parts]
        return {"rasters": rasters, "grid": [width, height, crs.to_wkt(), *t[:6]]}

    def close(self) -> None:
        """Close the files that are open."""
        while self._handles:
            self._handles.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": OrderedDict(), "_cache": BlockCache()}

    def _lay_out(self, base: Grid, parts: list[_Part]) -> None:
        """Extend ``base`` over all parts and count their windows from its new corner."""
        starts = np.array([part.window[:2] for part in parts])
        sizes = np.array([part.window[2:] for part in parts])
        ends = starts + sizes
        corner = starts.min(axis=0)
        size = ends.max(axis=0) - corner
        if math.prod(size.tolist()) > _SPARSE * sum(map(math.prod, sizes.tolist())):
            axis = int(np.argmax(size / sizes.sum(axis=0)))
            one, other = parts[starts[:, axis].argmin()], parts[ends[:, axis].argmax()]
            raise RasterError(
                f"{one.path} {extent(one.footprint.bounds, base.crs)} and {other.path} "
                f"{extent(other.footprint.bounds, base.crs)} lie too far apart for a mosaic, which would be all but "
                "empty; map them one at a time."
            )
        (x, y), (width, height) = corner.tolist(), size.tolist()
        self._place(Grid(width, height, base.crs, moved(base.transform, x, y)))
        self._parts = [
            part._replace(window=part.window._replace(col_off=part.window.col_off - x, row_off=part.window.row_off - y))
            for part in parts
        ]
        self._starts, self._ends = starts - corner, ends - corner
        self.footprints = [part.footprint for part in parts]

    def _read_inside(self, window: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        begin = np.array([window.col_off, window.row_off])
        end = begin + np.array([window.width, window.height])
        image = np.zeros((self.count, window.height, window.width), dtype=self.dtype)
        valid = np.zeros((window.height, window.width), dtype=bool)
        for i in np.flatnonzero(((self._starts < end) & (self._ends > begin)).all(axis=1)).tolist():
            left, top = np.maximum(self._starts[i], begin).tolist()
            right, bottom = np.minimum(self._ends[i], end).tolist()
            rows, columns = (
                slice(top - window.row_off, bottom - window.row_off),
                slice(left - window.col_off, right - window.col_off),
            )
            missing = ~valid[rows, columns]
            if not missing.any():
                continue
            place = self._parts[i].window
            pixels, holds = self._open(i).read(left - place.col_off, top - place.row_off, right - left, bottom - top)
            if not missing.all():
                np.copyto(image[:, rows, columns], pixels, where=holds & missing)
                valid[rows, columns] |= holds
            elif holds.all() and holds.shape == valid.shape:
                return pixels, holds
            else:
                image[:, rows, columns], valid[rows, columns] = pixels, holds
        return image, valid

    def _open(self, index: int) -> Source:
        if index in self._handles:
            self._handles.move_to_end(index)
            return self._handles[index]
        if len(self._handles) >= _OPEN_AT_MOST:
            self._handles.popitem(last=False)[1].close()
        part = self._parts[index]
        with _env():
            source: Source = RasterSource(part.path, *self._options)
        if part.grid is not None:
            source = WarpedSource(source, part.grid, self._cache)
        self._handles[index] = source
        return source


def _env() -> rasterio.Env:
    # GDAL would list the whole folder for each raster in it, only to see whether there is a world file or a mask.
    return rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE")


def _part(source: RasterSource, base: Grid) -> _Part:
    """Where a raster lies on the pixels of ``base``, counted from its corner."""
    footprint = source.footprints[0] if source.footprints else outline(source.grid)
    same_crs = source.crs == base.crs
    if not same_crs:
        footprint = _in_crs(source, footprint, base.crs)
    turn = _turn(footprint, base)
    footprint = shapely.transform(footprint, lambda xy: xy + np.array([turn, 0]))
    x, y = apply(~base.transform, *shapely.get_coordinates(footprint).T)
    if same_crs and (window := _on_pixels(source.grid, base, turn)):
        return _Part(source.path, footprint, window, None, source.identity(), source.files)
    # Curved edges reach a little beyond the straight lines between their points.
    margin = 0 if same_crs else 1
    left, top = math.floor(min(x) + 1e-6) - margin, math.floor(min(y) + 1e-6) - margin
    right, bottom = math.ceil(max(x) - 1e-6) + margin, math.ceil(max(y) - 1e-6) + margin
    window = Box(left, top, max(right - left, 1), max(bottom - top, 1))
    t = moved(base.transform, left, top)
    own = Grid(window.width, window.height, base.crs, Affine(t.a, 0, t.c - turn, 0, t.e, t.f))
    return _Part(source.path, widened(footprint, own), window, own, source.identity(), source.files)


def _on_pixels(grid: Grid, base: Grid, turn: float) -> Box | None:
    """The window of ``base`` whose pixels are those of ``grid``, if they are."""
    columns, rows = np.array([0, grid.width]), np.array([0, grid.height])
    x, y = apply(grid.transform, columns, rows)
    (left, right), (top, bottom) = apply(~base.transform, x + turn, y)
    window = Box(round(left), round(top), grid.width, grid.height)
    off = (left - window.col_off, top - window.row_off, right - left - grid.width, bottom - top - grid.height)
    return window if max(map(abs, off)) < _SAME_PLACE else None


def _in_crs(source: RasterSource, footprint: shapely.Polygon, crs: CRS) -> shapely.Polygon:
    dense = shapely.segmentize(footprint, footprint.length / 200)
    x, y = between(source.crs, crs).transform(*shapely.get_coordinates(dense).T)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise RasterError(
            f"{source.path} {extent(source.bounds, source.crs)} has no place in {crs.to_string()}, the coordinate "
            "reference system of the mosaic; map it on its own."
        )
    if crs.is_geographic:  # points of one raster on both sides of the antimeridian belong together
        full = _full_turn(crs)
        x = x - full * np.round((x - x[0]) / full)
    return shapely.Polygon(np.transpose([x, y]))


def _turn(footprint: shapely.Polygon, base: Grid) -> float:
    """What to add to the longitudes of a raster to bring it as near to the first one as can be."""
    if not base.crs.is_geographic:
        return 0.0
    full = _full_turn(base.crs)
    return full * round((outline(base).centroid.x - footprint.centroid.x) / full)


def _full_turn(crs: CRS) -> float:
    return 2 * math.pi / float(crs.units_factor[1])


def _check_alike(source: RasterSource, first: RasterSource) -> None:
    if (source.count, source.dtype) != (first.count, first.dtype):
        raise RasterError(
            f"The rasters of a mosaic must go together, but {source.path} has {source.count} bands of {source.dtype} "
            f"and {first.path} has {first.count} of {first.dtype}."
        )
    if (order := source.order_of(first.band_names)) is not None:
        raise RasterError(
            f"{source.path} has the bands of {first.path} in another order ({', '.join(source.band_names)}); name the "
            f"bands in one order for all (--bands {','.join(first.band_names)}), or make a copy, for example with "
            f"'gdal_translate {' '.join(f'-b {i}' for i in order)}'."
        )

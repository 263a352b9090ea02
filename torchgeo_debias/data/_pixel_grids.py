"""The files of a TorchGeo data set as pixel grids, so that windows fall on whole pixels and inside the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from torchgeo.datasets import GeoDataset, IntersectionDataset, RasterDataset
from torchgeo.samplers import Units

from torchgeo_debias.errors import ConfigError

# Bounds that are off the pixel grid by less than this many pixels are so by rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class PixelGrids:
    """One grid for each file of a data set; files of less than a pixel are left out.

    Attributes:
        res: (2,) width and height of a pixel in units of the CRS.
        corners: (N, 2) x of the left edge and y of the upper edge of the first pixel that lies wholly in the file.
        shapes: (N, 2) columns and rows that lie wholly in the file.
        footprints: (N,) geometries in the CRS of the data set.
        times: N time spans; those without limits leave the choice to the data set.
    """

    res: npt.NDArray[np.float64]
    corners: npt.NDArray[np.float64]
    shapes: npt.NDArray[np.int64]
    footprints: npt.NDArray[np.object_]
    times: list[slice]

    @classmethod
    def of(cls, dataset: GeoDataset) -> PixelGrids:
        """Take the grids from the index of a data set; no file is opened.

        The pixels of an intersection of data sets are those of the first raster among its parts: the bounds of the
        overlap, which may come from a vector layer, need not be on any grid.

        Raises:
            ConfigError: If the data set has no resolution.
        """
        res = np.abs(np.broadcast_to(np.asarray(dataset.res, float), 2))  # that of xarray is negative in y
        if not res.all():
            raise ConfigError(
                f"{type(dataset).__name__} has no resolution, so that windows have no pixels; give it one by `res=`."
            )
        footprints = dataset.index.geometry.to_numpy()
        left, bottom, right, top = shapely.bounds(footprints).T
        anchors = _anchors(dataset)
        # In pixels to the right of the anchor and below it.
        near = (np.column_stack([left, -top]) - anchors * [1, -1]) / res
        far = (np.column_stack([right, -bottom]) - anchors * [1, -1]) / res
        first = np.ceil(near - ROUNDING)
        shapes = (np.floor(far + ROUNDING) - first).astype(np.int64)
        use = (shapes > 0).all(axis=1)
        spans = dataset.index.index
        # An intersection in space only has no times of its own.
        dated = isinstance(spans, pd.IntervalIndex)
        times = [slice(s.left, s.right) for s in spans[use]] if dated else [slice(None)] * int(use.sum())
        return cls(res, (anchors + first * res * [1, -1])[use], shapes[use], footprints[use], times)

    def pixels(self, name: str, extent: tuple[float, float] | float, units: Units) -> npt.NDArray[np.int64]:
        """A size or stride as (columns, rows), where TorchGeo's is one number or (height, width).

        Args:
            name: Of the option, for the sentence of an error.
            extent: The value of the option.
            units: Its units; lengths in those of the CRS become the nearest whole number of pixels.

        Raises:
            ConfigError: If it is not a whole number of pixels, at least 1.
        """
        wanted = np.broadcast_to(np.asarray(extent, float), 2)[::-1]
        pixels = wanted if units == Units.PIXELS else np.rint(wanted / self.res)
        if not (np.isfinite(pixels).all() and (pixels >= 1).all() and (pixels % 1 == 0).all()):
            raise ConfigError(f"The {name} must be whole pixels, at least 1, but is {extent}; give another {name}.")
        return pixels.astype(np.int64)

    def slices(self, file: int, axis: int, offsets: npt.NDArray[np.int64], length: int) -> Iterator[slice]:
        """Windows of one file along x (axis 0, offsets in columns) or y (axis 1, in rows) in units of the CRS."""
        return _slices(self.corners[file, axis], self.res[axis], axis, offsets, length)

    def windows(
        self, files: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], size: npt.NDArray[np.int64]
    ) -> Iterator[tuple[slice, slice, slice]]:
        """Windows of one size at (K, 2) columns and rows of K files, as queries of the data set."""
        corners = self.corners[files]
        x, y = (_slices(corners[:, a], self.res[a], a, offsets[:, a], int(size[a])) for a in (0, 1))
        return zip(x, y, map(self.times.__getitem__, files.tolist()), strict=True)


def _slices(
    corner: npt.NDArray[np.float64], res: float, axis: int, offsets: npt.NDArray[np.int64], length: int
) -> Iterator[slice]:
    # Both ends are counted from the corner, so that neighbours share an edge to the last bit.
    near, far = offsets * res, (offsets + length) * res
    low, high = (corner + near, corner + far) if axis == 0 else (corner - far, corner - near)
    # One at a time: slices kept in a list would let the garbage collector go through all of memory again and again.
    return map(slice, low.tolist(), high.tolist())


def pairs(
    footprints: npt.NDArray[np.object_], points: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which of the (K, 2) points lie on which footprints, ordered by points, then by footprints."""
    on_points, on_footprints = shapely.STRtree(footprints).query(shapely.points(points), predicate="intersects")
    order = np.lexsort((on_footprints, on_points))
    return on_points[order], on_footprints[order]


def _anchors(dataset: GeoDataset) -> npt.NDArray[np.float64]:
    """(N, 2) upper left corner of a pixel of each file."""
    footprints = dataset.index.geometry.to_numpy()
    anchors = shapely.bounds(footprints)[:, [0, 3]]
    rasters = [raster.index for raster in _rasters(dataset)]
    if not (isinstance(dataset, IntersectionDataset) and rasters):
        return anchors
    # Not every version of TorchGeo names the files behind an overlap; place and time do.
    whole = np.concatenate([raster.geometry.to_numpy() for raster in rasters])
    overlaps, files = pairs(whole, shapely.get_coordinates(shapely.point_on_surface(footprints)))
    spans = dataset.index.index
    if isinstance(spans, pd.IntervalIndex):
        left, right = (np.concatenate([getattr(raster.index, end) for raster in rasters]) for end in ("left", "right"))
        meet = (left[files] <= spans.right.to_numpy()[overlaps]) & (right[files] >= spans.left.to_numpy()[overlaps])
        overlaps, files = overlaps[meet], files[meet]
    here, first = np.unique(overlaps, return_index=True)
    anchors[here] = shapely.bounds(whole[files[first]])[:, [0, 3]]
    return anchors


def _rasters(dataset: GeoDataset) -> Iterator[RasterDataset]:
    if isinstance(dataset, RasterDataset):
        yield dataset
    for part in getattr(dataset, "datasets", ()):
        yield from _rasters(part)

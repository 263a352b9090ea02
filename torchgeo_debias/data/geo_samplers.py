"""TorchGeo samplers whose windows stay inside the rasters: balanced over classes, or a regular grid.

They yield geometry only and read no pixel. Each item is a query ``(xmin:xmax, ymin:ymax, tmin:tmax)`` in the CRS of
the data set that every TorchGeo ``GeoDataset`` takes as an index, those of ``&`` and ``|`` included; TorchGeo 0.8 to
0.10 take the same form.

Importing this module imports torchgeo; ``torchgeo_debias.data`` does so only when one of its names is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress, islice, product
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GeoSampler, Units

from torchgeo_debias.data._layer_io import read_layer
from torchgeo_debias.data._pixel_grids import ROUNDING, PixelGrids, pairs
from torchgeo_debias.data.samplers import ClassBalancedSampler
from torchgeo_debias.errors import ConfigError, LabelError

_CHUNK = 8192


class ClassBalancedGeoSampler(GeoSampler):  # type: ignore[misc]
    """Windows around labelled objects, every class equally often, for any TorchGeo ``GeoDataset``.

    Each draw is a rectangle (x, y) around the centre of an object's bounds, on whole pixels, with the time span of the
    first file of the data set that contains this centre. At the rim of the file the window moves inwards, so that it
    never leaves the file's bounds; where the file is smaller than the window, this begins at its left or upper edge
    and hangs over the other.
    Seeded and aware of epochs as :class:`~torchgeo_debias.data.samplers.ClassBalancedSampler`.
    """

    def __init__(
        self,
        dataset: GeoDataset,
        labels: Path | gpd.GeoDataFrame,
        class_field: str,
        size: tuple[float, float] | float,
        length: int | None = None,
        units: Units = Units.PIXELS,
        seed: int = 0,
        jitter: float = 0.0,
    ) -> None:
        """Place the objects on the data set.

        Args:
            dataset: Where the windows will be read; only its index is looked at.
            labels: Labelled objects, in any CRS; see :func:`~torchgeo_debias.data.layers.read_layer`.
            class_field: Attribute that holds the class.
            size: Side of the window, or its height and width.
            length: Windows in an epoch; by default one for each object on the data set.
            units: Whether ``size`` is in pixels of the data set or in units of its CRS, which become the nearest
                whole number of pixels.
            seed: Of the draws.
            jitter: Share of the window, 0 to 1, within which the object's centre lies: at 0 it is the window's
                centre, at 0.5 anywhere in its middle half, at 1 anywhere in it. Evenly spread, along x and y alone.

        Raises:
            ConfigError: If an option is out of range or the data set has no resolution.
            LabelError: If the layer cannot be used or no object lies on the data set.
        """
        if not 0 <= jitter <= 1:
            raise ConfigError(f"The jitter is a share of the window, 0 to 1, but is {jitter}; change jitter.")
        self._grids = PixelGrids.of(dataset)
        self._size = self._grids.pixels("size", size, units)
        self._jitter = jitter
        frame = read_layer(labels, class_field)
        bounds = shapely.bounds(frame.geometry.to_crs(dataset.crs).to_numpy())
        centres = (bounds[:, :2] + bounds[:, 2:]) / 2
        on_file, files = pairs(self._grids.footprints, centres)
        here, first = np.unique(on_file, return_index=True)
        if not len(here):
            raise LabelError(f"None of the {len(frame)} labelled objects lies on {type(dataset).__name__}.")
        _, classes = np.unique(frame[class_field].to_numpy(str)[here], return_inverse=True)
        self._files = files[first]
        # In columns and rows of the file.
        self._centres = (centres[here] - self._grids.corners[self._files]) * [1, -1] / self._grids.res
        self._draws = ClassBalancedSampler(classes, length, seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose sequence the next iteration draws."""
        self._draws.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield ``(xmin:xmax, ymin:ymax, tmin:tmax)`` in the CRS of the data set."""
        rng = np.random.default_rng([self._draws.seed, self._draws.epoch])
        draws = iter(self._draws)
        while len(objects := np.fromiter(islice(draws, _CHUNK), np.int64)):
            files = self._files[objects]
            offsets = self._offsets(self._centres[objects], self._grids.shapes[files], rng)
            yield from self._grids.windows(files, offsets, self._size)

    def _offsets(
        self, centres: npt.NDArray[np.float64], shapes: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """(K, 2) first column and row of windows that hold their centre and stay inside their file."""
        shift = self._jitter * (rng.random(centres.shape) - 0.5) if self._jitter else 0.0
        offsets = np.rint(centres + (shift - 0.5) * self._size)
        # Rounding to whole pixels may have moved a far shifted window off its object.
        offsets = np.clip(offsets, np.ceil(centres - self._size), np.floor(centres))
        return np.clip(offsets, 0, np.maximum(shapes - self._size, 0)).astype(np.int64)


class InBoundsGridGeoSampler(GeoSampler):  # type: ignore[misc]
    """A regular grid of windows over each file of a TorchGeo ``GeoDataset`` that never leaves the file's bounds.

    Every pixel of the file is in a window. Where the stride does not divide the file, the last window of a row or
    column is moved inwards and overlaps its neighbour more than the others do; where the file is smaller than the
    window, there is one window (along that side), which begins at the file's left or upper edge and hangs over the
    other. Windows lie on whole pixels; a fraction of a pixel at the right and lower edge, as in a file of another CRS
    or resolution than the data set's, is left out. Files come in the order of the data set's index, their windows row
    by row from the upper left, each once. Files that overlap, or show one place at several times, have each their own.
    """

    def __init__(
        self,
        dataset: GeoDataset,
        size: tuple[float, float] | float,
        stride: tuple[float, float] | float | None = None,
        roi: shapely.Geometry | None = None,
        units: Units = Units.PIXELS,
    ) -> None:
        """Lay the grids; their length is known from here on.

        Args:
            dataset: Where the windows will be read; only its index is looked at.
            size: Side of the window, or its height and width.
            stride: From one window to the next, one number or along y and x; by default the size.
            roi: Area in the CRS of the data set; only the windows that share some of it are kept, unchanged, so that
                they may look beyond it.
            units: Whether ``size`` and ``stride`` are in pixels of the data set or in units of its CRS, which become
                the nearest whole number of pixels.

        Raises:
            ConfigError: If an option is out of range, no file lies in the area or the data set has no resolution.
        """
        self._grids = PixelGrids.of(dataset)
        self._size = self._grids.pixels("size", size, units)
        self._stride = self._size if stride is None else self._grids.pixels("stride", stride, units)
        if (self._stride > self._size).any():
            raise ConfigError(f"The stride {stride} is wider than the size {size} and would leave gaps; lower it.")
        # For each file the windows to keep, row by row; None keeps all.
        self._kept: list[npt.NDArray[np.bool_] | None] = []
        self._length = 0
        for file in range(len(self._grids.times)):
            columns, rows = (self._offsets(file, axis) for axis in (0, 1))
            kept = self._in_area(file, roi)
            self._kept.append(kept)
            self._length += len(columns) * len(rows) if kept is None else int(kept.sum())
        if not self._length:
            raise ConfigError(f"No part of {type(dataset).__name__} lies in the area of interest; check its CRS.")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield ``(xmin:xmax, ymin:ymax, tmin:tmax)`` in the CRS of the data set."""
        for file, (kept, time) in enumerate(zip(self._kept, self._grids.times, strict=True)):
            windows = product(self._sides(file, 1), self._sides(file, 0))
            for y, x in windows if kept is None else compress(windows, kept):
                yield x, y, time

    def _offsets(self, file: int, axis: int) -> npt.NDArray[np.int64]:
        last = max(int(self._grids.shapes[file, axis] - self._size[axis]), 0)
        return np.append(np.arange(0, last, self._stride[axis]), last)

    def _sides(self, file: int, axis: int) -> Iterator[slice]:
        return self._grids.slices(file, axis, self._offsets(file, axis), int(self._size[axis]))

    def _in_area(self, file: int, roi: shapely.Geometry | None) -> npt.NDArray[np.bool_] | None:
        """Which windows share some of the file's footprint and of the area; None: all of them."""
        footprint = self._grids.footprints[file]
        if roi is None and shapely.area(footprint) >= (1 - 1e-9) * shapely.area(shapely.envelope(footprint)):
            return None
        area = footprint if roi is None else shapely.intersection(footprint, roi)
        shapely.prepare(area)
        edges = [np.array([(s.start, s.stop) for s in self._sides(file, axis)]) for axis in (0, 1)]
        # Windows that only touch the area do not count.
        (left, right), (bottom, top) = (
            (e + r * ROUNDING * np.array([1, -1])).T for e, r in zip(edges, self._grids.res, strict=True)
        )
        boxes = shapely.box(left[None], bottom[:, None], right[None], top[:, None])
        kept: npt.NDArray[np.bool_] = shapely.intersects(area, boxes).ravel()
        return kept

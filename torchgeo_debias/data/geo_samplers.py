"""A TorchGeo sampler that shows labelled objects class by class; it yields geometry only and reads no pixel.

Importing this module imports torchgeo; ``torchgeo_debias.data`` does so only when one of its names is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GeoSampler, Units

from torchgeo_debias.data._layer_io import read_layer
from torchgeo_debias.data.samplers import ClassBalancedSampler
from torchgeo_debias.errors import LabelError


class ClassBalancedGeoSampler(GeoSampler):  # type: ignore[misc]
    """Windows around labelled objects, every class equally often, for any TorchGeo ``GeoDataset``.

    Each draw is a square (x, y) around the centre of an object's bounds with the time span of the first file of the
    data set that contains this centre. Every item is a query that the data set takes as an index, in its CRS.
    Seeded and aware of epochs as :class:`~torchgeo_debias.data.samplers.ClassBalancedSampler`.
    """

    def __init__(
        self,
        dataset: GeoDataset,
        labels: Path | gpd.GeoDataFrame,
        class_field: str,
        size: float,
        length: int | None = None,
        units: Units = Units.PIXELS,
        seed: int = 0,
    ) -> None:
        """Place the objects on the data set.

        Args:
            dataset: Where the windows will be read; only its index is looked at.
            labels: Labelled objects, in any CRS; see :func:`~torchgeo_debias.data.layers.read_layer`.
            class_field: Attribute that holds the class.
            size: Side of the window.
            length: Windows in an epoch; by default one for each object on the data set.
            units: Whether ``size`` is in pixels of the data set or in units of its CRS.
            seed: Of the draws.

        Raises:
            LabelError: If the layer cannot be used or no object lies on the data set.
        """
        frame = read_layer(labels, class_field)
        bounds = shapely.bounds(frame.geometry.to_crs(dataset.crs).to_numpy())
        centres = (bounds[:, :2] + bounds[:, 2:]) / 2
        on_file = np.full(len(frame), -1)
        for i, footprint in reversed(list(enumerate(dataset.index.geometry))):
            on_file[shapely.intersects_xy(footprint, centres)] = i
        here = on_file >= 0
        if not here.any():
            raise LabelError(f"None of the {len(frame)} labelled objects lies on {type(dataset).__name__}.")
        _, classes = np.unique(frame[class_field].to_numpy(str)[here], return_inverse=True)
        res = np.asarray(dataset.res)
        self.size = size * res if units == Units.PIXELS else np.full(2, float(size))
        # On the pixel grid of the file, so that reading does not resample.
        origin = shapely.bounds(dataset.index.geometry.to_numpy())[on_file[here], :2]
        self.corners = origin + np.rint((centres[here] - self.size / 2 - origin) / res) * res
        self.intervals = dataset.index.index[on_file[here]]
        self._draws = ClassBalancedSampler(classes, length, seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose sequence the next iteration draws."""
        self._draws.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield ``(xmin:xmax, ymin:ymax, tmin:tmax)`` in the CRS of the data set."""
        for i in self._draws:
            (left, bottom), (right, top) = self.corners[i], self.corners[i] + self.size
            time = self.intervals[i]
            yield slice(left, right), slice(bottom, top), slice(time.left, time.right)

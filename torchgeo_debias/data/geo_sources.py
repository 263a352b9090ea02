"""A TorchGeo ``RasterDataset`` as a source for mapping; the versions 0.8 to 0.10 are alike in all that is used.

Only attributes of the data set are looked at, so that importing this module does not import torchgeo.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine

from torchgeo_debias.errors import RasterError
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.mosaic import MosaicSource
from torchgeo_debias.tiling.opening import open_source
from torchgeo_debias.tiling.source import RasterSource, Source

if TYPE_CHECKING:
    from torchgeo.datasets import RasterDataset


def source_of(dataset: RasterDataset, nodata: float | None = None) -> Source:
    """Read the files of a TorchGeo data set as one raster, in its CRS, at its resolution and with its bands.

    Where files overlap, be it in time, each pixel comes from the first one in the data set's order that has data
    there, as in TorchGeo itself. Transforms of the data set are not applied.

    Args:
        dataset: Any ``RasterDataset`` that keeps its bands together in one file.
        nodata: Takes the place of the nodata value of the data set (0.9 and later) or the files.

    Raises:
        RasterError: If the data set has a file for each band, is a time series, or its files cannot be read as one.
    """
    kind = type(dataset).__name__
    if dataset.separate_files:
        raise RasterError(
            f"{kind} keeps each band in a file of its own; join the bands of a scene in one file first, for example "
            "with 'gdalbuildvrt -separate'."
        )
    if getattr(dataset, "time_series", False):
        raise RasterError(f"{kind} is a time series; make the data set with time_series=False to map it.")
    paths = [Path(path) for path in dataset.index.filepath]
    bands = dataset.band_indexes
    nodata = getattr(dataset, "nodata", None) if nodata is None else nodata
    crs = CRS.from_user_input(dataset.crs)
    across, down = (abs(float(side)) for side in dataset.res)
    with RasterSource(paths[0], bands, nodata) as first:
        t = first.transform
        if first.crs == crs and np.allclose((t.a, -t.e), (across, down), rtol=1e-6, atol=0):
            return open_source(paths, bands=bands, nodata=nodata)
    left, _, _, top = dataset.index.geometry.iloc[0].bounds
    # The size is that of all files together.
    return MosaicSource(paths, bands, nodata, like=Grid(1, 1, crs, Affine(across, 0, left, 0, -down, top)))

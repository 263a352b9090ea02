"""Small rasters for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin

UTM = "EPSG:32632"


def write_raster(path: Path, pixels: npt.NDArray[Any], **options: Any) -> Path:
    """Write (C, H, W) ``pixels`` as a GeoTIFF; UTM, 2 m pixels, upper left corner at (500000, 5400000)."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "crs": UTM,
        "transform": from_origin(500_000, 5_400_000, 2, 2),
        "count": pixels.shape[0],
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
    }
    with rasterio.open(path, "w", **profile | options) as dataset:
        dataset.write(pixels)
    return path


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> npt.NDArray[Any]:
    """Random values 1..250."""
    return np.random.default_rng(seed).integers(1, 251, shape).astype(dtype)

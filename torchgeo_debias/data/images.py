"""One image file as an array with a validity mask: what PIL or rasterio can read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from torchgeo_debias.errors import DataError, RasterError
from torchgeo_debias.tiling.source import KEPT_DTYPES, RasterSource

_PIL_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageArray:
    """A decoded image.

    Attributes:
        pixels: (C, H, W) uint8, uint16, int16 or float32; 0 where not valid.
        valid: (H, W) bool, False where a pixel is nodata or alpha 0.
        bands: Name of each band.
        gsd: Metres per pixel, None without map coordinates.
    """

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    bands: tuple[str, ...]
    gsd: float | None


def read_image(path: Path, bands: Sequence[int] | None = None) -> ImageArray:
    """Decode one image file.

    PNG, JPEG and the like are read by PIL (palettes become RGB), all other formats by rasterio. An alpha band is
    taken out and read as validity; nodata is understood as in :class:`~torchgeo_debias.tiling.source.RasterSource`.

    Args:
        path: The file.
        bands: Band numbers to keep, counted from 1, in this order; all but alpha by default.

    Raises:
        DataError: If the file cannot be decoded, lacks a band, or has NaN at pixels that are not nodata.
    """
    try:
        image = _read_pil(path) if _for_pil(path) else _read_raster(path)
    except (*_PIL_ERRORS, RasterioError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); repair or remove it.") from error
    pixels, names = image.pixels, image.bands
    if bands is not None:
        if not bands or min(bands) < 1 or max(bands) > len(names):
            raise DataError(f"{path} has {len(names)} bands, so the bands {list(bands)} cannot be taken from it.")
        pixels, names = pixels[[b - 1 for b in bands]], tuple(names[b - 1] for b in bands)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels[:, image.valid]).all():
        raise DataError(f"{path} has NaN or infinite pixels; declare them as nodata or fill them.")
    dtype = pixels.dtype if pixels.dtype.name in KEPT_DTYPES else np.dtype(np.float32)
    if not image.valid.all():
        pixels = np.where(image.valid, pixels, 0)
    return ImageArray(pixels.astype(dtype, copy=False), image.valid, names, image.gsd)


def _for_pil(path: Path) -> bool:
    if path.suffix.lower() == ".png":
        # PIL cuts 16-bit colour PNGs down to 8 bits; byte 24 of the header is the bit depth.
        with path.open("rb") as file:
            return file.read(25)[24:] != b"\x10"
    return path.suffix.lower() in _PIL_SUFFIXES


def _read_pil(path: Path) -> ImageArray:
    with Image.open(path) as image:
        if image.mode[0] in "IF":  # conversion would cut it off at 255
            raise ValueError("more than 8 bits a pixel are read from PNG, PGM, PPM and GeoTIFF only")
        transparent = "transparency" in image.info or image.mode == "PA"
        if image.mode in ("1", "L", "LA"):
            array = np.asarray(image.convert("LA" if transparent or image.mode == "LA" else "L"))
        else:
            array = np.asarray(image.convert("RGBA" if transparent or image.mode == "RGBA" else "RGB"))
    array = np.moveaxis(np.atleast_3d(array), -1, 0)
    colours = len(array) - (len(array) in (2, 4))
    names = ("red", "green", "blue") if colours == 3 else ("band_1",)
    valid = array[-1] > 0 if len(array) > colours else np.ones(array.shape[1:], dtype=bool)
    return ImageArray(array[:colours], valid, names, None)


def _read_raster(path: Path) -> ImageArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            colours = source.colorinterp
            keep = [i for i in source.indexes if colours[i - 1] != ColorInterp.alpha]
            if not keep:
                raise ValueError("it has no band but alpha")
            pixels, masks = source.read(keep), source.read_masks(keep) > 0
            placed = source.crs is not None and not source.transform.is_identity
            named = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            names = tuple(
                source.descriptions[i - 1] or (colours[i - 1].name if colours[i - 1] in named else f"band_{i}")
                for i in keep
            )
    valid = masks.any(axis=0) if pixels.dtype.kind == "u" else masks.all(axis=0)
    return ImageArray(pixels, valid, names, _gsd(path) if placed else None)


def _gsd(path: Path) -> float | None:
    try:
        with RasterSource(path) as source:
            return source.gsd
    except RasterError:  # rotated, for example: a chip is still a chip
        return None

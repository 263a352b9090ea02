"""Writing maps of classes and of scores as cloud-optimised GeoTIFFs, from strips of rows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.env import get_gdal_config
from rasterio.errors import RasterioError
from rasterio.windows import Window

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.palette import palette
from torchgeo_debias.tiling.staging import Staging, check_target

RASTER_FORMATS = (".tif", ".tiff")

SCORE_NODATA = 255
"""Stands in a score map where there is no score."""

Strip = tuple[int, npt.NDArray[np.integer[Any]]]
"""First row, and pixels of shape (rows, width of the raster)."""

# rasterio lets errors of GDAL's copying through as they are, unnamed ones as SystemError.
_WRITE_ERRORS = (RasterioError, CPLE_BaseError, SystemError)

_BLOCK = 512
_CACHE_BYTES = 16_000_000


def check_map_path(path: Path) -> None:
    """Refuse a name under which no map can be written, before any work is done for it.

    Raises:
        OutputError: If the ending is not one of :data:`RASTER_FORMATS`, or the folder takes no files.
    """
    check_target(Path(path), RASTER_FORMATS)


def class_map_dtype(table: ClassTable) -> tuple[np.dtype[Any], int]:
    """Type of the pixels of a class map, and the value that stands where there is no class.

    uint8 with 255, or uint16 with 65535 for more than 255 classes.
    """
    return (np.dtype(np.uint8), 255) if len(table.names) <= 255 else (np.dtype(np.uint16), 65535)


def write_class_map(path: Path, strips: Iterable[Strip], grid: Grid, table: ClassTable) -> None:
    """Write class ids as a cloud-optimised GeoTIFF with a colour table.

    Overviews show the most frequent class. Class names are in the metadata item ``CLASS_NAMES`` (JSON, in the order of
    ids) and, for the legend of GIS programs, as category names in the companion file ``<name>.aux.xml``.

    Equal pixels give equal bytes, however they are cut into strips. Memory grows with the width alone. An existing
    file is replaced only when the new one is complete; after an error, one raised by ``strips`` included, nothing is
    left behind.

    Args:
        path: Final name, ``.tif`` or ``.tiff``.
        strips: From the top down, together all rows of the grid; ids or nodata as :func:`class_map_dtype` has it.
        grid: Size, CRS and transform.
        table: The classes.

    Raises:
        OutputError: If the ending is another one, the folder cannot be written to, or the disk takes no more.
        ValueError: If the strips are not all rows in their order.
    """
    dtype, nodata = class_map_dtype(table)
    colours = palette(len(table.names), table.background)

    def dress(dataset: Any) -> None:  # noqa: ANN401 - rasterio has no types
        dataset.write_colormap(1, {i: (*c, 255) for i, c in enumerate(colours)} | {nodata: (0, 0, 0, 0)})
        dataset.set_band_description(1, "class")
        dataset.update_tags(CLASS_NAMES=json.dumps(table.names))

    with _staging(path) as staging:
        _write_cog(staging, strips, grid, dtype, nodata, dress, "MODE")
        names = ET.Element("PAMDataset")
        categories = ET.SubElement(ET.SubElement(names, "PAMRasterBand", band="1"), "CategoryNames")
        for name in table.names:
            ET.SubElement(categories, "Category").text = name
        ET.ElementTree(names).write(_companion(staging.file), encoding="utf-8")


def write_score_map(path: Path, strips: Iterable[Strip], grid: Grid) -> None:
    """Write scores as a cloud-optimised GeoTIFF of whole per cent, uint8.

    Overviews show the mean of the scores. As to bytes, memory and errors see :func:`write_class_map`.

    Args:
        path: Final name, ``.tif`` or ``.tiff``.
        strips: From the top down, together all rows of the grid; 0..100, or :data:`SCORE_NODATA`.
        grid: Size, CRS and transform.

    Raises:
        OutputError: If the ending is another one, the folder cannot be written to, or the disk takes no more.
        ValueError: If the strips are not all rows in their order.
    """

    def dress(dataset: Any) -> None:  # noqa: ANN401 - rasterio has no types
        dataset.set_band_description(1, "score")
        dataset.set_band_unit(1, "%")

    with _staging(path) as staging:
        _write_cog(staging, strips, grid, np.dtype(np.uint8), SCORE_NODATA, dress, "AVERAGE")
        # That of a file to be replaced may hold statistics, or names of classes, which are not those of the new one.
        _companion(staging.target).unlink(missing_ok=True)


def _companion(path: Path) -> Path:
    return path.with_name(f"{path.name}.aux.xml")


def _staging(path: Path) -> Staging:
    check_map_path(path)
    return Staging(Path(path), _WRITE_ERRORS)


def _write_cog(
    staging: Staging,
    strips: Iterable[Strip],
    grid: Grid,
    dtype: np.dtype[Any],
    nodata: int,
    dress: Callable[[Any], None],
    overviews: str,
) -> None:
    # GDAL makes a COG only out of a complete raster, so the pixels are first gathered in an ordinary one, compressed
    # in the fastest way.
    gathered = staging.folder / "gathered.tif.tmp"
    checksum = 0
    with _small_cache():
        with rasterio.open(
            gathered, "w", driver="GTiff", width=grid.width, height=grid.height, count=1, dtype=dtype, nodata=nodata,
            crs=grid.crs, transform=grid.transform, tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK, compress="zstd",
            zstd_level=1, bigtiff="if_safer",
        ) as dataset:  # fmt: skip
            dress(dataset)
            for top, rows in _rows_of_blocks(staging.watch(strips), grid, dtype):
                checksum = zlib.crc32(rows.data, checksum)
                dataset.write(rows, 1, window=Window(0, top, grid.width, len(rows)))
        rasterio.shutil.copy(
            gathered, staging.file, driver="COG", compress="deflate", blocksize=_BLOCK, bigtiff="if_safer",
            overview_resampling=overviews, num_threads="all_cpus",
        )  # fmt: skip
        gathered.unlink()
        # GDAL keeps blocks in memory and reports no failure to write them on closing: a full disk goes unnoticed.
        if _read_checksum(staging.file) != checksum:
            raise OSError("the file read back differs from what was written")


def _rows_of_blocks(
    strips: Iterable[Strip], grid: Grid, dtype: np.dtype[Any]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Strips cut anew so that no block of the file is written twice; the array is good until the next one is asked."""
    buffer = np.empty((min(_BLOCK, grid.height), grid.width), dtype=dtype)
    row = 0
    for top, strip in strips:
        if top != row or strip.shape[1] != grid.width or row + len(strip) > grid.height:
            raise ValueError(f"A strip of {strip.shape} at row {top} does not follow on row {row} of {grid}.")
        taken = 0
        while taken < len(strip):
            place = row % _BLOCK
            count = min(len(buffer) - place, len(strip) - taken)
            buffer[place : place + count] = strip[taken : taken + count]
            taken, row = taken + count, row + count
            if row % _BLOCK == 0 or row == grid.height:
                yield row - place - count, buffer[: place + count]
    if row != grid.height:
        raise ValueError(f"The strips end at row {row} of {grid}.")


def _read_checksum(path: Path) -> int:
    checksum = 0
    with rasterio.open(path) as dataset:
        for top in range(0, dataset.height, _BLOCK):
            window = Window(0, top, dataset.width, min(_BLOCK, dataset.height - top))
            checksum = zlib.crc32(dataset.read(1, window=window), checksum)
    return checksum


@contextmanager
def _small_cache() -> Iterator[None]:
    """Keep GDAL's cache of blocks small: here they are written and read once, so that a large one would only fill.

    The setting is that of the whole process and outlives the environment, hence the way back.
    """
    with rasterio.Env():
        before = get_gdal_config("GDAL_CACHEMAX")
        try:
            with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
                yield
        finally:
            with rasterio.Env(GDAL_CACHEMAX=before):
                pass

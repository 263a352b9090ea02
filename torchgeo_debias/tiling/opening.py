"""One door to everything a raster can be read from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.tiling._place import with_gsd
from torchgeo_debias.tiling._warped import WarpedSource
from torchgeo_debias.tiling.mosaic import MosaicSource
from torchgeo_debias.tiling.source import RasterSource, Source

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".jp2", ".img"})
"""Files of a folder that are taken for rasters."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
"""Files of a folder that are taken for rasters if they have a position on the map."""


def open_source(
    rasters: Path | Sequence[Path] | Source,
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    crs: object | None = None,
    gsd: float | None = None,
) -> Source:
    """Open whatever pixels can be read from.

    Args:
        rasters: A file, a folder (all rasters in it, by name; not those in folders below), several of both as one
            mosaic (:class:`~torchgeo_debias.tiling.mosaic.MosaicSource`), or an open source, which is passed through.
        bands: Bands to read, counted from 1, or their names; every band but alpha where left out.
        nodata: Takes the place of the nodata value in the files; NaN is added to it instead.
        crs: Stands in where a file has no coordinate reference system.
        gsd: Read at this many metres on the ground per pixel, in the same CRS and from the same corner: averaged
            where that is coarser, interpolated linearly where it is finer. In a geographic CRS the pixels get equal
            sides at the centre.

    Raises:
        ConfigError: If an option is out of range, or belongs to files but an open source was given; or if ``rasters``
            is something else, such as an array.
        RasterError: If a raster is missing or cannot be used.
    """
    if isinstance(rasters, str | os.PathLike):
        source = _open_files([Path(rasters)], bands, nodata, crs)
    elif isinstance(rasters, Sequence):
        source = _open_files(rasters, bands, nodata, crs)
    elif not callable(getattr(rasters, "identity", None)):  # what no array and no file of a library has
        raise _unreadable(rasters)
    else:
        if (bands, nodata, crs) != (None, None, None):
            raise ConfigError(
                f"Bands, nodata and CRS of {rasters.name} are set where it is opened; leave them out here."
            )
        source = rasters
    if gsd is None:
        return source
    try:
        grid = with_gsd(source.grid, gsd)
    except ConfigError:
        if source is not rasters:
            source.close()
        raise
    return source if grid == source.grid else WarpedSource(source, grid)


def list_rasters(paths: Sequence[Path]) -> list[Path]:
    """The files of a list of files and folders, a folder's by name.

    Raises:
        ConfigError: If the list is empty, or holds something else.
        RasterError: If a folder has no raster.
    """
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise _unreadable(path)
    files = [file for path in map(Path, paths) for file in (_rasters_in(path) if path.is_dir() else [path])]
    if not files:
        raise ConfigError("Name at least one raster.")
    return files


def _open_files(
    paths: Sequence[Path], bands: Sequence[int | str] | None, nodata: float | None, crs: object | None
) -> Source:
    files = list_rasters(paths)
    if len(files) == 1:
        return RasterSource(files[0], bands, nodata, crs)
    return MosaicSource(files, bands, nodata, crs)


def _unreadable(given: object) -> ConfigError:
    return ConfigError(
        f"A raster is a path, several paths or an open source, not {type(given).__name__}; wrap an array in "
        "ArraySource (with ArraySource.from_xarray, one of xarray)."
    )


def _rasters_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [
        path
        for path in files
        if (suffix := path.suffix.lower()) in RASTER_SUFFIXES or (suffix in PICTURE_SUFFIXES and _on_map(path))
    ]
    if not found:
        kinds = ", ".join(sorted(RASTER_SUFFIXES))
        raise RasterError(f"There is no raster in the folder {folder} ({kinds}, or a picture with a world file).")
    return found


def _on_map(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as dataset:
                return not dataset.transform.is_identity
        except RasterioIOError:
            return False

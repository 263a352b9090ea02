"""Object chips from rasters and a vector layer of labels, read window by window."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import Transformer
from rasterio.transform import Affine

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data._background import free_windows
from torchgeo_debias.data._layer_io import open_layer, read_layer, with_class
from torchgeo_debias.data._threads import one_torch_thread
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.windows import MIN_SIDE, cut_square, square_windows
from torchgeo_debias.errors import ConfigError, DataError, LabelError
from torchgeo_debias.progress import Progress, ProgressCallback, silent
from torchgeo_debias.tiling.area import area_around
from torchgeo_debias.tiling.source import RasterSource, extent

__all__ = ["BACKGROUND", "chips_from_layer", "cut_chips", "read_layer"]

BACKGROUND = "background"
"""Name of the class of places without any object."""

_BLOCK_WINDOWS = 8
_MIN_VALID = 0.5
_ROUNDS = 50

_log = logging.getLogger(__name__)

Chipped = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.intp]]
"""Images (n, C, S, S), masks (n, S, S) and positions (n,) of the windows that hold data."""

Opener = Callable[[Path], RasterSource]
"""Opens a raster with the bands and the nodata value of the run."""


@dataclass(frozen=True)
class _Site:
    """One raster with the part of the layer that lies on it; geometries in its pixels (column, row).

    Attributes:
        items: (n,) positions in the layer of the features whose bounds meet the raster.
        geometries: (n,) of these features.
        inside: (n,) bool, whether the centre of a feature's bounds lies in ``region``.
        region: The raster's rectangle, cut to the area of the labels.
        transform: From pixels to map coordinates.
        wkt: Of the CRS.
    """

    path: Path
    gsd: float
    pixel: tuple[float, float]
    like: tuple[int, np.dtype[Any]]
    bands: tuple[str, ...]
    extent: str
    items: npt.NDArray[np.intp]
    geometries: npt.NDArray[Any]
    inside: npt.NDArray[np.bool_]
    region: shapely.Geometry
    transform: Affine
    wkt: str


@dataclass(frozen=True)
class _Piece:
    """Chips cut from one raster and their windows in it."""

    site: _Site
    images: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]


def cut_chips(source: RasterSource, geometries: gpd.GeoSeries, spec: ChipSpec) -> Chipped:
    """Cut one chip around each geometry, reading nothing but the windows of the chips.

    The squares are those of :func:`~torchgeo_debias.data.windows.square_windows`. They are read in the order of their
    rows in the file and returned in the order of ``geometries``. All chips are in memory at once: give a slice of the
    geometries at a time where there are many.

    Args:
        source: An open raster.
        geometries: In the CRS of the raster.
        spec: How to cut; see :class:`~torchgeo_debias.data.chips.ChipSpec`.

    Returns:
        Images (n, C, S, S) in the dtype of the raster, masks (n, S, S), and the positions in ``geometries``, shape
        (n,) and ascending, of those whose chip has at least one valid pixel.

    Raises:
        ConfigError: If ``spec`` has no window and a geometry has no extent.
        RasterError: If the raster is damaged.
    """
    bounds = _pixel_bounds(to_pixels(geometries, source))
    placed = np.flatnonzero(np.isfinite(bounds).all(axis=1))
    images, valid, kept = _cut(source, square_windows(bounds[placed], spec, source.gsd), spec.size)
    return images, valid, placed[kept]


def chips_from_layer(
    rasters: Sequence[Path],
    labels: Path | gpd.GeoDataFrame,
    class_field: str,
    spec: ChipSpec,
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    block: float | None = None,
    background: int = 0,
    seed: int = 0,
    area: shapely.Geometry | None = None,
    progress: ProgressCallback = silent,
) -> Chips:
    """Cut a chip around every labelled object.

    One feature gives one chip, centred on its bounds; multi-points are taken apart first. An object belongs to the
    first raster that contains the centre of its bounds and has data there. Objects outside every raster or on nodata
    alone, and classes without any chip, are left out and told to the log.

    ``sources`` names the block of a grid, ``<raster stem>:<column>_<row>`` counted from the raster's upper left
    corner, that contains the centre of the chip, so that a split by source holds out whole pieces of ground. Two
    chips nearer to their blocks' common edge than half a window may overlap across it, and so may chips of rasters
    that overlap; ``ground`` has their windows, by which :func:`~torchgeo_debias.data.splits.split_apart` keeps the
    parts of a split apart. ``domains`` counts the rasters.

    Args:
        rasters: One raster, or several with equal bands and dtype; they may differ in CRS and resolution.
        labels: See :func:`read_layer`.
        class_field: Attribute that holds the class.
        spec: How to cut. Points need a window. A window in pixels counts pixels of ``spec.gsd``, or where that is None
            of the median resolution of the rasters.
        bands: Bands to read, counted from 1 or by name; all but alpha by default.
        nodata: Takes the place of the rasters' own nodata value.
        block: Side of a block in units of the raster's CRS; eight chip windows by default.
        background: Chips to add as class "background", from places whose window lies clear of all objects, labelled or
            not, by the spec's margin (from points by half a window). A class of that name in the layer counts as
            background as well. It has the last class id.
        seed: Of the choice of background places.
        area: Where the labels are complete, a polygon or several in one, in the CRS of the first raster: objects whose
            centre lies outside are left out and background windows lie wholly inside.
        progress: Told about the stages "read chips" and "read background".

    Returns:
        The chips, with ``spec.gsd`` filled in, metres per pixel.

    Raises:
        LabelError: See :func:`read_layer`; also if no object lies on a raster (within ``area``), or ``area`` is no
            polygon.
        RasterError: If a raster cannot be read or placed on the earth.
        DataError: If the rasters do not go together or there is no room for background.
        ConfigError: If there are points but no window, or no raster.
    """
    if not rasters:
        raise ConfigError("Name at least one raster to cut chips from.")
    name, frame = open_layer(labels)
    frame = frame.reset_index(drop=True)
    classes = with_class(name, frame, class_field)[class_field].reindex(frame.index)
    layer = _single_points(gpd.GeoDataFrame({"class": classes}, geometry=frame.geometry))
    names = sorted(layer["class"].dropna().unique(), key=class_order)
    codes = pd.Categorical(layer["class"], categories=names).codes.astype(np.int64)

    opener = partial(RasterSource, bands=bands, nodata=nodata)
    sites = _survey(rasters, layer.geometry, opener, area)
    if not any((codes[site.items[site.inside]] >= 0).any() for site in sites):
        where = "a raster" if area is None else "a raster within the given area"
        raise LabelError(
            f"No object of {name} lies on {where}: the layer "
            f"spans {extent(layer.total_bounds, layer.crs)}, {sites[0].path} {sites[0].extent}."
        )
    if spec.gsd is None:
        spec = replace(spec, gsd=float(np.median([site.gsd for site in sites])))

    pieces = _cut_objects(sites, codes, spec, opener, progress)
    found = sum(len(piece.labels) for piece in pieces)
    if not found:
        raise LabelError(f"Every object of {name} on the rasters lies on nodata.")
    if missed := int((codes >= 0).sum()) - found:
        _log.warning("%s: left out %d objects outside the rasters or on nodata alone.", name, missed)
    if background:
        names += [BACKGROUND] if BACKGROUND not in names else []
        pieces += _cut_background(sites, pieces, background, seed, spec, opener, progress, len(names) - 1)
    return _assemble(pieces, names, spec, block)


def class_order(name: str) -> tuple[bool, bool, int, str]:
    """Numbers by value, then names by letter, the background last."""
    number = name.isdecimal()
    return name == BACKGROUND, not number, int(name) if number else 0, name


def _single_points(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    multi = layer.geom_type == "MultiPoint"
    return pd.concat([layer[~multi], layer[multi].explode()], ignore_index=True) if multi.any() else layer


def to_pixels(geometries: gpd.GeoSeries, source: RasterSource) -> npt.NDArray[Any]:
    """Geometries in the CRS of a raster as geometries in its pixels (column, row)."""
    t = source.transform
    pixels: npt.NDArray[Any] = shapely.transform(
        geometries.to_numpy(), lambda xy: (xy - (t.c, t.f)) / (t.a, t.e), include_z=False
    )
    return pixels


def _pixel_bounds(geometries: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    bounds: npt.NDArray[np.float64] = shapely.bounds(geometries)
    return bounds


def _survey(
    rasters: Sequence[Path],
    geometries: gpd.GeoSeries,
    opener: Opener,
    area: shapely.Geometry | None,
) -> list[_Site]:
    sites: list[_Site] = []
    placed: dict[str, gpd.GeoSeries] = {}
    within: gpd.GeoDataFrame | None = None
    for path in rasters:
        with opener(path) as source:
            wkt = source.crs.to_wkt()
            if wkt not in placed:
                placed[wkt] = geometries.to_crs(wkt)
            if area is not None and within is None:
                within = gpd.GeoDataFrame(geometry=[area], crs=wkt)
            here = placed[wkt]
            left, bottom, right, top = source.bounds
            x0, y0, x1, y1 = shapely.bounds(here.to_numpy()).T
            items = np.flatnonzero(
                (x1 >= min(left, right))
                & (x0 <= max(left, right))
                & (y1 >= min(bottom, top))
                & (y0 <= max(bottom, top))
            )
            own = to_pixels(here.iloc[items], source)
            region = shapely.box(0, 0, source.width, source.height)
            if within is not None:
                around = gpd.GeoSeries([area_around(within, [source.grid])])
                region = shapely.intersection(region, to_pixels(around, source)[0])
            bounds = _pixel_bounds(own)
            centre = (bounds[:, :2] + bounds[:, 2:]) / 2
            sites.append(
                _Site(
                    path=Path(path),
                    gsd=source.gsd,
                    pixel=(abs(source.transform.a), abs(source.transform.e)),
                    like=(source.count, source.dtype),
                    bands=source.band_names,
                    extent=extent(source.bounds, source.crs),
                    items=items,
                    geometries=own,
                    inside=shapely.intersects_xy(region, centre),
                    region=region,
                    transform=source.transform,
                    wkt=wkt,
                )
            )
            order = source.order_of(sites[0].bands)
        if sites[-1].like != sites[0].like:
            raise DataError(
                "Rasters must go together, but {} has {} bands of {} and {} has {} of {}.".format(
                    path, *sites[-1].like, rasters[0], *sites[0].like
                )
            )
        if order is not None:
            raise DataError(
                f"{path} has the bands of {rasters[0]} in another order ({', '.join(sites[-1].bands)}) and would need "
                f"--bands {','.join(map(str, order))}; make a copy in the same order, for example with "
                f"'gdal_translate {' '.join(f'-b {i}' for i in order)}'."
            )
    return sites


def _cut(
    source: RasterSource,
    windows: npt.NDArray[np.int64],
    size: int,
    done: Callable[[], None] = lambda: None,
) -> Chipped:
    images = np.zeros((len(windows), source.count, size, size), dtype=source.dtype)
    valid = np.zeros((len(windows), size, size), dtype=bool)
    with one_torch_thread():
        # Neighbours in the file one after the other, so that a block is decoded once.
        for i in np.lexsort((windows[:, 0], windows[:, 1] // 512)):
            images[i], valid[i] = cut_square(source.read, windows[i], size)
            done()
    kept = np.flatnonzero(valid.any(axis=(1, 2)))
    return (images, valid, kept) if len(kept) == len(windows) else (images[kept], valid[kept], kept)


def _cut_objects(
    sites: list[_Site],
    codes: npt.NDArray[np.int64],
    spec: ChipSpec,
    opener: Opener,
    progress: ProgressCallback,
) -> list[_Piece]:
    pieces = []
    open_items = codes >= 0
    total, done = int(open_items.sum()), 0

    def step() -> None:
        nonlocal done
        done = min(done + 1, total)
        progress(Progress("read chips", done, total))

    progress(Progress("read chips", 0, total))
    for site in sites:
        take = np.flatnonzero(site.inside & open_items[site.items])
        if not len(take):
            continue
        windows = square_windows(_pixel_bounds(site.geometries[take]), spec, site.gsd)
        with opener(site.path) as source:
            images, valid, kept = _cut(source, windows, spec.size, step)
        items = site.items[take[kept]]
        open_items[items] = False
        pieces.append(_Piece(site, images, valid, codes[items], windows[kept]))
    progress(Progress("read chips", total, total))
    return pieces


def _cut_background(
    sites: list[_Site],
    pieces: list[_Piece],
    count: int,
    seed: int,
    spec: ChipSpec,
    opener: Opener,
    progress: ProgressCallback,
    label: int,
) -> list[_Piece]:
    """Background chips with windows as large, in metres, as those of the objects, spread evenly over the ground."""
    rng = np.random.default_rng(seed)
    metres = np.concatenate([piece.windows[:, 2] * piece.site.gsd for piece in pieces])
    weights = np.asarray([shapely.area(site.region) * site.gsd**2 for site in sites])
    found: list[_Piece] = []
    done = 0
    progress(Progress("read background", 0, count))
    for site, share in zip(sites, rng.multinomial(count, weights / weights.sum()), strict=True):
        with opener(site.path) as source:
            for _ in range(_ROUNDS):
                if share == 0:
                    break
                if spec.window is None:
                    sides = np.maximum(np.rint(rng.choice(metres, share) / site.gsd), MIN_SIDE).astype(np.int64)
                else:
                    sides = np.full(share, max(round(spec.window_px(site.gsd) or 0), 1))
                windows = free_windows(rng, site.region, site.geometries, sides, spec.margin)
                images, valid, _ = _cut(source, windows, spec.size)
                good = np.flatnonzero(valid.mean(axis=(1, 2)) >= _MIN_VALID)
                if not len(windows):
                    break
                share -= len(good)
                done += len(good)
                found.append(_Piece(site, images[good], valid[good], np.full(len(good), label), windows[good]))
                progress(Progress("read background", done, count))
    if not done:
        raise DataError("There is no room for background chips between the objects: use a smaller window or none.")
    if done < count:
        _log.warning("Found room for only %d of %d background chips.", done, count)
    progress(Progress("read background", count, count))
    return found


def _assemble(pieces: list[_Piece], names: list[str], spec: ChipSpec, block: float | None) -> Chips:
    usual = float(np.median(np.concatenate([p.windows[:, 2] * p.site.gsd for p in pieces]))) * _BLOCK_WINDOWS
    sources = [
        f"{piece.site.path.stem}:{col}_{row}"
        for piece in pieces
        for col, row in np.floor(
            (piece.windows[:, :2] + piece.windows[:, 2:] / 2)
            / (usual / piece.site.gsd if block is None else block / np.asarray(piece.site.pixel))
        ).astype(int)
    ]
    labels = np.concatenate([piece.labels for piece in pieces])
    rasters = np.unique([str(piece.site.path) for piece in pieces], return_inverse=True)[1]
    present = np.unique(labels)
    if len(present) < len(names):
        _log.warning("Classes without any chip: %s.", ", ".join(n for i, n in enumerate(names) if i not in present))
    labels = np.searchsorted(present, labels)
    names = [names[i] for i in present]
    table = ClassTable.from_labels(labels, names, BACKGROUND if BACKGROUND in names else None)
    return Chips(
        np.concatenate([piece.images for piece in pieces]),
        np.concatenate([piece.valid for piece in pieces]),
        labels,
        np.asarray(sources),
        table,
        spec,
        pieces[0].site.bands,
        np.concatenate([_ground(piece, pieces[0].site.wkt) for piece in pieces]),
        np.repeat(rasters, [len(piece.labels) for piece in pieces]),
    )


def _ground(piece: _Piece, wkt: str) -> npt.NDArray[np.float64]:
    """Bounds (n, 4) of the windows in another CRS, those of their corners."""
    column, row, side = piece.windows.T
    t = piece.site.transform
    x, y = t.c + t.a * np.stack([column, column + side]), t.f + t.e * np.stack([row, row + side])
    x, y = x[[0, 0, 1, 1]], y[[0, 1, 0, 1]]
    if piece.site.wkt != wkt:
        x, y = Transformer.from_crs(piece.site.wkt, wkt, always_xy=True).transform(x, y)
    return np.column_stack([np.min(x, axis=0), np.min(y, axis=0), np.max(x, axis=0), np.max(y, axis=0)])

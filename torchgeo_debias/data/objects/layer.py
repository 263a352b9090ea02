"""Objects from rasters and a vector layer of polygons."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from torchgeo_debias.boxes.convert import Floats, polygons_to_oriented, to_polygons
from torchgeo_debias.classes import checked_names
from torchgeo_debias.data._layer_io import open_layer, with_class
from torchgeo_debias.data.layers import BACKGROUND, class_order, to_pixels
from torchgeo_debias.data.objects._gather import warn_of_rare
from torchgeo_debias.data.objects.ground import ground_of, sharing
from torchgeo_debias.data.objects.objects import LabelledImage, ObjectSet, first_of_each, is_flat
from torchgeo_debias.data.objects.picture import SourcePicture
from torchgeo_debias.errors import ConfigError, LabelError
from torchgeo_debias.progress import ProgressCallback, silent, track
from torchgeo_debias.tiling.area import area_around
from torchgeo_debias.tiling.plan import Box
from torchgeo_debias.tiling.source import RasterSource, extent

_MIN_VISIBLE = 0.5

_log = logging.getLogger(__name__)

Shapes = npt.NDArray[np.object_]


class _Polygons(NamedTuple):
    """The layer, made fit for boxes.

    Attributes:
        name: For sentences.
        frame: One valid polygon or multi-polygon a row.
        classes: Names in the order of the ids.
        labels: (N,) class ids; 0 for want of a class.
        ignored: (N,) bool, True for features without a class.
    """

    name: str
    frame: gpd.GeoSeries
    classes: list[str]
    labels: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]


class _Placed(NamedTuple):
    """The boxes of a raster.

    Attributes:
        items: (n,) positions in the layer of the features they are of, ascending.
        boxes: (n, 4) or (n, 5), pixels of the raster.
        rectangles: (n,) the same as polygons.
        tree: Of the rectangles.
        twice: Positions in the layer of the features left out, whose box and class another one has.
    """

    items: npt.NDArray[np.intp]
    boxes: Floats
    rectangles: Shapes
    tree: shapely.STRtree
    twice: npt.NDArray[np.intp]


def objects_from_layer(
    rasters: Sequence[Path],
    labels: Path | gpd.GeoDataFrame,
    class_field: str,
    *,
    oriented: bool,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    block: float | None = None,
    area: shapely.Geometry | None = None,
    names: Sequence[str] | None = None,
    progress: ProgressCallback = silent,
) -> ObjectSet:
    """Read rasters as images and the polygons on them as boxes.

    A raster is one image, named by its file, with rows to the south however it is stored; or, with ``block``, several,
    named ``<raster>:<column>_<row>`` by their place in a grid of blocks, so that a split can hold out pieces of ground
    (at the price of the objects that the edges of blocks cut, see below). A box is the smallest
    rectangle in its pixels, or the upright one, round a polygon; multi-polygons are taken apart first. A polygon
    that lies on several images is an object of each, ignored where less than half of its box is on the image.
    Polygons without a class are ignored objects as well. Rasters count as labelled all over: give ``area`` where they
    are not, or objects without a label are taught as background.

    Args:
        rasters: At least one, with equal bands and dtype; they may differ in CRS and resolution.
        labels: See :func:`~torchgeo_debias.data.layers.read_layer`; polygons only, in any CRS.
        class_field: Attribute that holds the class. Objects of a class ``background`` are left out.
        oriented: Whether boxes are oriented.
        bands: Bands to read, counted from 1 or by name; all but alpha by default.
        nodata: Takes the place of the rasters' own nodata value.
        block: Side of a block in units of the raster's CRS; one block is all of a raster by default.
        area: Where labels are complete, a polygon or several in one, in the CRS of the first raster. Images are cut
            to its bounds, pixels outside of it are masked as nodata is, and objects are ignored where less than half
            of their box lies in it.
        names: Of the classes in the order wanted, such as those of a trained model; those in the layer by default.
        progress: Told about the stage "place labels".

    Returns:
        One image for each raster or block (that ``area`` touches). The source of each is its name; images that share
        ground or teach the same object, as rasters that overlap do, have one source, that of the first of them. Where
        ground would join all images, it joins none, and a warning tells so.

    Raises:
        LabelError: See :func:`~torchgeo_debias.data.layers.read_layer`; also if there are points or lines, polygons
            without area or a class that is not in ``names``, or if no object lies on a raster (within ``area``).
        RasterError: If a raster cannot be read or placed on the earth.
        DataError: If the rasters do not go together.
        ConfigError: If there is no raster, ``area`` is no polygon, a block is smaller than a pixel, or two of ``names``
            are alike.
    """
    _check_options(rasters, block, area)
    layer = _polygons(labels, class_field, names)
    paths = [Path(path) for path in rasters]
    stems = [path.stem for path in paths]
    titles = stems if len(set(stems)) == len(stems) else [path.as_posix() for path in paths]
    images: list[LabelledImage] = []
    features: list[npt.NDArray[np.intp]] = []
    untouched: list[Path] = []
    twice = np.zeros(len(layer.labels), dtype=bool)
    moved: dict[str, gpd.GeoSeries] = {}
    within: gpd.GeoDataFrame | None = None
    first = ""
    for path, title in track(list(zip(paths, titles, strict=True)), "place labels", progress):
        with RasterSource(path, bands, nodata) as source:
            wkt = source.crs.to_wkt()
            if wkt not in moved:
                moved[wkt] = layer.frame.to_crs(wkt)
            if area is not None and within is None:
                within = gpd.GeoDataFrame(geometry=[area], crs=wkt)
            first = first or f"{path} {extent(source.bounds, source.crs)}"
            region, mask = _region(source, within)
            if region.is_empty:
                untouched.append(path)
                continue
            shapes, window, grid = to_pixels(moved[wkt], source), _window(region, source), _block(source, block)
            place = source.grid
        placed = _placed(shapes, region, layer, oriented)
        twice[placed.twice] = True
        whole = SourcePicture(path, bands, nodata, area=mask)
        pieces = list(_pieces(title, window, grid, region))
        grounds = ground_of([(piece, here) for _, piece, here in pieces], place, next(iter(moved)))
        for (name, piece, here), ground in zip(pieces, grounds, strict=True):
            own, share = _seen(placed, here)
            items, boxes = placed.items[own], _shifted(placed.boxes[own], piece)
            ignored = layer.ignored[items] | (share < _MIN_VISIBLE)
            images.append(LabelledImage(name, name, whole.part(piece), boxes, layer.labels[items], ignored, ground))
            features.append(items)
    found = twice.copy()
    for items in features:
        found[items] = True
    if not found.any():
        where = "a raster" if area is None else "a raster within the given area"
        raise LabelError(
            f"No object of {layer.name} lies on {where}: the layer spans "
            f"{extent(tuple(layer.frame.total_bounds), layer.frame.crs)}, {first}."
        )
    for path in untouched:
        _log.warning("%s: left out, the area of the labels does not touch it.", path)
    if not found.all():
        _log.warning("%s: left out %d objects outside the rasters or the area.", layer.name, int((~found).sum()))
    if twice.any():
        _log.warning(
            "%s: left out %d objects that stand twice, with the box and the class of another.", layer.name, twice.sum()
        )
    objects = ObjectSet.of(_joined(layer.name, images, features), layer.classes, oriented=oriented)
    warn_of_rare(layer.name, objects)
    return objects


def _check_options(rasters: Sequence[Path], block: float | None, area: object) -> None:
    if not rasters:
        raise ConfigError("Name at least one raster to read objects from.")
    if block is not None and not 0 < block < np.inf:
        raise ConfigError(f"The side of a block is a length in units of the raster's CRS; received {block}.")
    if area is not None and not (isinstance(area, shapely.Geometry) and shapely.get_dimensions(area) == 2):
        raise ConfigError(
            f"The area of the labels is a polygon of shapely in the CRS of the first raster; received {area!r:.80}."
        )


def _joined(name: str, images: list[LabelledImage], features: list[npt.NDArray[np.intp]]) -> list[LabelledImage]:
    """The images with one source for those that share ground or teach the same object, as rasters that overlap do.

    Args:
        name: Of the layer, for the log.
        images: Each with its name for a source.
        features: Positions in the layer of the objects of each image.
    """
    count = len(images)
    taught = [items[~image.ignored] for image, items in zip(images, features, strict=True)]
    columns, counts = np.unique(np.concatenate(taught), return_inverse=True, return_counts=True)[1:]
    if again := int((counts > 1).sum()):
        _log.warning(
            "%s: %d objects are taught by more than one image, since images overlap, and count once for each.",
            name,
            again,
        )
    rows = np.repeat(np.arange(count), [len(items) for items in taught])
    teaches = csr_array((np.ones(len(rows)), (rows, columns)), shape=(count, max(len(counts), 1)))
    same_object = teaches @ teaches.T
    grounds = [image.ground for image in images]
    one, other = sharing(grounds, grounds)
    same_ground = csr_array((np.ones(len(one)), (one, other)), shape=(count, count))
    total, groups = connected_components(same_object + same_ground, directed=False)
    apart, by_object = connected_components(same_object, directed=False)
    if total == 1 < apart:
        _log.warning(
            "%s: the images share ground one with the other in an unbroken chain, so no split can keep it apart: only "
            "images that teach the same object stay together.",
            name,
        )
        groups = by_object
    elif total < count:
        _log.warning(
            "%s: %d of %d images share ground or objects with others; these have one source, so that a split keeps "
            "them together.",
            name,
            int((np.bincount(groups) > 1)[groups].sum()),
            count,
        )
    leader = np.unique(groups, return_index=True)[1][groups]
    return [replace(image, source=images[first].name) for image, first in zip(images, leader.tolist(), strict=True)]


def _polygons(labels: Path | gpd.GeoDataFrame, class_field: str, names: Sequence[str] | None) -> _Polygons:
    name, frame = open_layer(labels)
    frame = frame.reset_index(drop=True)
    classes = with_class(name, frame, class_field)[class_field].reindex(frame.index)
    layer = gpd.GeoDataFrame({"class": classes}, geometry=frame.geometry).explode(ignore_index=True)
    if background := int((layer["class"] == BACKGROUND).sum()):
        _log.warning("%s: left out %d objects of the class %s.", name, background, BACKGROUND)
        layer = layer[~(layer["class"] == BACKGROUND).fillna(False)].reset_index(drop=True)
    kinds = layer.geom_type
    if odd := sorted(set(kinds) - {"Polygon"}):
        raise LabelError(
            f"{name} has {int((kinds != 'Polygon').sum())} features of the kind {', '.join(odd)}, but boxes need an "
            "extent: draw polygons, or buffer the features by the size of the objects."
        )
    if not layer["class"].notna().any():
        raise LabelError(f"{name} has no object but {BACKGROUND}; label the objects to find.")
    found = sorted(layer["class"].dropna().unique(), key=class_order)
    wanted = found if names is None else checked_names(names)
    if unknown := [label for label in found if label not in wanted]:
        raise LabelError(f"{name} has the class {unknown[0]!r}, which is none of {', '.join(wanted)}.")
    layer = layer.set_geometry(gpd.GeoSeries(_repaired(name, layer.geometry.to_numpy()), crs=layer.crs))
    codes = pd.Categorical(layer["class"], categories=wanted).codes.astype(np.int64)
    return _Polygons(name, layer.geometry, wanted, np.maximum(codes, 0), codes < 0)


def _repaired(name: str, shapes: Shapes) -> Shapes:
    """Valid polygons, flat; of a self-crossing one, what it encloses."""
    flat: Shapes = np.asarray(shapely.force_2d(shapes), np.object_)
    if (far := ~np.isfinite(shapely.bounds(flat)).all(axis=1)).any():
        raise LabelError(
            f"{name} has {int(far.sum())} polygons with infinite coordinates, the first is number "
            f"{int(far.argmax()) + 1} with multi-polygons taken apart; redraw or remove them."
        )
    bad = ~shapely.is_valid(flat)
    flat[bad] = shapely.make_valid(flat[bad], method="structure", keep_collapsed=False)
    if (lost := shapely.area(flat) == 0).any():
        raise _no_area(name, lost)
    if bad.any():
        _log.warning("%s: repaired %d polygons that cross or touch themselves.", name, int(bad.sum()))
    return flat


def _no_area(name: str, lost: npt.NDArray[np.bool_]) -> LabelError:
    return LabelError(
        f"{name} has {int(lost.sum())} polygons without area, the first is number {int(lost.argmax()) + 1} with "
        "multi-polygons taken apart; redraw or remove them."
    )


def _region(source: RasterSource, within: gpd.GeoDataFrame | None) -> tuple[Any, Any]:
    """Where objects may lie, and the area of the labels, None for everywhere; both in pixels of the raster."""
    region: Any = shapely.box(0, 0, source.width, source.height)
    if source.footprints is not None:
        prints = gpd.GeoSeries([shapely.union_all(source.footprints)])
        region = region & to_pixels(prints, source)[0]
    if within is None:
        return region, None
    area = shapely.make_valid(to_pixels(gpd.GeoSeries([area_around(within, [source.grid])]), source)[0])
    return region & area, area


def _window(region: Any, source: RasterSource) -> Box:  # noqa: ANN401 - a shapely geometry
    """Whole pixels round the region."""
    left, top, right, bottom = region.bounds
    column, row = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    width, height = min(int(np.ceil(right)), source.width) - column, min(int(np.ceil(bottom)), source.height) - row
    return Box(column, row, max(width, 1), max(height, 1))


def _block(source: RasterSource, block: float | None) -> tuple[int, int] | None:
    """Columns and rows of a block; None for one that is as large as the raster."""
    if block is None:
        return None
    columns, rows = round(block / source.transform.a), round(block / -source.transform.e)
    if min(columns, rows) < 1:
        raise ConfigError(f"A block of {block:g} units of the CRS of {source.path} is smaller than a pixel of it.")
    return columns, rows


def _pieces(
    title: str,
    window: Box,
    block: tuple[int, int] | None,
    region: Any,  # noqa: ANN401 - a shapely geometry
) -> Iterator[tuple[str, Box, Any]]:
    """The blocks of a grid, which begins with the raster, that meet the region.

    Yields:
        Name, window (cut to that of the region) and the part of the region in it.
    """
    if block is None:
        yield title, window, region
        return
    shapely.prepare(region)
    right, bottom = window.col_off + window.width, window.row_off + window.height
    for row in range(window.row_off // block[1], -(-bottom // block[1])):
        for column in range(window.col_off // block[0], -(-right // block[0])):
            left, top = max(column * block[0], window.col_off), max(row * block[1], window.row_off)
            width, height = min((column + 1) * block[0], right) - left, min((row + 1) * block[1], bottom) - top
            here: Any = shapely.box(left, top, left + width, top + height)
            if not region.contains(here):
                here = region & here
            if here.area:
                yield f"{title}:{column}_{row}", Box(left, top, width, height), here


def _shifted(boxes: Floats, window: Box) -> Floats:
    """Boxes in pixels of the raster in those of a window of it."""
    corner = np.array([window.col_off, window.row_off], np.float64)
    return np.hstack([boxes[:, :2] - corner, boxes[:, 2:4] - corner * (boxes.shape[1] == 4), boxes[:, 4:]])


def _placed(
    shapes: Shapes,
    region: Any,  # noqa: ANN401 - a shapely geometry
    layer: _Polygons,
    oriented: bool,
) -> _Placed:
    """The boxes of the features that reach the bounds of a region, all in pixels of the raster."""
    left, top, right, bottom = region.bounds
    x0, y0, x1, y1 = bounds = np.asarray(shapely.bounds(shapes), np.float64).T
    # What has no place in the CRS of the raster has infinite corners, of which only these comparisons take no harm.
    near = np.isfinite(bounds).all(axis=0) & (x1 > left) & (x0 < right) & (y1 > top) & (y0 < bottom)
    items = np.flatnonzero(near)
    boxes = polygons_to_oriented(shapes[items]) if oriented else bounds.T[items]
    if (flat := is_flat(boxes)).any():
        lost = np.zeros(len(shapes), dtype=bool)
        lost[items[flat]] = True
        raise _no_area(layer.name, lost)
    kept = first_of_each(boxes, layer.labels[items], layer.ignored[items])
    twice = np.delete(items, kept)
    items, boxes = items[kept], boxes[kept]
    rectangles = to_polygons(boxes)
    return _Placed(items, boxes, rectangles, shapely.STRtree(rectangles), twice)


def _seen(placed: _Placed, region: Any) -> tuple[npt.NDArray[np.intp], Floats]:  # noqa: ANN401 - a shapely geometry
    """Which boxes reach into a region, ascending, and the share of each that lies in it."""
    near = np.sort(placed.tree.query(region))
    rectangles = placed.rectangles[near]
    shapely.prepare(region)
    share = shapely.contains(region, rectangles).astype(np.float64)
    cut = share == 0
    share[cut] = shapely.area(shapely.intersection(rectangles[cut], region)) / shapely.area(rectangles[cut])
    seen = share > 0
    return near[seen], share[seen]

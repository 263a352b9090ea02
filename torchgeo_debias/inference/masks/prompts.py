"""Outlines of objects that are known by their boxes, such as those that a detector found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import geopandas as gpd
import numpy as np
import shapely

from torchgeo_debias.boxes.convert import Floats
from torchgeo_debias.data.layers import read_layer, to_pixels
from torchgeo_debias.errors import LabelError
from torchgeo_debias.inference.features import free_names
from torchgeo_debias.inference.masks.merge import largest
from torchgeo_debias.inference.masks.pieces import outlines
from torchgeo_debias.inference.masks.predictor import MaskPredictor, Picture
from torchgeo_debias.inference.masks.segment import MASK_FIELDS, classified, on_map
from torchgeo_debias.inference.predictor import ChipPredictor, thresholds_of
from torchgeo_debias.inference.results import (
    FIELDS,
    RAW_FIELDS,
    ClassifySummary,
    best,
    check_overwrite,
    check_source,
    count_classes,
    prediction_columns,
)
from torchgeo_debias.inference.runs import Rasters, opened
from torchgeo_debias.progress import ProgressCallback, silent, track
from torchgeo_debias.tiling.layers import check_layer_path, write_layer
from torchgeo_debias.tiling.plan import TilePlan
from torchgeo_debias.tiling.source import RasterSource, Source, extent

_OVERLAP = 0.5
"""Share of a tile: any box no longer than this lies whole in the tile whose centre is nearest."""


class _Outlined(NamedTuple):
    """The outline in one box.

    Attributes:
        number: Place of the box in the layer.
        polygon: In pixels of the raster.
        score: How sure the model is.
        cut: Whether the box reaches beyond its tile.
    """

    number: int
    polygon: shapely.Polygon
    score: float
    cut: bool


def segment_boxes(
    rasters: Rasters,
    layer: Path | gpd.GeoDataFrame,
    masks: MaskPredictor,
    out: Path,
    chips: ChipPredictor | None = None,
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    crs: str | None = None,
    rgb: Sequence[int | str] | None = None,
    stretch: tuple[float, float] | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Find the outline of the object in each box of a layer.

    Each box is a prompt in the tile of ``masks.size`` pixels whose centre lies nearest to its own. The result has one
    polygon for each box in the CRS of the raster, the largest part of its mask, in the order of the layer and with its
    attributes; ``mask_score``, how sure the model is of the outline; and ``cut``, whether the box reaches beyond its
    tile, as those longer than half a tile may. Boxes in which there is no data, or no object, are left out.

    With ``chips`` each object gets the class of the chip around its outline, the background class among them;
    attributes of the layer with the names of the new ones become ``class_label`` and so on.

    The result appears under its name once it is complete; unfinished work is not kept.

    Args:
        rasters: A file, several files or folders (one mosaic), or a source.
        layer: Boxes, upright or turned, or any polygons, in any CRS; of each the bounds in the raster are taken.
        masks: Finds the outlines.
        out: ``.gpkg``, ``.parquet``, ``.fgb`` or ``.geojson``.
        chips: Says what the objects are; what the layer says of them is kept where left out.
        bands: Bands to read, counted from 1 or by name; all but alpha where left out.
        nodata: Takes the place of the rasters' own nodata value.
        crs: Stands in for rasters that have none.
        rgb: Bands that the model of masks sees; see :class:`~torchgeo_debias.inference.masks.predictor.Picture`.
        stretch: Values that become black and white for it.
        progress: Told about each tile; may cancel.

    Raises:
        ConfigError: If the raster's values need a stretch, or a band is not there.
        RasterError: If a raster cannot be read or does not fit ``chips``.
        LabelError: If the layer cannot be read, is empty, or no box of it lies on the raster.
        OutputError: If the result cannot be written.
    """
    out = Path(out)
    check_layer_path(out)
    frame = read_layer(layer).reset_index(drop=True)
    if len(frame) and not frame.geom_type.str.endswith("Polygon").all():
        raise LabelError("The boxes to find masks in must be polygons; points and lines have no inside.")
    with opened(rasters, bands=bands, nodata=nodata, crs=crs) as source:
        check_overwrite([*source.files, *([] if isinstance(layer, gpd.GeoDataFrame) else [Path(layer)])], [out])
        if chips is not None:
            check_source(source, chips)
        picture = Picture(source.band_names, source.dtype.name, rgb, stretch)
        found = list(_outlined(source, frame, masks, picture, progress))
        if not found:
            raise LabelError(
                f"No object was found in the {len(frame)} boxes, which span {extent(frame.total_bounds, frame.crs)}; "
                f"{source.name} spans {extent(source.bounds, source.crs)}."
            )
        outlined = _described(frame, found, source, chips)
        counts: dict[str, int] = {}
        if chips is not None:
            prediction, outlined = classified(outlined, source, chips)
            thresholds = thresholds_of(chips)
            ids, _ = best(prediction.probabilities, thresholds)
            counts = dict(zip(chips.table.names, count_classes(chips.table, ids).tolist(), strict=True))
            columns = prediction_columns(chips.table, prediction, thresholds)
            outlined = columns.join(outlined.reset_index(drop=True)).set_geometry("geometry", crs=source.crs)
        table = None if chips is None else chips.table
        write_layer(out, [outlined], crs=source.crs, fields=MASK_FIELDS, table=table)
    cut = int(outlined["cut"].sum())
    notes = (f"{cut} boxes reach beyond their tile of {masks.size} pixels, and so may their objects.",) if cut else ()
    return ClassifySummary(counts, len(frame), len(frame) - len(outlined), (out,), notes)


def _outlined(
    source: Source, frame: gpd.GeoDataFrame, masks: MaskPredictor, picture: Picture, progress: ProgressCallback
) -> Iterator[_Outlined]:
    """The outlines in the boxes of a layer, tile by tile."""
    plan = TilePlan.of(source.width, source.height, masks.size, _OVERLAP)
    boxes: Floats = shapely.bounds(to_pixels(frame.geometry.to_crs(source.crs), cast(RasterSource, source)))
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    with np.errstate(invalid="ignore"):
        inside = ((middle >= 0) & (middle < [source.width, source.height])).all(axis=1)
    numbers = np.flatnonzero(inside)
    places = np.column_stack(
        [
            np.rint((middle[numbers, k] - masks.size / 2) / axis.step).clip(0, axis.tiles - 1).astype(np.int64)
            for k, axis in ((1, plan.rows), (0, plan.columns))
        ]
    )
    tiles, which = np.unique(places, axis=0, return_inverse=True)
    for i, (row, column) in enumerate(track(tiles.tolist(), "segment", progress)):
        tile = next(plan.row(row, [column]))
        pixels, valid = source.read(*tile.window)
        if not valid.any():
            continue
        here = numbers[which.reshape(-1) == i]
        prompts = boxes[here] - np.array([tile.window.col_off, tile.window.row_off] * 2)
        found = masks.predict_boxes(picture.of(pixels, valid), prompts.clip(0, masks.size))
        for number, prompt, (mask, score) in zip(here.tolist(), prompts, found, strict=True):
            if (mask & valid).any():
                polygon = largest(outlines([mask & valid], [tile.window[:2]])[0])
                yield _Outlined(number, polygon, score, bool((prompt < 0).any() or (prompt > masks.size).any()))


def _described(
    frame: gpd.GeoDataFrame, found: Sequence[_Outlined], source: Source, chips: ChipPredictor | None
) -> gpd.GeoDataFrame:
    """The outlines in the order of the layer, with its attributes."""
    found = sorted(found, key=lambda one: one.number)
    new = [*MASK_FIELDS, *([] if chips is None else [*FIELDS, *RAW_FIELDS])]
    named = free_names(frame, [*new, "geometry"])
    attributes = named.drop(columns=named.active_geometry_name).iloc[[one.number for one in found]]
    columns = {"mask_score": [round(one.score, 6) for one in found], "cut": [one.cut for one in found]}
    polygons = on_map(np.array([one.polygon for one in found], dtype=object), source)
    return gpd.GeoDataFrame(attributes.reset_index(drop=True).assign(**columns), geometry=polygons, crs=source.crs)

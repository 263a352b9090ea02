"""Classifying the tiles of rasters of any size into polygons and a class map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from rasterio.transform import xy

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.data.windows import cut_square
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.inference.cells import CellRow, CellRows
from torchgeo_debias.inference.predictor import ChipPredictor
from torchgeo_debias.inference.results import (
    FIELDS,
    ClassifySummary,
    best,
    check_job,
    check_source,
    count_classes,
    prediction_columns,
)
from torchgeo_debias.progress import Progress, ProgressCallback, silent
from torchgeo_debias.tiling.plan import Tile, TilePlan
from torchgeo_debias.tiling.sink import ClassMapSink, VectorSink
from torchgeo_debias.tiling.source import RasterSource


def classify_raster(
    rasters: Sequence[Path],
    predictor: ChipPredictor,
    out: Path,
    *,
    map_path: Path | None = None,
    overlap: float = 0.0,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    min_score: float = 0.0,
    keep_background: bool = False,
    batch_size: int = 64,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Classify rasters tile by tile.

    A tile covers the ground that a training chip covered (:meth:`ChipSpec.window_px`); for models whose chips were
    fitted to objects, ``spec.size`` pixels of the training resolution. Tiles are laid from the raster's upper left
    corner. With ``overlap`` they are closer than they are long, and each cell between them gets the mean of the
    probabilities of the tiles on it, weighted by the share of the cell that a tile covers.

    ``out`` has one polygon a tile (or cell), cut at the raster's edge, with ``class``, ``class_id``, ``score``,
    ``group``, for models with a biased twin ``class_raw`` and ``score_raw``, and with several rasters ``raster``, the
    file's name; geometry in the CRS of the first raster. Tiles without data are left out. The class map has the grid
    of the raster, background included, and nodata where a pixel has none, its tile was left out, or the score is below
    ``min_score``. Memory depends on the width of a raster, not on its height.

    Args:
        rasters: One or more.
        predictor: The model.
        out: ``.gpkg``, ``.parquet`` or ``.geojson``; see :class:`~torchgeo_debias.tiling.sink.VectorSink`.
        map_path: Class map (``.tif``), only with one raster.
        overlap: Share of a tile that the next one covers again, ``0 <= overlap < 1``.
        bands: Bands to read, counted from 1, in the model's order; all but alpha where left out.
        nodata: Takes the place of the rasters' own nodata value.
        min_score: Polygons below this score are left out, 0..1.
        keep_background: Also write polygons of the background class.
        batch_size: Tiles in one call of the model.
        progress: Told about each tile; may cancel.

    Raises:
        ConfigError: If an option is out of range or a map of several rasters is wanted.
        RasterError: If a raster cannot be read, does not fit the model, or none holds any data.
        OutputError: If a result cannot be written.
    """
    rasters = [Path(path) for path in rasters]
    outputs = [Path(out)] if map_path is None else [Path(out), Path(map_path)]
    if not rasters:
        raise ConfigError("Name at least one raster to classify.")
    if map_path is not None and len(rasters) > 1:
        raise ConfigError("A class map can be made of one raster only; leave --map out or classify one at a time.")
    if not 0 <= min_score <= 1:
        raise ConfigError(f"The lowest score must lie between 0 and 1; received {min_score}.")
    check_job(rasters, outputs, batch_size)

    plans: list[TilePlan] = []
    frames: list[Any] = []
    for path in rasters:
        with RasterSource(path, bands, nodata) as source:
            check_source(source, predictor)
            plans.append(TilePlan.of(source.width, source.height, _window(predictor.spec, source.gsd), overlap))
            frames.append(source.crs)

    tally = _Tally(sum(map(len, plans)), np.zeros(len(predictor.table.names), dtype=np.int64), progress)
    fields = FIELDS | ({"raster": "string"} if len(rasters) > 1 else {})
    hidden = None if keep_background else predictor.table.background
    with ExitStack() as stack:
        sink = stack.enter_context(VectorSink(out, frames[0], fields, table=predictor.table))
        for path, plan in zip(rasters, plans, strict=True):
            source = stack.enter_context(RasterSource(path, bands, nodata))
            class_map = stack.enter_context(ClassMapSink(map_path, source, predictor.table)) if map_path else None
            for row in _classify_rows(source, plan, predictor, batch_size, tally):
                ids, scores = best(row.prediction.probabilities)
                ids[scores < min_score] = -1
                tally.counts += count_classes(predictor.table, ids)
                if class_map is not None:
                    class_map.write(row.top, row.paint(ids, class_map.nodata))
                take = np.flatnonzero((ids >= 0) & (ids != hidden))
                if len(take):
                    polygons = _polygons(row, source, predictor.table, take)
                    if len(rasters) > 1:
                        polygons["raster"] = pd.Series(path.name, polygons.index, dtype="string")
                    sink.write(polygons.to_crs(frames[0]))
            source.close()
        if tally.skipped == tally.total:
            raise RasterError(
                f"There is no data in the bands read of {', '.join(path.name for path in rasters[:3])}; check the "
                "nodata value (--nodata) and the bands (--bands)."
            )
    counts = dict(zip(predictor.table.names, tally.counts.tolist(), strict=True))
    return ClassifySummary(counts, tally.total, tally.skipped, tuple(outputs))


@dataclass
class _Tally:
    """Running counts of a job; see :class:`ClassifySummary`."""

    total: int
    counts: npt.NDArray[np.int64]
    progress: ProgressCallback
    done: int = 0
    skipped: int = 0

    def tile(self, holds_data: bool) -> None:
        self.done += 1
        self.skipped += not holds_data
        self.progress(Progress("classify", self.done, self.total))


def _window(spec: ChipSpec, gsd: float) -> float:
    fixed = spec if spec.window is not None else replace(spec, window=float(spec.size), unit="px")
    side = fixed.window_px(gsd)
    if side is None or round(side) < 1:
        raise RasterError(f"Pixels of {gsd:.3g} m are larger than the squares that the model looks at.")
    return side


def _classify_rows(
    source: RasterSource, plan: TilePlan, predictor: ChipPredictor, batch_size: int, tally: _Tally
) -> Iterator[CellRow]:
    rows = CellRows(plan, source, len(predictor.table.names))
    size = predictor.spec.size
    waiting: list[Tile] = []
    images = np.zeros((batch_size, source.count, size, size), dtype=source.dtype)
    valid = np.zeros((batch_size, size, size), dtype=bool)
    for tile in plan:
        place = len(waiting)
        square = np.array([*tile.window[:2], tile.window.width])
        images[place], valid[place] = cut_square(rows.reader(tile), square, size)
        holds_data = bool(valid[place].any())
        if holds_data:
            waiting.append(tile)
        # Skipped tiles count for a batch as well, or a raster of little data would pile up rows that wait for one.
        if (tile.id + 1) % batch_size == 0 or tile.id + 1 == len(plan):
            if waiting:
                prediction = predictor.predict(images[: len(waiting)], valid[: len(waiting)])
                for i, done in enumerate(waiting):
                    rows.add(done, prediction.at(i))
                waiting = []
            yield from rows.settle(tile.id + 1)
        tally.tile(holds_data)


def _polygons(row: CellRow, source: RasterSource, table: ClassTable, take: npt.NDArray[np.intp]) -> gpd.GeoDataFrame:
    """The cells at positions ``take`` with their attributes, in the CRS of the source."""
    bottom = row.top + len(row.valid)
    left, top = xy(source.transform, np.full(len(take), row.top), row.edges[take], offset="ul")
    right, low = xy(source.transform, np.full(len(take), bottom), row.edges[take + 1], offset="ul")
    boxes = shapely.box(np.minimum(left, right), np.minimum(top, low), np.maximum(left, right), np.maximum(top, low))
    return gpd.GeoDataFrame(prediction_columns(table, row.prediction.at(take)), geometry=boxes, crs=source.crs)

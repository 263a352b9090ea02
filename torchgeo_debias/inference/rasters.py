"""Classifying the tiles of rasters of any size into features and a class map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.inference.cells import CellMerger, CellOptions
from torchgeo_debias.inference.mapping import CLASSIFY_SHAPES, MapJob, MapOptions, OutputFormats, Outputs, Resources
from torchgeo_debias.inference.predictor import ChipPredictor, thresholds_of
from torchgeo_debias.inference.results import ClassifySummary, check_source
from torchgeo_debias.inference.runs import Rasters, run_many, run_one
from torchgeo_debias.inference.whole_tiles import cut_tile
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.engine import Answer, Cut
from torchgeo_debias.tiling.maps import class_map_dtype
from torchgeo_debias.tiling.plan import Tile
from torchgeo_debias.tiling.source import Source

_ALIKE = 0.05
"""Share by which the resolutions of raster and training may differ before the user is told."""


@dataclass(frozen=True)
class ClassifyTiles:
    """The task: a chip for each tile, and cells between overlapping tiles."""

    predictor: ChipPredictor
    options: CellOptions

    @property
    def size(self) -> int:
        """Side of a chip, pixels."""
        return self.predictor.spec.size

    def cut(self, source: Source, tile: Tile) -> Cut:
        """Read a tile and resample it to a chip."""
        return cut_tile(source, tile, self.size)

    def use_threads(self, n: int) -> None:
        """Let the model use ``n`` threads in each call."""
        self.predictor.use_threads(n)

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        """Probabilities (N, C), and those of the twin where there is one."""
        return tuple(part for part in self.predictor.predict(images, valid) if part is not None)

    def merger(self, wanted: Wanted) -> CellMerger:
        """Cells."""
        return CellMerger(wanted, self.options)


def classify_raster(
    rasters: Rasters,
    predictor: ChipPredictor,
    outputs: Outputs,
    options: MapOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Classify a raster tile by tile; several become one mosaic.

    A tile covers the ground that a training chip covered (:meth:`ChipSpec.window_px`); for models whose chips were
    fitted to objects, ``spec.size`` pixels of the training resolution. Tiles are laid from the raster's upper left
    corner. With an overlap they are closer than they are long, and each cell between them gets the mean of the
    probabilities of the tiles on it, weighted by the share of the cell that a tile covers.

    The layer has one feature a tile (or cell), cut at the raster's edge, with ``class``, ``class_id``, ``score``,
    ``group`` and, for models with a biased twin, ``class_raw`` and ``score_raw``; or, as ``regions``, one feature for
    each area of one class in the map, with the mean score of its pixels. Geometry is in the CRS of the (first) raster.
    Tiles without data are left out. The class map has the grid of the raster, background included, and nodata where a
    pixel has none, lies outside the area, its tile was left out, or the score is below ``min_score``.

    Unfinished work waits in the folder ``<first output>.partial``; the same call goes on with it.

    Args:
        rasters: A file, several files or folders, or a source.
        predictor: The model.
        outputs: What to write.
        options: How to classify.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range.
        RasterError: If a raster cannot be read, does not fit the model, or holds no data.
        LabelError: If the area cannot be used.
        OutputError: If a result cannot be written, or another run writes it.
    """
    options = options or MapOptions()
    return run_one(
        rasters,
        predictor,
        outputs,
        lambda source: _job(source, predictor, outputs, options),
        options,
        resources or Resources(),
        progress,
    )


def classify_rasters(
    rasters: Sequence[Path],
    predictor: ChipPredictor,
    out_dir: Path,
    formats: OutputFormats | None = None,
    options: MapOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Classify many rasters, each on its own, into one folder.

    A raster ``a.tif`` becomes ``a.gpkg``, ``a_classes.tif`` and ``a_scores.tif``, as ``formats`` says; for the rest see
    :func:`classify_raster`. One journal remembers all of them. A raster that cannot be read does not stop the others:
    they are finished first, then the error names it.

    Args:
        rasters: Files and folders.
        predictor: The model.
        out_dir: Made where it is missing.
        formats: What to write of each.
        options: How to classify.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range, or two rasters would have results of one name.
        RasterError: If rasters could not be classified; all others are complete.
        LabelError: If the area cannot be used.
        OutputError: If a result cannot be written, or another run writes it.
    """
    options = options or MapOptions()
    return run_many(
        rasters,
        predictor,
        Path(out_dir),
        formats or OutputFormats(),
        lambda source, outputs: _job(source, predictor, outputs, options),
        options,
        resources or Resources(),
        progress,
    )


def _job(source: Source, predictor: ChipPredictor, outputs: Outputs, options: MapOptions) -> MapJob:
    check_source(source, predictor)
    if outputs.shape not in (None, *CLASSIFY_SHAPES):
        raise ConfigError(f"A classifier makes features of {', '.join(CLASSIFY_SHAPES)}, and no {outputs.shape}.")
    wanted = options.wanted(source, _window(predictor.spec, source.gsd))
    dtype, nodata = class_map_dtype(predictor.table)
    hidden = options.hidden(predictor.table)
    cells = CellOptions(
        classes=len(predictor.table.names),
        twin=predictor.twin,
        min_score=options.min_score,
        hidden=hidden,
        dtype=dtype.name,
        nodata=nodata,
        painted=outputs.painted,
        recorded=outputs.layer is not None and outputs.shape != "regions",
        thresholds=thresholds_of(predictor),
    )
    return MapJob(
        source,
        wanted,
        ClassifyTiles(predictor, cells),
        predictor.table,
        outputs,
        hidden,
        predictor.twin,
        _notes(source, predictor),
    )


def _notes(source: Source, predictor: ChipPredictor) -> tuple[str, ...]:
    trained = predictor.spec.gsd
    if trained is None or abs(source.gsd / trained - 1) <= _ALIKE:
        return ()
    return (
        f"The raster has pixels of {source.gsd:.3g} m and the model was trained on {trained:.3g} m: tiles of "
        f"{round(_window(predictor.spec, source.gsd))} pixels are resampled to {predictor.spec.size}.",
    )


def _window(spec: ChipSpec, gsd: float) -> float:
    fixed = spec if spec.window is not None else replace(spec, window=float(spec.size), unit="px")
    try:
        side = fixed.window_px(gsd)
    except ConfigError as error:  # one raster of many need not stop the others
        raise RasterError(str(error)) from error
    if side is None or round(side) < 1:
        raise RasterError(f"Pixels of {gsd:.3g} m are larger than the squares that the model looks at.")
    return side

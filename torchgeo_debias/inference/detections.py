"""Objects in rasters of any size, each found once, from models that find them in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.convert import checked
from torchgeo_debias.boxes.suppress import Rule
from torchgeo_debias.data.objects import TileSpec
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.inference.box_rows import BoxFeatures, BoxMerger, centres
from torchgeo_debias.inference.mapping import (
    DETECT_SHAPES,
    MapJob,
    MapOptions,
    OutputFormats,
    Outputs,
    Resources,
)
from torchgeo_debias.inference.predictor import BoxPredictor, Found, thresholds_of
from torchgeo_debias.inference.results import ClassifySummary, check_source
from torchgeo_debias.inference.runs import Rasters, run_many, run_one
from torchgeo_debias.inference.whole_tiles import WholeTiles
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.tiling._place import pixel_metres
from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.engine import Answer
from torchgeo_debias.tiling.opening import open_source
from torchgeo_debias.tiling.source import Source

_ALIKE = 0.05
"""Share by which resolutions may differ before the user is told, and the sides of a pixel before it is made square."""


@dataclass(frozen=True)
class DetectOptions(MapOptions):
    """How objects are found, whatever the raster.

    Attributes:
        overlap: As in :class:`~torchgeo_debias.inference.mapping.MapOptions`; objects shorter than this share of a tile
            are found whole.
        min_score: Objects below are left out, 0..1, but for classes with a threshold in the model that keeps a recall,
            which have that one; evaluation takes all that a model tells of.
        suppression: Intersection over union above which the weaker of two boxes of one class is left out, 0..1.
        agnostic: Whether boxes of different classes are taken for one object too.
    """

    verb: ClassVar[str] = "detect"

    overlap: float = 0.25
    min_score: float = 0.3
    suppression: float = 0.5
    agnostic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        Rule.of(self.suppression, "iou")

    def described(self) -> dict[str, Any]:
        """All that the result of a run hangs on, as plain JSON."""
        return super().described() | {"suppression": float(self.suppression), "agnostic": self.agnostic}


@dataclass(frozen=True)
class FindObjects(WholeTiles):
    """The task: boxes in each tile.

    Attributes:
        predictor: The model.
        min_scores: Of each class; objects below are left out.
        hidden: Class whose objects are left out, None for none.
    """

    predictor: BoxPredictor
    min_scores: tuple[float, ...]
    hidden: int | None

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        """What is found in each tile: (N,) of :class:`~torchgeo_debias.inference.predictor.Found`."""
        found = self.predictor.predict(images, valid)
        return (np.fromiter(map(self._worth, found, valid), dtype=object, count=len(images)),)

    def merger(self, wanted: Wanted) -> BoxMerger:
        """Each box from the tile that it belongs to."""
        return BoxMerger(wanted, self.predictor.oriented, self.size)

    def _worth(self, found: Found, valid: npt.NDArray[np.bool_]) -> Found:
        """What is strong enough, of a class that is wanted, and has its centre on a pixel with data."""
        boxes = checked(found.boxes)
        worth = found.scores >= np.array(self.min_scores)[found.classes]
        worth &= found.classes != (-1 if self.hidden is None else self.hidden)
        column, row = np.floor(centres(boxes)).astype(np.int64).T
        inside = (column >= 0) & (column < self.size) & (row >= 0) & (row < self.size)
        worth &= inside & valid[np.where(inside, row, 0), np.where(inside, column, 0)]
        return Found(boxes[worth], found.scores[worth], found.classes[worth])


def detect_raster(
    rasters: Rasters,
    predictor: BoxPredictor,
    outputs: Outputs,
    options: DetectOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Find the objects in a raster; several rasters become one mosaic.

    Tiles are laid from the raster's upper left corner, each covered by the next one over ``options.overlap`` of its
    side. They cover the ground that training tiles covered, rounded to whole pixels, and are resampled to
    ``predictor.size`` as those were; a note says so where the resolutions differ by more than 5 %. A raster whose
    pixels are not square, as in degrees away from the equator, is read with square ones of the model's resolution.

    Boxes of all tiles are suppressed together, by falling score, so that each object is there once. Those of objects
    shorter than the overlap (by 2 pixels of the model) are whole, and do not depend on the tiles as far as the model
    does not. Of longer objects each tile may give a piece; these have ``cut`` set, and a note says how many there are
    and which overlap would hold them.

    The layer has one feature an object, a rectangle or, with the shape ``points``, its centre, in the CRS of the
    (first) raster: ``class``, ``class_id``, ``score``, ``group``; ``angle`` of the longer sides in the CRS, degrees
    counter-clockwise from east, 0 <= angle < 180; ``length`` and ``width``, metres on the ground; ``cut``. Rectangles
    of the raster stay rectangles in the CRS unless its pixels have two lengths there, as in degrees away from the
    equator when the raster is resampled. Objects whose centre has no data or lies outside the area are left out.

    Unfinished work waits in the folder ``<output>.partial``; the same call goes on with it.

    Args:
        rasters: A file, several files or folders, or a source.
        predictor: The model.
        outputs: What to write: a layer with the shape ``boxes`` or ``points``.
        options: How to find objects.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range, or anything but a layer is asked for.
        RasterError: If a raster cannot be read, does not fit the model, or holds no data.
        LabelError: If the area cannot be used or does not meet the raster.
        OutputError: If a result cannot be written, or another run writes it.
    """
    options = options or DetectOptions()
    return run_one(
        rasters,
        predictor,
        outputs,
        lambda source: _job(source, predictor, outputs, options),
        options,
        resources or Resources(),
        progress,
    )


def detect_rasters(
    rasters: Sequence[Path],
    predictor: BoxPredictor,
    out_dir: Path,
    formats: OutputFormats | None = None,
    options: DetectOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Find the objects in many rasters, each on its own, into one folder.

    A raster ``a.tif`` becomes ``a.gpkg``, or what ``formats`` says; for the rest see :func:`detect_raster`. One journal
    remembers all of them. A raster that cannot be read does not stop the others: they are finished first, then the
    error names it.

    Args:
        rasters: Files and folders.
        predictor: The model.
        out_dir: Made where it is missing.
        formats: What to write of each.
        options: How to find objects.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range, anything but a layer is asked for, or two rasters would have results
            of one name.
        RasterError: If some rasters failed; all others are complete.
        LabelError: If the area cannot be used.
        OutputError: If a result cannot be written, or another run writes it.
    """
    options = options or DetectOptions()
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


def _job(source: Source, predictor: BoxPredictor, outputs: Outputs, options: DetectOptions) -> MapJob:
    check_source(source, predictor)
    if outputs.paths != (outputs.layer,) or outputs.shape not in (None, *DETECT_SHAPES):
        raise ConfigError("A detector makes a layer of 'boxes' or 'points' and no maps: ask for that alone.")
    square, side, notes = _fitted(source, predictor)
    wanted, table = options.wanted(square, side), predictor.table
    thresholds = thresholds_of(predictor)
    limits = (options.min_score,) * len(table.names)
    if thresholds is not None:
        limits = tuple(thresholds.limits(options.min_score).tolist())
    features = BoxFeatures(
        table,
        square.grid,
        wanted.area,
        overlap=wanted.plan.columns.overlap,
        scale=side / predictor.size,
        min_score=min(limits),
        threshold=options.suppression,
        agnostic=options.agnostic,
        points=outputs.shape == "points",
    )
    task = FindObjects(predictor, limits, options.hidden(table))
    return MapJob(square, wanted, task, table, outputs, features=features, notes=notes)


def _fitted(source: Source, predictor: BoxPredictor) -> tuple[Source, int, tuple[str, ...]]:
    """The raster in square pixels, the side of a tile in these, and what there is to say about it."""
    size, gsd = predictor.size, predictor.gsd
    across, down = pixel_metres(source.grid)
    oblong = gsd is not None and abs(across / down - 1) > _ALIKE
    try:
        square = open_source(source, gsd=gsd) if oblong else source
        side = TileSpec(size, scale=predictor.scale, gsd=gsd).side(square.gsd)
    except ConfigError as error:  # one raster of many need not stop the others
        raise RasterError(f"{source.name} does not fit the model. {error}") from error
    if not oblong and abs(side / size - 1) <= _ALIKE:
        return square, side, ()
    made = f"scaled its training images by {predictor.scale:.3g}" if gsd is None else f"was made for {gsd:.3g} m"
    pixels = f"{across:.3g} x {down:.3g} m" if oblong else f"{source.gsd:.3g} m"
    now = f"it is read at {gsd:.3g} m" if oblong else f"tiles of {side} pixels are resampled to {size}"
    return square, side, (f"The raster has pixels of {pixels} and the model {made}: {now}.",)

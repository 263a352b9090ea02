"""Class maps from models that answer for every pixel, such as semantic segmentation networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.inference.mapping import MapJob, MapOptions, Outputs, Resources
from torchgeo_debias.inference.predictor import PixelPredictor
from torchgeo_debias.inference.results import ClassifySummary, check_source
from torchgeo_debias.inference.runs import Rasters, run_one
from torchgeo_debias.inference.whole_tiles import WholeTiles
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.blend import PixelMerger
from torchgeo_debias.tiling.engine import Answer
from torchgeo_debias.tiling.maps import class_map_dtype
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.source import Source

_FEW = 16


@dataclass(frozen=True)
class ClassifyPixels(WholeTiles):
    """The task: scores of each pixel of a tile, blended where tiles overlap."""

    predictor: PixelPredictor
    min_score: float
    scored: bool

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        """Probabilities (N, K, S, S)."""
        return (self.predictor.predict(images, valid),)

    def merger(self, wanted: Wanted) -> CountingMerger:
        """Blended pixels."""
        return CountingMerger(wanted, self.predictor, self.min_score, self.scored)


class CountingMerger(PixelMerger):
    """Blends, and counts the pixels of each class."""

    def __init__(self, wanted: Wanted, predictor: PixelPredictor, min_score: float, scored: bool) -> None:
        self._classes = len(predictor.table.names)
        dtype, nodata = class_map_dtype(predictor.table)
        super().__init__(wanted, self._classes, dtype, nodata, min_score, scored)

    def settle(self, row: int) -> Part:
        """As before, and ``counts`` (1, K)."""
        part = super().settle(row)
        return {**part, "counts": _count(part["ids"], self._classes)[None]}


def _count(ids: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Pixels of each class; bincount would copy them to eight bytes each, ten times slower for a few classes."""
    if classes > _FEW:
        return np.bincount(ids.ravel(), minlength=classes)[:classes]
    return np.array([np.count_nonzero(ids == number) for number in range(classes)])


def classify_pixels(
    rasters: Rasters,
    predictor: PixelPredictor,
    outputs: Outputs,
    options: MapOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Classify every pixel of a raster; several rasters become one mosaic.

    Tiles of ``predictor.size`` pixels are laid from the raster's upper left corner. Where they overlap, their
    probabilities are blended with weights that fall towards a tile's rim and sum to 1, up to the rim of the raster.
    Where the model was made for another resolution, the raster is read at that one, and the map has its grid.

    The map has the class of each pixel, and nodata where it has none, lies outside the area, or the score is below
    ``min_score``. The layer has one feature for each area of one class (``shape="regions"``).

    Unfinished work waits in the folder ``<first output>.partial``; the same call goes on with it.

    Args:
        rasters: A file, several files or folders, or a source.
        predictor: The model.
        outputs: What to write; a layer only of regions.
        options: How to classify.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range.
        RasterError: If a raster cannot be read, does not fit the model, or holds no data.
        LabelError: If the area cannot be used or does not meet the raster.
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
        gsd=predictor.gsd,
    )


def _job(source: Source, predictor: PixelPredictor, outputs: Outputs, options: MapOptions) -> MapJob:
    check_source(source, predictor)
    if outputs.layer is not None and outputs.shape != "regions":
        raise ConfigError("A model of pixels gives no tiles: ask for features with the shape 'regions'.")
    task = ClassifyPixels(predictor, options.min_score, outputs.scored)
    notes = (
        () if predictor.gsd is None else (f"The raster is read, and the map made, at {predictor.gsd:.3g} m a pixel.",)
    )
    wanted, hidden = options.wanted(source, predictor.size), options.hidden(predictor.table)
    return MapJob(source, wanted, task, predictor.table, outputs, hidden, notes=notes)

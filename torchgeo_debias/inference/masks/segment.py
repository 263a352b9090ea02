"""Outlines of the objects in rasters of any size, each with its class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.data.layers import cut_chips
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation.thresholds import NOTHING
from torchgeo_debias.inference.mapping import MapJob, MapOptions, OutputFormats, Outputs, Parts, Resources, Tally
from torchgeo_debias.inference.masks.merge import Instance, InstanceMerger, Joining
from torchgeo_debias.inference.masks.pieces import NAMES, Packed, nothing, on_raster, pack, rows
from torchgeo_debias.inference.masks.predictor import MaskPredictor, Segmenter
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction, TilePredictor, thresholds_of
from torchgeo_debias.inference.results import (
    FIELDS,
    RAW_FIELDS,
    ClassifySummary,
    best,
    check_source,
    count_classes,
    prediction_columns,
)
from torchgeo_debias.inference.runs import Rasters, run_many, run_one
from torchgeo_debias.inference.whole_tiles import WholeTiles
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.tiling._place import apply
from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.engine import Answer
from torchgeo_debias.tiling.parts import Part, join
from torchgeo_debias.tiling.plan import Tile
from torchgeo_debias.tiling.source import RasterSource, Source

MASK_FIELDS = {"mask_score": "float64", "cut": "bool"}
"""pandas dtypes of the attributes that every mask has besides those of its class."""

_CHIPS = 64
"""Objects that are classified at a time."""

_BYTES_A_TILE = 60_000
"""What the masks of a tile take on the disk, roughly."""


@dataclass(frozen=True)
class SegmentOptions(MapOptions):
    """How masks are found and labelled, whatever the raster.

    Attributes:
        overlap: As in :class:`~torchgeo_debias.inference.mapping.MapOptions`; objects smaller than this share of a tile
            are found whole.
        min_score: Objects whose class is less sure are left out, 0..1.
        min_pixels: Masks of fewer pixels are left out.
        max_pixels: Objects of more pixels are left out once they are put together: as a rule they are what lies behind
            all others. The default is the area of sixteen tiles of SAM.
        max_share: So are those that cover more of the raster, as far as it is not known to be without data.
        alike: Masks of two tiles are one object where their intersection over union, in the strip that the tiles
            share, is at least this; see :class:`~torchgeo_debias.inference.masks.merge.Joining`.
        rgb: Bands that the model of masks sees; see :class:`~torchgeo_debias.inference.masks.predictor.Picture`.
        stretch: Values that become black and white for it.
    """

    verb: ClassVar[str] = "segment"

    overlap: float = 0.25
    min_pixels: int = 16
    max_pixels: int = 2**24
    max_share: float = 0.75
    alike: float = 0.5
    rgb: Sequence[int | str] | None = None
    stretch: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_pixels < 1:
            raise ConfigError(f"A mask must have at least one pixel; received {self.min_pixels}.")
        if self.max_pixels < self.min_pixels:
            raise ConfigError(
                f"Objects of {self.min_pixels} to {self.max_pixels} pixels there are none: raise the upper limit."
            )
        for name, value in (("largest share of a raster", self.max_share), ("likeness of two masks", self.alike)):
            if not 0 < value <= 1:
                raise ConfigError(f"The {name} must lie above 0 and up to 1; received {value}.")

    def described(self) -> dict[str, Any]:
        """All that the result of a run hangs on, as plain JSON; bands and stretch are in the model's identity."""
        pixels = {"min-pixels": self.min_pixels, "max-pixels": self.max_pixels}
        return super().described() | pixels | {"max-share": float(self.max_share), "alike": float(self.alike)}


@dataclass(frozen=True)
class FindMasks(WholeTiles):
    """The task: masks in each tile."""

    predictor: Segmenter
    min_pixels: int

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        """Masks of each tile: (N,) of :class:`~torchgeo_debias.inference.masks.pieces.Packed`."""
        answers = np.empty(len(images), dtype=object)
        for i, found in enumerate(self.predictor.predict(images, valid)):
            answers[i] = pack(found, self.min_pixels)
        return (answers,)

    def merger(self, wanted: Wanted) -> MaskCollector:
        """Keeps masks as they are: objects are put together from all rows at the end."""
        return MaskCollector()


class MaskCollector:
    """The masks of one row of tiles after the other."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Part]] = {}
        self._blank: Counter[int] = Counter()

    def add(self, tile: Tile, own: npt.NDArray[np.bool_], answer: Answer | None) -> None:
        """Take the masks of a tile."""
        self._blank[tile.row] += int(np.count_nonzero(~own))
        if answer is not None:
            self._rows.setdefault(tile.row, []).append(on_raster(cast(Packed, answer[0]), tile))

    def settle(self, row: int) -> Mapping[str, npt.NDArray[Any]]:
        """The masks of a row of tiles, and ``blank`` (1,), how many pixels that are its own hold no data."""
        return {**join(self._rows.pop(row, [nothing()])), "blank": np.array([self._blank.pop(row, 0)])}


@dataclass(frozen=True)
class MaskFeatures:
    """Masks put together across tiles, classified, in map coordinates.

    Attributes:
        source: The raster.
        wanted: The tiles.
        predictor: Says what the objects are.
        options: How they are put together, and which are left out.
    """

    source: Source
    wanted: Wanted
    predictor: ChipPredictor
    options: SegmentOptions

    @property
    def fields(self) -> Mapping[str, str]:
        """Each attribute with its pandas dtype."""
        return (FIELDS | RAW_FIELDS if self.predictor.twin else FIELDS) | MASK_FIELDS

    @property
    def bytes_a_tile(self) -> int:
        """What the masks of a tile take on the disk, roughly."""
        return _BYTES_A_TILE

    def frames(self, parts: Parts, quietly: Parts, tally: Tally) -> Iterator[gpd.GeoDataFrame]:
        """The features, a few at a time, in an order that hangs on the raster alone."""
        waiting: list[Instance] = []
        blank = sum(int(part["blank"].sum()) for part in quietly(["blank"]))
        data = self.source.width * self.source.height - blank
        most = min(self.options.max_pixels, self.options.max_share * data)
        for instance in self._instances(parts, Joining(self.options.alike, most)):
            waiting.append(instance)
            if len(waiting) == _CHIPS:
                yield self._labelled(waiting, tally)
                waiting = []
        if waiting:
            yield self._labelled(waiting, tally)

    def _instances(self, parts: Parts, joining: Joining) -> Iterator[Instance]:
        merger = InstanceMerger(self.wanted.plan, joining)
        for part in parts(NAMES):
            for row, pieces in rows(part):
                yield from merger.add(row, pieces)
        yield from merger.finish()

    def _labelled(self, instances: Sequence[Instance], tally: Tally) -> gpd.GeoDataFrame:
        table = self.predictor.table
        polygons = np.array([instance.polygon for instance in instances], dtype=object)
        frame = gpd.GeoDataFrame(
            {"mask_score": [round(instance.score, 6) for instance in instances], "cut": [i.cut for i in instances]},
            geometry=on_map(polygons, self.source),
            crs=self.source.crs,
        )
        frame = frame[self.wanted.area.holds(shapely.get_coordinates(shapely.point_on_surface(polygons)))]
        prediction, frame = classified(frame, self.source, self.predictor)
        thresholds = thresholds_of(self.predictor)
        ids, scores = best(prediction.probabilities, thresholds)
        kept = (ids != NOTHING) & (ids != self.options.hidden(table)) & (scores >= self.options.min_score)
        tally.counts += count_classes(table, ids[kept])
        prediction, frame = prediction.at(np.flatnonzero(kept)), frame[kept].reset_index(drop=True)
        columns = prediction_columns(table, prediction, thresholds)
        return columns.join(frame).set_geometry("geometry", crs=self.source.crs)


def classified(
    frame: gpd.GeoDataFrame, source: Source, predictor: ChipPredictor
) -> tuple[Prediction, gpd.GeoDataFrame]:
    """What the features of a frame in the CRS of a raster are; those without data around them are left out."""
    probabilities = [np.zeros((0, len(predictor.table.names)), np.float32)]
    raw = [probabilities[0]] if predictor.twin else []
    kept = [np.zeros(0, np.intp)]
    for start in range(0, len(frame), _CHIPS):
        images, valid, places = cut_chips(
            cast(RasterSource, source), frame.geometry.iloc[start : start + _CHIPS], predictor.spec
        )
        if len(places):
            found = predictor.predict(images, valid)
            probabilities.append(found.probabilities)
            kept.append(places + start)
            if found.raw is not None:
                raw.append(found.raw)
    prediction = Prediction(np.concatenate(probabilities), np.concatenate(raw) if raw else None)
    return prediction, frame.iloc[np.concatenate(kept)]


def on_map(polygons: npt.NDArray[np.object_], source: Source) -> npt.NDArray[np.object_]:
    """Geometries in pixels of a raster as such in its CRS."""

    def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.column_stack(apply(source.transform, points[:, 0], points[:, 1]))

    placed: npt.NDArray[np.object_] = shapely.transform(polygons, place)
    return placed


def segment_raster(
    rasters: Rasters,
    masks: MaskPredictor,
    chips: ChipPredictor,
    out: Path,
    options: SegmentOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Find the outlines of objects in a raster, and what they are; several rasters become one mosaic.

    Tiles of ``masks.size`` pixels are laid from the raster's upper left corner, each covered by the next one over
    ``options.overlap`` of its side. Masks of an object that lies in several tiles become one polygon, see
    :class:`~torchgeo_debias.inference.masks.merge.InstanceMerger`: objects smaller than the overlap by two pixels are
    what one tile sees of them, larger ones are put together; those larger than ``options.max_pixels`` and
    ``options.max_share`` allow are left out. Then each object gets the class of the chip around it;
    those of the background class, of which a model of masks finds many, are left out.

    The layer has one polygon an object in the CRS of the (first) raster, along the edges of pixels, of the largest part
    of its mask: ``class``, ``class_id``, ``score``, ``group``, for models with a biased twin ``class_raw`` and
    ``score_raw``; ``mask_score``, how sure the model of masks is; and ``cut``, whether it was put together from pieces.

    Unfinished work waits in the folder ``<out>.partial``; the same call goes on with it.

    Args:
        rasters: A file, several files or folders, or a source.
        masks: Finds the objects, whatever they are.
        chips: Says what they are.
        out: ``.gpkg``, ``.parquet``, ``.fgb`` or ``.geojson``; see :func:`~torchgeo_debias.tiling.layers.write_layer`.
        options: How to find and label them.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range, or the raster's values need a stretch.
        RasterError: If a raster cannot be read, does not fit the model, or holds no data.
        LabelError: If the area cannot be used or does not meet the raster.
        OutputError: If the result cannot be written, or another run writes it.
    """
    options = options or SegmentOptions()
    predictor = Segmenter(masks, chips, options.rgb, options.stretch)
    outputs = Outputs(Path(out))
    return run_one(
        rasters,
        _model(predictor),
        outputs,
        lambda source: _job(source, predictor, outputs, options),
        options,
        resources or Resources(),
        progress,
    )


def segment_rasters(
    rasters: Sequence[Path],
    masks: MaskPredictor,
    chips: ChipPredictor,
    out_dir: Path,
    ending: str = ".gpkg",
    options: SegmentOptions | None = None,
    *,
    resources: Resources | None = None,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Find the outlines of objects in many rasters, each on its own, into one folder.

    A raster ``a.tif`` becomes ``a.gpkg``, or what the ending says; for the rest see :func:`segment_raster`. One journal
    remembers all of them. A raster that cannot be read does not stop the others: they are finished first, then the
    error names it.

    Args:
        rasters: Files and folders.
        masks: Finds the objects, whatever they are.
        chips: Says what they are.
        out_dir: Made where it is missing.
        ending: Of the layers, one of :data:`~torchgeo_debias.tiling.layers.VECTOR_FORMATS`.
        options: How to find and label them.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles; may cancel.

    Raises:
        ConfigError: If an option is out of range, or two rasters would have results of one name.
        RasterError: If rasters could not be segmented; all others are complete.
        LabelError: If the area cannot be used.
        OutputError: If a result cannot be written, or another run writes it.
    """
    options = options or SegmentOptions()
    predictor = Segmenter(masks, chips, options.rgb, options.stretch)
    return run_many(
        rasters,
        _model(predictor),
        Path(out_dir),
        OutputFormats(ending),
        lambda source, outputs: _job(source, predictor, outputs, options),
        options,
        resources or Resources(),
        progress,
    )


def _job(source: Source, predictor: Segmenter, outputs: Outputs, options: SegmentOptions) -> MapJob:
    check_source(source, predictor)
    wanted = options.wanted(source, predictor.size)
    features = MaskFeatures(source, wanted, predictor.chips, options)
    task = FindMasks(predictor, options.min_pixels)
    return MapJob(source, wanted, task, predictor.table, outputs, features=features)


def _model(predictor: Segmenter) -> TilePredictor:
    """A segmenter as runs know models: they ask no more of one than it has."""
    return cast(TilePredictor, predictor)

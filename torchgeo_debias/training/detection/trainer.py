"""From images with boxes and a configuration to a model package: one entry for every method."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.data.objects import ObjectSet, ObjectTiles, TileSpec
from torchgeo_debias.detection import Detector
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.files import make_folder
from torchgeo_debias.package import DetectorPackage, DetectorParts
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.training.detection.batches import TrainTiles, spread
from torchgeo_debias.training.detection.config import DetectConfig
from torchgeo_debias.training.detection.stages import DetectorRun, adapt, adapt_repeated, deblora, finetune, probe
from torchgeo_debias.training.parts import adapter_of, on_cpu, package_parts, statistics_of

_log = logging.getLogger(__name__)
_SAMPLE = 200
"""Tiles whose pixels give the statistics."""


@dataclass(frozen=True)
class TrainedDetector:
    """What a training run leaves.

    Attributes:
        package: The model.
        seconds: Wall time of each stage.
    """

    package: DetectorPackage
    seconds: dict[str, float]


def train_detector(
    objects: ObjectSet,
    tiles: TileSpec,
    config: DetectConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoints: Path | None = None,
    provenance: dict[str, Any] | None = None,
) -> TrainedDetector:
    """Train one method on images with boxes.

    A class with a single object, or with none in this part of the data, is trained with what there is of it; a warning
    in the log says so.

    Args:
        objects: Training images and their objects; oriented ones are made upright for a horizontal detector.
        tiles: How they are cut. Where it names no ground sampling distance and the images have one in common, that
            becomes the one of the package.
        config: See :class:`DetectConfig`.
        progress: Told after each step; may raise ``Cancelled``.
        checkpoints: Folder for a checkpoint an epoch, from which an interrupted run goes on; one folder may serve runs
            of many configurations. None for none.
        provenance: Facts about the data, kept in the package beside seed and versions.

    Raises:
        DataError: If there is no object to teach, or none that fits into a tile; if an image cannot be read, or a
            checkpoint is damaged.
        OutputError: If checkpoints cannot be written.
        ConfigError: If horizontal boxes are to train an oriented detector, the backbone gives no feature maps, or the
            training diverges.
        WeightsError: If the backbone's weights cannot be had.
    """
    objects = _fitting(objects, config)
    tiles = _with_gsd(tiles, objects)
    if checkpoints is not None:
        make_folder(checkpoints)
    validation = None
    if config.val_share > 0:
        kept, held = objects.split(config.val_share, config.seed)
        # Where no class can spare a source, nothing is held out and all epochs are trained.
        if len(held):
            validation = TrainTiles(ObjectTiles(objects.subset(held), tiles), config.cache_mb // 4)
        objects = objects.subset(kept)
    _check(objects.table)
    cut = TrainTiles(ObjectTiles(objects, tiles, config.empty, config.seed), config.cache_mb)
    _check_tiles(cut)
    run = DetectorRun(cut, validation, _normalisation(cut, config), config, progress, checkpoints)
    detector, raw = _METHODS[config.method](run)
    taught = cut.taught()
    facts = {
        "training_images": len(objects),
        "training_objects": sum(taught.counts),
        "training_tiles": len(cut),
        **(provenance or {}),
    }
    package = DetectorPackage(
        table=taught,
        spec=tiles,
        detector=config.detector,
        bands=objects.bands,
        model=_parts(detector),
        raw=None if raw is None else _parts(raw),
        **package_parts(detector.backbone, config, run.normalisation, run.seconds, objects.dtype, facts),
    )
    return TrainedDetector(package, run.seconds)


Result = tuple[Detector, Detector | None]


def _alone(train: Callable[[DetectorRun], Detector]) -> Callable[[DetectorRun], Result]:
    return lambda run: (train(run), None)


_METHODS: dict[str, Callable[[DetectorRun], Result]] = {
    "probe": _alone(probe),
    "lora": _alone(adapt),
    "finetune": _alone(finetune),
    "rfs": _alone(adapt_repeated),
    "class-balanced": _alone(partial(adapt, loss="class-balanced")),
    "ecm": _alone(partial(adapt, loss="ecm")),
    "efl": _alone(partial(adapt, loss="efl")),
    "deblora": deblora,
}


def _fitting(objects: ObjectSet, config: DetectConfig) -> ObjectSet:
    if not config.detector.oriented:
        return objects.horizontal()
    if not objects.oriented:
        raise ConfigError(
            "The boxes of the training images are horizontal and tell no angle: train a horizontal detector "
            "(oriented=False, or --horizontal), or give oriented boxes."
        )
    return objects


def _with_gsd(tiles: TileSpec, objects: ObjectSet) -> TileSpec:
    """So that rasters of another resolution are brought to that of the training."""
    if tiles.gsd is not None or objects.gsd is None:
        return tiles
    return replace(tiles, gsd=objects.gsd / tiles.scale)


def _check(table: ClassTable) -> None:
    if not any(table.counts):
        raise DataError(
            "There is no object to teach in the training images: see that labels and images belong together, and that "
            "not all objects are ignored."
        )
    few = [f"{name} ({count})" for name, count in zip(table.names, table.counts, strict=True) if count < 2]
    if few:
        _log.warning(
            "Classes with one training object or none: %s; what a single object teaches rarely holds for others: "
            "label more of them, or leave these classes out.",
            ", ".join(few),
        )


def _check_tiles(cut: TrainTiles) -> None:
    """Objects that no tile shows enough of are taught nowhere."""
    table, spec = cut.tiles.objects.table, cut.tiles.spec
    advice = (
        f"no tile of {spec.size} pixels shows a share of {spec.min_visible:g} or more of one of them: choose larger "
        "tiles, or a smaller scale"
    )
    taught = cut.taught().counts
    if not any(taught):
        raise DataError(f"There is nothing to teach: of all objects, {advice}.")
    lost = [
        f"{name} ({count - left} of {count})"
        for name, count, left in zip(table.names, table.counts, taught, strict=True)
        if left < count
    ]
    if lost:
        _log.warning("Objects that are taught nowhere: %s; %s.", ", ".join(lost), advice)


def _normalisation(tiles: TrainTiles, config: DetectConfig) -> Normalisation:
    objects = tiles.tiles.objects
    known = statistics_of(config.backbone, objects.dtype, len(objects.bands), config.stretch)
    if known is not None:
        return known
    sample = [tiles[index] for index in spread(len(tiles), _SAMPLE)]
    return Normalisation.fit(
        np.stack([tile.image for tile in sample]), np.stack([tile.valid for tile in sample]), config.stretch
    )


def _parts(detector: Detector) -> DetectorParts:
    state = detector.state_dict()
    own = {name: tensor for name, tensor in state.items() if name.startswith(("neck.", "head."))}
    return DetectorParts(adapter_of(detector.backbone), on_cpu(own))

"""The stages of training a detector as functions: adapt, debias, align, refit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from torchgeo_debias.backbones import add_adapter, create_backbone, pick_device, pick_dtype
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.data.objects import ObjectSet, TileSpec
from torchgeo_debias.debias import calibrate
from torchgeo_debias.detection import Detector
from torchgeo_debias.progress import ProgressCallback, track
from torchgeo_debias.training.checkpoints import stage_folder
from torchgeo_debias.training.detection.batches import Order, TrainTiles, loader, repeat_factors
from torchgeo_debias.training.detection.config import ClassLossName, DetectConfig
from torchgeo_debias.training.detection.module import Aim, Array, DetectorStage, taught_features
from torchgeo_debias.training.loop import fit
from torchgeo_debias.training.parts import Timed, feature_unit


@dataclass
class DetectorRun(Timed):
    """What the stages of one training run share.

    Attributes:
        tiles: Training tiles.
        validation: Held-out tiles for early stopping, if any.
        normalisation: Fitted once.
        config: The run's configuration.
        progress: Told after each step.
        checkpoints: Folder for checkpoints, None for none.
        seconds: Wall time of each stage so far.
    """

    tiles: TrainTiles
    validation: TrainTiles | None
    normalisation: Normalisation
    config: DetectConfig
    progress: ProgressCallback
    checkpoints: Path | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def objects(self) -> ObjectSet:
        """What the training tiles are cut from."""
        return self.tiles.tiles.objects

    @property
    def spec(self) -> TileSpec:
        """How tiles are cut."""
        return self.tiles.tiles.spec

    def detector(self, adapted: bool) -> Detector:
        """A fresh detector: pretrained backbone, neck and head drawn at random, and perhaps an adapter.

        Equal for all methods, but for the adapter, which is therefore drawn last.
        """
        config = self.config
        L.seed_everything(config.seed, workers=True, verbose=False)
        backbone = create_backbone(
            config.backbone, size=self.spec.size, bands=self.objects.bands, weights=config.weights
        )
        detector = Detector(backbone, len(self.objects.table.names), config.detector)
        if adapted:
            add_adapter(backbone, config.adapter)
        return detector

    def fit(
        self,
        detector: Detector,
        loss: ClassLossName,
        stage: str,
        *,
        aim: Aim | None = None,
        config: DetectConfig | None = None,
        repeats: npt.NDArray[np.float64] | None = None,
    ) -> Detector:
        """Train what is not frozen of a detector, in place.

        Args:
            detector: What is trained.
            loss: Name of the class loss.
            stage: Name shown to people, and of the checkpoint.
            aim: Of stage 3.
            config: In place of the run's.
            repeats: See :class:`Order`.
        """
        config = config or self.config
        self.tiles.fill(self.progress)  # only now that the weights were found
        module = DetectorStage(detector, self.tiles.taught(), self.normalisation, loss, config, aim)
        order = Order(len(self.tiles), config.seed, config.augment, repeats, self.tiles.reading())
        with self.timed(stage):
            fit(
                module,
                loader(self.tiles, config.batch_size, order),
                None if self.validation is None else loader(self.validation, config.batch_size, None),
                stage,
                self.progress,
                stage_folder(self.checkpoints, stage, config, detector.backbone.digest, self._data()),
            )
        return module.detector

    def _data(self) -> Iterator[object]:
        for tiles in (self.tiles, self.validation):
            if tiles is not None:
                yield from tiles.pieces()


def adapt(run: DetectorRun, loss: ClassLossName = "focal", repeats: npt.NDArray[np.float64] | None = None) -> Detector:
    """Stage 1: LoRA, neck and head."""
    return run.fit(run.detector(adapted=True), loss, "adapt", repeats=repeats)


def adapt_repeated(run: DetectorRun) -> Detector:
    """Stage 1 with repeat-factor sampling."""
    classes = [run.tiles.classes_of(index) for index in range(len(run.tiles))]
    return adapt(run, repeats=repeat_factors(classes, len(run.objects.table.names), run.config.repeat_threshold))


def probe(run: DetectorRun) -> Detector:
    """The yardstick that leaves the backbone as it is: neck and head alone."""
    detector = run.detector(adapted=False)
    detector.backbone.requires_grad_(False)
    return run.fit(detector, "focal", "probe")


def finetune(run: DetectorRun) -> Detector:
    """The yardstick that trains all weights."""
    detector = run.detector(adapted=False)
    for module in detector.backbone.modules():
        if isinstance(module, _BatchNorm):  # batches of few tiles are too small for its statistics
            module.requires_grad_(False)
    return run.fit(detector.train(), "focal", "finetune")


class ObjectFeatures(NamedTuple):
    """Features of all objects that the training tiles teach; an object in several tiles has one in each.

    Attributes:
        of_tiles: Of each tile (n, D) float32.
        labels: (N,) the class ids of all of them, in this order.
        counted: (N,) bool, one for each object: where most of it lies in the tile, and the first of equal ones.
    """

    of_tiles: list[Array]
    labels: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]


def features_of(run: DetectorRun, detector: Detector) -> ObjectFeatures:
    """Features of all objects that the training tiles teach, without augmentation."""
    device = pick_device()
    dtype = pick_dtype(run.config.precision, device)
    detector.to(device).eval()
    detector.backbone.prefer(device, dtype)
    features: list[Array] = []
    labels, numbers, shares = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in track(loader(run.tiles, run.config.batch_size, None), "features", run.progress):
            images = run.normalisation(batch.images.to(device), batch.valid.to(device))
            found = taught_features(detector.pyramid(images), batch, detector.strides).cpu().numpy()
            taught = [~objects.ignored.numpy() for objects in batch.objects]
            features += np.split(found, np.cumsum([own.sum() for own in taught])[:-1])
            for tile, objects, own in zip(batch.tiles.tolist(), batch.objects, taught, strict=True):
                shown = run.tiles.tiles.shown(tile)
                labels.append(objects.labels.numpy()[own])
                numbers.append(shown.objects[own])
                shares.append(shown.share[own])
    return ObjectFeatures(features, np.concatenate(labels), _best(np.concatenate(numbers), np.concatenate(shares)))


def _best(numbers: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of (N,) objects, some of them there several times, are those with the largest share of their number."""
    order = np.lexsort((-shares.round(6), numbers))  # stable, and whole is whole whatever the rounding
    best = np.zeros(len(numbers), bool)
    best[order[np.unique(numbers[order], return_index=True)[1]]] = True
    return best


def debias(run: DetectorRun, detector: Detector) -> Aim:
    """Stage 2: cluster the features of all training objects, each counted once, and move those of rare classes.

    Where an object stands in further tiles, its features there are moved alike.
    """
    config = run.config
    with run.timed("debias"):
        features, labels, counted = features_of(run, detector)
        together = np.concatenate(features)
        once = together[counted], labels[counted]
        calibration = calibrate(*once, _with_counts(run.tiles.taught(), once[1]), config.debias, config.seed)
    ends = np.cumsum([len(own) for own in features])[:-1]
    targets = calibration.moved(together, labels)
    if config.align_on == "moved":
        targets[calibration.pull[labels] == 0] = np.nan
    return Aim(np.split(targets, ends), feature_unit(once[0]), config.align_weight)


def _with_counts(table: ClassTable, labels: npt.NDArray[np.int64]) -> ClassTable:
    """The classes with the counts of these labels, but in their groups: on nodata, more objects may be ignored."""
    return replace(table, counts=tuple(np.bincount(labels, minlength=len(table.names)).tolist()))


def align(run: DetectorRun, biased: Detector, aim: Aim | None, stage: str = "align") -> Detector:
    """Stage 3: a LoRA, fresh or that of stage 1, whose features meet the calibrated ones; neck and head go on.

    Args:
        run: The run.
        biased: Of stage 1; left as it is.
        aim: Where the features are drawn to; None for nowhere, as the twin's.
        stage: Name shown to people, and of the checkpoint.
    """
    detector = run.detector(adapted=True)
    if run.config.align_start == "adapted":
        detector.load_state_dict(biased.state_dict())
    else:
        detector.neck.load_state_dict(biased.neck.state_dict())
        detector.head.load_state_dict(biased.head.state_dict())
    return run.fit(detector, run.config.class_loss, stage, aim=aim)


def refit(run: DetectorRun, detector: Detector, stage: str = "refit") -> Detector:
    """The head alone, on the features as they are now."""
    epochs = math.ceil(run.config.refit_share * run.config.epochs)
    if epochs == 0:
        return detector
    detector.backbone.requires_grad_(False)
    detector.neck.requires_grad_(False)
    return run.fit(detector, run.config.class_loss, stage, config=replace(run.config, epochs=epochs))


def deblora(run: DetectorRun) -> tuple[Detector, Detector]:
    """All stages.

    Returns:
        The de-biased detector, and its twin: that of stage 1, or one that went on from there with the same steps.
    """
    biased = adapt(run)
    detector = refit(run, align(run, biased, debias(run, biased)))
    if run.config.twin == "plain":
        return detector, biased
    return detector, refit(run, align(run, biased, None, "twin-align"), "twin-refit")

"""From chips and a configuration to a model package: one entry for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchgeo_debias.backbones import Backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.data.splits import split_by_source
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.debias.losses import LOSSES
from torchgeo_debias.errors import DataError
from torchgeo_debias.files import make_folder
from torchgeo_debias.package import Classifier, ModelPackage
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.training.config import TrainConfig
from torchgeo_debias.training.keeping import check_keeping
from torchgeo_debias.training.parts import adapter_of, package_parts, statistics_of
from torchgeo_debias.training.stages import Run, adapt, deblora, finetune, finished_head, untrained


@dataclass(frozen=True)
class Trained:
    """What a training run leaves.

    Attributes:
        package: The model.
        seconds: Wall time of each stage.
    """

    package: ModelPackage
    seconds: dict[str, float]


def train(
    chips: Chips,
    config: TrainConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoints: Path | None = None,
    provenance: dict[str, Any] | None = None,
    keep_features: Path | None = None,
) -> Trained:
    """Train one method on labelled chips.

    Args:
        chips: Training chips; every class needs at least two.
        config: See :class:`TrainConfig`.
        progress: Told after each step; may raise ``Cancelled``.
        checkpoints: Folder for a checkpoint an epoch, from which an interrupted run goes on; one folder may serve runs
            of many configurations. None for none.
        provenance: Facts about the data, kept in the package beside seed and versions.
        keep_features: Folder for the features of the training chips, before, calibrated and after, of ``deblora``; see
            :class:`~torchgeo_debias.evaluation.feature_space.FeatureSpace`. None for none.

    Raises:
        DataError: If there are fewer than two classes, a class has fewer than two samples, a loss that brings sensors
            together has chips of one alone, or a checkpoint is damaged.
        OutputError: If checkpoints or features cannot be written.
        ConfigError: If the training diverges, cannot start from the given model, or features are to be kept of a method
            that calibrates none.
        PackageError: If the model to start from cannot be read.
        WeightsError: If the backbone's weights cannot be had.
    """
    _check(chips, config)
    check_keeping(config, keep_features)
    if checkpoints is not None:
        make_folder(checkpoints)
    validation = None
    if config.val_share > 0:
        kept, held = split_by_source(chips, config.val_share, config.seed)
        # Where no class can spare a source, nothing is held out and all epochs are trained.
        validation = chips.subset(held) if len(held) else None
        chips = chips.subset(kept)
    run = Run(chips, validation, normalisation_for(chips, config), config, progress, checkpoints, keep=keep_features)
    backbone, head, raw = _trained(run)
    facts = {"training_chips": len(chips), **(provenance or {})}
    if run.start is not None:
        facts["start"] = run.start.facts
    package = ModelPackage(
        table=chips.table,
        spec=chips.spec,
        bands=chips.bands,
        model=Classifier(adapter_of(backbone), head),
        raw=raw,
        **package_parts(backbone, config, run.normalisation, run.seconds, chips.images.dtype, facts),
    )
    return Trained(package, run.seconds)


def _untrained(run: Run) -> tuple[Backbone, None]:
    return untrained(run), None


_FEATURES: dict[str, Callable[[Run], tuple[Backbone, LinearHead | None]]] = {
    "probe": _untrained,
    "lora": adapt,
    "finetune": finetune,
}


def _trained(run: Run) -> tuple[Backbone, LinearHead, Classifier | None]:
    """The backbone, its classifier and, of ``deblora``, the plain one of stage 1."""
    if run.config.method == "deblora":
        return deblora(run)
    backbone, own = _FEATURES[run.config.method](run)
    return backbone, finished_head(run, backbone, own), None


def _check(chips: Chips, config: TrainConfig) -> None:
    if len(chips.table.names) < 2:
        raise DataError(f"Training needs at least two classes; found only {chips.table.names[0]!r}.")
    few = [f"{n} ({c})" for n, c in zip(chips.table.names, chips.table.counts, strict=True) if c < 2]
    if few:
        raise DataError(
            f"Every class needs at least two training samples; too few: {', '.join(few)}; "
            "label more of them or leave the class out."
        )
    if chips.domains is None or len(np.unique(chips.domains)) < 2:
        for name in config.losses:
            if LOSSES[name].domains:
                raise DataError(
                    f"The loss {name} brings several sensors or regions together, but all chips are of one: give "
                    "several rasters, or images in a folder for each within those of the classes; or choose another "
                    "loss."
                )


def normalisation_for(chips: Chips, config: TrainConfig) -> Normalisation:
    """The statistics the weights were trained with for plain 8-bit RGB, else those of the training chips."""
    known = statistics_of(config.backbone, chips.images.dtype, len(chips.bands), config.stretch)
    return known or Normalisation.fit(chips.images, chips.valid, config.stretch)

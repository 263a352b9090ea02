"""Features of a debLoRA run, kept where somebody wants to look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchgeo_debias.backbones import Backbone
from torchgeo_debias.debias import Calibration
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation.feature_space import FeatureSpace, check_folder
from torchgeo_debias.training.config import TrainConfig
from torchgeo_debias.training.features import Array
from torchgeo_debias.training.parts import versions

if TYPE_CHECKING:
    from torchgeo_debias.training.stages import Run


def check_keeping(config: TrainConfig, folder: Path | None) -> None:
    """Refuse to keep features that the method does not make, or where they cannot go, before any work.

    Args:
        config: Of the run.
        folder: Where they go, None for nowhere.

    Raises:
        ConfigError: If the method calibrates none.
        OutputError: If the folder cannot be written to.
    """
    if folder is None:
        return
    if config.method != "deblora":
        raise ConfigError(
            f"The method {config.method} calibrates no features that could be kept: choose deblora, or leave "
            "--keep-features (keep_features) out."
        )
    check_folder(folder)


def keep_features(folder: Path, run: Run, before: Array, calibration: Calibration, backbone: Backbone) -> None:
    """Write a :class:`~torchgeo_debias.evaluation.feature_space.FeatureSpace` of the training chips.

    Args:
        folder: Where it goes.
        run: The run.
        before: (N, D), the features that were calibrated last.
        calibration: Of these.
        backbone: As it is finished.

    Raises:
        OutputError: If they cannot be written.
    """
    space = FeatureSpace(
        run.chips.table,
        before,
        calibration.targets,
        run.features(backbone, "final features"),
        run.chips.labels,
        calibration.clusters.assignment,
        calibration.clusters.centres,
        calibration.centres,
        calibration.pull,
        sources=tuple(run.chips.sources.tolist()),
        seed=run.config.seed,
        backbone=run.config.backbone,
        digest=backbone.digest,
        settings=run.config.to_json(),
        versions=versions(),
    )
    space.save(folder)

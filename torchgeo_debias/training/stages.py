"""The stages of training as functions: frozen features, adapt, debias, align."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torchgeo_debias.backbones import Backbone, add_adapter, create_backbone, find_experts
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias import Calibration, LinearHead, calibrate, fit_head, logit_adjustment
from torchgeo_debias.progress import ProgressCallback
from torchgeo_debias.training.config import TrainConfig
from torchgeo_debias.training.features import cached_features
from torchgeo_debias.training.module import Objective, StageModule, from_linear, run_stage
from torchgeo_debias.training.parts import Timed, feature_unit

Array = npt.NDArray[np.float32]


@dataclass
class Run(Timed):
    """What the stages of one training run share.

    Attributes:
        chips: Training chips.
        validation: Held-out chips for early stopping, if any.
        normalisation: Fitted once.
        config: The run's configuration.
        progress: Told after each step.
        checkpoints: Folder for checkpoints and features, None for none.
        seconds: Wall time of each stage so far.
    """

    chips: Chips
    validation: Chips | None
    normalisation: Normalisation
    config: TrainConfig
    progress: ProgressCallback
    checkpoints: Path | None
    seconds: dict[str, float] = field(default_factory=dict)

    def backbone(self) -> Backbone:
        """A fresh pretrained backbone for these chips."""
        config = self.config
        L.seed_everything(config.seed, workers=True, verbose=False)
        return create_backbone(
            config.backbone,
            size=self.chips.spec.size,
            bands=self.chips.bands,
            pool=config.pool,
            weights=config.weights,
        )

    def adapted(self) -> Backbone:
        """A fresh pretrained backbone with a fresh adapter on it."""
        backbone, settings = self.backbone(), self.config.adapter
        if not settings.mixture:
            return add_adapter(backbone, settings)
        labels = self.chips.labels if settings.kind == "clora" else None
        frozen = self.features(backbone, "frozen features")
        return add_adapter(backbone, settings, find_experts(frozen, labels, settings.experts, self.config.seed))

    def features(self, backbone: Backbone, stage: str) -> Array:
        """Features of the training chips."""
        return cached_features(
            backbone,
            self.chips,
            self.normalisation,
            self.checkpoints,
            precision=self.config.precision,
            stage=stage,
            progress=self.progress,
        )


def offset(run: Run, tau: float) -> Tensor:
    """Logit adjustment of the training chips' classes as a tensor (C,)."""
    return torch.from_numpy(logit_adjustment(run.chips.table, tau))


def adapt(run: Run, tau: float = 0.0) -> tuple[Backbone, LinearHead]:
    """Stage 1: backbone + LoRA + head under cross-entropy, adjusted by ``tau`` (0: plain)."""
    return _fit(run, run.adapted(), Objective(offset(run, tau)), "adapt", run.config)


def finetune(run: Run) -> tuple[Backbone, LinearHead]:
    """The yardstick that trains all weights, at a hundredth of LoRA's learning rate."""
    return _fit(
        run, run.backbone(), Objective(offset(run, 0.0)), "finetune", replace(run.config, lr=run.config.lr / 100)
    )


def debias(run: Run, features: Array) -> Calibration:
    """Stage 2: cluster the features of all training chips and move those of rare classes."""
    with run.timed("debias"):
        return calibrate(features, run.chips.labels, run.chips.table, run.config.debias, run.config.seed)


def align(run: Run, features: Array, targets: Array) -> tuple[Backbone, LinearHead]:
    """Stage 3: a fresh LoRA whose features meet the calibrated ones, and its head.

    Args:
        run: The run.
        features: (N, D) of stage 1.
        targets: (N, D), calibrated.
    """
    config = run.config
    with_l2 = config.align_loss != "ce"
    objective = Objective(
        offset(run, config.tau),
        torch.from_numpy(targets) if with_l2 else None,
        torch.from_numpy(feature_unit(features)) if with_l2 else None,
        ce_weight=float(config.align_loss != "l2"),
        l2_weight=config.align_weight if config.align_loss == "l2+ce" else 1.0,
    )
    backbone, joint = _fit(run, run.adapted(), objective, "align", config)
    if config.head == "joint":
        return backbone, joint
    if config.head == "targets":
        return backbone, adjusted_head(run, targets)
    aligned = run.features(backbone, "aligned features")
    return backbone, adjusted_head(run, aligned if config.head == "refit" else debias(run, aligned).targets)


def adjusted_head(run: Run, features: Array, tau: float | None = None) -> LinearHead:
    """Logistic regression on features of the training chips, its logits adjusted by ``tau`` (None: the run's)."""
    head = fit_head(features, run.chips.labels, len(run.chips.table.names))
    return head.shifted(-logit_adjustment(run.chips.table, run.config.tau if tau is None else tau))


def _fit(
    run: Run, backbone: Backbone, objective: Objective, stage: str, config: TrainConfig
) -> tuple[Backbone, LinearHead]:
    head = nn.Linear(backbone.dim, len(run.chips.table.names))
    module = StageModule(backbone, head, run.normalisation, objective, config)
    with run.timed(stage):
        run_stage(module, run.chips, run.validation, stage, run.progress, run.checkpoints)
    return module.backbone, from_linear(module.head)

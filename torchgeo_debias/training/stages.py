"""The stages of training as functions: frozen features, adapt, debias, align."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from torchgeo_debias.backbones import Backbone, add_adapter, create_backbone, find_experts
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias import Calibration, LinearHead, calibrate, logit_adjustment
from torchgeo_debias.debias.losses import LongTailLoss, build_loss
from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.package import Classifier
from torchgeo_debias.progress import ProgressCallback
from torchgeo_debias.training.config import OWN, OwnSettings, TrainConfig
from torchgeo_debias.training.features import cached_features
from torchgeo_debias.training.keeping import keep_features
from torchgeo_debias.training.learning import samples_of
from torchgeo_debias.training.module import Objective, StageModule, from_linear, run_stage
from torchgeo_debias.training.parts import Timed, adapter_of, feature_unit
from torchgeo_debias.training.starting import Start

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
        keep: Folder for the features before and after, None for none.
    """

    chips: Chips
    validation: Chips | None
    normalisation: Normalisation
    config: TrainConfig
    progress: ProgressCallback
    checkpoints: Path | None
    seconds: dict[str, float] = field(default_factory=dict)
    keep: Path | None = None

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
            views=config.view_count,
        )

    def adapted(self) -> Backbone:
        """A fresh pretrained backbone with a fresh adapter on it, or with that of the model to start from."""
        settings, experts = self.config.adapter, None
        if self.start is not None:
            return self.start.trainable(self.backbone(), settings)
        if settings.mixture:
            labels = self.chips.labels if settings.kind == "clora" else None
            experts = find_experts(self.frozen, labels, settings.experts, self.config.seed)
        return add_adapter(self.backbone(), settings, experts)

    @cached_property
    def start(self) -> Start | None:
        """The model that the training goes on from, if any."""
        return None if self.config.start is None else Start.load(self.config.start)

    @cached_property
    def frozen(self) -> Array:
        """Features of the training chips by the pretrained backbone, extracted once a run.

        Of one view: what they are for, weights of chips and shares of experts, meets single views in the training.
        """
        backbone = self.backbone()
        backbone.views = 1
        return self.features(backbone, "frozen features")

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


def training_loss(run: Run, name: str, settings: Mapping[str, Any] | None = None) -> LongTailLoss:
    """A class loss for these chips; it knows their frozen features where it wants them."""
    loss = build_loss(name, run.chips.table, settings)
    if loss.wants == "frozen":
        loss.learn(samples_of(run.chips, run.frozen), run.config.seed)
    return loss


def untrained(run: Run) -> Backbone:
    """The pretrained backbone, or with the adapter of the model to start from: neither is trained here."""
    backbone = run.backbone()
    return backbone if run.start is None else run.start.frozen(backbone)


def adapt(run: Run) -> tuple[Backbone, LinearHead]:
    """Stage 1: backbone, adapter and head under the class loss."""
    loss = training_loss(run, run.config.loss, run.config.loss_settings)
    return _fit(run, run.adapted(), Objective(loss), "adapt", run.config)


def finetune(run: Run) -> tuple[Backbone, LinearHead]:
    """The yardstick that trains all weights, at a hundredth of LoRA's learning rate."""
    loss = training_loss(run, run.config.loss, run.config.loss_settings)
    return _fit(run, run.backbone(), Objective(loss), "finetune", replace(run.config, lr=run.config.lr / 100))


def debias(run: Run, features: Array) -> Calibration:
    """Stage 2: cluster the features of all training chips and move those of rare classes."""
    with run.timed("debias"):
        return calibrate(features, run.chips.labels, run.chips.table, run.config.debias, run.config.seed)


def align(
    run: Run, features: Array, targets: Array, start: Backbone, stage: str = "align"
) -> tuple[Backbone, LinearHead]:
    """Stage 3: an adapter whose features meet the calibrated ones, and the head that is trained along.

    Args:
        run: The run.
        features: (N, D) of the stage before.
        targets: (N, D), calibrated.
        start: The backbone of the stage before, which ``align_start`` may go on from; it is left as it is.
        stage: Name shown to people, and of the checkpoint.
    """
    config = replace(run.config, epochs=run.config.align_epochs or run.config.epochs)
    distance, _, class_loss = config.align_loss.partition("+")
    aimed = distance != "ce"
    objective = Objective(
        training_loss(run, config.align_class_loss, config.align_class_loss_settings)
        if "ce" in (distance, class_loss)
        else None,
        torch.from_numpy(targets) if aimed else None,
        torch.from_numpy(feature_unit(features)) if distance == "l2" else None,
        config.align_weight if class_loss else 1.0,
    )
    if config.align_start == "fresh":
        backbone = run.adapted()
    else:
        backbone = copy.deepcopy(start)
        # The new head is drawn now; what was drawn before depends on which stages a resumed run found finished.
        L.seed_everything(config.seed, workers=True, verbose=False)
    return _fit(run, backbone, objective, stage, config)


def deblora(run: Run) -> tuple[Backbone, LinearHead, Classifier]:
    """All stages.

    Returns:
        The de-biased backbone, its classifier, and the plain one of stage 1.
    """
    backbone, own = adapt(run)
    raw = Classifier(adapter_of(backbone), own)
    for number in range(1, run.config.rounds + 1):
        again = "" if number == 1 else f" {number}"
        features = run.features(backbone, f"features{again}")
        calibration = debias(run, features)
        backbone, own = align(run, features, calibration.targets, backbone, f"align{again}")
    if run.keep is not None:
        keep_features(run.keep, run, features, calibration, backbone)
    if run.config.head_name != OWN and run.config.head_on == "targets":
        return backbone, fitted_head(run, calibration.targets), raw
    return backbone, finished_head(run, backbone, own), raw


def finished_head(run: Run, backbone: Backbone, own: LinearHead | None) -> LinearHead:
    """The classifier on finished features: the one that was trained along, or one that is fitted on them.

    Args:
        run: The run.
        backbone: As trained.
        own: The head that was trained along, if any.
    """
    config = run.config
    if config.head_name == OWN and own is not None:
        return own.shifted(-logit_adjustment(run.chips.table, OwnSettings(**config.head_settings).tau))
    features = run.features(backbone, "final features")
    if config.method == "deblora" and config.head_on == "calibrated":
        features = debias(run, features).targets
    return fitted_head(run, features)


def fitted_head(run: Run, features: Array) -> LinearHead:
    """The head that the configuration names, fitted on features (N, D) of the training chips."""
    config = run.config
    return fit_method(config.head_name, samples_of(run.chips, features), config.head_settings, config.seed)


def _fit(
    run: Run, backbone: Backbone, objective: Objective, stage: str, config: TrainConfig
) -> tuple[Backbone, LinearHead]:
    head = nn.Linear(backbone.dim, len(run.chips.table.names))
    backbone.train()  # extraction of features, by which experts are found or targets are made, turned dropout off
    module = StageModule(backbone, head, run.normalisation, objective, config)
    with run.timed(stage):
        start = None if run.start is None else run.start.digest
        run_stage(module, run.chips, run.validation, stage, run.progress, run.checkpoints, start)
    return module.backbone, from_linear(module.head)

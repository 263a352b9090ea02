"""The Lightning module of the stages adapt and align of a classifier, and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics.classification import MulticlassF1Score

from torchgeo_debias.backbones import Backbone, pick_device, symmetry
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.debias.losses import LongTailLoss
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.training.ahead import Ahead
from torchgeo_debias.training.checkpoints import pieces_of, stage_folder
from torchgeo_debias.training.config import TrainConfig
from torchgeo_debias.training.learning import LearnChips
from torchgeo_debias.training.loop import Stage, fit


@dataclass(frozen=True)
class Objective:
    """What a stage minimises: a class loss, plus ``weight`` times the distance of the features to their targets.

    The distance is ``mean(((z - target) / scale)^2)`` or ``mean(1 - cos(z, target))``.

    Attributes:
        loss: Class loss, None where the stage has none.
        targets: (N, D) calibrated features, None where the stage has no such term.
        scale: (D,) standard deviation of the features, so that their unit does not matter; None for the cosine.
        weight: Of the distance, at least 0.
    """

    loss: LongTailLoss | None
    targets: Tensor | None = None
    scale: Tensor | None = None
    weight: float = 1.0


class StageModule(Stage):
    """Backbone and head under one :class:`Objective`."""

    config: TrainConfig
    monitor = "val_f1"

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Linear,
        normalisation: Normalisation,
        objective: Objective,
        config: TrainConfig,
    ) -> None:
        super().__init__(config)
        self.backbone = backbone
        self.head = head
        self.normalisation = normalisation
        if objective.loss is None:
            head.requires_grad_(False)  # else AdamW would shrink it
        self.loss = objective.loss
        self.weight = objective.weight
        # Buffers, so that they follow the module to its device.
        self.targets: Tensor | None
        self.register_buffer("targets", objective.targets, persistent=False)
        self.scale: Tensor | None
        self.register_buffer("scale", objective.scale, persistent=False)
        self.f1 = MulticlassF1Score(head.out_features, average="macro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step; the loss is that of the :class:`Objective`."""
        images = self.normalisation(batch["image"], batch["valid"])
        if self.config.augment:
            images = random_symmetry(images)
        features = self.backbone(images).float()
        logits = None if self.loss is None else self.head(features)
        # Similarities and covariances of features take more bits than a network: in 16 they run over.
        with torch.autocast(features.device.type, enabled=False):
            loss = self._loss(features, logits, batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def _loss(self, features: Tensor, logits: Tensor | None, batch: dict[str, Tensor]) -> Tensor:
        loss = features.new_zeros(())
        if self.loss is not None:
            self.loss.at(self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))
            loss = loss + self.loss(logits, batch["label"], index=batch["index"], features=features)
        if self.targets is not None:
            loss = loss + self.weight * self._distance(features, self.targets[batch["index"]])
        return loss

    def _distance(self, features: Tensor, targets: Tensor) -> Tensor:
        if self.scale is None:
            return (1 - F.cosine_similarity(features, targets)).mean()
        return ((features - targets) / self.scale).square().mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Macro-F1 of the plain logits on the held-out chips."""
        logits = self.head(self.backbone(self.normalisation(batch["image"], batch["valid"])).float())
        self.f1(logits, batch["label"])
        self.log(self.monitor, self.f1, on_step=False, on_epoch=True)


def random_symmetry(images: Tensor) -> Tensor:
    """Turn each image of (B, C, S, S) by one of the eight symmetries of the square, drawn evenly."""
    # Drawn on the processor: to choose images by what a GPU drew, it would have to be waited for.
    draws = torch.randint(8, (len(images),)).tolist()
    return torch.stack([symmetry(image, k) for image, k in zip(images, draws, strict=True)])


def run_stage(
    module: StageModule,
    chips: Chips,
    validation: Chips | None,
    stage: str,
    progress: ProgressCallback,
    checkpoints: Path | None = None,
    start: str | None = None,
) -> None:
    """Train ``module`` on ``chips`` in place.

    Args:
        module: What is trained.
        chips: Training chips.
        validation: Held-out chips for early stopping at the best weights, None to train for all epochs and keep the
            last ones.
        stage: Name shown to people, and of the checkpoint.
        progress: Told after each step.
        checkpoints: Folder for a checkpoint an epoch; a run that finds its own there goes on from it, and leaves
            those of other data, another start or another configuration alone.
        start: Digest of the model that the training goes on from, None for none.

    Raises:
        ConfigError: If the training diverges.
        DataError: If its checkpoint is damaged.
    """
    config = module.config
    data = [piece for part in (chips, validation) if part is not None for piece in pieces_of(part)]
    data += [] if start is None else [start]
    folder = stage_folder(checkpoints, stage, config, module.backbone.digest, data)
    held = None if validation is None else _loader(validation, config, shuffle=False)
    callbacks = []
    if module.loss is not None and module.loss.wants == "current":
        # Worker processes cannot reach the caller's progress bar.
        told = progress if config.devices == 1 else silent
        callbacks.append(LearnChips(chips, module.normalisation, config.precision, config.seed, stage, told))
    fit(module, _loader(chips, config, shuffle=True), held, stage, progress, folder, callbacks)


def _loader(chips: Chips, config: TrainConfig, shuffle: bool) -> DataLoader[Any]:
    indices: Any = range(len(chips))
    share = math.ceil(len(chips) / config.devices)
    return Ahead(
        indices,
        batch_size=config.batch_size,
        # Orders each epoch by its number (Lightning tells it), so that a resumed run goes on like one never stopped.
        # With several devices Lightning puts such a sampler in, one share each.
        sampler=DistributedSampler(indices, 1, 0, seed=config.seed) if shuffle and config.devices == 1 else None,
        shuffle=shuffle and config.devices > 1,
        collate_fn=_Collate(chips),
        pin_memory=pick_device().type == "cuda",
        # A last batch of one chip would make for a noisy step.
        drop_last=shuffle and share % config.batch_size == 1 and share > 1,
        # Each pass draws a number that nobody needs. From the common generator it would shift what the stage draws, and
        # in another way where a run goes on from a checkpoint.
        generator=torch.Generator(),
    )


@dataclass(frozen=True)
class _Collate:
    """From indices to a batch that knows them; a class, since a closure cannot be handed to another process."""

    chips: Chips

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        return {**self.chips.batch(indices), "index": torch.tensor(indices)}


def from_linear(layer: nn.Linear) -> LinearHead:
    """The values of a trained layer."""
    weight: npt.NDArray[np.float32] = layer.weight.detach().float().cpu().numpy().copy()
    return LinearHead(weight, layer.bias.detach().float().cpu().numpy().copy())

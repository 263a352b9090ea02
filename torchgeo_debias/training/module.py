"""The Lightning module of the stages adapt and align, and the loop around it."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics.classification import MulticlassF1Score

from torchgeo_debias.backbones import Backbone, pick_device, pick_dtype
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.progress import Progress, ProgressCallback
from torchgeo_debias.training.checkpoints import KeepBest, find_checkpoint, fingerprint
from torchgeo_debias.training.config import TrainConfig

_LOGGERS = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]


@dataclass(frozen=True)
class Objective:
    """What a stage minimises: ``ce_weight * CE(logits + offset, y) + l2_weight * mean(((z - target) / scale)^2)``.

    Attributes:
        offset: (C,) added to the logits inside the cross-entropy, zeros for none.
        targets: (N, D) calibrated features, None where the stage has no such term.
        scale: (D,) standard deviation of the features, so that the l2 term does not depend on their unit.
        ce_weight: 0 or 1.
        l2_weight: At least 0.
    """

    offset: Tensor
    targets: Tensor | None = None
    scale: Tensor | None = None
    ce_weight: float = 1.0
    l2_weight: float = 0.0


class StageModule(L.LightningModule):
    """Backbone and head under one :class:`Objective`."""

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Linear,
        normalisation: Normalisation,
        objective: Objective,
        config: TrainConfig,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalisation = normalisation
        self.config = config
        self.l2_weight = objective.l2_weight
        self.ce_weight = objective.ce_weight
        # Buffers, so that they follow the module to its device.
        self.offset: Tensor
        self.register_buffer("offset", objective.offset, persistent=False)
        self.targets: Tensor | None
        self.register_buffer("targets", objective.targets, persistent=False)
        self.scale: Tensor | None
        self.register_buffer("scale", objective.scale, persistent=False)
        self.f1 = MulticlassF1Score(head.out_features, average="macro")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that Lightning starts, which gets the module but not the levels of loggers, be quiet too."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _hush()

    def on_train_epoch_start(self) -> None:
        """Augmentation too depends on the epoch alone."""
        torch.manual_seed(self.config.seed + 1000 * (self.current_epoch + 1) + self.global_rank)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step; the loss is that of the :class:`Objective`."""
        images = self.normalisation(batch["image"], batch["valid"])
        if self.config.augment:
            images = random_symmetry(images)
        features = self.backbone(images).float()
        loss: Tensor = features.new_zeros(())
        if self.ce_weight:
            logits = self.head(features) + self.offset
            loss = loss + self.ce_weight * F.cross_entropy(logits, batch["label"])
        if self.targets is not None and self.scale is not None:
            gap = (features - self.targets[batch["index"]]) / self.scale
            loss = loss + self.l2_weight * gap.square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Macro-F1 of the plain logits on the held-out chips."""
        logits = self.head(self.backbone(self.normalisation(batch["image"], batch["valid"])).float())
        self.f1(logits, batch["label"])
        self.log("val_f1", self.f1, on_step=False, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        """Stop where the weights are no longer numbers: no later step brings them back."""
        if not all(bool(p.isfinite().all()) for p in self.parameters() if p.requires_grad):
            raise ConfigError(
                f"Training diverged in epoch {self.current_epoch + 1} of {self.config.epochs}: choose a lower learning "
                f"rate than {self.config.lr:g}."
            )

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW on what is trainable, linear warm-up, then a cosine to zero."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=self.config.weight_decay)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = max(1, round(self.config.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def random_symmetry(images: Tensor) -> Tensor:
    """Turn each image of (B, C, S, S) by one of the eight symmetries of the square, drawn evenly."""
    out = torch.empty_like(images)
    draw = torch.randint(8, (len(images),), device=images.device)
    for k in range(8):
        chosen = draw == k
        turned = torch.rot90(images[chosen], k % 4, dims=(2, 3))
        out[chosen] = turned.flip(3) if k >= 4 else turned
    return out


class _Report(Callback):
    def __init__(self, stage: str, callback: ProgressCallback) -> None:
        self.stage = stage
        self.callback = callback

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        steps = int(trainer.num_training_batches)
        done = trainer.current_epoch * steps + int(kwargs.get("batch_idx", args[-1])) + 1
        self.callback(Progress(self.stage, done, steps * int(trainer.max_epochs or 1)))


def run_stage(
    module: StageModule,
    chips: Chips,
    validation: Chips | None,
    stage: str,
    progress: ProgressCallback,
    checkpoints: Path | None = None,
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
            those of other data or another configuration alone.

    Raises:
        ConfigError: If the training diverges.
        DataError: If its checkpoint is damaged.
    """
    config = module.config
    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    module.backbone.prefer(device, dtype)
    # Worker processes cannot reach the caller's progress bar: with several devices it moves once a stage.
    alone = config.devices == 1
    callbacks: list[Callback] = [_Report(stage, progress)] if alone else []
    if validation is not None:
        callbacks.append(KeepBest("val_f1", config.patience))
    last: Path | None = None
    if checkpoints is not None:
        seen = [chips] if validation is None else [chips, validation]
        folder = checkpoints / f"{stage}-{fingerprint(config.to_json(), module.backbone.digest, seen)}"
        callbacks.append(ModelCheckpoint(folder, "last", enable_version_counter=False))
        last = find_checkpoint(folder / "last.ckpt")
    with _quiet(), _interruptible(), _shared_through_files():
        trainer = L.Trainer(
            max_epochs=config.epochs,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=config.devices,
            # Started processes hand the trained weights back, so that only this one goes on to the next stage.
            strategy="auto" if alone else "ddp_spawn",
            precision={torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}[dtype],  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=checkpoints is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            module,
            _loader(chips, config, shuffle=True),
            None if validation is None else _loader(validation, config, shuffle=False),
            ckpt_path=None if last is None else str(last),
            weights_only=True,
        )


def _loader(chips: Chips, config: TrainConfig, shuffle: bool) -> DataLoader[Any]:
    indices: Any = range(len(chips))
    share = math.ceil(len(chips) / config.devices)
    return DataLoader(
        indices,
        batch_size=config.batch_size,
        # Orders each epoch by its number (Lightning tells it), so that a resumed run goes on like one never stopped.
        # With several devices Lightning puts such a sampler in, one share each.
        sampler=DistributedSampler(indices, 1, 0, seed=config.seed) if shuffle and config.devices == 1 else None,
        shuffle=shuffle and config.devices > 1,
        collate_fn=_Collate(chips),
        # A last batch of one chip would make for a noisy step.
        drop_last=shuffle and share % config.batch_size == 1 and share > 1,
    )


@dataclass(frozen=True)
class _Collate:
    """From indices to a batch that knows them; a class, since a closure cannot be handed to another process."""

    chips: Chips

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        return {**self.chips.batch(indices), "index": torch.tensor(indices)}


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl+C be what it is elsewhere: Lightning ends the whole program on it, and is deaf to the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop


@contextlib.contextmanager
def _shared_through_files() -> Iterator[None]:
    """Hand tensors to other processes by name: an open descriptor for each soon meets the limit of open files."""
    before = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's banners and tips for developers away from users."""
    levels = [logger.level for logger in _LOGGERS]
    try:
        with warnings.catch_warnings():
            _hush()
            yield
    finally:
        for logger, level in zip(_LOGGERS, levels, strict=True):
            logger.setLevel(level)


def _hush() -> None:
    for logger in _LOGGERS:
        logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def from_linear(layer: nn.Linear) -> LinearHead:
    """The values of a trained layer."""
    weight: npt.NDArray[np.float32] = layer.weight.detach().float().cpu().numpy().copy()
    return LinearHead(weight, layer.bias.detach().float().cpu().numpy().copy())

"""The loop around every stage: epochs, checkpoints, early stopping, divergence, interruptions."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from torchgeo_debias.backbones import Backbone, hastened, pick_device, pick_dtype
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.progress import Progress, ProgressCallback
from torchgeo_debias.training.checkpoints import KeepBest, WholeCheckpoints, find_checkpoint
from torchgeo_debias.training.ranks import ShareRanks, adalora_of
from torchgeo_debias.training.settings import Schedule

_LOGGERS = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]


class Stage(L.LightningModule):
    """What all stages share: the optimizer, its schedule, repeatable epochs, and the end of a run that diverges.

    Attributes:
        monitor: Name of the validation score, the higher the better.
        clip: Largest norm of the gradient, None for any.
    """

    monitor: str
    clip: float | None = None

    def __init__(self, config: Schedule) -> None:
        super().__init__()
        self.config = config
        self._haste = contextlib.ExitStack()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that Lightning starts, which gets the module but not the levels of loggers, be quiet too."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _hush()

    def setup(self, stage: str) -> None:
        """In each process that trains, have backbones compute as the configuration wants it."""
        for part in self.modules():
            if isinstance(part, Backbone):
                wanted = {"compiled": self.config.compile, "recomputed": self.config.gradient_checkpointing}
                self._haste.enter_context(hastened(part, **wanted))

    def teardown(self, stage: str) -> None:
        """And no longer."""
        self._haste.close()

    def on_train_epoch_start(self) -> None:
        """What is drawn at random depends on the epoch alone."""
        torch.manual_seed(self.config.seed + 1000 * (self.current_epoch + 1) + self.global_rank)

    def on_train_epoch_end(self) -> None:
        """Stop where the weights are no longer numbers: no later step brings them back."""
        if not all(bool(p.isfinite().all()) for p in self.parameters() if p.requires_grad):
            raise ConfigError(
                f"Training diverged in epoch {self.current_epoch + 1} of {self.config.epochs}: choose a lower learning "
                f"rate than {self.config.lr:g}."
            )

    def share_of_rate(self, name: str) -> float:
        """The share of the learning rate that the parameter ``name`` is trained with."""
        return 1.0

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW on what is trainable, linear warm-up, then a cosine to zero."""
        rates: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rates.setdefault(self.config.lr * self.share_of_rate(name), []).append(parameter)
        groups = [{"params": parameters, "lr": rate} for rate, parameters in rates.items()]
        # In few bits Lightning clips no gradients of a step that could undo their scale itself, scaled or not.
        fused = self.clip is None or not str(self.trainer.precision).endswith("-mixed")
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay, fused=fused)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = max(1, round(self.config.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Report(Callback):
    def __init__(self, stage: str, callback: ProgressCallback) -> None:
        self.stage = stage
        self.callback = callback

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        steps = int(trainer.num_training_batches)
        done = trainer.current_epoch * steps + int(kwargs.get("batch_idx", args[-1])) + 1
        self.callback(Progress(self.stage, done, steps * int(trainer.max_epochs or 1)))


def fit(
    module: Stage,
    batches: DataLoader[Any],
    validation: DataLoader[Any] | None,
    stage: str,
    progress: ProgressCallback,
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train ``module`` in place.

    Args:
        module: What is trained.
        batches: Of the training data; its sampler orders each epoch by the number that ``set_epoch`` tells it, so that
            a resumed run goes on like one never stopped.
        validation: Of the held-out data, for early stopping at the best weights; None to train for all epochs and keep
            the last ones.
        stage: Name shown to people.
        progress: Told after each step.
        folder: For a checkpoint an epoch; where one lies, the run goes on from it. None for none.
        callbacks: Beside those of every stage.

    Raises:
        ConfigError: If the training diverges, or the backbone cannot be compiled on this machine.
        DataError: If its checkpoint is damaged.
        OutputError: If one cannot be written.
    """
    config = module.config
    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    for part in module.modules():
        if isinstance(part, Backbone):
            part.prefer(device, dtype)
    # Worker processes cannot reach the caller's progress bar: with several devices it moves once a stage.
    alone = config.devices == 1
    called = [*callbacks, *([_Report(stage, progress)] if alone else [])]
    if adalora_of(module) is not None:
        called.append(ShareRanks())
    if validation is not None:
        called.append(KeepBest(module.monitor, config.patience))
    last: Path | None = None
    if folder is not None:
        called.append(ModelCheckpoint(folder, "last", enable_version_counter=False))
        last = find_checkpoint(folder / "last.ckpt")
    with _quiet(), _interruptible(), _shared_through_files(), _compilable(config):
        trainer = L.Trainer(
            max_epochs=config.epochs,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=config.devices,
            # Started processes hand the trained weights back, so that only this one goes on to the next stage.
            strategy="auto" if alone else "ddp_spawn",
            precision={torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}[dtype],  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=module.clip,
            callbacks=called,
            plugins=[WholeCheckpoints()],
            logger=False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, batches, validation, ckpt_path=None if last is None else str(last), weights_only=True)


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
def _compilable(config: Schedule) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not config.compile:
            raise
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(getattr(error, "inner_exception", error)).splitlines()[0]
        raise ConfigError(
            f"The backbone cannot be compiled on this machine ({reason}): install a C++ compiler where there is none, "
            'or leave "compile" out.'
        ) from error


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

"""What an interrupted stage needs to go on, and what says that it is the same stage."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from torchgeo_debias.backbones import Precision, pick_device, pick_dtype
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import DataError
from torchgeo_debias.files import atomic, make_folder
from torchgeo_debias.training.parts import versions
from torchgeo_debias.training.settings import Schedule


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there: a kill at any time leaves the one before.

    Lightning's own writing goes through the system's folder for temporary files; where that is on another disk, a kill
    in the midst of the move leaves half a checkpoint in place of the one before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write all of it or nothing.

        Raises:
            OutputError: If it cannot be written.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        make_folder(Path(path).parent)
        with atomic(Path(path)) as part:
            part.write_bytes(content.getbuffer())


class KeepBest(EarlyStopping):
    """Stop when the validation score no longer rises, and end with the weights that had the best one.

    Its state travels in the checkpoint, so that a run that goes on from there ends like one that was never stopped.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        super().__init__(monitor, mode="max", patience=patience, check_on_train_epoch_end=False)
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A checkpoint of a run that had already stopped asks for nothing more."""
        trainer.should_stop = self.stopped_epoch > 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep a copy of what is not frozen whenever the score is a new best."""
        super().on_validation_end(trainer, pl_module)
        if self.wait_count == 0:
            frozen = {name for name, parameter in pl_module.named_parameters() if not parameter.requires_grad}
            self.weights = {
                name: value.detach().cpu().clone()
                for name, value in pl_module.state_dict().items()
                if name not in frozen
            }

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best weights back."""
        pl_module.load_state_dict(self.weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """With the weights."""
        return {**super().state_dict(), "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self.weights = state_dict["weights"]


def find_checkpoint(file: Path) -> Path | None:
    """The checkpoint to go on from, None where there is none yet.

    Raises:
        DataError: If it cannot be read, as after a crash or on a disk that was full.
    """
    if not file.exists():
        return None
    try:
        # Read before Lightning does, in the midst of whose work a damaged file could not be told from other faults.
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"The checkpoint {file} is damaged: delete it to start the stage again.") from error
    return file


def stage_folder(
    checkpoints: Path | None, stage: str, config: Schedule, backbone: str, data: Iterable[object]
) -> Path | None:
    """Where the checkpoint of a stage lies: a run goes on only from one under the same name.

    Args:
        checkpoints: Of runs of any configuration; None for none.
        stage: Its name.
        config: Of the run.
        backbone: Digest of the pretrained weights.
        data: What it learns from and is validated on, see :func:`fingerprint`.
    """
    if checkpoints is None:
        return None
    settings = {**config.to_json(), "precision": resolved(config.precision)}
    return checkpoints / f"{stage}-{fingerprint([settings, backbone, *data])}"


def resolved(precision: Precision) -> str:
    """What a precision comes to on this machine."""
    return str(pick_dtype(precision, pick_device()))


def fingerprint(pieces: Iterable[object]) -> str:
    """Digest of all that decides a result, the versions of the libraries among it.

    Args:
        pieces: Arrays and plain JSON values.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for piece in (versions(), *pieces):
        if isinstance(piece, np.ndarray):
            digest.update(f"{piece.dtype}{piece.shape}".encode())
            digest.update(np.ascontiguousarray(piece).data)
        else:
            digest.update(json.dumps(piece, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def pieces_of(chips: Chips) -> Iterator[object]:
    """What a :func:`fingerprint` takes of chips."""
    yield from (chips.table.to_json(), list(chips.bands), chips.images, chips.valid, chips.labels)
    if chips.domains is not None:
        yield chips.domains

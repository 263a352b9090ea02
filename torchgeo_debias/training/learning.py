"""What a loss is told of the training chips, before the training and on the way."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from torchgeo_debias.backbones import Precision
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias.head import Array
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.progress import Progress, ProgressCallback
from torchgeo_debias.training.features import extract_features


def samples_of(chips: Chips, features: Array) -> Samples:
    """Chips by their features (N, D)."""
    return Samples(features, chips.labels, chips.table, chips.domains)


class LearnChips(Callback):
    """Tells a loss the features of all training chips before each epoch, as the network gives them by then.

    They are those of a finished network: of the whole chips, without augmentation and dropout, the mean over the views
    of each. It costs a forward pass of all views of all chips an epoch.

    Args:
        chips: Training chips.
        normalisation: Of the pixels.
        precision: Of the computation.
        seed: Of what the loss finds in them.
        stage: Name shown to people.
        progress: Told after each batch where the stage stands; it does not move meanwhile.

    The loss is that of the module, whose backbone it is, too: both may be copies in another process.
    """

    def __init__(
        self,
        chips: Chips,
        normalisation: Normalisation,
        precision: Precision,
        seed: int,
        stage: str,
        progress: ProgressCallback,
    ) -> None:
        self._chips = chips
        self._normalisation = normalisation
        self._precision = precision
        self._seed = seed
        self._stage = stage
        self._progress = progress

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:  # noqa: ANN401 (with backbone and loss)
        """Extract the features and tell them."""
        steps = int(trainer.num_training_batches)
        here = Progress(self._stage, trainer.current_epoch * steps, steps * int(trainer.max_epochs or 1))
        features = extract_features(
            pl_module.backbone,
            self._chips,
            self._normalisation,
            precision=self._precision,
            progress=lambda _: self._progress(here),
        )
        pl_module.backbone.train()
        pl_module.loss.learn(samples_of(self._chips, features), self._seed)

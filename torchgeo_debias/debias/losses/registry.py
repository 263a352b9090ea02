"""What a loss for training under a long tail is: a module for batches, and what tables and the command line tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods.registry import Origin
from torchgeo_debias.debias.samples import Samples

Wants = Literal["nothing", "frozen", "current"]


class LongTailLoss(nn.Module, ABC):
    """From the logits of a batch to one number.

    The number is the mean over the batch of the samples' losses, each times its weight; weights have mean 1 over the
    training chips, so that a learning rate means the same under every loss. (Dividing by the weights of the batch
    instead would undo them in batches of one class.) A term on features, which compares the samples of a batch with
    each other, is added to it. Logits of any precision are taken in float32.

    Attributes:
        wants: Which features of all training chips :meth:`learn` must tell before the loss can be used: ``nothing``;
            ``frozen``, those of the pretrained backbone, once; or ``current``, those of the network as it is by then,
            before each epoch.
    """

    wants: ClassVar[Wants] = "nothing"

    def learn(self, samples: Samples, seed: int) -> None:
        """Tell the training chips, in the order that ``index`` counts them, with the features that ``wants`` names.

        Args:
            samples: Features, labels, classes and domains.
            seed: Of what is found in them.

        Raises:
            DataError: If the loss has no use for such chips.
        """

    def at(self, share: float) -> None:
        """Tell which share of the training is done, 0 to 1: some losses change on the way."""

    @abstractmethod
    def forward(
        self, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            logits: (B, C).
            labels: (B,) int64 class ids.
            index: (B,) int64, which training chip each sample is, for losses that know the chips.
            features: (B, D) the features that the logits are of, for losses that look at them.
        """


@dataclass(frozen=True)
class Loss:
    """One loss for training a network under a long tail.

    Attributes:
        name: As the command line and tables write it.
        title: A few words for tables and help.
        source: Citation in a line, with venue and year.
        origin: ``as published``, ``adapted`` or ``ours``.
        settings: Frozen dataclass whose fields all have defaults.
        build: Of the classes with their training counts and the settings.
        domains: Whether the training chips must come from several sensors or regions.
    """

    name: str
    title: str
    source: str
    origin: Origin
    settings: type
    build: Callable[[ClassTable, Any], LongTailLoss]
    domains: bool = False

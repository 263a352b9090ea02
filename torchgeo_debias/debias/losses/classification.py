"""The losses on logits: cross-entropy, and what is done about it where classes are rare."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.logits import logit_adjustment
from torchgeo_debias.debias.losses.registry import LongTailLoss, Loss
from torchgeo_debias.debias.methods import METHODS, NoSettings
from torchgeo_debias.debias.methods.balance import class_weights
from torchgeo_debias.debias.methods.focal import focal
from torchgeo_debias.debias.methods.ldam import LdamSettings, ldam, margins
from torchgeo_debias.debias.methods.posthoc import AdjustmentSettings
from torchgeo_debias.debias.methods.weighting import EquitySettings, chip_weights, effective_weights
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class DeferredLdamSettings(LdamSettings):
    """Of LDAM in training: :class:`~torchgeo_debias.debias.methods.ldam.LdamSettings` and when the weights set in.

    ``scale`` is that of the logits of a cosine head. The margin of a class is ``scale`` times what it is in cosines;
    for logits of a linear head, which have no scale of their own, this is a choice.

    Attributes:
        deferred: Share of the training without weights (authors' code: 160 of 200 epochs).
    """

    deferred: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.deferred <= 1:
            raise ConfigError(f"The share of the training without weights must lie in 0..1; received {self.deferred}.")


class ClassWeighted(LongTailLoss):
    """Cross-entropy times a weight of the class, with ``shift`` added to the logits.

    Args:
        table: The classes.
        weights: (C,) of mean 1 over the training chips; 1 where left out.
        shift: (C,); 0 where left out.
    """

    weights: Tensor
    shift: Tensor

    def __init__(
        self,
        table: ClassTable,
        weights: npt.NDArray[np.floating] | None = None,
        shift: npt.NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        even, none = np.ones(len(table.names)), np.zeros(len(table.names))
        self.register_buffer("weights", _tensor(even if weights is None else weights), persistent=False)
        self.register_buffer("shift", _tensor(none if shift is None else shift), persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """See :class:`LongTailLoss`."""
        each = F.cross_entropy(logits.float() + self.shift, labels, reduction="none")
        return (self.weights[labels] * each).mean()


class Focal(LongTailLoss):
    """:func:`~torchgeo_debias.debias.methods.focal.focal`."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(
        self, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """See :class:`LongTailLoss`."""
        return focal(logits.float(), labels, self.gamma).mean()


class Ldam(LongTailLoss):
    """:func:`~torchgeo_debias.debias.methods.ldam.ldam`, with weights by effective number late in the training."""

    margin: Tensor
    weights: Tensor

    def __init__(self, table: ClassTable, settings: DeferredLdamSettings) -> None:
        super().__init__()
        margin = settings.scale * margins(table, settings.max_margin)
        self.register_buffer("margin", _tensor(margin), persistent=False)
        self.register_buffer("weights", _tensor(effective_weights(table, settings.beta)), persistent=False)
        self.deferred = settings.deferred
        self.weighted = self.deferred == 0

    def at(self, share: float) -> None:
        """Weigh from the share ``deferred`` on."""
        self.weighted = share >= self.deferred

    def forward(
        self, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """See :class:`LongTailLoss`."""
        each = ldam(logits.float(), labels, self.margin)
        return (self.weights[labels] * each if self.weighted else each).mean()


class Weighted(LongTailLoss):
    """Cross-entropy times a weight of the training chip, by the cluster of its frozen features, whatever its class."""

    wants = "frozen"
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(0), persistent=False)

    def learn(self, samples: Samples, seed: int) -> None:
        """See :class:`LongTailLoss`."""
        self.weigh(chip_weights(samples.features, EquitySettings(), seed))

    def weigh(self, weights: npt.NDArray[np.floating]) -> None:
        """Set the weight of each training chip, (N,), at least 0; they are scaled to a mean of 1.

        Raises:
            ConfigError: If they cannot be weights.
        """
        given = torch.tensor(weights, dtype=torch.float32, device=self.weights.device)
        if given.ndim != 1 or not given.isfinite().all() or (given < 0).any() or not given.sum() > 0:
            raise ConfigError("Weights of training chips are a row of finite numbers, at least 0 and not all 0.")
        self.weights = given / given.mean()

    def forward(
        self, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """See :class:`LongTailLoss`; it needs ``index``.

        Raises:
            ConfigError: If no weights were set, or there is no ``index``.
        """
        if index is None or not len(self.weights):
            raise ConfigError("The loss 'weighted' needs a weight for each training chip and the index of each sample.")
        return (self.weights[index] * F.cross_entropy(logits.float(), labels, reduction="none")).mean()


def _tensor(values: npt.NDArray[np.floating]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _inverse(table: ClassTable) -> npt.NDArray[np.floating]:
    return class_weights(1 / np.maximum(np.asarray(table.counts, dtype=np.float64), 1), table)


def _like(method: str, build: Callable[[ClassTable, Any], LongTailLoss], **other: Any) -> Loss:  # noqa: ANN401
    """The loss that a method of fitting heads minimises too, under the same name where ``other`` has none."""
    about = METHODS[method]
    facts = {name: getattr(about, name) for name in ("name", "title", "source", "origin", "settings")}
    return Loss(build=build, **{**facts, **other})


ENTRIES = (
    _like("ce", lambda table, settings: ClassWeighted(table)),
    _like("inverse", lambda table, settings: ClassWeighted(table, weights=_inverse(table))),
    _like(
        "class-balanced",
        lambda table, settings: ClassWeighted(table, weights=effective_weights(table, settings.beta)),
    ),
    _like("focal", lambda table, settings: Focal(settings.gamma)),
    _like(
        "balanced-softmax",
        lambda table, settings: ClassWeighted(table, shift=logit_adjustment(table, settings.tau)),
        title="balanced softmax, or with another tau the logit-adjusted loss",
        settings=AdjustmentSettings,
    ),
    _like("ldam", Ldam, settings=DeferredLdamSettings),
    _like(
        "dataset-equity",
        lambda table, settings: Weighted(),
        name="weighted",
        title="a weight for each training chip (DatasetEquity)",
        settings=NoSettings,
    ),
)

PLAIN: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in ENTRIES if loss.name != "weighted"})
"""Losses that a term on features can go beside: those that need to know nothing of the training chips."""


def check_plain(name: str) -> None:
    """Refuse what is none of :data:`PLAIN`.

    Raises:
        ConfigError: If it is not.
    """
    if name not in PLAIN:
        raise ConfigError(f"class_loss must be one of {', '.join(PLAIN)}; received {name!r}.")


class BesideClassLoss(LongTailLoss):
    """One of :data:`PLAIN` with its default settings, and terms on features beside it.

    Attributes:
        name: Of the loss, for sentences.
        class_loss: What the terms stand beside.
    """

    wants = "current"
    name: ClassVar[str]

    def __init__(self, table: ClassTable, class_loss: str) -> None:
        super().__init__()
        self.class_loss = PLAIN[class_loss].build(table, PLAIN[class_loss].settings())

    @property
    @abstractmethod
    def told(self) -> bool:
        """Whether the training chips were told."""

    @abstractmethod
    def terms(self, features: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """What is added to the class loss, scalars; arguments as of :meth:`forward`."""

    def at(self, share: float) -> None:
        """Tell the class loss."""
        self.class_loss.at(share)

    def forward(
        self, logits: Tensor, labels: Tensor, *, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """See :class:`LongTailLoss`; it needs ``index`` and ``features``.

        Raises:
            ConfigError: If one of them is not there, or the training chips were not told.
        """
        if index is None or features is None or not self.told:
            raise ConfigError(
                f"The loss '{self.name}' needs to know the training chips, and the index and feature of each."
            )
        loss: Tensor = self.class_loss(logits, labels)
        for term in self.terms(features, labels, index):
            loss = loss + term
        return loss

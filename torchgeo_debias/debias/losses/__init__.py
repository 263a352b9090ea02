"""Losses for training a network under a long tail: one registry, one contract; and two terms on features beside it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses import classification
from torchgeo_debias.debias.losses.classification import Weighted
from torchgeo_debias.debias.losses.domains import DomainAlignment, DomainSettings
from torchgeo_debias.debias.losses.registry import LongTailLoss, Loss
from torchgeo_debias.debias.losses.subclass import SubclassContrast, SubclassSettings
from torchgeo_debias.debias.methods.registry import read_settings

__all__ = [
    "LOSSES",
    "DomainAlignment",
    "DomainSettings",
    "LongTailLoss",
    "Loss",
    "SubclassContrast",
    "SubclassSettings",
    "Weighted",
    "build_loss",
    "loss_settings",
]

LOSSES: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in classification.ENTRIES})


def loss_settings(name: str, values: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 (of the loss's type)
    """The settings of a loss, with defaults for what ``values`` leaves out.

    Raises:
        ConfigError: If there is no such loss or setting, or a value cannot be.
    """
    return read_settings("loss", name, {key: loss.settings for key, loss in LOSSES.items()}, values)


def build_loss(name: str, table: ClassTable, settings: Mapping[str, Any] | None = None) -> LongTailLoss:
    """Build the loss of this name.

    Args:
        name: One of :data:`LOSSES`.
        table: Classes with the counts of the training chips.
        settings: By field name; what is left out keeps its default.

    Raises:
        ConfigError: If there is no such loss or setting, or a value cannot be.
    """
    chosen = loss_settings(name, settings)
    return LOSSES[name].build(table, chosen)

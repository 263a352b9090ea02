"""Losses for training a network under a long tail: one registry, one contract."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses import classification, domains, subclass
from torchgeo_debias.debias.losses.registry import LongTailLoss, Loss
from torchgeo_debias.debias.methods.registry import read_settings

__all__ = ["LOSSES", "LongTailLoss", "Loss", "build_loss", "loss_settings"]

LOSSES: Mapping[str, Loss] = MappingProxyType(
    {loss.name: loss for part in (classification, subclass, domains) for loss in part.ENTRIES}
)


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

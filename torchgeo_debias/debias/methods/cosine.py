"""The head of LIFT: cosine similarity to one direction a class, from the class means, under a logit-adjusted loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.debias.logits import logit_adjustment
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.methods.solver import fit_cosine, targets
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class CosineSettings:
    """Of the cosine head.

    Attributes:
        scale: Of the logits: they are this times the cosine (paper: 25).
        tau: Of the adjustment that is added to the logits in the loss, see
            :func:`~torchgeo_debias.debias.logits.logit_adjustment` (paper: 1).
    """

    scale: float = 25.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ConfigError(f"The scale of a cosine head must be positive; received {self.scale}.")
        if self.tau < 0:
            raise ConfigError(f"The tau of the adjustment must be at least 0; received {self.tau}.")


def cosine_head(weight: np.ndarray) -> LinearHead:
    """A cosine head without a bias of the weight (C, D)."""
    return LinearHead(weight, np.zeros(len(weight), np.float32), cosine=True)


def _fit(samples: Samples, settings: CosineSettings, seed: int) -> LinearHead:
    labels = targets(samples)
    shift = torch.tensor(logit_adjustment(samples.table, settings.tau), dtype=torch.float64)
    weight = fit_cosine(
        samples, lambda logits: F.cross_entropy(logits + shift, labels, reduction="sum"), settings.scale
    )
    return cosine_head(weight)


METHODS = (
    Method(
        "cosine",
        "cosine head from class means, logit-adjusted loss (LIFT)",
        "Shi et al., Long-tail learning with foundation model: heavy fine-tuning hurts, ICML 2024",
        "adapted",
        CosineSettings,
        _fit,
    ),
)

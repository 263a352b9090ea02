"""Focal loss: what is already classified well counts less."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from torchgeo_debias.debias.head import LinearHead, folded
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.methods.solver import fit_linear, targets
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class FocalSettings:
    """Of the focal loss.

    Attributes:
        gamma: How fast the weight of a sample falls with its probability, ``(1 - p_y)^gamma``; 0 is cross-entropy
            (paper: 2).
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ConfigError(f"The gamma of the focal loss must be at least 0; received {self.gamma}.")


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """``-(1 - p_y)^gamma log p_y`` of each sample, shape (B,), with ``p`` the softmax of the logits.

    The form for several exclusive classes; the paper's is for one class against background, and its ``alpha``, which
    weighs the two, has no counterpart here.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        gamma: See :class:`FocalSettings`.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    # 1 - p_y, kept off zero, where the gradient of a power below one is infinite.
    return (-(-loss).expm1()).clamp_min(1e-12) ** gamma * loss


def _fit(samples: Samples, settings: FocalSettings, seed: int) -> LinearHead:
    scaler = StandardScaler().fit(samples.features)
    labels = targets(samples)
    weight, bias = fit_linear(
        scaler.transform(samples.features),
        lambda logits: focal(logits, labels, settings.gamma).sum(),
        len(samples.table.names),
    )
    return folded(weight, bias, scaler)


METHODS = (
    Method(
        "focal",
        "focal loss",
        "Lin, Goyal, Girshick, He and Dollár, Focal loss for dense object detection, ICCV 2017",
        "adapted",
        FocalSettings,
        _fit,
    ),
)

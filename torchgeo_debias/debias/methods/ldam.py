"""LDAM: rarer classes keep a wider margin, and weigh more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.debias.methods.cosine import cosine_head
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.methods.solver import fit_cosine, targets
from torchgeo_debias.debias.methods.weighting import effective_weights
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class LdamSettings:
    """Of the margins and of the weights; the defaults are those of the authors' code.

    Attributes:
        max_margin: Margin of the rarest object class, in units of the cosine.
        scale: Of the logits: they are this times the cosine.
        beta: Of the weights, see :func:`~torchgeo_debias.debias.methods.weighting.effective_weights`; 0 for none.
    """

    max_margin: float = 0.5
    scale: float = 30.0
    beta: float = 0.9999

    def __post_init__(self) -> None:
        if self.max_margin < 0:
            raise ConfigError(f"The largest margin must be at least 0; received {self.max_margin}.")
        if self.scale <= 0:
            raise ConfigError(f"The scale of the logits must be positive; received {self.scale}.")
        if not 0 <= self.beta < 1:
            raise ConfigError(f"The beta of the effective number must lie in 0..1, below 1; received {self.beta}.")


def margins(table: ClassTable, max_margin: float) -> npt.NDArray[np.float32]:
    """The margin of each class, ``max_margin (n_min / n_c)^(1/4)``, shape (C,).

    ``n_min`` is that of the rarest object class; a background that is rarer still has no wider margin (ours).
    """
    fourth = table.priors**-0.25
    objects = table.objects
    share = np.minimum(fourth / fourth.max(where=objects, initial=0), 1)
    found: npt.NDArray[np.float32] = (max_margin * share).astype(np.float32)
    return found


def ldam(logits: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    """Cross-entropy of each sample, shape (B,), with the logit of its own class lowered by that class's margin.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        margin: (C,) in units of the logits: :func:`margins` times their scale.
    """
    return F.cross_entropy(logits - F.one_hot(labels, logits.shape[1]) * margin, labels, reduction="none")


def _fit(samples: Samples, settings: LdamSettings, seed: int) -> LinearHead:
    """A cosine head with margins and weights at once.

    The authors defer the weights to the last fifth of the training, for the sake of the features that are learnt
    before. Stored features are learnt already; the loss for training, in ``debias/losses``, does defer them.
    """
    labels = targets(samples)
    margin = settings.scale * torch.tensor(margins(samples.table, settings.max_margin), dtype=torch.float64)
    weights = torch.tensor(effective_weights(samples.table, settings.beta))[labels]
    weight = fit_cosine(samples, lambda logits: (weights * ldam(logits, labels, margin)).sum(), settings.scale)
    return cosine_head(weight)


METHODS = (
    Method(
        "ldam",
        "margins and weights by class size (LDAM)",
        "Cao, Wei, Gaidon, Arechiga and Ma, Learning imbalanced datasets with label-distribution-aware margin loss, "
        "NeurIPS 2019",
        "adapted",
        LdamSettings,
        _fit,
    ),
)

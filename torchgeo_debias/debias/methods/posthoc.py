"""Plain cross-entropy whose head is corrected afterwards: nothing is fitted anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.debias.head import LinearHead, fit_head, folded, logistic
from torchgeo_debias.debias.logits import logit_adjustment
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class AdjustmentSettings:
    """Of ``la``.

    Attributes:
        tau: Strength; 0 changes nothing (1 in the paper, where it is exact for well calibrated logits).
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ConfigError(f"tau must not be negative; received {self.tau}.")


@dataclass(frozen=True)
class NormSettings:
    """Of ``tau-norm``.

    Attributes:
        tau: 0 leaves the rows as long as they are, 1 makes all equally long (ours; the paper takes what does best on
            validation data, between 0 and 1).
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise ConfigError(f"tau must lie between 0 and 1; received {self.tau}.")


def _adjusted(samples: Samples, settings: AdjustmentSettings, seed: int) -> LinearHead:
    head = fit_head(samples.features, samples.labels, len(samples.table.names))
    return head.shifted(-logit_adjustment(samples.table, settings.tau))


def _normed(samples: Samples, settings: NormSettings, seed: int) -> LinearHead:
    """Rows divided by their length to the power of tau, without bias, on standardised features.

    All are multiplied by one number again, which turns no decision, so that the logits keep their order of size.
    """
    scaler = StandardScaler().fit(samples.features)
    weight, bias = logistic(scaler.transform(samples.features), samples.labels, len(samples.table.names))
    length = np.linalg.norm(weight, axis=1, keepdims=True)
    if length.min() > 0:  # features that say nothing have rows of zeros
        weight = weight * (length.mean() / length) ** settings.tau
    return folded(weight, np.zeros_like(bias), scaler)


METHODS = (
    Method(
        "la",
        "logit adjustment afterwards",
        "Menon et al., Long-tail learning via logit adjustment, ICLR 2021",
        "as published",
        AdjustmentSettings,
        _adjusted,
    ),
    Method(
        "tau-norm",
        "rows of equal length (tau-normalisation)",
        "Kang et al., Decoupling representation and classifier for long-tailed recognition, ICLR 2020",
        "adapted",
        NormSettings,
        _normed,
    ),
)

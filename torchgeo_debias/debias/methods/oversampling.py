"""Rare classes are filled up to the largest one: with copies, or with points between neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from imblearn.over_sampling import SMOTE, RandomOverSampler  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.debias.head import Array, Floats, LinearHead, folded, logistic
from torchgeo_debias.debias.methods.balance import even_weights, missing
from torchgeo_debias.debias.methods.registry import Method, NoSettings
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class SmoteSettings:
    """Of ``smote``.

    Attributes:
        k: Nearest neighbours of the same class among which one is drawn (5 in the paper); a class of n samples has
            n - 1 at most.
    """

    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"SMOTE needs at least one neighbour; received {self.k}.")


def fit_filled(samples: Samples, drawn: Floats, labels: npt.NDArray[np.int64], scaler: StandardScaler) -> LinearHead:
    """A head on the samples and drawn features (M, D) beside them, with every class at its share.

    Args:
        samples: The real ones.
        drawn: In the scale of ``scaler``.
        labels: (M,) of the drawn ones.
        scaler: Of the real features.
    """
    features = np.concatenate([scaler.transform(samples.features), drawn.astype(np.float32)])
    labels = np.concatenate([samples.labels, labels])
    weights = even_weights(labels, samples.table, len(samples.labels))
    return folded(*logistic(features, labels, len(samples.table.names), weights), scaler)


def _copies(samples: Samples, settings: NoSettings, seed: int) -> LinearHead:
    scaler = StandardScaler().fit(samples.features)
    wanted = dict(enumerate((samples.counts + missing(samples.table)).tolist()))
    sampler = RandomOverSampler(sampling_strategy=wanted, random_state=seed)
    features, labels = sampler.fit_resample(scaler.transform(samples.features), samples.labels)
    n = len(samples.labels)
    return fit_filled(samples, features[n:], labels[n:], scaler)


def _smote(samples: Samples, settings: SmoteSettings, seed: int) -> LinearHead:
    scaler = StandardScaler().fit(samples.features)
    return fit_filled(samples, *smote_features(scaler.transform(samples.features), samples, settings, seed), scaler)


def smote_features(
    features: Array, samples: Samples, settings: SmoteSettings, seed: int
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Features (M, D) and labels (M,) that fill every class up to the largest one.

    Each lies at a random place between a sample and one of its neighbours of the same class; where a class has one
    sample, all are copies of it.

    Args:
        features: (N, D), standardised, of the samples.
        samples: Whose labels and table are used.
        settings: See :class:`SmoteSettings`.
        seed: Of the draws.
    """
    n = len(samples.labels)  # what was drawn stands behind the samples
    drawn, labels = [features[:0]], [samples.labels[:0]]
    for c, wanted in enumerate((samples.counts + missing(samples.table)).tolist()):
        k = min(settings.k, int(samples.counts[c]) - 1)
        own = (seed + c) % 2**32  # the largest seed that NumPy takes is one less
        sampler = (
            SMOTE(sampling_strategy={c: wanted}, k_neighbors=k, random_state=own)
            if k
            else RandomOverSampler(sampling_strategy={c: wanted}, random_state=own)
        )
        filled, ids = sampler.fit_resample(features, samples.labels)
        drawn.append(filled[n:])
        labels.append(ids[n:])
    return np.concatenate(drawn), np.concatenate(labels)


METHODS = (
    Method(
        "oversample",
        "random copies",
        "Buda, Maki and Mazurowski, A systematic study of the class imbalance problem in CNNs, Neural Networks 2018",
        "adapted",
        NoSettings,
        _copies,
    ),
    Method(
        "smote",
        "points between neighbours (SMOTE)",
        "Chawla et al., SMOTE: synthetic minority over-sampling technique, JAIR 2002",
        "adapted",
        SmoteSettings,
        _smote,
    ),
)

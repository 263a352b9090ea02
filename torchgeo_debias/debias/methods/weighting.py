"""Plain cross-entropy, and cross-entropy whose samples weigh more the rarer they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.clustering import check_clustering, cluster
from torchgeo_debias.debias.head import Array, LinearHead, fit_head
from torchgeo_debias.debias.methods.balance import Weights, class_weights, even_weights, shares
from torchgeo_debias.debias.methods.registry import Method, NoSettings
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class ClassBalancedSettings:
    """Of ``class-balanced``.

    Attributes:
        beta: The larger, the more rare classes weigh; 0 weighs all alike, towards 1 it becomes ``inverse`` (0.9999
            after the paper's experiments on large sets).
    """

    beta: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ConfigError(f"beta must be at least 0 and below 1; received {self.beta}.")


@dataclass(frozen=True)
class RetrainingSettings:
    """Of ``crt``.

    Attributes:
        epochs: Draws, in multiples of the number of samples (10 as in the paper's code for ImageNet-LT).
    """

    epochs: int = 10

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"There must be at least one epoch; received {self.epochs}.")


@dataclass(frozen=True)
class EquitySettings:
    """Of ``dataset-equity``.

    Attributes:
        eta: Weight that every sample keeps (1 in the paper's code).
        gamma: How fast the weight falls with the size of the cluster; 0 weighs all alike (5 in the paper's code).
        n_clusters: Clusters of K-means (debLoRA's 32; the paper takes DBSCAN on a t-SNE map instead).
    """

    eta: float = 1.0
    gamma: float = 5.0
    n_clusters: int = 32

    def __post_init__(self) -> None:
        if self.eta < 0 or self.gamma < 0:
            raise ConfigError(f"eta and gamma must not be negative; received {self.eta} and {self.gamma}.")
        check_clustering(self.n_clusters, None)


def _weighted(samples: Samples, weights: Weights | None) -> LinearHead:
    return fit_head(samples.features, samples.labels, len(samples.table.names), weights)


def _ce(samples: Samples, settings: NoSettings, seed: int) -> LinearHead:
    return _weighted(samples, None)


def _inverse(samples: Samples, settings: NoSettings, seed: int) -> LinearHead:
    return _weighted(samples, even_weights(samples.labels, samples.table, len(samples.labels)))


def _class_balanced(samples: Samples, settings: ClassBalancedSettings, seed: int) -> LinearHead:
    return _weighted(samples, effective_weights(samples.table, settings.beta)[samples.labels])


def effective_weights(table: ClassTable, beta: float) -> Weights:
    """Weights of the classes (C,): one over the effective number ``(1 - beta^n) / (1 - beta)`` of their samples.

    Cui et al., CVPR 2019, Eq. 2; with mean 1 over the samples.
    """
    counts = np.maximum(np.asarray(table.counts, dtype=np.float64), 1)
    return class_weights((1 - beta) / (1 - beta**counts), table)


def _retrained(samples: Samples, settings: RetrainingSettings, seed: int) -> LinearHead:
    """On as many draws as the epochs have, each of a class first and then of one of its samples.

    A sample weighs as often as it was drawn. One that was never drawn weighs nothing, but each class is drawn from: one
    that chance left out is given a draw.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros(len(samples.labels))
    draws = np.maximum(rng.multinomial(settings.epochs * len(weights), shares(samples.table)), 1)
    for c, (times, count) in enumerate(zip(draws, samples.counts, strict=True)):
        weights[samples.labels == c] = rng.multinomial(times, np.full(count, 1 / count))
    return _weighted(samples, weights / settings.epochs)


def _equity(samples: Samples, settings: EquitySettings, seed: int) -> LinearHead:
    return _weighted(samples, chip_weights(samples.features, settings, seed))


def chip_weights(features: Array, settings: EquitySettings, seed: int) -> Weights:
    """Weights (N,) of samples by the size of the cluster that their feature lies in, whatever their class; mean 1.

    Args:
        features: (N, D).
        settings: See :class:`EquitySettings`.
        seed: Of the clustering.
    """
    scaled = StandardScaler().fit_transform(features)
    assignment = cluster(scaled, settings.n_clusters, rho=None, seed=seed).assignment
    weights: Weights = equity_weights(np.bincount(assignment), settings)[assignment]
    return weights


def equity_weights(sizes: np.typing.NDArray[np.int64], settings: EquitySettings) -> Weights:
    """Weights of clusters of these sizes (K,), with mean 1 over the samples.

    ``(eta + (1 - p)^gamma) / (eta + 1)`` with ``p`` the size over the largest one (Shrivastava et al., 2023).
    """
    weights: Weights = settings.eta + (1 - sizes / sizes.max()) ** settings.gamma
    if not weights.any():  # eta 0 and clusters of one size: nothing is rare
        return np.ones_like(weights)
    weights *= sizes.sum() / (weights @ sizes)
    return weights


METHODS = (
    Method(
        "ce",
        "cross-entropy",
        "Cox, The regression analysis of binary sequences, J. R. Stat. Soc. B 1958",
        "as published",
        NoSettings,
        _ce,
    ),
    Method(
        "inverse",
        "inverse-frequency weights",
        "King and Zeng, Logistic regression in rare events data, Political Analysis 2001",
        "adapted",
        NoSettings,
        _inverse,
    ),
    Method(
        "class-balanced",
        "effective-number weights",
        "Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019",
        "adapted",
        ClassBalancedSettings,
        _class_balanced,
    ),
    Method(
        "crt",
        "classifier re-training (cRT)",
        "Kang et al., Decoupling representation and classifier for long-tailed recognition, ICLR 2020",
        "adapted",
        RetrainingSettings,
        _retrained,
    ),
    Method(
        "dataset-equity",
        "weights of rare clusters (DatasetEquity)",
        "Shrivastava et al., DatasetEquity: are all samples created equal?, ICCV Workshops 2023",
        "adapted",
        EquitySettings,
        _equity,
    ),
)

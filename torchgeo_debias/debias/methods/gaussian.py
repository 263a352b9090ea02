"""Rare classes are filled up with features drawn from Gaussians: TailCalib and LMD."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.debias.centres import class_means
from torchgeo_debias.debias.generate import root
from torchgeo_debias.debias.head import Floats, LinearHead, folded, logistic
from torchgeo_debias.debias.methods.balance import even_weights, missing
from torchgeo_debias.debias.methods.oversampling import fit_filled
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class TailCalibSettings:
    """Of ``tailcalib``.

    Attributes:
        k: Nearest classes whose means and whose covariances are taken (1 in the paper's code).
        alpha: Added to every entry of the covariance: spreads the draws along the diagonal (0 in the paper's code).
    """

    k: int = 1
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1 or self.alpha < 0:
            raise ConfigError(f"k must be at least 1 and alpha not negative; received {self.k} and {self.alpha}.")


@dataclass(frozen=True)
class VirtualSettings:
    """Of ``lmd``.

    Attributes:
        draws: Virtual features of each class (1000, the least of the paper's code).
        ridge: Added to the diagonal of each covariance (0.01 in the paper's code).
        prior: How many samples the pooled covariance is worth: a class of n has its own with the share
            ``(n - 1) / (n - 1 + prior)`` (ours: the paper takes classes of many samples).
    """

    draws: int = 1000
    ridge: float = 0.01
    prior: float = 20.0

    def __post_init__(self) -> None:
        if self.draws < 1 or self.ridge < 0 or self.prior <= 0:
            raise ConfigError(
                f"draws must be at least 1, ridge not negative and prior positive; received {self.draws}, "
                f"{self.ridge} and {self.prior}."
            )


def draws(n: int, factor: Floats, rng: np.random.Generator) -> Floats:
    """``n`` draws (n, D) with mean zero and covariance ``factor^T factor``."""
    return rng.standard_normal((n, len(factor))) @ factor


def _tailcalib(samples: Samples, settings: TailCalibSettings, seed: int) -> LinearHead:
    scaler = StandardScaler().fit(samples.features)
    scaled = scaler.transform(samples.features).astype(np.float64)
    drawn, labels = tailcalib_features(scaled, samples, settings, np.random.default_rng(seed))
    return fit_filled(samples, drawn, labels, scaler)


def tailcalib_features(
    features: Floats, samples: Samples, settings: TailCalibSettings, rng: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features (M, D) and labels (M,) that fill every class up to the largest one.

    Around a sample x the mean is ``(x + sum_k mu_k) / (k + 1)`` over the means of the k classes nearest to x (Eq. 7
    of the paper), most often its own among them. The covariance is the mean of those of the k nearest *donors* plus
    ``alpha`` (Eq. 8): the head classes, or the largest class where these have one sample each. The paper's code takes
    the same classes for both, which has no answer where a class has one sample.

    Args:
        features: (N, D), standardised, of the samples.
        samples: Whose labels and table are used.
        settings: See :class:`TailCalibSettings`.
        rng: Source of the draws.
    """
    means = class_means(features, samples.labels, len(samples.table.names))
    donors = [c for c in samples.table.of_group("head") if samples.counts[c] > 1] or [int(samples.counts.argmax())]
    factors = {c: root(features[samples.labels == c] - means[c], max(int(samples.counts[c]) - 1, 1)) for c in donors}
    far = pairwise_distances(features, means)
    drawn, labels = [features[:0]], []
    for c, lacking in enumerate(missing(samples.table).tolist()):
        members = np.flatnonzero(samples.labels == c)
        often, rest = divmod(lacking, len(members))
        times = often + rng.permutation(np.arange(len(members)) < rest)
        for i, n in zip(members, times.tolist(), strict=True):
            if not n:
                continue
            near = np.argsort(far[i], kind="stable")[: settings.k]
            lenders = [donors[j] for j in np.argsort(far[i, donors], kind="stable")[: settings.k]]
            mean = (features[i] + means[near].sum(axis=0)) / (len(near) + 1)
            noise = sum(draws(n, factors[j] / np.sqrt(len(lenders)), rng) for j in lenders)
            drawn.append(mean + noise + np.sqrt(settings.alpha) * rng.standard_normal((n, 1)))
            labels += [c] * n
    return np.concatenate(drawn), np.asarray(labels, dtype=np.int64)


def _virtual(samples: Samples, settings: VirtualSettings, seed: int) -> LinearHead:
    scaler = StandardScaler().fit(samples.features)
    scaled = scaler.transform(samples.features).astype(np.float64)
    drawn = virtual_features(scaled, samples, settings, np.random.default_rng(seed)).astype(np.float32)
    labels = np.repeat(np.arange(len(samples.table.names)), settings.draws)
    weights = even_weights(labels, samples.table, len(samples.labels))
    return folded(*logistic(drawn, labels, len(samples.table.names), weights), scaler)


def virtual_features(features: Floats, samples: Samples, settings: VirtualSettings, rng: np.random.Generator) -> Floats:
    """Features (C * draws, D), class after class, drawn from a Gaussian of each class.

    The covariance of a class is its own, blended with the pooled one within the classes, plus ``ridge`` on the
    diagonal.

    Args:
        features: (N, D), standardised, of the samples.
        samples: Whose labels and table are used.
        settings: See :class:`VirtualSettings`.
        rng: Source of the draws.
    """
    means = class_means(features, samples.labels, len(samples.table.names))
    centred = features - means[samples.labels]
    pooled = root(centred, max(len(features) - len(means), 1))
    drawn = []
    for c, mean in enumerate(means):
        freedom = int(samples.counts[c]) - 1
        own = freedom / (freedom + settings.prior)
        cloud = mean + draws(settings.draws, np.sqrt(1 - own) * pooled, rng)
        if freedom:
            cloud += draws(settings.draws, np.sqrt(own) * root(centred[samples.labels == c], freedom), rng)
        drawn.append(cloud + np.sqrt(settings.ridge) * rng.standard_normal(cloud.shape))
    return np.concatenate(drawn)


METHODS = (
    Method(
        "tailcalib",
        "Gaussian features around rare samples (TailCalib)",
        "Vigneswaran et al., Feature generation for long-tail classification, ICVGIP 2021",
        "adapted",
        TailCalibSettings,
        _tailcalib,
    ),
    Method(
        "lmd",
        "virtual features of each class (LMD)",
        "LMD with virtual features (VFC), arXiv preprint, February 2025; the full reference is not checked",
        "adapted",
        VirtualSettings,
        _virtual,
    ),
)

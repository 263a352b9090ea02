"""Features drawn for rare classes: around the mean that calibration found, with a covariance borrowed from others."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf_shrinkage

from torchgeo_debias.debias.calibration import Calibration
from torchgeo_debias.debias.clustering import Array
from torchgeo_debias.debias.head import Floats
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError

Covariance = Literal["pooled", "clusters"]


def generate(
    calibration: Calibration,
    samples: Samples,
    n: int | npt.NDArray[np.int64],
    seed: int = 0,
    covariance: Covariance = "pooled",
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Draw features of each class from a Gaussian, or a mixture of them, around its mean after calibration.

    ``pooled``: all classes share the covariance within classes, as in linear discriminant analysis.

    ``clusters`` (ours): a class is the mixture of clusters that its centre is mixed from, with their weights, their
    places and their own covariances, shifted so that its mean is that after calibration.

    Covariances are those of Ledoit and Wolf (2004): shrunk towards a multiple of the identity, so that they have full
    rank where there are fewer features than dimensions. That a rare class borrows its covariance follows Yin et al.
    (CVPR 2019) and Liu et al. (CVPR 2020).

    Args:
        calibration: Of these samples.
        samples: The features (N, D) before calibration, and their labels.
        n: How many to draw for each class: one number, or one for each class (C,).
        seed: Of the draws; the global generators play no part.
        covariance: See above.

    Returns:
        Features (M, D) float32 in the order of the classes, and their labels (M,).

    Raises:
        ConfigError: If ``n`` is negative or there is no such covariance.
        DataError: If the samples cannot be used, as where a class has none.
    """
    samples.check()
    counts = np.broadcast_to(np.asarray(n, dtype=np.int64), len(calibration.means))
    if counts.min() < 0:
        raise ConfigError(f"The number of features to draw must be 0 or more; received {int(counts.min())}.")
    if covariance not in get_args(Covariance):
        raise ConfigError(f"covariance must be one of {', '.join(get_args(Covariance))}; received {covariance!r}.")
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    around = calibration.moved_means[labels].astype(np.float64)
    if covariance == "pooled":
        residuals = samples.features - calibration.means[samples.labels]
        spread = ledoit_wolf_spread(residuals, len(residuals) - len(counts))
        return (around + spread.draw(len(labels), rng)).astype(np.float32), labels
    centres, assignment = calibration.clusters
    weights = calibration.weights
    chosen = np.zeros(len(labels), dtype=np.int64)
    for c in np.flatnonzero(counts):
        chosen[labels == c] = rng.choice(len(centres), counts[c], p=weights[c])
    around += centres[chosen] - (weights @ centres)[labels]
    for k in np.unique(chosen):
        residuals = samples.features[assignment == k] - centres[k]
        spread = ledoit_wolf_spread(residuals, len(residuals) - 1)
        around[chosen == k] += spread.draw(int((chosen == k).sum()), rng)
    return around.astype(np.float32), labels


def root(centred: Floats, freedom: float) -> Floats:
    """A matrix R (at most D rows, D) with ``R^T R = centred^T centred / freedom``.

    Standard normal rows times R are then draws with that covariance, with no D x D matrix to factor where there are
    fewer samples than features.
    """
    if len(centred) > centred.shape[1]:
        centred = np.asarray(np.linalg.qr(centred, mode="r"))
    factor: Floats = centred / np.sqrt(freedom)
    return factor


class Spread(NamedTuple):
    """The Gaussian of mean 0 and covariance ``root.T @ root + noise² I``, which need not be written out.

    Attributes:
        root: (R, D) float64, R at most D.
        noise: Standard deviation of what all dimensions have beside.
    """

    root: npt.NDArray[np.float64]
    noise: float

    def draw(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """(n, D)."""
        rows, dimensions = self.root.shape
        return rng.normal(size=(n, rows)) @ self.root + self.noise * rng.normal(size=(n, dimensions))


def ledoit_wolf_spread(residuals: Array, freedom: int) -> Spread:
    """The covariance estimate of Ledoit and Wolf (2004), in factors.

    It is ``(1 - a) S + a m I`` with ``S = residuals.T @ residuals / freedom``, m the mean of its diagonal, and the
    share a that they derive (1 for a single residual, which says nothing on it).

    Args:
        residuals: (M, D), with their means taken off.
        freedom: M less the number of these means; 0 counts as 1.
    """
    rows, dimensions = residuals.shape
    exact = residuals.astype(np.float64)
    share = 1.0 if rows < 2 or not exact.any() else float(ledoit_wolf_shrinkage(exact, assume_centered=True))
    factor = root(exact, max(freedom, 1))
    noise = float(np.sqrt(share * np.square(factor).sum() / dimensions))
    return Spread(np.sqrt(1 - share) * factor, noise)

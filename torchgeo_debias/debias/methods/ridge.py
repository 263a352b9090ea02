"""A ridge head in closed form on sums that new samples can be added to (AEF-OCL, arXiv 2405.17779)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.head import Array, LinearHead, folded
from torchgeo_debias.debias.methods.balance import shares
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError, DataError


@dataclass(frozen=True)
class RidgeSettings:
    """Of ``aef-ocl``.

    Attributes:
        noise: Standard deviation of the pseudo features in that of their class (1 in the paper's code).
        ridge: Added to the diagonal of the normal equations (0.001 in the paper's code).
    """

    noise: float = 1.0
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.noise < 0 or self.ridge <= 0:
            raise ConfigError(
                f"The noise must not be negative and the ridge be positive; received {self.noise} and {self.ridge}."
            )


class StreamingRidge:
    """Ridge regression on one-hot labels that keeps sums, not samples.

    Every class is thought to be filled up to its share with pseudo features ``mean + noise * std * N(0, I)`` of its
    own running mean and standard deviation. The paper draws them; here their expected moments go into the normal
    equations, which is what many draws come to. So nothing is random, and the head is the same in whatever order and
    portions the samples came. The paper's random layer before the ridge is left out: the head is linear.

    Args:
        n_classes: C.
        settings: See :class:`RidgeSettings`.
        background: Class id of the background, if there is one: it keeps its share.
    """

    def __init__(self, n_classes: int, settings: RidgeSettings | None = None, background: int | None = None) -> None:
        self.settings = settings or RidgeSettings()
        self.background = background
        self.counts: npt.NDArray[np.int64] = np.zeros(n_classes, dtype=np.int64)
        self._origin: StandardScaler | None = None

    def update(self, features: Array, labels: npt.NDArray[np.int64]) -> None:
        """Add samples.

        Args:
            features: (N, D), of the same D each time.
            labels: (N,) class ids.

        Raises:
            DataError: If they do not fit together or to the samples before, or a feature is not finite.
        """
        self._check(features, labels)
        if not len(labels):
            return
        if self._origin is None:
            self._origin = StandardScaler().fit(features.astype(np.float64))
            self._start(features.shape[1])
        scaled = self._origin.transform(features.astype(np.float64))
        hot = np.eye(len(self.counts))[labels]
        self.counts += hot.sum(axis=0).astype(np.int64)
        self._sums += hot.T @ scaled
        self._squares += hot.T @ scaled**2
        self._products += scaled.T @ scaled

    def head(self) -> LinearHead:
        """The head of all samples so far; a class without one gets logits of zero.

        Raises:
            DataError: If there is no sample yet.
        """
        if self._origin is None:
            raise DataError("There is no sample yet: call update first.")
        n = self.counts.sum()
        middle = self._sums.sum(axis=0) / n
        spread = np.sqrt(np.maximum(np.diag(self._products) / n - middle**2, 0))
        spread[spread < 1e-6] = 1.0  # in units of the first portion: constant, up to rounding
        weight, bias = self._solve(middle, spread)
        return folded(weight / spread, bias - weight @ (middle / spread), self._origin)

    def _start(self, d: int) -> None:
        """Sums are taken about the first samples and in their scale, so that large numbers cost no digits."""
        self._sums = np.zeros((len(self.counts), d))
        self._squares = np.zeros((len(self.counts), d))
        self._products = np.zeros((d, d))

    def _solve(
        self, middle: npt.NDArray[np.float64], spread: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Weight (C, D) and bias (C,) on features that are standardised as all samples so far are."""
        n = self.counts.astype(np.float64)
        some = np.maximum(n, 1)[:, None]
        means = np.where(n[:, None] > 0, (self._sums / some - middle) / spread, 0)
        squares = self._squares / some - (self._sums / some) ** 2
        variances = np.maximum(squares, 0) / spread**2 * some / np.maximum(some - 1, 1)
        wanted = self._wanted()
        drawn = wanted - n
        gram = (self._products - n.sum() * np.outer(middle, middle)) / np.outer(spread, spread)
        gram += (means * drawn[:, None]).T @ means
        gram[np.diag_indices_from(gram)] += self.settings.noise**2 * drawn @ variances
        total = (wanted @ means)[:, None]
        normal = np.block([[gram, total], [total.T, np.array([[wanted.sum()]])]])
        normal[np.diag_indices_from(normal)] += self.settings.ridge
        right = np.vstack([(wanted[:, None] * means).T, wanted])
        solution = linalg.solve(normal, right, assume_a="pos")
        return solution[:-1].T, solution[-1]

    def _wanted(self) -> npt.NDArray[np.float64]:
        """Samples of each class once it is filled up: the fewest that give all their shares."""
        seen = np.flatnonzero(self.counts)
        names = {str(c): int(self.counts[c]) for c in seen}
        background = str(self.background) if self.background in seen else None
        aim = shares(ClassTable.from_counts(names, background=background))
        wanted = np.zeros(len(self.counts))
        wanted[seen] = aim * (self.counts[seen] / aim).max()
        return wanted

    def _check(self, features: Array, labels: npt.NDArray[np.int64]) -> None:
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise DataError(
                f"Features must be (N, D) with one label each; received features of shape {features.shape} and labels "
                f"of shape {labels.shape}."
            )
        if self._origin is not None and features.shape[1] != self._products.shape[0]:
            raise DataError(f"The samples before had {self._products.shape[0]} features; these {features.shape[1]}.")
        if not np.isfinite(features).all():
            raise DataError("Some features are not finite: look for chips without data.")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.counts):
            raise DataError(f"Labels must be class ids from 0 to {len(self.counts) - 1}.")


def _ridge(samples: Samples, settings: RidgeSettings, seed: int) -> LinearHead:
    ridge = StreamingRidge(len(samples.table.names), settings, samples.table.background)
    ridge.update(samples.features, samples.labels)
    return ridge.head()


METHODS = (
    Method(
        "aef-ocl",
        "ridge in closed form on filled-up classes (AEF-OCL)",
        "Zhuang et al., Online analytic exemplar-free continual learning with large models, arXiv 2405.17779, 2024",
        "adapted",
        RidgeSettings,
        _ridge,
    ),
)

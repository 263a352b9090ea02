"""What every long-tail method fits a head on: stored features, their labels and the class table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.head import Array
from torchgeo_debias.errors import DataError


class Samples(NamedTuple):
    """Features of the training chips.

    Attributes:
        features: (N, D) float32, finite.
        labels: (N,) int64 class ids, every class of the table at least once.
        table: The classes with the counts of ``labels``.
        domains: (N,) int64, sensor or region of each sample, or None.
    """

    features: Array
    labels: npt.NDArray[np.int64]
    table: ClassTable
    domains: npt.NDArray[np.int64] | None = None

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples of each class, shape (C,)."""
        return np.asarray(self.table.counts, dtype=np.int64)

    def check(self) -> None:
        """Refuse samples that no head can be fitted on.

        Raises:
            DataError: If shapes do not fit, a feature is not finite, there are fewer than two classes, a class has no
                sample, or the table has other counts than the labels.
        """
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise DataError(
                f"Features must be (N, D) with one label each; received features of shape {self.features.shape} and "
                f"labels of shape {self.labels.shape}."
            )
        if self.domains is not None and self.domains.shape != self.labels.shape:
            raise DataError(f"{len(self.labels)} samples need as many domains; received {self.domains.shape}.")
        if not np.isfinite(self.features).all():
            raise DataError("Some features are not finite: look for chips without data.")
        names = self.table.names
        if len(names) < 2:
            raise DataError(f"A head tells classes apart and needs two or more; received {', '.join(names)}.")
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(names):
            raise DataError(f"Labels must be class ids from 0 to {len(names) - 1}.")
        counts = np.bincount(self.labels, minlength=len(names))
        if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
            raise DataError(f"No training sample of {', '.join(empty)}: leave such classes out.")
        if tuple(counts.tolist()) != self.table.counts:
            raise DataError(f"The class table counts {self.table.counts}, but the labels {tuple(counts.tolist())}.")

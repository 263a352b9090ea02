"""Samplers that show rare classes more often: the choice of chips, not the pixels, changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler, WeightedRandomSampler

from torchgeo_debias.errors import DataError


class _PowerSampler(Sampler[int]):
    """Draws class c with probability proportional to ``n_c ** power``, then a chip of it evenly, with replacement.

    Seeded: each epoch draws its own sequence, the same one whenever the epoch is repeated.
    """

    power: ClassVar[float]

    def __init__(self, labels: npt.NDArray[np.int64], num_samples: int | None = None, seed: int = 0) -> None:
        """Set the weights.

        Args:
            labels: (N,) class ids.
            num_samples: Draws in an epoch, N by default.
            seed: Of the draws.

        Raises:
            DataError: If there is no label.
        """
        if not len(labels):
            raise DataError("A sampler needs at least one labelled chip, but there is none.")
        counts = np.bincount(labels).astype(np.float64)
        self.weights = torch.from_numpy(counts[labels] ** (self.power - 1.0))
        self.num_samples = len(labels) if num_samples is None else num_samples
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose sequence the next iteration draws; Lightning calls this by itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        # A seed sequence keeps (seed 0, epoch 1) and (seed 1, epoch 0) apart.
        state = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(state)
        yield from WeightedRandomSampler(self.weights.tolist(), self.num_samples, generator=generator)


class ClassBalancedSampler(_PowerSampler):
    """Every class equally often, whatever its count."""

    power = 0.0


class SquareRootSampler(_PowerSampler):
    """Each class in proportion to the square root of its count: between natural and balanced."""

    power = 0.5

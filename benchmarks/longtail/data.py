"""The sets of the comparison: which chips a method may see, and on which it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.data.longtail import long_tail
from torchgeo_debias.data.normalise import Stretch
from torchgeo_debias.training.checkpoints import fingerprint, pieces_of

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Source:
    """How one set is read and split.

    Attributes:
        folder: In the folder of data.
        crop: Central square that is taken, pixels; None for the whole image.
        stretch: Of the amplitudes.
        aside: Images of each class that are set aside of the training split for choices.
    """

    folder: str
    crop: int | None
    stretch: Stretch
    aside: int


SOURCES = {
    "ucmerced": Source("ucmerced", None, "none", 20),
    # The size of an MSTAR chip tells its class, and amplitudes are dark.
    "mstar": Source("mstar_soc10", 88, "sqrt", 40),
}
SIZE = 112


@dataclass(frozen=True)
class Task:
    """One long-tailed problem.

    Attributes:
        train: Long-tailed training chips.
        score: Chips that methods are scored on.
    """

    train: Chips
    score: Chips

    @cached_property
    def digest(self) -> str:
        """Of all chips, and of the versions of the libraries."""
        return fingerprint([*pieces_of(self.train), *pieces_of(self.score)])

    @property
    def imbalance(self) -> float:
        """Largest class over the smallest as drawn: whole chips of a small class are not the nominal share."""
        counts = self.train.table.counts
        return max(counts) / min(counts)


def make_task(data: Path, name: str, imbalance: float, seed: int, part: Part) -> Task:
    """A long tail whose class order and chips the seed draws.

    For ``test`` it is drawn from the whole training split and scored on the test split. For ``validation``, where all
    choices are made, some images of each class of the *training* split are set aside to score on, and the tail is drawn
    from the others; the test split is not read.
    """
    source = SOURCES[name]
    full = read_folder(data / source.folder, SIZE, split="train", crop=source.crop)
    if part == "test":
        held = read_folder(data / source.folder, SIZE, split="test", crop=source.crop)
        return Task(long_tail(full, imbalance, seed, min_count=1), held)
    # Another stream than that of the long tail, which draws from the same seed.
    rng = np.random.default_rng([seed, 1])
    aside = [rng.permutation(np.flatnonzero(full.labels == c))[: source.aside] for c in range(len(full.table.names))]
    held_out = np.sort(np.concatenate(aside))
    kept = np.setdiff1d(np.arange(len(full)), held_out)
    return Task(long_tail(full.subset(kept), imbalance, seed, min_count=1), full.subset(held_out))

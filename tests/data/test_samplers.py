from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from torchgeo_debias.data.samplers import ClassBalancedSampler, SquareRootSampler
from torchgeo_debias.errors import DataError

COUNTS = np.asarray([900, 90, 9, 1], dtype=np.int64)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


@pytest.mark.parametrize(
    ("sampler", "share"),
    [(ClassBalancedSampler, np.full(4, 0.25)), (SquareRootSampler, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum())],
)
def test_class_frequencies(sampler: type[ClassBalancedSampler] | type[SquareRootSampler], share: np.ndarray) -> None:
    drawn = np.fromiter(sampler(LABELS, num_samples=8000), dtype=np.int64)
    observed = np.bincount(LABELS[drawn], minlength=4)
    assert chisquare(observed, share * len(drawn)).pvalue > 1e-3
    # within a class every chip is as likely
    head = np.bincount(drawn, minlength=len(LABELS))[LABELS == 0]
    assert chisquare(head).pvalue > 1e-3


def test_epochs_differ_and_repeat() -> None:
    sampler = ClassBalancedSampler(LABELS, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    assert len(first) == len(sampler) == len(LABELS)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    other = ClassBalancedSampler(LABELS, seed=0)
    other.set_epoch(1)
    sampler.set_epoch(0)
    assert list(other) != list(sampler)


def test_no_label_is_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        SquareRootSampler(np.empty(0, dtype=np.int64))

from __future__ import annotations

import numpy as np
import pytest

from tests.debias.methods.test_contract import make
from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.debias.methods.oversampling import SmoteSettings, smote_features


def test_copies_that_come_out_even_are_inverse_weights() -> None:
    # Classes of one sample beside a large one: every copy is of the same sample, so there is no luck in it.
    samples = make([30, 1, 1])
    np.testing.assert_allclose(
        fit_method("oversample", samples).weight, fit_method("inverse", samples).weight, atol=2e-3
    )


@pytest.mark.parametrize("k", [1, 5])
def test_drawn_points_lie_between_neighbours_of_their_class(k: int) -> None:
    samples = make([20, 6, 2], dim=4)
    drawn, labels = smote_features(samples.features, samples, SmoteSettings(k), seed=0)
    assert np.bincount(labels, minlength=3).tolist() == [0, 14, 18]
    for point, label in zip(drawn.astype(np.float64), labels, strict=True):
        own = samples.features[samples.labels == label].astype(np.float64)
        assert _gap_to_segments(point, own, k) < 1e-5


def _gap_to_segments(point: np.typing.NDArray[np.float64], own: np.typing.NDArray[np.float64], k: int) -> float:
    """Distance of a point to the nearest segment from a sample to one of its ``k`` neighbours."""
    gaps = []
    for start in own:
        near = np.argsort(np.linalg.norm(own - start, axis=1))[1 : k + 1]
        for end in own[near]:
            way = end - start
            share = np.clip((point - start) @ way / (way @ way), 0, 1)
            gaps.append(np.linalg.norm(start + share * way - point))
    return float(min(gaps))


def test_a_single_sample_is_copied() -> None:
    samples = make([5, 1])
    drawn, labels = smote_features(samples.features, samples, SmoteSettings(), seed=0)
    assert labels.tolist() == [1] * 4
    np.testing.assert_array_equal(drawn, np.repeat(samples.features[-1:], 4, axis=0))


def test_more_neighbours_are_used_where_there_are_more() -> None:
    # In a class of three, k = 5 means its two neighbours: points must come to lie on all three sides.
    samples = make([60, 3], dim=2)
    drawn, _ = smote_features(samples.features, samples, SmoteSettings(5), seed=0)
    corners = samples.features[-3:]
    sides = [(0, 1), (1, 2), (0, 2)]
    for a, b in sides:
        way = corners[b] - corners[a]
        off = np.abs((drawn - corners[a]) @ np.array([-way[1], way[0]])) / np.linalg.norm(way)
        assert (off < 1e-4).any()


def test_the_largest_seed_is_one_for_every_class() -> None:
    data = make([30, 5, 2])
    assert np.isfinite(fit_method("smote", data, seed=2**32 - 1).weight).all()

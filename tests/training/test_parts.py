"""What the trainings of classifiers and detectors share."""

from __future__ import annotations

import numpy as np
import pytest

from torchgeo_debias.training.parts import feature_unit


def test_a_feature_that_hardly_varies_is_measured_in_a_share_of_the_others_unit() -> None:
    rng = np.random.default_rng(0)
    features = np.array([1.0, 3.0, 1e-4, 0.0], np.float32) * rng.standard_normal((500, 4), np.float32)
    features[:, 3] = 0.1  # whose mean in float32 is another number
    expected = [np.sqrt(np.mean((column - column.mean()) ** 2)) for column in features.T.astype(np.float64)]
    least = sum(expected) / 400
    np.testing.assert_allclose(feature_unit(features), [*expected[:2], least, least], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 1000])
def test_where_no_feature_varies_the_unit_is_one(count: int) -> None:
    features = np.repeat(np.array([[0.1, -7.3, 0.0]], np.float32), count, axis=0)
    np.testing.assert_array_equal(feature_unit(features), np.ones(3, np.float32))


def test_the_unit_of_ordinary_features_is_their_standard_deviation() -> None:
    features = np.random.default_rng(1).normal(2, [0.3, 0.8, 2.0], (400, 3)).astype(np.float32)
    np.testing.assert_allclose(feature_unit(features), features.std(axis=0), rtol=1e-5)

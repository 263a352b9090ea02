from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation.distances import class_distances

TABLE = ClassTable.from_counts(
    {"ship": 90, "plane": 9, "pad": 3, "dredger": 2, "buoy": 1},
    groups={"ship": "head", "plane": "middle", "pad": "tail", "dredger": "tail", "buoy": "tail"},
)


def test_worked_example() -> None:
    # Ships spread by 45 degrees about the x axis, pads lie on y, dredgers on -x; planes and buoys have no sample.
    features = np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 5.0], [-2.0, 0.0]], dtype=np.float32)
    distances = class_distances(features, np.array([0, 0, 2, 3]), TABLE)
    assert distances.intra[0] == pytest.approx(1 - math.cos(math.pi / 4))
    assert distances.intra[2] == pytest.approx(0, abs=1e-6)
    assert math.isnan(distances.intra[1])
    assert distances.inter[0, 2] == pytest.approx(1)
    assert distances.inter[0, 3] == pytest.approx(2)
    assert distances.inter_groups["head-tail"] == pytest.approx(1.5)
    assert distances.inter_groups["tail-tail"] == pytest.approx(1)
    assert math.isnan(distances.inter_groups["head-head"])
    assert distances.intra_groups["tail"] == pytest.approx(0, abs=1e-6)
    values = json.loads(json.dumps(distances.to_json(), allow_nan=False))
    assert values["inter_groups"]["head-head"] is None
    assert values["names"] == list(TABLE.names)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 50))
def test_scale_and_order_do_not_matter(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(20, 4)) + 0.5, rng.integers(0, 5, 20)
    order = rng.permutation(20)
    one = class_distances(features, labels, TABLE)
    other = class_distances(features[order] * scale, labels[order], TABLE)
    np.testing.assert_allclose(other.intra, one.intra, atol=1e-9)
    np.testing.assert_allclose(other.inter, one.inter, atol=1e-9)
    np.testing.assert_allclose(one.inter, one.inter.T, atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(DataError, match="one label"):
        class_distances(np.zeros((3, 2)), np.array([0, 1]), TABLE)
    with pytest.raises(DataError, match="5 classes"):
        class_distances(np.ones((1, 2)), np.array([5]), TABLE)
    with pytest.raises(DataError, match="not finite"):
        class_distances(np.array([[np.nan, 1.0]]), np.array([0]), TABLE)

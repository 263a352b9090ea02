from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.boxes.scenes import Scene, brute_force, scene, scenes, small_lots
from torchgeo_debias.boxes.suppress import MetricName, suppress
from torchgeo_debias.errors import ConfigError, DataError


@given(
    case=scenes(),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    metric=st.sampled_from(["iou", "ios"]),
    per_class=st.booleans(),
    lot=st.sampled_from([1, 7, 1 << 16]),
)
def test_suppression_is_brute_force(
    case: Scene, threshold: float, metric: MetricName, per_class: bool, lot: int
) -> None:
    with small_lots(lot):
        kept = suppress(case.boxes, case.scores, case.classes if per_class else None, threshold, metric)
    assert kept.tolist() == brute_force(case, threshold, metric, per_class)


@pytest.mark.parametrize("oriented", [False, True])
def test_suppression_is_brute_force_where_boxes_crowd(oriented: bool) -> None:
    case = scene(seed=1, count=600, extent=20, whole=False, oriented=oriented)
    with small_lots(64):
        assert suppress(case.boxes, case.scores).tolist() == brute_force(case, 0.5, "iou", per_class=False)


def test_order_of_the_kept() -> None:
    apart = [[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]
    assert suppress(apart, [0.2, 0.9, 0.2]).tolist() == [1, 0, 2]
    assert suppress(np.zeros((0, 5)), []).tolist() == []


def test_only_more_than_the_threshold_suppresses() -> None:
    half = [[0, 0, 2, 1], [0, 0, 1, 1]]
    assert suppress(half, [2, 1], threshold=0.5).tolist() == [0, 1]
    assert suppress(half, [2, 1], threshold=0.49).tolist() == [0]
    assert suppress(half, [2, 1], threshold=0.5, metric="ios").tolist() == [0]


def test_what_a_suppressed_box_overlaps_stays() -> None:
    chain = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert suppress(chain, [3, 2, 1], threshold=0.3).tolist() == [0, 2]


def test_sizes_and_places_of_every_order_of_magnitude() -> None:
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, 1e4, (400, 2)), 10 ** rng.uniform(-9, 4, (400, 2))
    case = Scene(np.hstack([low, low + sides]), rng.random(400), np.zeros(400, np.int64))
    assert suppress(case.boxes, case.scores, threshold=0.1).tolist() == brute_force(case, 0.1, "iou", per_class=False)


def test_boxes_smaller_than_the_rounding_of_their_place() -> None:
    twins = np.array([[5e6, 5e6, 1e-10, 1e-10, 20.0]] * 2)
    assert suppress(twins, [1, 2]).tolist() == [1]


@pytest.mark.parametrize("spread", [0, 60], ids=["one place", "all overlap, few by much"])
def test_memory_does_not_grow_with_the_pairs(spread: float) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 1, (6000, 2)) * spread
    boxes = np.hstack([low, low + 100])  # 18 million pairs: 288 MB as indices alone
    tracemalloc.start()
    kept = suppress(boxes, rng.random(6000), threshold=0.99)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == 1 if spread == 0 else len(kept) > 3000
    assert peak < 30e6


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "sentence"),
    [
        ([[0, 0, 1, 1]], [np.nan], None, "score of box 0 is NaN"),
        ([[0, 0, 1, 1]], [1, 2], None, "one for each box"),
        ([[0, 0, 1, 1]], [1], [1, 2], "one for each box"),
        ([[0, 0, 1]], [1], None, r"shape \(1, 3\)"),
        ([[0, 0, 1, 1], [2, 0, 1, 1]], [1, 1], None, "box 1 is"),
        ([[0, 0, 1, -1, 0]], [1], None, "w >= 0"),
        ([[0, 0, np.inf, 1]], [1], None, "finite"),
    ],
)
def test_refusals(boxes: object, scores: object, classes: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        suppress(boxes, scores, classes)  # type: ignore[arg-type]


def test_refused_rules() -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        suppress([[0, 0, 1, 1]], [1], threshold=1.5)
    with pytest.raises(ConfigError, match="iou, ios"):
        suppress([[0, 0, 1, 1]], [1], metric="giou")  # type: ignore[arg-type]

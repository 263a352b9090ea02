"""Precision, recall and F1 of boxes, against a matching written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation.detection_inputs import Guess, Truth
from torchgeo_debias.evaluation.found import found_scores

TABLE = ClassTable.from_counts({"a": 30, "b": 20, "c": 10, "background": 99}, background="background")


def iou(one: list[float], other: list[float]) -> float:
    width, height = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def counts(truths: list[tuple[list[float], int, bool]], guesses: list[tuple[list[float], float, int]], limit: float,
           low: float) -> dict[int, tuple[int, int]]:  # fmt: skip
    """Found objects and false alarms by class."""
    free = dict(enumerate(truths))
    found = {i: [0, 0] for i in range(4)}
    for box, score, label in sorted(guesses, key=lambda guess: -guess[1]):
        if score < low:
            continue
        over = [(not dropped, iou(box, other), k) for k, (other, kind, dropped) in free.items()
                if kind == label and iou(box, other) >= limit]  # fmt: skip
        if over:
            counted, _, k = max(over)
            del free[k]
            found[label][0] += counted
        else:
            found[label][1] += 1
    return {label: (hits, false) for label, (hits, false) in found.items()}


def boxes(draw: st.DrawFn) -> list[float]:
    x, y, w, h = (draw(st.floats(low, low + 6)) for low in (0, 0, 1, 1))
    return [x, y, x + w, y + h]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[tuple[list[float], int, bool]], list[tuple[list[float], float, int]]]:
    truths = [(boxes(draw), draw(st.integers(0, 1)), draw(st.booleans())) for _ in range(draw(st.integers(1, 5)))]
    scores = draw(st.lists(st.floats(0, 1), max_size=6, unique=True))
    return truths, [(boxes(draw), score, draw(st.integers(0, 1))) for score in scores]


@given(scenes(), st.sampled_from([0.1, 0.3, 0.5]), st.sampled_from([0.0, 0.4]))
def test_counts_are_those_of_a_matching_by_hand(scene: tuple[list, list], limit: float, low: float) -> None:  # type: ignore[type-arg]
    truths, guesses = scene
    truth = Truth([t[0] for t in truths], [t[1] for t in truths], [t[2] for t in truths])
    guess = Guess(np.array([g[0] for g in guesses]).reshape(-1, 4), [g[1] for g in guesses], [g[2] for g in guesses])
    result = found_scores([truth], [guess], TABLE, iou=limit, min_score=low)
    for label, (hits, false) in counts(truths, guesses, limit, low).items():
        row = result.per_class[TABLE.names[label]]
        objects = sum(kind == label and not dropped for _, kind, dropped in truths)
        assert (row["found"], row["false_alarms"], row["missed"]) == (hits, false, objects - hits)
        if objects:
            assert row["recall"] == hits / objects
            assert row["f1"] == 2 * hits / (2 * hits + false + objects - hits)
        else:
            assert row["f1"] is row["recall"] is row["precision"] is None


def test_means_leave_out_the_background_and_what_is_absent() -> None:
    box = [[0.0, 0.0, 2.0, 2.0], [10.0, 0.0, 12.0, 2.0], [20.0, 0.0, 22.0, 2.0]]
    truth = Truth(box, [0, 1, 3], [False] * 3)
    guess = Guess([*box, [40.0, 0.0, 42.0, 2.0], [50.0, 0.0, 52.0, 2.0]], [0.9, 0.2, 0.9, 0.8, 0.7], [0, 1, 3, 0, 2])
    result = found_scores([truth], [guess], TABLE, min_score=0.5)
    assert result.means["precision"] == pytest.approx(
        {"head": 0.5, "middle": 0.0, "tail": np.nan, "macro": 0.25, "overall": 1 / 3}, nan_ok=True
    )
    assert result.means["recall"]["overall"] == 0.5
    assert result.means["f1"]["macro"] == pytest.approx((2 / 3) / 2)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["f1"]["tail"] is None
    assert values["per_class"]["c"]["false_alarms"] == 1
    assert "0.5 or more at the overlap 0.5" in values["definition"]


def test_all_guesses_count_where_no_score_is_asked_for() -> None:
    box = [[0.0, 0.0, 2.0, 2.0], [10.0, 0.0, 12.0, 2.0]]
    truth, guess = Truth(box, [0, 1], [False] * 2), Guess(box, [-3.0, -0.5], [0, 1])
    result = found_scores([truth], [guess], TABLE)
    assert result.means["f1"]["overall"] == 1.0
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["min_score"] is None
    assert "those of all guesses at the overlap 0.5" in result.definition


@pytest.mark.parametrize(
    ("option", "value"), [("iou", 0.0), ("iou", 1.5), ("iou", float("nan")), ("min_score", float("nan"))]
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"received {value}"):
        found_scores([], [], TABLE, **{option: value})

"""From scores to a class, to none, and thresholds as plain JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation.thresholds import NOTHING, UNKNOWN, Abstain, ClassThreshold, Thresholds, tempered

NAMES = ("ship", "plane", "pad")


def limits(*values: float | None, names: tuple[str, ...] = NAMES, **options: Any) -> Thresholds:
    """None for a class without a guarantee."""
    classes = tuple(
        ClassThreshold(0.0, 3, False) if value is None else ClassThreshold(value, 50, True) for value in values
    )
    return Thresholds(names, classes, 0.9, **options)


def decide(thresholds: Thresholds, *row: float) -> int:
    return int(thresholds.decide(np.array([row], np.float32))[0])


def test_the_answer_is_the_class_with_the_largest_score_relative_to_its_threshold() -> None:
    thresholds = limits(0.6, 0.4, 0.4)
    assert decide(thresholds, 0.5, 0.3, 0.2) == 0  # none is possible, and the nearest answers
    assert decide(thresholds, 0.62, 0.3, 0.08) == 0
    assert decide(thresholds, 0.55, 0.43, 0.02) == 1  # though another is more probable
    assert decide(limits(0.5, 0.4, 0.4), 0.52, 0.45, 0.03) == 1


def test_a_threshold_next_to_nothing_does_not_answer_everything() -> None:
    """Below chance thresholds count as chance, 1 / 3 here."""
    thresholds = limits(0.6, 0.4, 1e-9)
    assert decide(thresholds, 0.9, 0.05, 0.05) == 0
    assert thresholds.possible(np.array([[0.9, 0.05, 0.05]])).tolist() == [[True, False, True]]
    assert decide(thresholds, 0.5, 0.2, 0.3) == 2  # it alone is possible, and nearest


def test_a_class_that_is_possible_at_next_to_nothing_does_not_beat_one_that_just_misses_its_threshold() -> None:
    names = tuple("abcdefghij")
    values, row = (0.9, 0.001, *[0.5] * 8), (0.89, 0.002, *[0.0135] * 8)
    assert limits(*values, names=names).possible(np.array([row]))[0].tolist() == [i == 1 for i in range(10)]
    assert decide(limits(*values, names=names), *row) == 0
    assert decide(limits(*values, names=names, abstain="omit"), *row) == NOTHING
    assert decide(limits(*values, names=names, abstain="unknown"), *row) == UNKNOWN
    # As soon as it is above chance, and nothing else is nearer, it answers.
    row = (0.8, 0.11, *[0.01125] * 8)
    assert decide(limits(*values, names=names, abstain="omit"), *row) == 1


def test_a_class_without_a_guarantee_answers_from_chance_on_and_is_always_possible() -> None:
    thresholds = limits(0.6, 0.4, None, abstain="omit")
    assert decide(thresholds, 0.36, 0.3, 0.34) == 2
    assert decide(thresholds, 0.5, 0.3, 0.2) == NOTHING
    assert thresholds.possible(np.array([[0.9, 0.1, 0.0]])).tolist() == [[True, False, True]]


@pytest.mark.parametrize(("abstain", "answer"), [("never", 0), ("omit", NOTHING), ("unknown", UNKNOWN)])
def test_where_no_class_is_possible_it_answers_the_nearest_nothing_or_unknown(abstain: Abstain, answer: int) -> None:
    thresholds = limits(0.6, 0.6, 0.6, abstain=abstain)
    assert decide(thresholds, 0.5, 0.3, 0.2) == answer
    assert decide(thresholds, 0.7, 0.2, 0.1) == 0
    assert decide(thresholds, *[float("nan")] * 3) == NOTHING


def test_a_score_at_its_threshold_reaches_it_and_of_equal_ones_the_first_answers() -> None:
    thresholds = limits(0.5, 0.5, 0.5, abstain="omit")
    assert decide(thresholds, 0.5, 0.5, 0.0) == 0
    assert decide(thresholds, 0.0, 0.5, 0.5) == 1


def test_no_rows_are_no_answers() -> None:
    assert limits(0.5, 0.5, 0.5).decide(np.zeros((0, 3), np.float32)).tolist() == []


@given(
    scores=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    values=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_an_answer_is_possible_and_there_is_one_where_a_class_reaches_threshold_and_chance(
    scores: list[float], values: list[float]
) -> None:
    row = np.array([scores]) / np.sum(scores)
    thresholds = limits(*values, abstain="omit")
    possible = thresholds.possible(row)[0]
    answer = int(thresholds.decide(row)[0])
    assert answer == NOTHING or possible[answer]
    if (possible & (row[0] >= 1 / 3)).any():
        assert row[0, answer] >= max(values[answer], 1 / 3)


@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4), st.floats(0.2, 8))
def test_the_temperature_divides_logits(logits: list[float], temperature: float) -> None:
    rows = np.array([logits])
    found = tempered(softmax(rows, axis=1).astype(np.float32), temperature)
    assert found.dtype == np.float32
    assert np.allclose(found, softmax(rows / temperature, axis=1), atol=2e-6)
    logs = log_softmax(rows / temperature, axis=1)
    seen = logs > -80  # what float32 holds
    assert np.allclose(np.log(found[seen]), logs[seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [1 / 50, 50])
def test_the_most_extreme_temperatures_give_finite_scores(temperature: float) -> None:
    rows = np.array([[1, 0, 0], [0.5, 0.5, 0], [1e-38, 1e-30, 1]], np.float32)
    found = tempered(rows, temperature)
    assert np.isfinite(found).all()
    assert np.allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == rows.argmax(axis=1)).all()


def test_infinity_is_no_temperature() -> None:
    for temperature in (float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="between 1/50 and 50"):
            limits(0.5, 0.5, 0.5, temperature=temperature)


def test_the_temperature_leaves_what_is_no_score_and_takes_sure_ones() -> None:
    rows = np.array([[np.nan, np.nan], [1, 0]], np.float32)
    found = tempered(rows, 2.0)
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [1, pytest.approx(0, abs=1e-15)]
    assert tempered(rows, 1.0) is rows


def test_thresholds_are_the_same_after_json() -> None:
    thresholds = limits(
        0.3, None, 0.123456789012345, temperature=1.7, abstain="unknown", facts={"ece": {"before": 0.2}}
    )
    values = json.loads(json.dumps(thresholds.to_json(), allow_nan=False))
    assert Thresholds.from_json(values, NAMES) == thresholds
    assert values["classes"]["plane"] == {"threshold": 0.0, "samples": 3, "guaranteed": False}
    assert Thresholds.from_json({}, NAMES) is None


def broken(**changes: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(limits(0.3, 0.2, 0.1).to_json()))
    for path, value in changes.items():
        *way, last = path.split("__")
        place = values
        for key in way:
            place = place[key]
        place[last] = value
    return dict(values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "must be an object"),
        (broken(recall=1.0), "above 0 and below 1"),
        (broken(recall="0.9"), "thresholds.recall must be a number"),
        (broken(temperature=0.0), "temperature of scores must lie between 1/50 and 50"),
        (broken(temperature=1e-9), "between 1/50 and 50"),
        (broken(temperature=51), "between 1/50 and 50"),
        (broken(temperature=float("nan")), "thresholds.temperature must be a number"),
        (broken(abstain="perhaps"), "one of never, omit, unknown"),
        (broken(classes=[]), "each class of the model once"),
        (broken(classes__dredger={}), "each class of the model once"),
        (broken(classes__pad__threshold=1.5), "between 0 and 1"),
        (broken(classes__pad__threshold=None), "thresholds.classes.pad.threshold must be a number"),
        (broken(classes__pad__samples=-1), "cannot be -1"),
        (broken(classes__pad__guaranteed=1), "must be true or false"),
        (broken(classes__pad={}), "is missing"),
        (broken(more=1), "Unknown field thresholds.more"),
        (broken(facts=3), "facts"),
    ],
)
def test_what_is_no_thresholds_is_refused_in_a_sentence(values: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Thresholds.from_json(values, NAMES)


def test_a_class_of_the_name_unknown_leaves_no_room_for_unknown() -> None:
    with pytest.raises(ConfigError, match="called 'unknown' already"):
        limits(0.1, 0.1, names=("ship", "unknown"), abstain="unknown")
    assert limits(0.1, 0.1, names=("ship", "unknown"), abstain="omit").abstain == "omit"

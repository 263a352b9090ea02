"""Thresholds that keep a recall: the guarantee, its limits, and what the answer loses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation import Guess, Truth, decision_scores, fit_detection_thresholds, fit_thresholds, score
from torchgeo_debias.evaluation.decisions import conformal_threshold, fit_temperature, least_samples
from torchgeo_debias.evaluation.thresholds import ClassThreshold, Thresholds, tempered

TABLE = ClassTable.from_counts({"ship": 500, "plane": 60, "pad": 5, "none": 900}, background="none")
NAMES = TABLE.names


def samples(
    rng: np.random.Generator, counts: tuple[int, ...], sharpness: float = 1.0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Labels, and scores of a model of overlapping Gaussians whose logits are ``sharpness`` times what they should."""
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(labels), len(counts))) * 1.2
    logits[np.arange(len(labels)), labels] += 1.5
    return labels, softmax(sharpness * logits, axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("recall", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999), (0.85, 6), (2 / 3, 2)]
)
def test_the_least_number_of_samples_is_the_first_with_a_threshold(recall: float, least: int) -> None:
    assert least_samples(recall) == least
    scores = np.linspace(0.3, 0.9, least)
    one = conformal_threshold(scores, recall)
    assert one.threshold == pytest.approx(0.3, rel=2e-4)
    assert (one.samples, one.guaranteed) == (least, True)
    assert conformal_threshold(scores[1:], recall) == ClassThreshold(0.0, least - 1, False)


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    recall=st.sampled_from([0.5, 0.8, 0.9, 0.95]),
)
def test_in_any_place_among_the_others_a_new_score_reaches_the_threshold_often_enough(
    scores: list[float], recall: float
) -> None:
    """The finite form of the guarantee: each of n + 1 scores in turn is the new one, ties and all."""
    values = np.array(scores)
    reached = [values[i] >= conformal_threshold(np.delete(values, i), recall).threshold for i in range(len(values))]
    assert np.mean(reached) >= recall - 1e-12


def test_the_threshold_is_the_largest_that_keeps_the_recall() -> None:
    scores = np.arange(1, 100) / 100  # k = 10 of 99
    one = conformal_threshold(scores, 0.9)
    assert one.threshold == pytest.approx(0.10, rel=2e-4)
    assert one.threshold <= 0.10


def test_thresholds_cover_new_samples_of_each_class_with_the_recall_asked_for() -> None:
    """Over draws of the validation samples, with the temperature; what is left to chance is four standard errors."""
    rng = np.random.default_rng(0)
    recall, draws, new = 0.9, 40, 100
    counts = (40, 19, 9, 60)
    hits = np.zeros(4)
    for draw in range(draws):
        thresholds = fit_thresholds(*samples(rng, counts, 2.0), TABLE, recall=recall, seed=draw)
        assert thresholds.guaranteed.all()
        labels, probabilities = samples(rng, (new,) * 4, 2.0)
        possible = thresholds.possible(tempered(probabilities, thresholds.temperature))
        hits += np.bincount(labels[possible[np.arange(len(labels)), labels]], minlength=4)
    # New samples of one draw share its threshold, whose coverage is Beta distributed: Vovk 2012, proposition 2a.
    for hit, n in zip(hits, (32, 16, 9, 48), strict=True):
        k = math.floor((n + 1) * 0.1 + 1e-9)
        spread = stats.beta(n + 1 - k, k).std()
        error = math.sqrt((spread**2 + recall * (1 - recall) / new) / draws)
        assert hit / (draws * new) >= recall - 4 * error
        assert hit / (draws * new) <= 1 - k / (n + 1) + 4 * error  # and it is no wider than it must be


@pytest.mark.parametrize(("n", "recall"), [(9, 0.9), (10, 0.9), (19, 0.9), (25, 0.8), (99, 0.99), (150, 0.99)])
def test_a_new_score_reaches_the_threshold_as_often_as_was_asked_for(n: int, recall: float) -> None:
    """Each draw is a coin toss of its own; the bounds are passed by chance once in a million times."""
    rng = np.random.default_rng(n)
    draws = 5000
    scores = rng.beta(2, 5, (draws, n + 1)).round(2 if n % 2 else 8)  # with ties and without
    reached = sum(row[-1] >= conformal_threshold(row[:-1], recall).threshold for row in scores)
    assert reached >= stats.binom(draws, recall).ppf(1e-6)
    if n % 2 == 0:
        assert reached <= stats.binom(draws, 1 - math.floor(round((n + 1) * (1 - recall), 9)) / (n + 1)).ppf(1 - 1e-6)


def test_the_highest_score_alone_does_not_cover_the_rare() -> None:
    """What the simulation above would show without thresholds."""
    labels, probabilities = samples(np.random.default_rng(1), (500,) * 4, 2.0)
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.8


def test_a_class_without_samples_has_no_guarantee_and_the_others_theirs() -> None:
    labels, probabilities = samples(np.random.default_rng(2), (50, 0, 8, 9))
    thresholds = fit_thresholds(labels, probabilities, TABLE)
    assert thresholds.guaranteed.tolist() == [True, False, False, True]
    assert [one.samples for one in thresholds.classes] == [50, 0, 8, 9]
    assert thresholds.values[1] == thresholds.values[2] == 0


def test_the_temperature_is_that_by_which_logits_were_too_sharp() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(20000, 5)) * 2
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits, axis=1)])
    assert fit_temperature(labels, softmax(3 * logits, axis=1).astype(np.float32)) == pytest.approx(3, rel=0.05)
    assert fit_temperature(labels, softmax(logits / 2, axis=1).astype(np.float32)) == pytest.approx(0.5, rel=0.05)


def test_the_calibration_error_falls_and_is_that_of_the_samples_for_thresholds() -> None:
    labels, probabilities = samples(np.random.default_rng(4), (900, 400, 200, 700), 4.0)
    thresholds = fit_thresholds(labels, probabilities, TABLE)
    assert thresholds.facts["ece"]["after"] < 0.5 * thresholds.facts["ece"]["before"]
    assert thresholds.temperature > 2
    assert thresholds.facts["temperature_samples"] == 180 + 80 + 40 + 140
    again = fit_thresholds(labels, probabilities, TABLE)
    assert again == thresholds
    other = fit_thresholds(labels, probabilities, TABLE, seed=1)
    assert other != thresholds


def test_few_samples_fit_no_temperature_and_are_all_for_the_thresholds() -> None:
    labels, probabilities = samples(np.random.default_rng(5), (20, 20, 20, 20), 4.0)
    thresholds = fit_thresholds(labels, probabilities, TABLE)
    assert thresholds.temperature == 1
    assert [one.samples for one in thresholds.classes] == [20] * 4
    assert thresholds.facts["ece"]["before"] == thresholds.facts["ece"]["after"]
    assert thresholds.facts["ece"]["before"] == pytest.approx(score(labels, probabilities, TABLE).ece)


@pytest.mark.parametrize("recall", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_a_recall_that_none_can_have_is_refused(recall: float) -> None:
    labels, probabilities = samples(np.random.default_rng(6), (5, 5, 5, 5))
    for call in (
        lambda: least_samples(recall),
        lambda: conformal_threshold(probabilities[:, 0], recall),
        lambda: fit_thresholds(labels, probabilities, TABLE, recall=recall),
        lambda: fit_detection_thresholds([], [], TABLE, recall=recall),
    ):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            call()


def test_scores_that_are_none_are_refused() -> None:
    labels, probabilities = samples(np.random.default_rng(7), (5, 5, 5, 5))
    broken = probabilities.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="finite"):
        fit_thresholds(labels, broken, TABLE)
    with pytest.raises(DataError, match="one row a sample"):
        fit_thresholds(labels[1:], probabilities, TABLE)
    with pytest.raises(DataError, match="not a number"):
        conformal_threshold(broken[:, 1], 0.9)


def test_scores_of_decisions_are_counted_by_hand() -> None:
    table = ClassTable.from_counts({"a": 9, "b": 3, "c": 1})
    thresholds = limits(("a", "b", "c"), (0.5, 0.4, 0.1), abstain="omit")
    probabilities = np.array(
        [
            [0.55, 0.40, 0.05],  # a and b possible; 1.1 times that of a, 1.0 that of b
            [0.50, 0.46, 0.04],  # a and b possible; b is the answer
            [0.49, 0.39, 0.12],  # c alone is possible, but a and b are nearer: no answer
            [0.30, 0.30, 0.40],
            [0.49, 0.42, 0.09],
            [0.35, 0.32, 0.33],  # c alone, and nearest though below chance
        ],
        np.float32,
    )
    found = decision_scores(np.array([0, 0, 0, 2, 1, 1]), probabilities, table, thresholds)
    assert found.per_class["a"] == {
        "threshold": 0.5, "guaranteed": True, "coverage": pytest.approx(2 / 3), "recall": pytest.approx(1 / 3),
        "precision": 1.0, "support": 3,
    }  # fmt: skip
    assert (found.per_class["b"]["coverage"], found.per_class["b"]["recall"]) == (0.5, 0.5)
    assert found.per_class["b"]["precision"] == 0.5
    assert found.per_class["c"]["coverage"] == 1
    assert found.per_class["c"]["precision"] == 0.5
    assert found.possible == pytest.approx((2 + 2 + 1 + 1 + 1 + 1) / 6)
    assert found.abstained == pytest.approx(1 / 6)
    assert found.coverage["macro"] == pytest.approx(np.mean([2 / 3, 0.5, 1.0]))
    assert found.recall["tail"] == 1.0
    assert "coverage" in found.sentence


def limits(names: tuple[str, ...], values: tuple[float, ...], **options: Any) -> Thresholds:
    return Thresholds(names, tuple(ClassThreshold(value, 20, True) for value in values), 0.9, **options)


def row_of_boxes(*lefts: float) -> npt.NDArray[np.float64]:
    return np.array([[left, 0, left + 10, 10] for left in lefts]).reshape(-1, 4)


def detections(found: list[float], missed: int, false_alarms: list[float]) -> tuple[Truth, Guess]:
    """One image with objects of class 0, those found with their scores, and boxes on nothing."""
    there = row_of_boxes(*(100.0 * i for i in range(len(found) + missed)))
    guessed = np.vstack([there[: len(found)], row_of_boxes(*(100.0 * i + 50 for i in range(len(false_alarms))))])
    scores = np.array([*found, *false_alarms])
    truth = Truth(there, np.zeros(len(there), np.int64), np.zeros(len(there), bool))
    return truth, Guess(guessed, scores, np.zeros(len(scores), np.int64))


def test_the_threshold_of_a_detector_is_that_of_the_objects_it_finds() -> None:
    rng = np.random.default_rng(8)
    scores = rng.uniform(0.1, 1, 57)
    parts = [detections(scores[:20].tolist(), 1, [0.99, 0.98]), detections(scores[20:].tolist(), 1, [0.05] * 9)]
    thresholds = fit_detection_thresholds([t for t, _ in parts], [g for _, g in parts], TABLE, recall=0.9)
    # 59 objects: the sixth lowest, of which two were not found at all.
    assert thresholds.classes[0].threshold == pytest.approx(np.sort(scores)[3], rel=2e-4)
    assert thresholds.classes[0] == ClassThreshold(thresholds.values[0], 59, True)
    assert thresholds.classes[1] == ClassThreshold(0.0, 0, False)
    assert thresholds.temperature == 1
    assert (scores >= thresholds.values[0]).sum() / 59 >= 0.9


def test_objects_that_nothing_finds_leave_no_guarantee() -> None:
    truth, guess = detections([0.9] * 17, 3, [])
    assert fit_detection_thresholds([truth], [guess], TABLE, recall=0.9).classes[0] == ClassThreshold(0.0, 20, False)
    assert fit_detection_thresholds([truth], [guess], TABLE, recall=0.8).classes[0].guaranteed


def test_objects_that_do_not_count_and_second_boxes_on_an_object_are_left_out() -> None:
    truth, guess = detections([0.9, 0.8, 0.7, 0.6, 0.5], 0, [])
    twice = Guess(*(np.concatenate([values, values]) for values in map(np.asarray, guess)))
    twice = twice._replace(scores=np.append(np.asarray(guess.scores), np.full(5, 0.2)))
    ignored = truth._replace(ignored=np.array([False] * 4 + [True]))
    one = fit_detection_thresholds([ignored], [twice], TABLE, recall=0.8).classes[0]
    assert one.threshold == pytest.approx(0.6, rel=2e-4)
    assert (one.samples, one.guaranteed) == (4, True)

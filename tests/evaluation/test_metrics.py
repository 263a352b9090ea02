from __future__ import annotations

import json
import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation.metrics import Scores, compare, confusion, score, summarise

SHIPS = ClassTable.from_counts(
    {"ship": 900, "plane": 50, "pad": 9, "dredger": 4},
    groups={"ship": "head", "plane": "middle", "pad": "tail", "dredger": "tail"},
)

Ids = npt.NDArray[np.int64]


def worked_example() -> tuple[Ids, Ids]:
    """Tail: 10 pads all found, 9 of 10 dredgers found, one taken for a ship; 5 ships taken for dredgers."""
    pairs = [(0, 0)] * 95 + [(0, 3)] * 5 + [(1, 1)] * 20 + [(2, 2)] * 10 + [(3, 3)] * 9 + [(3, 0)]
    truth, predicted = np.array(pairs, dtype=np.int64).T
    return truth, predicted


def test_group_f1_of_the_full_matrix_and_of_the_released_code() -> None:
    truth, predicted = worked_example()
    scores = score(truth, None, SHIPS, predicted)
    # Ours: pad 1; dredger 2*9 / (2*9 + 5 + 1) = 0.75.
    assert scores.f1["tail"] == pytest.approx(0.875)
    # Released: the 20 tail rows alone; pad 1, dredger 18/19, and the stray "ship" adds a class with F1 0.
    assert scores.compat["tail"] == pytest.approx((1 + 18 / 19 + 0) / 3)
    assert round(scores.compat["tail"], 3) == 0.649
    # The masked form with a fixed label list, for the record.
    tail = truth >= 2
    assert sk.f1_score(truth[tail], predicted[tail], labels=[2, 3], average="macro") == pytest.approx(0.974, abs=5e-4)
    head = 2 * 95 / (2 * 95 + 5 + 1)
    assert scores.f1["head"] == pytest.approx(head)
    assert scores.f1["macro"] == pytest.approx((head + 1 + 1 + 0.75) / 4)
    assert scores.accuracy == pytest.approx(134 / 140)
    assert scores.balanced_accuracy == pytest.approx((0.95 + 1 + 1 + 0.9) / 4)
    assert scores.g_mean == pytest.approx((0.95 * 0.9) ** 0.25)
    assert scores.ece is None
    assert scores.per_class["dredger"] == {
        "precision": pytest.approx(9 / 14),
        "recall": pytest.approx(0.9),
        "f1": pytest.approx(0.75),
        "support": 10,
        "train_count": 4,
        "group": "tail",
    }


def test_rows_of_the_confusion_matrix_are_the_truth() -> None:
    matrix = confusion(np.array([0, 0, 2]), np.array([1, 0, 2]), 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Ids, Ids, int]:
    n_classes = draw(st.integers(3, 7))
    n = draw(st.integers(1, 40))
    ids = st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)
    return np.array(draw(ids)), np.array(draw(ids)), n_classes


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_agrees_with_sklearn_and_with_plain_counting(case: tuple[Ids, Ids, int]) -> None:
    truth, predicted, n_classes = case
    table = ClassTable.from_counts({f"c{i}": 100 - i for i in range(n_classes)})
    scores = score(truth, None, table, predicted)
    present = sorted(set(truth.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn warns of predictions outside the true classes, which are meant here
        assert scores.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert scores.confusion == sk.confusion_matrix(truth, predicted, labels=range(n_classes)).tolist()
    assert scores.accuracy == pytest.approx(sk.accuracy_score(truth, predicted))

    f1 = {}
    recall = {}
    for c in present:
        hit = int(((truth == c) & (predicted == c)).sum())
        f1[c] = 2 * hit / int((truth == c).sum() + (predicted == c).sum())
        recall[c] = hit / int((truth == c).sum())
    assert scores.f1["macro"] == pytest.approx(sum(f1.values()) / len(f1))
    assert scores.g_mean == pytest.approx(math.prod(recall.values()) ** (1 / len(recall)))
    for group in ("head", "middle", "tail"):
        ids = [c for c in present if table.groups[c] == group]
        expected = sum(f1[c] for c in ids) / len(ids) if ids else math.nan
        assert scores.f1[group] == pytest.approx(expected, nan_ok=True)
    assert scores.absent == [f"c{i}" for i in range(n_classes) if i not in present]
    text = json.dumps(scores.to_json(), allow_nan=False)
    assert json.dumps(Scores.from_json(json.loads(text)).to_json()) == text


def test_background_is_shown_but_counts_in_no_mean() -> None:
    table = ClassTable.from_counts({"none": 500, "a": 30, "b": 20, "c": 10}, background="none")
    truth = np.array([0, 0, 0, 0, 1, 2, 3])
    predicted = np.array([0, 0, 0, 3, 1, 2, 0])
    scores = score(truth, None, table, predicted)
    assert scores.per_class["none"]["f1"] == pytest.approx(0.75)
    assert scores.f1 == {"head": 1.0, "middle": 1.0, "tail": 0.0, "macro": pytest.approx(2 / 3)}
    assert scores.balanced_accuracy == pytest.approx(2 / 3)
    assert scores.accuracy == pytest.approx(5 / 7)


def test_a_group_without_test_samples_is_null_in_json() -> None:
    scores = score(np.array([0, 1]), None, SHIPS, np.array([0, 3]))
    assert math.isnan(scores.f1["tail"])
    assert math.isnan(scores.compat["tail"])
    assert scores.absent == ["pad", "dredger"]
    assert scores.per_class["dredger"]["precision"] is None
    assert scores.f1["macro"] == pytest.approx(0.5)
    values = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert values["f1"]["tail"] is None
    assert math.isnan(Scores.from_json(values).f1["tail"])


def test_only_background_in_the_test_set() -> None:
    table = ClassTable.from_counts({"none": 5, "a": 3}, background="none")
    scores = score(np.array([0, 0]), None, table, np.array([0, 1]))
    assert math.isnan(scores.g_mean)
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False))["balanced_accuracy"] is None


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: (0.6, 0.667], and (0.933, 1] which holds 0.95 and 1.0 together.
    top = np.array([0.61, 0.61, 1.0, 0.95])
    probabilities = np.zeros((4, 4))
    probabilities[:, 0], probabilities[:, 1] = top, 1 - top
    scores = score(np.array([0, 1, 1, 0]), probabilities, SHIPS)
    assert scores.ece == pytest.approx(0.5 * abs(0.5 - 0.61) + 0.5 * abs(0.5 - 0.975))
    assert scores.accuracy == 0.5


def test_decisions_may_differ_from_the_most_probable_class() -> None:
    probabilities = np.tile([0.6, 0.4, 0.0, 0.0], (2, 1)).astype(np.float32)
    scores = score(np.array([1, 1]), probabilities, SHIPS, np.array([1, 1]))
    assert scores.accuracy == 1.0
    assert scores.ece == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    ("truth", "probabilities", "predicted", "error", "says"),
    [
        ([0, 1], None, None, ConfigError, "Nothing to score"),
        ([], None, [], DataError, "at least one"),
        ([0, 4], None, [0, 1], DataError, "from 0 to 4"),
        ([0, 1], None, [0, -1], DataError, "predicted"),
        ([0, 1], None, [0], DataError, "one prediction"),
        ([0.5, 1.0], None, [0, 1], DataError, "class id"),
        ([0], [[0.5, 0.5]], None, DataError, "one column a class"),
        ([0], [[3.0, 1.0, 0.0, -1.0]], None, DataError, "softmax"),
        ([0], [[math.nan, 1.0, 0.0, 0.0]], None, DataError, "finite"),
    ],
)
def test_refusals(
    truth: list[float],
    probabilities: list[list[float]] | None,
    predicted: list[int] | None,
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        score(
            np.array(truth),
            None if probabilities is None else np.array(probabilities),
            SHIPS,
            None if predicted is None else np.array(predicted),
        )


def test_interval_from_the_table_of_student() -> None:
    # t(0.975, 2) = 4.302653, standard deviation 2.
    interval = summarise([70.0, 72.0, 74.0])
    half = 4.302653 * 2 / math.sqrt(3)
    assert interval == pytest.approx((72.0, 2.0, 72 - half, 72 + half, 3))
    assert summarise([70.0, 72.0, 74.0], level=0.5).high < interval.high


def test_one_run_has_no_interval() -> None:
    mean, std, low, high, n = summarise([0.5])
    assert (mean, n) == (0.5, 1)
    assert math.isnan(std)
    assert math.isnan(low)
    assert math.isnan(high)


def test_paired_difference_cancels_what_the_seeds_share() -> None:
    before, after = [0.50, 0.60, 0.70], [0.58, 0.68, 0.78]
    difference = compare(before, after)
    assert difference.mean == pytest.approx(0.08)
    assert difference.std == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(DataError, match="3 and 2"):
        compare(before, after[:2])
    with pytest.raises(DataError, match="at least one run"):
        summarise([])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        summarise([1.0], level=95)

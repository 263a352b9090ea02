from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.boxes.scenes import Scene, brute_force, scenes, small_lots
from torchgeo_debias.boxes.convert import Floats, oriented_to_horizontal
from torchgeo_debias.boxes.merge import StreamingSuppression
from torchgeo_debias.boxes.suppress import MetricName, suppress
from torchgeo_debias.errors import DataError


def tops(boxes: Floats) -> Floats:
    return boxes[:, 1] if boxes.shape[1] == 4 else oriented_to_horizontal(boxes)[:, 1]


@given(
    case=scenes(),
    cuts=st.lists(st.integers(0, 100), max_size=8),
    threshold=st.sampled_from([0.0, 0.25, 0.5]),
    metric=st.sampled_from(["iou", "ios"]),
    per_class=st.booleans(),
    lot=st.sampled_from([1, 1 << 16]),
)
def test_rows_give_what_all_at_once_gives(
    case: Scene, cuts: list[int], threshold: float, metric: MetricName, per_class: bool, lot: int
) -> None:
    # In order of arrival, since equal scores go by it; cuts anywhere, also where boxes touch them.
    arrival = np.argsort(tops(case.boxes), kind="stable")
    boxes, scores, classes = case.boxes[arrival], case.scores[arrival], case.classes[arrival]
    begins = tops(boxes)
    stream = StreamingSuppression(threshold, metric, per_class)
    kept, start = [], 0
    with small_lots(lot):
        for cut in sorted(cuts):
            stop = int(np.searchsorted(begins, cut))
            kept.append(stream.add(boxes[start:stop], scores[start:stop], classes[start:stop], frontier=cut))
            start = stop
        kept.append(stream.add(boxes[start:], scores[start:], classes[start:], frontier=50))
        kept.append(stream.finish())
    numbers = np.concatenate([part.payload for part in kept])
    assert len(set(numbers)) == len(numbers)
    assert sorted(numbers) == sorted(brute_force(Scene(boxes, scores, classes), threshold, metric, per_class))
    assert np.array_equal(np.concatenate([part.boxes for part in kept]), boxes[numbers])
    assert np.array_equal(np.concatenate([part.scores for part in kept]), scores[numbers])
    assert np.array_equal(np.concatenate([part.classes for part in kept]), classes[numbers])
    assert stream.live == 0


def test_memory_is_that_of_one_row() -> None:
    rng = np.random.default_rng(0)
    stream, live, kept, every, scores = StreamingSuppression(0.3), [], 0, [], []
    for row in range(1000):
        low = np.column_stack([rng.uniform(0, 2000, 50), rng.uniform(row * 100, row * 100 + 100, 50)])
        every.append(np.hstack([low, low + rng.uniform(20, 80, (50, 2))]))
        scores.append(rng.random(50))
        kept += len(stream.add(every[-1], scores[-1], np.zeros(50, int), frontier=row * 100 + 100).boxes)
        live.append(stream.live)
    assert max(live) < 60
    assert kept + len(stream.finish().boxes) == len(suppress(np.concatenate(every), np.concatenate(scores), None, 0.3))


def test_a_box_comes_out_as_soon_as_its_fate_is_certain() -> None:
    stream = StreamingSuppression(0.3)
    boxes = [[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18], [50, 0, 60, 10]]
    # 0 hangs on 1, and 1 on 2, which reaches the frontier; 3 stands alone.
    assert stream.add(boxes, [1, 2, 3, 1], [0, 0, 0, 0], frontier=16).payload.tolist() == [3]
    assert stream.live == 3
    # 4 is stronger than 2 and takes it, so 1 stays and takes 0.
    assert stream.add([[0, 16, 10, 17]], [0.5], [0], frontier=18).payload.tolist() == [0, 2, 4]
    assert stream.live == 0


def test_a_late_box_turns_a_chain_round() -> None:
    stream = StreamingSuppression(0.3)
    stream.add([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]], [1, 2, 3], [0, 0, 0], frontier=12)
    assert stream.add([[0, 12, 10, 22]], [4], [0], frontier=30).payload.tolist() == [1, 3]


def test_the_payload_goes_along() -> None:
    stream = StreamingSuppression()
    names: npt.NDArray[np.str_] = np.array([["a", "b"], ["c", "d"]])
    first = stream.add([[0, 0, 1, 1], [0, 0, 9, 9]], [1, 1], [0, 0], frontier=5, payload=names)
    assert (first.payload.tolist(), stream.finish().payload.tolist()) == ([["a", "b"]], [["c", "d"]])


def test_nothing_at_all() -> None:
    assert len(StreamingSuppression().finish().boxes) == 0


def test_refusals() -> None:
    stream = StreamingSuppression()
    stream.add([[0, 0, 1, 1]], [1], [0], frontier=10)
    with pytest.raises(ValueError, match="above the frontier"):
        stream.add([[0, 9, 1, 12]], [1], [0], frontier=20)
    with pytest.raises(ValueError, match="payload"):
        stream.add([[0, 10, 1, 12]], [1], [0], frontier=20, payload=np.zeros(2))
    with pytest.raises(DataError, match="NaN"):
        stream.add([[0, 10, 1, 12]], [np.nan], [0], frontier=20)


def test_a_turned_box_may_begin_at_the_frontier_but_for_rounding() -> None:
    reach = 5 * np.sqrt(2)
    stream = StreamingSuppression(threshold=0)
    stream.add([[0, 100 - reach, 10, 10, 45]], [1], [0], frontier=100)
    assert stream.live == 1
    assert len(stream.add([[0, 100 + reach - 1e-9, 10, 10, 45]], [2], [0], frontier=200).boxes) == 2

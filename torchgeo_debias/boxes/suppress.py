"""Greedy non-maximum suppression of any number of boxes, exact, in memory of the order of the boxes."""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.candidates import BLOCK, Indices, Sweep
from torchgeo_debias.boxes.convert import Floats, checked, oriented_to_horizontal
from torchgeo_debias.boxes.overlap import METRICS, area
from torchgeo_debias.errors import ConfigError, DataError

Mask = npt.NDArray[np.bool_]
MetricName = Literal["iou", "ios"]


class Rule(NamedTuple):
    """When a box suppresses a weaker one.

    Attributes:
        threshold: It does where their overlap is above this, 0 to 1.
        metric: How overlap is measured: intersection over union, or over the smaller box.
    """

    threshold: float
    metric: MetricName

    @classmethod
    def of(cls, threshold: float, metric: MetricName) -> Rule:
        """The rule.

        Raises:
            ConfigError: A threshold outside 0 to 1, or an unknown metric.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"the overlap threshold is {threshold}: give a number from 0 to 1")
        if metric not in METRICS:
            raise ConfigError(f"no overlap metric is called {metric!r}: give one of {', '.join(METRICS)}")
        return cls(threshold, metric)


class Fates(NamedTuple):
    """What becomes of boxes in falling rank; a box of neither kind is kept for good.

    Attributes:
        suppressed: (N,) a stronger box that is kept for good overlaps it.
        waiting: (N,) its fate hangs on boxes not yet seen: not suppressed, and either unsettled itself or overlapped by
            a stronger one that waits.
    """

    suppressed: Mask
    waiting: Mask


def suppress(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    classes: npt.ArrayLike | None = None,
    threshold: float = 0.5,
    metric: MetricName = "iou",
) -> Indices:
    """Keep the strongest of boxes that overlap.

    Boxes are visited by falling score, equal scores by index. One that no kept box overlaps by more than ``threshold``
    is kept. A box without area overlaps nothing, so it is kept.

    Args:
        boxes: Horizontal (N, 4) or oriented (N, 5), any frame.
        scores: (N,), higher is stronger.
        classes: (N,) class ids; boxes of different classes do not suppress each other. None: all do.
        threshold: Overlap above which the weaker box goes, 0 to 1.
        metric: ``"iou"`` or ``"ios"`` (intersection over the smaller box).

    Returns:
        Indices of the kept boxes in the order of the visit, int64.

    Raises:
        DataError: Boxes, scores or classes that do not fit each other, or are not numbers.
        ConfigError: See `Rule.of`.
    """
    rule = Rule.of(threshold, metric)
    rows = checked(boxes)
    order = ranked(checked_scores(scores, len(rows)))
    groups = groups_of(None if classes is None else checked_classes(classes, len(rows)), len(rows))
    return order[~fates(rows[order], groups[order], rule).suppressed]


def checked_scores(scores: npt.ArrayLike, count: int) -> Floats:
    """Scores (count,) as float64.

    Raises:
        DataError: Another number of them, or NaN among them.
    """
    values = _one_each(np.asarray(scores, np.float64), count, "score")
    if np.isnan(values).any():
        raise DataError(f"the score of box {int(np.isnan(values).argmax())} is NaN: leave out boxes without a score")
    return values


def checked_classes(classes: npt.ArrayLike, count: int) -> Indices:
    """Class ids (count,) as int64.

    Raises:
        DataError: Another number of them.
    """
    return _one_each(np.asarray(classes, np.int64), count, "class")


def groups_of(classes: Indices | None, count: int) -> Indices:
    """Numbers (count,) from 0 that are equal where the classes are; all 0 without classes."""
    if classes is None:
        return np.zeros(count, np.int64)
    return np.unique(classes, return_inverse=True)[1].astype(np.int64, copy=False)


def _one_each(values: npt.NDArray[Any], count: int, what: str) -> npt.NDArray[Any]:
    if values.shape != (count,):
        raise DataError(f"there are {count} boxes and a {what} array of shape {values.shape}: give one for each box")
    return values


def ranked(scores: Floats) -> Indices:
    """Indices by falling score, equal scores by index."""
    return np.argsort(-scores, kind="stable")


def fates(boxes: Floats, groups: Indices, rule: Rule, unsettled: Mask | None = None) -> Fates:
    """Decide boxes in falling rank.

    The strongest of them are settled among themselves, then what they suppress leaves, then the strongest of the rest,
    and so on. A lot is as large as its pairs allow: all at once where boxes are sparse, small where they crowd, so that
    neither pairs nor suppressed boxes pile up.

    Args:
        boxes: (N, 4) or (N, 5) with areas or without, the strongest first.
        groups: (N,) from 0; see `groups_of`.
        rule: When a box suppresses a weaker one.
        unsettled: (N,) boxes that others, not yet seen, may still suppress; none where left out.

    Returns:
        The fates in the same order.
    """
    count = len(boxes)
    suppressed = np.zeros(count, np.bool_)
    waiting = np.zeros(count, np.bool_)
    left = np.flatnonzero(area(boxes) > 0)
    if not len(left):
        return Fates(suppressed, waiting)
    if unsettled is not None:
        waiting[left] = unsettled[left]
    sweep = Sweep(_upright(boxes), groups, left)
    limit = 4 * max(count, BLOCK)
    size = count
    while len(left):
        head, size = _head(sweep, left, count, size, limit)
        edges = [_overlapping(boxes, rule, *pair) for pair in head.pairs(head)]
        _settle(edges, suppressed, waiting)
        lot, left = left[:size], left[size:]
        if len(left):
            strong = head.only(_mask(lot[~suppressed[lot]], count))
            sweep = sweep.only(_mask(left, count))
            for pair in chain(strong.pairs(sweep), sweep.pairs(strong)):
                stronger, weaker = _overlapping(boxes, rule, *pair)
                waits = waiting[stronger]
                waiting[weaker[waits]] = True
                suppressed[weaker[~waits]] = True
            left = left[~suppressed[left]]
            sweep = sweep.only(~suppressed)
        size *= 2
    return Fates(suppressed, waiting & ~suppressed)


def _upright(boxes: Floats) -> Floats:
    """Horizontal boxes (N, 4) around the given ones, of which rounding leaves nothing out."""
    if boxes.shape[1] == 4:
        return boxes
    around = oriented_to_horizontal(boxes)
    margin: Floats = 8 * np.spacing(np.maximum(np.abs(around[:, :2]), np.abs(around[:, 2:])))
    return np.concatenate([around[:, :2] - margin, around[:, 2:] + margin], axis=1)


def _head(sweep: Sweep, left: Indices, count: int, size: int, limit: int) -> tuple[Sweep, int]:
    """The strongest boxes left, ``size`` of them or fewer: so many that they have no more than ``limit`` pairs."""
    size = min(size, len(left))
    while True:
        head = sweep if size == len(left) else sweep.only(_mask(left[:size], count))
        if size == 1 or head.count() <= limit:
            return head, size
        size //= 2


def _overlapping(boxes: Floats, rule: Rule, one: Indices, other: Indices) -> tuple[Indices, Indices]:
    """Those of the pairs that overlap too much: their stronger and their weaker boxes."""
    # Always the weaker against the stronger: an oriented overlap hangs, in its last digit, on which is which.
    stronger, weaker = np.minimum(one, other), np.maximum(one, other)
    over = METRICS[rule.metric](boxes[stronger], boxes[weaker]) > rule.threshold
    return stronger[over], weaker[over]


def _settle(edges: list[tuple[Indices, Indices]], suppressed: Mask, waiting: Mask) -> None:
    """Visit pairs by falling rank of the stronger box and mark the weaker one; both masks are changed in place."""
    stronger = np.concatenate([np.zeros(0, np.int64), *(pair[0] for pair in edges)])
    weaker = np.concatenate([np.zeros(0, np.int64), *(pair[1] for pair in edges)])
    order = np.argsort(stronger)
    gone, late = suppressed.data, waiting.data
    for start in range(0, len(order), BLOCK):
        some = order[start : start + BLOCK]
        for one, other in zip(stronger[some].tolist(), weaker[some].tolist(), strict=True):
            if not gone[one]:
                (late if late[one] else gone)[other] = True


def _mask(chosen: Indices, count: int) -> Mask:
    mask = np.zeros(count, np.bool_)
    mask[chosen] = True
    return mask

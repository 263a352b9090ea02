"""Suppression across tiles: boxes come tile row by tile row, and leave memory once nothing can change their fate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.candidates import Indices
from torchgeo_debias.boxes.convert import Floats, checked, oriented_to_horizontal
from torchgeo_debias.boxes.suppress import MetricName, Rule, checked_classes, checked_scores, fates, groups_of, ranked

EDGE = 1e-6
"""Pixels; corners of turned boxes are not known more exactly than this."""


class Detections(NamedTuple):
    """Boxes with what is known of them.

    Attributes:
        boxes: (N, 4) or (N, 5) float64, pixel frame.
        scores: (N,) float64.
        classes: (N,) class ids, int64.
        payload: (N, ...) what the caller gave along with them; their running numbers, int64, where it gave nothing.
    """

    boxes: Floats
    scores: Floats
    classes: Indices
    payload: npt.NDArray[Any]


class StreamingSuppression:
    """`suppress` over boxes that arrive from the top of a raster to its bottom.

    All boxes kept by `add` and `finish` together are those that `suppress` keeps of all boxes at once, in whatever
    portions they arrive. Equal scores go by order of arrival.

    A box that ends above the frontier meets no further box. It is kept as soon as no stronger box that overlaps it can
    be kept any more, and takes those it suppresses along. What stays in memory is what the frontier cuts, and chains of
    overlaps that hang on it.
    """

    def __init__(self, threshold: float = 0.5, metric: MetricName = "iou", per_class: bool = True) -> None:
        """Start without boxes.

        Args:
            threshold: Overlap above which the weaker box goes, 0 to 1.
            metric: ``"iou"`` or ``"ios"``.
            per_class: Whether boxes of different classes leave each other alone.

        Raises:
            ConfigError: See `suppress.Rule.of`.
        """
        self._rule = Rule.of(threshold, metric)
        self._per_class = per_class
        self._live: Detections | None = None
        self._seen = 0
        self._frontier = -np.inf

    @property
    def live(self) -> int:
        """How many boxes are in memory."""
        return 0 if self._live is None else len(self._live.boxes)

    def add(
        self,
        boxes: npt.ArrayLike,
        scores: npt.ArrayLike,
        classes: npt.ArrayLike,
        frontier: float,
        payload: npt.NDArray[Any] | None = None,
    ) -> Detections:
        """Take the boxes of a row of tiles.

        Args:
            boxes: Horizontal (N, 4) or oriented (N, 5), pixel frame of the whole raster; the same form every time.
            scores: (N,).
            classes: (N,) integer class ids.
            frontier: Row, pixel frame, above which no further box begins: the top of the next row of tiles, less what
                boxes may stick out of their tile.
            payload: (N, ...) anything to carry along; the same type and trailing shape every time.

        Returns:
            The boxes that are now kept for good, in order of arrival.

        Raises:
            DataError: See `suppress.suppress`.
            ValueError: A box begins above the frontier of an earlier call, or its form or payload does not fit.
        """
        rows = checked(boxes)
        count = len(rows)
        if payload is None:
            payload = np.arange(self._seen, self._seen + count)
        if len(payload) != count:
            raise ValueError(f"a payload of {len(payload)} rows for {count} boxes")
        new = Detections(rows, checked_scores(scores, count), checked_classes(classes, count), payload)
        tops = _rows_of(rows)[0]
        if count and tops.min() < self._frontier:
            raise ValueError(f"a box begins at row {tops.min()}, above the frontier {self._frontier} given before")
        self._seen += count
        self._frontier = max(self._frontier, frontier)
        if self._live is not None:
            new = Detections(*(np.concatenate(pair) for pair in zip(self._live, new, strict=True)))
        return self._settle(new)

    def finish(self) -> Detections:
        """Say that no further box comes.

        Returns:
            The boxes that were still waiting and are kept, in order of arrival.
        """
        self._frontier = np.inf
        if self._live is None:
            return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
        return self._settle(self._live)

    def _settle(self, found: Detections) -> Detections:
        """Part ``found``, in order of arrival, into what is kept, what stays live and what goes."""
        order = ranked(found.scores)
        groups = groups_of(found.classes if self._per_class else None, len(order))
        unsettled = _rows_of(found.boxes)[1] > self._frontier
        fate = fates(found.boxes[order], groups[order], self._rule, unsettled[order])
        self._live = _taken(found, np.sort(order[fate.waiting]))
        return _taken(found, np.sort(order[~(fate.waiting | fate.suppressed)]))


def _rows_of(boxes: Floats) -> tuple[Floats, Floats]:
    """Rows (N,) where boxes begin and end, or, with turned ones, begin at the latest and end at the latest."""
    if boxes.shape[1] == 4:
        return boxes[:, 1], boxes[:, 3]
    upright = oriented_to_horizontal(boxes)
    # One box may begin this much above the frontier unnoticed, so another must end that much further above it.
    return upright[:, 1] + EDGE, upright[:, 3] + 2 * EDGE


def _taken(found: Detections, chosen: Indices) -> Detections:
    return Detections(found.boxes[chosen], found.scores[chosen], found.classes[chosen], found.payload[chosen])

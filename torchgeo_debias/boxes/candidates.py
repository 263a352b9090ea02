"""Which boxes may overlap which: a sweep over strips of equal height, in memory of the order of the boxes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.convert import Floats

Indices = npt.NDArray[np.int64]

BLOCK = 1 << 16
"""Pairs looked at together: what they need fits the processor's cache."""


class Sweep:
    """Boxes cut by horizontal strips as high as the mean box, and within each strip ordered by their left edge.

    Two boxes that overlap share the strip in which the lower of their tops lies, and there the one of them that begins
    further left reaches past the left edge of the other. So the partners of a box are a run of the order in each of its
    strips, found by bisection. All strips together hold at most three entries for each box, whatever the sizes.

    A `Sweep` is made once; `only` cuts it down to some of its boxes without ordering anything again.
    """

    def __init__(self, boxes: Floats, groups: Indices, which: Indices) -> None:
        """Sort boxes into strips.

        Args:
            boxes: Horizontal boxes (N, 4), any frame.
            groups: (N,) from 0; boxes of different groups are never paired.
            which: Indices of the boxes to take, each with an area.
        """
        self._boxes = boxes
        by_left = np.argsort(boxes[:, 0], kind="stable")
        place = np.empty(len(boxes), np.int64)
        place[by_left] = np.arange(len(boxes))
        # How many left edges lie within a box: from its place in the order, that many follow it.
        self._span = np.searchsorted(boxes[by_left, 0], boxes[:, 2]) - place
        top, bottom = boxes[which, 1], boxes[which, 3]
        strips = 4 * len(which)
        height = max(float((bottom - top).mean()), float(np.ptp(boxes[which, 1:4:2])) / strips)
        first = np.floor((top - top.min()) / height).astype(np.int64)
        times = np.floor((bottom - top.min()) / height).astype(np.int64) - first + 1
        start = np.cumsum(times) - times
        entry = np.repeat(np.arange(len(which)), times)
        step = np.arange(len(entry)) - start[entry]
        owner = which[entry]
        keys = (groups[owner] * (strips + 1) + first[entry] + step) * len(boxes) + place[owner]
        order = np.argsort(keys)
        self._keys, self._owner, self._begins = keys[order], owner[order], step[order] == 0

    def only(self, chosen: npt.NDArray[np.bool_]) -> Sweep:
        """The same sweep over those of its boxes for which ``chosen`` (N,) holds."""
        part = object.__new__(Sweep)
        stay = chosen[self._owner]
        part._boxes, part._span = self._boxes, self._span
        part._keys, part._owner, part._begins = self._keys[stay], self._owner[stay], self._begins[stay]
        return part

    def count(self) -> int:
        """How many pairs `pairs` looks at within this sweep, at the price of a bisection."""
        begin, end = self._runs(self)
        return int((end - begin).sum())

    def pairs(self, other: Sweep) -> Iterator[tuple[Indices, Indices]]:
        """Pairs whose upright boxes overlap: one box of this sweep, one of ``other`` that begins further right.

        ``sweep.pairs(sweep)`` gives each pair once; ``one.pairs(other)`` and ``other.pairs(one)`` together give each
        pair between two sweeps without a common box once. Both must be parts of the same sweep.

        Yields:
            Two arrays of box indices, about `BLOCK` pairs at a time.
        """
        begin, end = self._runs(other)
        busy = np.flatnonzero(end > begin)
        begin, count = begin[busy], (end - begin)[busy]
        total = np.cumsum(count)
        cuts = np.searchsorted(total, np.arange(BLOCK, total[-1] if len(total) else 0, BLOCK))
        for start, stop in pairwise([0, *cuts.tolist(), len(busy)]):
            many = count[start:stop]
            ours = np.repeat(busy[start:stop], many)
            theirs = np.arange(len(ours)) + np.repeat(begin[start:stop] - (np.cumsum(many) - many), many)
            # A pair that shares several strips counts where the lower of the two tops lies.
            once = self._begins[ours] | other._begins[theirs]
            left, right = self._owner[ours[once]], other._owner[theirs[once]]
            tops, bottoms = self._boxes[:, 1], self._boxes[:, 3]
            meet = (tops[left] < bottoms[right]) & (tops[right] < bottoms[left])
            yield left[meet], right[meet]

    def _runs(self, other: Sweep) -> tuple[Indices, Indices]:
        """Where, in the order of ``other``, lie the boxes of the same strip that begin within each entry's box."""
        begin = np.searchsorted(other._keys, self._keys, side="right")
        end = np.searchsorted(other._keys, self._keys + self._span[self._owner])
        return begin, end

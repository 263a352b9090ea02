"""Assignment of rows to columns at least cost, with a lower bound on how many rows a column receives."""

from __future__ import annotations

import itertools
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError


def assign_at_least(cost: npt.NDArray[np.floating], least: int) -> npt.NDArray[np.int64]:
    """Assign rows to columns at least cost so that every column receives at least ``least`` rows.

    Every row starts in its cheapest column; then each column that is short receives, one row at a time, what comes
    cheapest from a column with rows to spare, directly or handed on through others (successive shortest paths in
    the graph of columns; Ahuja, Magnanti and Orlin 1993, section 9.7). The cost is optimal up to rounding, and the
    number of steps is the number of missing rows whatever the costs are: equal features make no difference. A step
    takes about K² operations, and none that grows with N, once the rows are sorted.

    Args:
        cost: (N, K), ``N >= K * least``.
        least: Rows that each column must receive.

    Returns:
        (N,) column of each row.

    Raises:
        ConfigError: If there are too few rows.
    """
    rows, columns = cost.shape
    if rows < columns * least:
        raise ConfigError(f"{rows} features cannot fill {columns} clusters with at least {least} each.")
    price = np.asarray(cost, dtype=np.float64)
    choice: npt.NDArray[np.int64] = price.argmin(axis=1)
    size = np.bincount(choice, minlength=columns)
    missing = int(np.maximum(least - size, 0).sum())
    if missing == 0:
        return choice
    offers = _Offers(price, choice, missing)
    tolerance = 1e-12 * float(np.ptp(price))
    while (short := np.flatnonzero(size < least)).size:
        path = _cheapest_path(offers.gap, size > least, int(short[0]), tolerance)
        offers.move([(int(offers.row[giver, taker]), taker) for giver, taker in itertools.pairwise(path)])
        size[path[0]] -= 1
        size[path[-1]] += 1
    return choice


class _Offers:
    """For each pair of columns the row that is cheapest to move from one to the other, of equal ones the first.

    The rows that a column had at first are sorted once for each pair; those that it receives later wait in a heap.
    Rows that have left are passed over when they come to the front.

    Attributes:
        gap: (K, K), what moving a row from one column to another costs at least; infinite for an empty column.
        row: (K, K), that row.
    """

    def __init__(self, price: npt.NDArray[np.float64], choice: npt.NDArray[np.int64], missing: int) -> None:
        columns = price.shape[1]
        self._price, self._choice = price, choice
        self.gap = np.full((columns, columns), np.inf)
        self.row = np.zeros((columns, columns), dtype=np.int64)
        self._sorted: list[list[npt.NDArray[np.int64]]] = []  # of each pair, those that can come to the front
        self._next = np.zeros((columns, columns), dtype=np.int64)
        self._late: list[list[list[tuple[float, int]]]] = [[[] for _ in range(columns)] for _ in range(columns)]
        for column in range(columns):
            members = np.flatnonzero(choice == column)
            extra = price[members] - price[members, column][:, None]
            # A column gives at most one of its rows a step.
            self._sorted.append([members[_smallest(values, missing + 1)] for values in extra.T])
            for other in range(columns):
                self._look(column, other)

    def move(self, moves: list[tuple[int, int]]) -> None:
        """Move rows, each to its column, all at once."""
        left = [int(self._choice[row]) for row, _ in moves]
        for row, taker in moves:
            self._choice[row] = taker
        for row, taker in moves:
            extra = self._price[row] - self._price[row, taker]
            for other, value in enumerate(extra.tolist()):
                heappush(self._late[taker][other], (value, row))
            first = (extra < self.gap[taker]) | ((extra == self.gap[taker]) & (row < self.row[taker]))
            self.gap[taker, first], self.row[taker, first] = extra[first], row
        for giver in left:
            for other in np.flatnonzero(self._choice[self.row[giver]] != giver).tolist():
                self._look(giver, other)

    def _look(self, column: int, other: int) -> None:
        choice, price, own, late = self._choice, self._price, self._sorted[column][other], self._late[column][other]
        at = self._next[column, other]
        while at < len(own) and choice[own[at]] != column:
            at += 1
        self._next[column, other] = at
        while late and choice[late[0][1]] != column:
            heappop(late)
        found = late[:1]
        if at < len(own):
            row = int(own[at])
            found = [*found, (float(price[row, other] - price[row, column]), row)]
        self.gap[column, other], self.row[column, other] = min(found, default=(np.inf, 0))


def _smallest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Indices of at least ``count`` of the smallest values (N,), in rising order, the first of equal ones first."""
    if count >= len(values):
        return values.argsort(kind="stable")
    near = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return near[values[near].argsort(kind="stable")]


def _cheapest_path(
    gap: npt.NDArray[np.float64], spare: npt.NDArray[np.bool_], target: int, tolerance: float
) -> list[int]:
    """Columns from one with rows to spare to ``target``, by Bellman and Ford: handing on may also lower the cost."""
    far = np.where(spare, 0.0, np.inf)
    source = np.full(len(far), -1)
    while True:
        through = far[:, None] + gap
        nearest = through.argmin(axis=0)
        reach = through.min(axis=0)
        # Rounding must not make a circle look like a gain.
        closer = (reach < far - tolerance) | (np.isinf(far) & np.isfinite(reach))
        if not closer.any():
            break
        far[closer], source[closer] = reach[closer], nearest[closer]
    path = [target]
    while source[path[-1]] >= 0:
        path.append(int(source[path[-1]]))
    return path[::-1]

from __future__ import annotations

import numpy as np
import pytest

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.evaluation.metrics import Scores, score

# Names as people write them: markup, mathematics, spaces; and one class that no test sample has.
COUNTS = {"ship": 900, "<b>bold</b>": 80, "a $x_1$ & $y": 60, "plane": 9, "storage tank": 4, "unseen": 2}


@pytest.fixture(scope="session")
def table() -> ClassTable:
    return ClassTable.from_counts(COUNTS)


@pytest.fixture(scope="session")
def labels() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.repeat(np.arange(5, dtype=np.int64), 10)


@pytest.fixture(scope="session")
def before(table: ClassTable, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Scores:
    predicted = labels.copy()
    predicted[-8:] = 0
    return score(labels, None, table, predicted)


@pytest.fixture(scope="session")
def after(table: ClassTable, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Scores:
    predicted = labels.copy()
    predicted[-2:] = 0
    return score(labels, None, table, predicted)

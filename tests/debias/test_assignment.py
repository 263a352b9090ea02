from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from torchgeo_debias.debias.assignment import assign_at_least
from torchgeo_debias.errors import ConfigError


def optimum(cost: npt.NDArray[np.float64], least: int) -> float:
    """Cost of the best assignment, as a square problem: ``least`` seats a column, the other rows sit anywhere."""
    rows, columns = cost.shape
    anywhere = np.repeat(cost.min(axis=1, keepdims=True), rows - columns * least, axis=1)
    seats = np.concatenate([np.repeat(cost, least, axis=1), anywhere], axis=1)
    return float(seats[linear_sum_assignment(seats)].sum())


@settings(deadline=None, max_examples=150)
@given(
    columns=st.integers(1, 6),
    least=st.integers(0, 5),
    spare=st.integers(0, 15),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["real", "integer", "duplicates", "huge and tiny", "zero"]),
)
def test_assignment_is_the_cheapest_that_fills_every_column(
    columns: int, least: int, spare: int, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    rows = max(1, columns * least + spare)
    cost = {
        "real": rng.random((rows, columns)),
        "integer": rng.integers(0, 3, (rows, columns)).astype(float),
        "duplicates": rng.random((3, columns))[rng.integers(0, 3, rows)],
        "huge and tiny": rng.random((rows, columns)) * 10.0 ** rng.integers(-12, 12, (1, columns)),
        "zero": np.zeros((rows, columns)),
    }[kind]
    choice = assign_at_least(cost, least)
    assert np.bincount(choice, minlength=columns).min() >= least
    assert cost[np.arange(rows), choice].sum() == pytest.approx(optimum(cost, least), rel=1e-9, abs=1e-9 * cost.max())


def test_assignment_refuses_too_few_rows() -> None:
    with pytest.raises(ConfigError, match="3 features cannot fill 2 clusters with at least 2 each"):
        assign_at_least(np.zeros((3, 2)), 2)


def test_assignment_leaves_its_input_alone() -> None:
    cost = np.random.default_rng(0).random((20, 4))
    before = cost.copy()
    assign_at_least(cost, 5)
    assert np.array_equal(cost, before)


def test_features_whose_squares_overflow_float32_come_to_an_end() -> None:
    z = np.repeat(np.array([[0, 0], [1, 0]], dtype=np.float32) * 1e22, [60, 40], axis=0)
    cost = np.abs(z[:, :1].astype(np.float64) - [[0, 0, 0, 1e22]]) ** 2
    assert np.bincount(assign_at_least(cost, 25)).tolist() == [25, 25, 25, 25]


def test_many_missing_rows_are_handed_on_at_least_cost() -> None:
    # Columns on a line and nearly all rows at its start: rows reach the far columns through those between.
    rng = np.random.default_rng(0)
    cost = np.square(rng.exponential(0.5, 300)[:, None] - np.arange(6))
    choice = assign_at_least(cost, 40)
    assert np.bincount(choice, minlength=6).min() >= 40
    assert cost[np.arange(300), choice].sum() == pytest.approx(optimum(cost, 40), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**16), least=st.integers(1, 6))
def test_the_order_of_rows_and_columns_does_not_change_the_assignment(seed: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.random((30, 5))
    rows, columns = rng.permutation(30), rng.permutation(5)
    shuffled = assign_at_least(cost[rows][:, columns], least)
    assert np.array_equal(columns[shuffled], assign_at_least(cost, least)[rows])

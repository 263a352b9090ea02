"""Which prediction answers for a reference feature, against a search through all pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import rotate

from torchgeo_debias.evaluation.feature_matching import REACH, _pieces, candidates

SIDES = st.integers(0, 6)


@st.composite
def shapes(draw: st.DrawFn, most: int) -> Any:
    """Upright boxes on a coarse grid, so that equal areas and touching edges are common, and points among them."""
    made: list[Any] = []
    for _ in range(draw(st.integers(1, most))):
        x, y = draw(SIDES), draw(SIDES)
        if draw(st.integers(0, 3)):
            made.append(shapely.box(x, y, x + draw(st.integers(1, 4)), y + draw(st.integers(1, 4))))
        else:
            made.append(shapely.Point(x + 0.5, y + 0.5))
    return np.array(made, object)


def best(reference: Any, predictions: Any, scores: Any, usable: Any) -> list[int]:
    """The rule as people read it, pair by pair."""
    found = []
    for shape in reference:
        ranked = []
        for i, other in enumerate(predictions):
            areal = shape.geom_type == "Polygon"
            shared = shape.intersection(other).area
            both = areal and other.geom_type == "Polygon"
            if not usable[i] or not shape.intersects(other) or (both and shared == 0):
                continue
            score = scores[i] if math.isfinite(scores[i]) else -math.inf
            ranked.append((-shared if areal else other.area, -score, i))
        found.append(min(ranked)[2] if ranked else -1)
    return found


@given(st.data())
def test_each_feature_takes_what_the_rule_says(data: st.DataObject) -> None:
    reference, predictions = data.draw(shapes(5)), data.draw(shapes(8))
    n = len(predictions)
    scores = np.array(data.draw(st.lists(st.sampled_from([0.2, 0.5, 0.9, np.nan]), min_size=n, max_size=n)))
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    found = candidates(reference, predictions).best(scores, usable, len(reference))
    assert found.tolist() == best(reference, predictions, scores, usable)


def test_turned_shapes_are_compared_by_their_shared_area() -> None:
    turned = rotate(shapely.box(0, 0, 10, 4), 30)
    left, right = shapely.box(-10, -10, 4, 20), shapely.box(4, -10, 20, 20)
    assert turned.intersection(right).area > turned.intersection(left).area > 0
    pairs = candidates(np.array([turned]), np.array([left, right, shapely.box(30, 30, 40, 40)]))
    assert pairs.best(np.array([0.9, 0.1, 1.0]), np.ones(3, bool), 1).tolist() == [1]
    assert sorted(-pairs.rank) == [round(turned.intersection(one).area / 40, 9) for one in (left, right)]


def test_points_that_rounding_moved_are_one() -> None:
    points = shapely.points([[0.0, 0.0], [10.0, 0.0]])
    moved = shapely.points([[0.0, REACH / 2], [0.0, REACH / 4], [10.0, 2 * REACH]])
    assert candidates(points, moved).best(np.array([0.9, 0.1, 0.9]), np.ones(3, bool), 2).tolist() == [1, -1]


def test_large_polygons_are_cut_and_share_what_they_share() -> None:
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    reach = rng.uniform(30, 40, 5000)
    star = shapely.Polygon(np.column_stack([reach * np.cos(turn), reach * np.sin(turn)]))
    assert star.is_valid
    pieces, owners = _pieces(np.array([shapely.box(0, 0, 1, 1), star, shapely.Point(3, 4)]))
    assert shapely.get_num_coordinates(pieces).max() <= 256
    assert np.bincount(owners, shapely.area(pieces)).tolist() == [1.0, pytest.approx(star.area), 0.0]
    corner = rng.uniform(-40, 35, (300, 2))
    boxes = np.asarray(shapely.box(*corner.T, *(corner + 5).T))
    shared = shapely.area(shapely.intersection(boxes, star))
    for pairs, size, places in (
        (candidates(boxes, np.array([star])), 25.0, 0),
        (candidates(np.array([star]), boxes), star.area, 1),
    ):
        found = np.zeros(300)
        found[pairs[places]] = -pairs.rank * size
        np.testing.assert_allclose(found, shared, atol=1e-5)

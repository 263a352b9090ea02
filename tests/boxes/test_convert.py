from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given

from tests.boxes.scenes import Scene, scenes
from torchgeo_debias.boxes.convert import (
    Floats,
    canonical,
    corners_to_oriented,
    horizontal_to_oriented,
    oriented_to_horizontal,
    polygons_to_oriented,
    to_corners,
    to_polygons,
    transformed,
)
from torchgeo_debias.errors import DataError


def oriented(case: Scene) -> Floats:
    return case.boxes if case.boxes.shape[1] == 5 else horizontal_to_oriented(case.boxes)


def assert_same_rectangles(some: Floats, others: Floats, within: float = 1e-6) -> None:
    """By their corners in any order: numbers near the ends of the angle's range jump, and so do those of squares."""
    gaps = np.linalg.norm(to_corners(some)[:, :, None] - to_corners(others)[:, None], axis=-1)
    assert (gaps.min(axis=1) < within).all()
    assert (gaps.min(axis=2) < within).all()


@given(case=scenes())
def test_canonical_is_the_same_rectangle_in_one_form(case: Scene) -> None:
    boxes = oriented(case)
    rows = canonical(boxes)
    assert_same_rectangles(rows, boxes)
    assert (rows[:, 2] >= rows[:, 3]).all()
    assert ((rows[:, 4] >= 0) & (rows[:, 4] < 180)).all()
    assert (rows[rows[:, 2] == rows[:, 3], 4] < 90).all()
    assert np.array_equal(canonical(rows), rows)


def test_canonical_at_the_ends_of_the_range() -> None:
    rows = canonical(np.array([[0, 0, 2, 1, -1e-20], [0, 0, 2, 1, 180], [0, 0, 1, 2, 90], [0, 0, 1, 1, 90.0]]))
    assert rows[:, 4].tolist() == [0, 0, 0, 0]
    assert rows[2].tolist() == [0, 0, 2, 1, 0]


def test_corners_turn_from_x_towards_y() -> None:
    assert np.allclose(to_corners(np.array([[1, 2, 4, 8.0]])), [[[1, 2], [4, 2], [4, 8], [1, 8]]])
    assert np.allclose(to_corners(np.array([[0, 0, 4, 2, 90.0]])), [[[1, -2], [1, 2], [-1, 2], [-1, -2]]])


@given(case=scenes())
def test_corners_of_a_rectangle_give_it_back(case: Scene) -> None:
    boxes = oriented(case)
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(to_corners(boxes), axis=1) if not len(boxes) else to_corners(boxes)[:, rng.permutation(4)]
    assert_same_rectangles(corners_to_oriented(shuffled), boxes)


def test_smallest_rectangle_is_that_of_shapely() -> None:
    points = np.random.default_rng(0).uniform(0, 10, (300, 4, 2))
    boxes = corners_to_oriented(points)
    expected = shapely.area(shapely.oriented_envelope(shapely.multipoints(points)))
    assert np.allclose(boxes[:, 2] * boxes[:, 3], expected)
    around = shapely.buffer(to_polygons(boxes), 1e-9)
    assert shapely.covers(around[:, None], shapely.points(points)).all()


def test_polygons_lines_and_points() -> None:
    shapes = shapely.from_wkt(
        ["POLYGON ((0 0, 4 0, 4 1, 2 3, 0 1, 0 0))", "LINESTRING (0 0, 3 3)", "POINT (2 5)",
         "MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)), ((9 0, 10 0, 10 1, 9 0)))"]
    )  # fmt: skip
    expected = [[2, 1.5, 4, 3, 0], [1.5, 1.5, np.sqrt(18), 0, 45], [2, 5, 0, 0, 0], [5, 0.5, 10, 1, 0]]
    assert np.allclose(polygons_to_oriented(shapes), expected)
    with pytest.raises(DataError, match="geometry 1 is empty"):
        polygons_to_oriented([shapes[0], shapely.Polygon()])


@given(case=scenes())
def test_upright_boxes_fit_tightly(case: Scene) -> None:
    boxes = oriented(case)
    corners = to_corners(boxes)
    expected = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    assert np.allclose(oriented_to_horizontal(boxes), expected)


NORTH_UP = Affine(0.3, 0, 5e5, 0, -0.3, 5.4e6)
SOUTH_UP = Affine(0.3, 0, 5e5, 0, 0.3, 5.4e6)


def test_an_angle_is_counter_clockwise_from_east_on_the_map() -> None:
    # A ship that points to the upper right of a north-up image: column grows, row falls.
    ship = corners_to_oriented([[[0, 100], [1, 101], [51, 51], [50, 50]]])
    assert ship[0, 4] == pytest.approx(135)  # from x towards y, which points down
    assert transformed(ship, NORTH_UP)[0] == pytest.approx(
        [5e5 + 25.5 * 0.3, 5.4e6 - 75.5 * 0.3, np.sqrt(5000) * 0.3, np.sqrt(2) * 0.3, 45], abs=1e-6
    )
    assert transformed(ship, SOUTH_UP)[0, 4] == pytest.approx(135)


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP], ids=["north-up", "south-up"])
@given(case=scenes())
def test_there_and_back(transform: Affine, case: Scene) -> None:
    back = transformed(transformed(case.boxes, transform), ~transform)
    assert_same_rectangles(back, case.boxes)


def test_pixels_that_are_not_square() -> None:
    wide = Affine(2, 0, 10, 0, -1, 20)
    assert transformed(np.array([[1, 2, 3, 5.0]]), wide).tolist() == [[12, 15, 16, 18]]
    assert np.allclose(transformed(np.array([[2, 3, 4, 2, 0.0]]), wide), [[14, 17, 8, 2, 0]])
    boxes = np.array([[2, 3, 4, 2, 30.0]])
    drawn = shapely.affinity.affine_transform(to_polygons(boxes)[0], [2, 0, 0, -1, 10, 20])
    assert_same_rectangles(transformed(boxes, wide), polygons_to_oriented([drawn]))

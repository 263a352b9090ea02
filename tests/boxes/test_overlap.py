from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given

from tests.boxes.scenes import Scene, scenes
from torchgeo_debias.boxes.convert import horizontal_to_oriented, to_polygons
from torchgeo_debias.boxes.overlap import area, intersection, ios, iou


@given(case=scenes(max_size=12))
def test_overlap_is_that_of_shapely(case: Scene) -> None:
    polygons = to_polygons(case.boxes)
    shared = shapely.area(shapely.intersection(polygons[:, None], polygons[None]))
    areas = shapely.area(polygons)
    left, right = case.boxes[:, None], case.boxes[None]
    assert np.allclose(area(case.boxes), areas, atol=1e-9)
    assert np.allclose(intersection(left, right), shared, atol=1e-9)
    solid = (area(left) > 1e-6) & (area(right) > 1e-6)
    smaller, union = np.minimum(areas[:, None], areas[None]), areas[:, None] + areas[None] - shared
    assert np.allclose(iou(left, right)[solid], shared[solid] / union[solid], atol=1e-6)
    assert np.allclose(ios(left, right)[solid], shared[solid] / smaller[solid], atol=1e-6)


@given(case=scenes())
def test_a_box_overlaps_itself_fully_and_one_without_area_nothing(case: Scene) -> None:
    expected = (area(case.boxes) > 0).astype(float)
    assert np.allclose(iou(case.boxes, case.boxes), expected, atol=1e-9)
    again = case.boxes.copy()
    if again.shape[1] == 5:  # the same rectangle, written another way
        again[:, 2:4], again[:, 4] = again[:, 3:1:-1], again[:, 4] + 90
    assert np.allclose(iou(case.boxes, again), expected, atol=1e-9)
    assert not iou(case.boxes, again)[area(case.boxes) == 0].any()


@given(case=scenes())
def test_oriented_boxes_at_right_angles_overlap_as_horizontal_ones(case: Scene) -> None:
    if case.boxes.shape[1] == 4:
        turned = horizontal_to_oriented(case.boxes)
        each = iou(turned[:, None], turned[None])
        assert np.allclose(each, iou(case.boxes[:, None], case.boxes[None]), atol=1e-9)


def test_turned_square_by_hand() -> None:
    # A square of side 2 and the same turned by 45 degrees share a regular octagon.
    octagon = 8 * (np.sqrt(2) - 1)
    square, turned = np.array([[5e6, 4e5, 2, 2, 0.0]]), np.array([[5e6, 4e5, 2, 2, 45.0]])
    assert intersection(square, turned)[0] == pytest.approx(octagon, abs=1e-12)
    assert iou(square, turned)[0] == pytest.approx(octagon / (8 - octagon))


def test_boxes_that_only_touch_or_lie_apart_share_nothing() -> None:
    box = np.array([[0, 0, 3, 2, 30.0]])
    angle = np.radians(30)
    beside = box + np.array([3 * np.cos(angle), 3 * np.sin(angle), 0, 0, 0])
    assert intersection(box, beside)[0] < 1e-12
    assert intersection(box, box + np.array([1e5, 7e4, 0, 0, 13]))[0] == 0

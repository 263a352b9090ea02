"""How much boxes overlap: exact, for pairs of horizontal or of oriented boxes.

All functions take two arrays of boxes (..., 4) or (..., 5) of one form and one frame, whose leading axes broadcast:
``iou(a, b)`` compares row by row, ``iou(a[:, None], b[None])`` each with each. A box without area overlaps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from torchgeo_debias.boxes.convert import Floats

Metric = Callable[[Floats, Floats], Floats]


def area(boxes: Floats) -> Floats:
    """Areas (...) in square units of the frame."""
    sides = boxes[..., 2:4] - boxes[..., :2] if boxes.shape[-1] == 4 else boxes[..., 2:4]
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def intersection(left: Floats, right: Floats) -> Floats:
    """Areas (...) that two boxes share."""
    if left.shape[-1] == 4:
        low = np.maximum(left[..., :2], right[..., :2])
        sides = np.maximum(np.minimum(left[..., 2:], right[..., 2:]) - low, 0.0)
        shared: Floats = sides[..., 0] * sides[..., 1]
        return shared
    return _oriented_intersection(left, right)


def iou(left: Floats, right: Floats) -> Floats:
    """Intersection over union (...), 0 to 1."""
    shared = intersection(left, right)
    return _ratio(shared, area(left) + area(right) - shared)


def ios(left: Floats, right: Floats) -> Floats:
    """Intersection over the smaller of the two boxes (...), 0 to 1: 1 where one holds the other."""
    return _ratio(intersection(left, right), np.minimum(area(left), area(right)))


METRICS: Mapping[str, Metric] = MappingProxyType({"iou": iou, "ios": ios})
"""By the name that suppression knows them by."""


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


def _oriented_intersection(left: Floats, right: Floats) -> Floats:
    """Area of ``left`` within ``right``, by Green's theorem in the frame of ``right``.

    There ``right`` is the rectangle -a..a by -b..b. A vertical line at x cuts ``left`` from some y0 to some y1, and its
    share within ``right`` is clip(y1, -b, b) - clip(y0, -b, b); summed over x in -a..a, each side of ``left`` adds the
    integral of its clipped height. Unlike clipping vertex by vertex this has no cases, and it is continuous: sides that
    coincide but for rounding, as those of duplicates do, change the area by no more than rounding.
    """
    turn, away = np.radians(left[..., 4] - right[..., 4]), np.radians(right[..., 4])
    dx, dy = left[..., 0] - right[..., 0], left[..., 1] - right[..., 1]
    cos, sin = np.cos(away), np.sin(away)
    x, y = (dx * cos + dy * sin)[..., None], (dy * cos - dx * sin)[..., None]
    cos, sin = np.cos(turn)[..., None], np.sin(turn)[..., None]
    along, across = left[..., 2:3] / 2 * np.array([-1, 1, 1, -1]), left[..., 3:4] / 2 * np.array([-1, -1, 1, 1])
    x, y = x + along * cos - across * sin, y + along * sin + across * cos
    x_step, y_step = np.roll(x, -1, axis=-1) - x, np.roll(y, -1, axis=-1) - y
    a, b = right[..., 2:3] / 2, right[..., 3:4] / 2

    # Where each side enters and leaves the strip -a..a, as a share of its way; a side along y has no part in it.
    way = np.where(x_step == 0, 1.0, x_step)
    enter, leave = np.clip((np.clip(x, -a, a) - x) / way, 0, 1), np.clip((np.clip(x + x_step, -a, a) - x) / way, 0, 1)
    ends = y + enter * y_step, y + leave * y_step
    low, high = np.minimum(*ends), np.maximum(*ends)
    rise = np.where(high > low, high - low, 1.0)
    below, above = np.clip((-b - low) / rise, 0, 1), np.clip((high - b) / rise, 0, 1)
    between = (np.clip(low, -b, b) + np.clip(high, -b, b)) / 2
    height = b * (above - below) + (1 - below - above) * between
    shared = -((leave - enter) * x_step * height).sum(axis=-1)
    # What is left of sums that cancel is no overlap.
    noise = 1e-14 * (np.abs(x).max(axis=-1) * b[..., 0] + np.abs(y).max(axis=-1) * a[..., 0])
    return np.where(shared > noise, np.minimum(shared, np.minimum(area(left), area(right))), 0.0)

"""Forms of a box: horizontal, oriented, corners, polygons; pixel frame and map frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.errors import DataError

Floats = npt.NDArray[np.float64]


def checked(boxes: npt.ArrayLike) -> Floats:
    """The boxes as float64, or one sentence on what is wrong with them.

    Args:
        boxes: Horizontal (N, 4) or oriented (N, 5), any frame.

    Returns:
        (N, 4) or (N, 5), contiguous.

    Raises:
        DataError: Of another shape, not finite, or with a negative extent.
    """
    rows = np.ascontiguousarray(boxes, np.float64)
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        raise DataError(f"boxes have the shape {rows.shape}: give (N, 4) horizontal or (N, 5) oriented ones")
    sides = rows[:, 2:4] - rows[:, :2] if rows.shape[1] == 4 else rows[:, 2:4]
    bad = ~np.isfinite(rows).all(axis=1) | (sides < 0).any(axis=1)
    if bad.any():
        form = "x0 <= x1 and y0 <= y1" if rows.shape[1] == 4 else "cx, cy, w >= 0, h >= 0, angle in degrees"
        first = int(bad.argmax())
        raise DataError(f"box {first} is {rows[first].tolist()}: give finite numbers, {form}")
    return rows


def canonical(oriented: Floats) -> Floats:
    """Each oriented box (N, 5) as its one canonical row (N, 5): see `torchgeo_debias.boxes`."""
    centre, sides, angle = oriented[:, :2], oriented[:, 2:4], oriented[:, 4]
    lying = sides[:, 0] < sides[:, 1]
    period = np.where(sides[:, 0] == sides[:, 1], 90.0, 180.0)
    turned = np.mod(angle + 90.0 * lying, period)
    # The remainder of a tiny negative angle rounds up to the period itself.
    turned[turned >= period] = 0.0
    return np.column_stack([centre, np.where(lying[:, None], sides[:, ::-1], sides), turned])


def to_corners(boxes: Floats) -> Floats:
    """Corners (N, 4, 2) of horizontal or oriented boxes, turning from x towards y; the first one is at ``-w, -h``."""
    if boxes.shape[1] == 4:
        return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    angle = np.radians(boxes[:, 4])
    axis = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    along = axis * boxes[:, 2:3] / 2
    across = np.stack([-axis[:, 1], axis[:, 0]], axis=1) * boxes[:, 3:4] / 2
    offsets = np.stack([-along - across, along - across, along + across, across - along], axis=1)
    corners: Floats = boxes[:, None, :2] + offsets
    return corners


def corners_to_oriented(corners: npt.ArrayLike) -> Floats:
    """The smallest rectangle around each four points; of the corners of a rectangle, that rectangle.

    One side of the smallest rectangle lies on a side of the convex hull (Freeman & Shapira 1975), and each side of the
    hull of four points joins two of them: the best of the six directions between them is the answer.

    Args:
        corners: (N, 4, 2) points in any order.

    Returns:
        Canonical oriented boxes (N, 5).
    """
    points = np.asarray(corners, np.float64).reshape(-1, 4, 2)
    middle = points.mean(axis=1, keepdims=True)
    near = points - middle
    one, other = np.triu_indices(4, k=1)
    axis = near[:, other] - near[:, one]
    length = np.hypot(axis[..., 0], axis[..., 1])[..., None]
    axis = np.where(length > 0, axis / np.where(length > 0, length, 1.0), [1.0, 0.0])
    across = np.stack([-axis[..., 1], axis[..., 0]], axis=-1)
    u, v = near @ axis.swapaxes(1, 2), near @ across.swapaxes(1, 2)
    width, height = np.ptp(u, axis=1), np.ptp(v, axis=1)
    rows = np.arange(len(points))
    best = (width * height).argmin(axis=1)
    axis, across = axis[rows, best], across[rows, best]
    u_mid = (u.max(axis=1) + u.min(axis=1))[rows, best, None] / 2
    v_mid = (v.max(axis=1) + v.min(axis=1))[rows, best, None] / 2
    centre = middle[:, 0] + axis * u_mid + across * v_mid
    angle = np.degrees(np.arctan2(axis[:, 1], axis[:, 0]))
    return canonical(np.column_stack([centre, width[rows, best], height[rows, best], angle]))


def horizontal_to_oriented(horizontal: Floats) -> Floats:
    """Horizontal boxes (N, 4) as canonical oriented ones (N, 5)."""
    low, high = horizontal[:, :2], horizontal[:, 2:]
    return canonical(np.column_stack([(low + high) / 2, high - low, np.zeros(len(horizontal))]))


def oriented_to_horizontal(oriented: Floats) -> Floats:
    """The upright boxes (N, 4) around oriented ones (N, 5)."""
    angle = np.radians(oriented[:, 4])
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    w, h = oriented[:, 2], oriented[:, 3]
    reach = np.stack([w * cos + h * sin, w * sin + h * cos], axis=1) / 2
    return np.concatenate([oriented[:, :2] - reach, oriented[:, :2] + reach], axis=1)


def to_polygons(boxes: Floats) -> npt.NDArray[np.object_]:
    """Shapely polygons (N,) of horizontal or oriented boxes, in the frame of the boxes."""
    return np.asarray(shapely.polygons(to_corners(boxes)), np.object_)


def polygons_to_oriented(polygons: npt.ArrayLike) -> Floats:
    """The smallest rectangle around each geometry.

    Args:
        polygons: (N,) shapely geometries, none of them empty.

    Returns:
        Canonical oriented boxes (N, 5) in the frame of the geometries; a line has ``h = 0``, a point also ``w = 0``.

    Raises:
        DataError: A geometry is missing or empty.
    """
    shapes = np.asarray(polygons, np.object_)
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    if empty.any():
        raise DataError(f"geometry {int(empty.argmax())} is empty: leave out features without a place")
    points, owner = shapely.get_coordinates(shapely.oriented_envelope(shapes), return_index=True)
    # A ring has five points and its last is its first, a line has two, a point one: take four, repeating the last.
    first = np.searchsorted(owner, np.arange(len(shapes)))
    last = np.searchsorted(owner, np.arange(len(shapes)), side="right") - 1
    return corners_to_oriented(points[np.minimum(first[:, None] + np.arange(4), last[:, None])])


def transformed(boxes: Floats, transform: Sequence[float] | Any) -> Floats:  # noqa: ANN401 (affine has no types)
    """Carry boxes into another frame: with ``grid.transform`` from pixels to the map, with ``~grid.transform`` back.

    Oriented boxes go by way of their corners. Where the pixels are not square a turned rectangle becomes a
    parallelogram; the smallest rectangle around it takes its place, and the way back does not undo that.

    Args:
        boxes: Horizontal (N, 4) or oriented (N, 5), any frame.
        transform: Affine ``a, b, c, d, e, f``: x' = a x + b y + c, y' = d x + e y + f.

    Returns:
        (N, 4) upright boxes around the carried ones, or (N, 5) canonical oriented boxes.
    """
    a, b, c, d, e, f = (float(number) for number in transform[:6])
    # The shift is added last, so that large map coordinates do not eat the digits of the sides.
    corners = to_corners(boxes) @ np.array([[a, d], [b, e]])
    shift = np.array([c, f])
    if boxes.shape[1] == 4:
        return np.concatenate([corners.min(axis=1) + shift, corners.max(axis=1) + shift], axis=1)
    oriented = corners_to_oriented(corners)
    oriented[:, :2] += shift
    return oriented

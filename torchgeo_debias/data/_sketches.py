"""Ten kinds of objects seen from above, as polygons: what each is made of, and nothing of its colour.

A sketch lives in its own frame: pixels, x to the right, y down, the origin at the centre of the object, whose
circumscribed circle has a radius of at most :data:`MAX_RADIUS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull

Points = npt.NDArray[np.float64]

MAX_RADIUS = 30.0
"""No part of an object lies farther from its centre, pixels; so every rotation fits a window of 64 pixels."""

BODY, ACCENT, TRIM, DARK = range(4)
"""Inks: a sketch says which parts differ in colour; the colours are drawn elsewhere, alike for every class."""


@dataclass(frozen=True)
class Part:
    """One polygon of a sketch.

    Attributes:
        points: (N, 2), pixels in the sketch's frame.
        ink: Which of the object's four colours.
        shade: Factor on the colour.
        slope: (x, y) of a tilted facet's horizontal normal, length 0..1; it is lit by the scene's sun.
        rise: Lower and upper end of what casts the shadow, pixels above the ground; (0, 0) casts none.
    """

    points: Points
    ink: int = BODY
    shade: float = 1.0
    slope: tuple[float, float] = (0.0, 0.0)
    rise: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Sketch:
    """An object: its parts, painted in order, and the outline an analyst would draw, (N, 2) pixels."""

    parts: tuple[Part, ...]
    outline: Points

    def scaled(self, factor: float) -> Sketch:
        """The same object, larger or smaller."""
        return Sketch(tuple(replace(p, points=p.points * factor) for p in self.parts), self.outline * factor)

    @property
    def radius(self) -> float:
        """Of the circle around the origin that holds every part and the outline, pixels."""
        return float(max(np.hypot(*p.T).max() for p in (self.outline, *(part.points for part in self.parts))))


def rect(width: float, height: float, x: float = 0.0, y: float = 0.0) -> Points:
    """A rectangle around (x, y)."""
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2) + (x, y)


def disc(radius: float, x: float = 0.0, y: float = 0.0, sides: int = 40) -> Points:
    """A regular polygon around (x, y)."""
    turn = np.arange(sides) * 2 * np.pi / sides
    return np.column_stack([np.cos(turn), np.sin(turn)]) * radius + (x, y)


def bar(start: tuple[float, float], end: tuple[float, float], width: float) -> Points:
    """A line of some width, as a rectangle."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    along = (b - a) / max(float(np.hypot(*(b - a))), 1e-9)
    side = np.array([-along[1], along[0]]) * width / 2
    return np.stack([a + side, b + side, b - side, a - side])


def rounded(width: float, height: float, corner: float, x: float = 0.0, y: float = 0.0) -> Points:
    """A rectangle around (x, y) with round corners of radius ``corner``."""
    corner = min(corner, width / 2, height / 2)
    turn = np.linspace(0, np.pi / 2, 6)
    arc = np.column_stack([np.cos(turn), np.sin(turn)]) * corner
    quarters = []
    for sx, sy, points in ((1, 1, arc), (-1, 1, arc[::-1]), (-1, -1, arc), (1, -1, arc[::-1])):
        quarters.append(points * (sx, sy) + (sx * (width / 2 - corner), sy * (height / 2 - corner)))
    ring: Points = np.concatenate(quarters) + np.array([x, y])
    return ring


def _block(rng: np.random.Generator, w: float, h: float, x: float, y: float, hipped: bool) -> list[Part]:
    """A roof over a rectangle, its ridge along x: two facets, or four where it is hipped."""
    a, b, c, d = rect(w, h, x, y)
    inset = h / 2 * rng.uniform(0.7, 1.0) if hipped else 0.0
    left, right = np.array([x - w / 2 + inset, y]), np.array([x + w / 2 - inset, y])
    facets: list[tuple[tuple[Points, ...], tuple[float, float]]]
    facets = [((a, b, right, left), (0.0, -0.8)), ((left, right, c, d), (0.0, 0.8))]
    if hipped:
        facets += [((a, left, d), (-0.8, 0.0)), ((b, c, right), (0.8, 0.0))]
    parts = [Part(rect(w, h, x, y), rise=(0, 6))]
    parts += [Part(np.stack(points), slope=slope) for points, slope in facets]
    return [*parts, Part(bar((left[0], left[1]), (right[0], right[1]), 0.9), shade=1.2)]


def house(rng: np.random.Generator) -> Sketch:
    """A gabled or hipped roof, with or without a wing, and a chimney."""
    w, h = rng.uniform(30, 46), rng.uniform(18, 28)
    hipped = bool(rng.random() < 0.4)
    parts = _block(rng, w, h, 0, 0, hipped)
    outline = rect(w, h)
    if rng.random() < 0.4:
        ww, wh = w * rng.uniform(0.3, 0.42), h * rng.uniform(0.35, 0.5)
        x, down = (w - ww) / 2, h / 2 + wh
        wing = _block(rng, h / 2 + wh, ww, h / 4 + wh / 2, 0.0, hipped)
        # The wing is a block turned by a quarter: (x, y) -> (-y, x).
        turned = [
            replace(p, points=p.points[:, ::-1] * (-1, 1) + (x, 0), slope=(-p.slope[1], p.slope[0])) for p in wing
        ]
        shift = np.array([0.0, -wh / 2])
        parts = [replace(p, points=p.points + shift) for p in (*turned, *parts)]
        outline = shift + np.array(
            [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, down), (x - ww / 2, down), (x - ww / 2, h / 2), (-w / 2, h / 2)]
        )
    parts.append(Part(rect(3, 3, w * rng.uniform(-0.3, 0.3), -h * 0.2), DARK, rise=(5, 9)))
    return Sketch(tuple(parts), outline)


def storage_tank(rng: np.random.Generator) -> Sketch:
    """A round tank: coned, domed or floating roof, a rim, a stair, rings and hatches."""
    r, tall = rng.uniform(13, 29), rng.uniform(5, 11)
    rim = rng.uniform(1.2, 2.6)
    parts = [Part(disc(r), ACCENT, rise=(0, tall)), Part(disc(r - rim))]
    kind = rng.integers(4)
    if kind == 0:  # a cone, faceted
        edge = disc(r - rim, sides=16)
        for a, b in zip(edge, np.roll(edge, -1, axis=0), strict=True):
            nx, ny = (a + b) / (2 * r)
            parts.append(Part(np.stack([a, b, np.zeros(2)]), slope=(0.6 * float(nx), 0.6 * float(ny))))
    elif kind == 1:  # a floating roof, sunk: the wall throws a crescent on it
        parts += [Part(disc(r - rim), shade=0.6), Part(disc(r - rim - 1.5, 0.8, 0.8))]
        parts.append(Part(disc(r * 0.72), TRIM))
        parts.append(Part(disc(r * 0.72 - 1.2)))
    elif kind == 2:  # walkways across
        for turn in np.arange(2) * np.pi / 2:
            x, y = float(np.cos(turn)) * r * 0.85, float(np.sin(turn)) * r * 0.85
            parts.append(Part(bar((-x, -y), (x, y), 1.6), TRIM))
    else:  # a number plate of two or three bars, painted
        for x in np.linspace(-0.3, 0.3, int(rng.integers(2, 4))) * r:
            parts.append(Part(rect(r * 0.12, r * rng.uniform(0.3, 0.6), float(x), 0), TRIM))
    parts.append(Part(disc(rng.uniform(1.2, 3), r * rng.uniform(-0.2, 0.2), 0, 12), DARK))
    parts.append(Part(bar((r * 0.45, 0), (r, 0), 1.4), TRIM, shade=0.9))
    return Sketch(tuple(parts), disc(r, sides=24))


def vehicle(rng: np.random.Generator) -> Sketch:
    """A car, or a lorry with its trailer."""
    if rng.random() < 0.55:
        length, width = rng.uniform(17, 24), rng.uniform(8, 10.5)
        parts = [Part(rounded(length, width, 2.5), rise=(0, 3))]
        parts.append(Part(rounded(length * 0.52, width * 0.86, 1.5, -length * 0.08), DARK))
        parts.append(Part(rounded(length * 0.3, width * 0.76, 1.0, -length * 0.09), shade=1.1))
        parts.append(Part(bar((length * 0.24, -width * 0.3), (length * 0.24, width * 0.3), 0.8), shade=0.8))
        return Sketch(tuple(parts), rect(length, width))
    length, width = rng.uniform(30, 48), rng.uniform(9.5, 12)
    cab = rng.uniform(8, 10)
    front = length / 2 - cab / 2
    parts = [Part(rect(length - cab - 2, width, -cab / 2 - 1), ACCENT, rise=(0, 6))]
    parts.append(Part(rounded(cab, width * 0.94, 1.5, front), rise=(0, 5)))
    parts.append(Part(rect(1.8, width * 0.76, front + cab * 0.22), DARK))
    parts.append(Part(rect(3, width * 0.4, front - cab * 0.5), DARK))
    for x in np.linspace(-length / 2 + 4, front - cab, int(rng.integers(3, 6))):
        parts.append(Part(bar((x, -width / 2), (x, width / 2), 0.7), ACCENT, shade=0.82))
    return Sketch(tuple(parts), rect(length, width))


def plane(rng: np.random.Generator) -> Sketch:
    """A light aircraft: fuselage, straight or swept wings, tailplane, propeller or engines."""
    length, span = rng.uniform(32, 52), rng.uniform(34, 54)
    sweep, chord = rng.uniform(0, 0.28) * span, rng.uniform(5, 8)
    body = rng.uniform(3.6, 5.4)
    nose = length / 2
    root = nose - length * rng.uniform(0.28, 0.36)
    tip = root - sweep / 2
    lift = (3.0, 4.5)
    parts = []
    for side in (-1, 1):
        half = side * span / 2
        wing = [(root, 0), (tip, half), (tip - chord * 0.6, half), (root - chord, 0)]
        parts.append(Part(np.array(wing), rise=lift, shade=0.96))
        flap = [(tip - chord * 0.45, half), (tip - chord * 0.6, half), (root - chord, 0), (root - chord * 0.8, 0)]
        parts.append(Part(np.array(flap), ACCENT))
        tail = [(-nose + 6, 0), (-nose + 2, half * 0.36), (-nose - 0.5, half * 0.36), (-nose + 1, 0)]
        parts.append(Part(np.array(tail), rise=lift))
        if sweep > 0.12 * span:
            parts.append(Part(rounded(6, 2.6, 1.2, root - sweep * 0.2, half * 0.36), DARK, rise=lift))
    side_of = [(nose, 0.0), (nose - 3, body * 0.4), (nose - 8, body / 2), (root - 8, body / 2), (-nose, body * 0.18)]
    parts.append(Part(np.array(side_of + [(x, -y) for x, y in reversed(side_of[1:])]), shade=1.08, rise=lift))
    parts.append(Part(rect(3, body * 0.7, nose - 8), DARK))
    parts.append(Part(bar((-nose, 0), (-nose + 7, 0), 1.2), TRIM))
    if sweep <= 0.12 * span:
        parts.append(Part(rect(1.0, body * 2.2, nose - 0.5), DARK, rise=lift))
    return Sketch(tuple(parts), _hull(parts))


def _hull(parts: list[Part]) -> Points:
    points = np.concatenate([part.points for part in parts])
    hull: Points = points[ConvexHull(points).vertices]
    return hull


def solar_array(rng: np.random.Generator) -> Sketch:
    """Rows of panels on the ground, each panel a grid of cells."""
    rows, width = int(rng.integers(3, 6)), rng.uniform(30, 46)
    deep, gap = rng.uniform(4.5, 7), rng.uniform(2.5, 4)
    total = rows * deep + (rows - 1) * gap
    scale = min(1.0, 36.0 / total)
    deep, gap, total = deep * scale, gap * scale, total * scale
    columns = int(rng.integers(4, 9))
    parts = []
    for row in range(rows):
        y = -total / 2 + deep / 2 + row * (deep + gap)
        parts.append(Part(rect(width, deep, 0, y), rise=(1, 3), slope=(0.0, 0.35)))
        for x in np.linspace(-width / 2, width / 2, columns + 1)[1:-1]:
            parts.append(Part(bar((float(x), y - deep / 2), (float(x), y + deep / 2), 0.8), TRIM))
        parts.append(Part(bar((-width / 2, y), (width / 2, y), 0.6), TRIM))
    return Sketch(tuple(parts), rect(width, total))


def greenhouse(rng: np.random.Generator) -> Sketch:
    """A house of many narrow glazed spans side by side, with a walkway."""
    w, h = rng.uniform(34, 50), rng.uniform(18, 30)
    spans = int(rng.integers(5, 9))
    step = w / spans
    parts = [Part(rect(w, h), rise=(0, 5))]
    for i in range(spans):
        x = -w / 2 + (i + 0.5) * step
        parts.append(Part(rect(step / 2, h, x - step / 4), slope=(-0.7, 0.0)))
        parts.append(Part(rect(step / 2, h, x + step / 4), slope=(0.7, 0.0)))
        parts.append(Part(bar((x + step / 2, -h / 2), (x + step / 2, h / 2), 0.6), TRIM))
    if rng.random() < 0.6:
        parts.append(Part(bar((-w / 2, 0), (w / 2, 0), 1.8), ACCENT))
    parts.append(Part(rect(4, 4, -w * 0.3, h / 2 - 2), DARK))
    return Sketch(tuple(parts), rect(w, h))


def swimming_pool(rng: np.random.Generator) -> Sketch:
    """A basin in a paved rim: rectangle, oval or kidney, with steps and a board."""
    w, h = rng.uniform(24, 42), rng.uniform(13, 21)
    rim = rng.uniform(2.2, 3.8)
    kind = rng.integers(3)
    if kind == 0:
        outer, inner = rounded(w, h, 3), rounded(w - 2 * rim, h - 2 * rim, 1.5)
    else:
        turn = np.arange(40) * 2 * np.pi / 40
        waist = 0.32 * np.exp(-(((turn - np.pi / 2) / 0.6) ** 2)) if kind == 1 else 0.0
        ring = np.column_stack([np.cos(turn), np.sin(turn) * (1 - waist)])
        outer, inner = ring * (w / 2, h / 2), ring * (w / 2 - rim, h / 2 - rim)
    parts = [Part(outer, ACCENT), Part(inner, shade=0.85), Part(inner * (0.86, 0.8) + (0.6, 0.6))]
    for i in range(3):
        x = -w / 2 + rim + 1.5 + i * 2.0
        parts.append(Part(bar((x, -h * 0.2), (x, h * 0.2), 0.8), TRIM))
    parts.append(Part(rect(5, 2.2, w / 2 - 2.5), DARK, rise=(1, 2)))
    return Sketch(tuple(parts), outer)


def sports_court(rng: np.random.Generator) -> Sketch:
    """A surfaced rectangle with painted lines: tennis, or a ball game with keys and a centre circle."""
    w, h = rng.uniform(42, 51), rng.uniform(22, 29)
    line = rng.uniform(1.0, 1.5)
    iw, ih = w - 7, h - 6
    parts = [Part(rect(w, h)), Part(rect(iw, ih), TRIM), Part(rect(iw - 2 * line, ih - 2 * line), ACCENT)]

    def mark(*ends: tuple[float, float]) -> None:
        parts.append(Part(bar(ends[0], ends[1], line), TRIM))

    mark((0, -ih / 2), (0, ih / 2))
    if rng.random() < 0.5:
        alley, service = ih * 0.36, iw * 0.27
        for side in (-1, 1):
            mark((-iw / 2, side * alley), (iw / 2, side * alley))
            mark((side * service, -alley), (side * service, alley))
        mark((-service, 0), (service, 0))
        parts.append(Part(bar((0, -ih / 2 - 1), (0, ih / 2 + 1), 1.2), DARK, rise=(0, 2)))
    else:
        parts += [Part(disc(ih * 0.2), TRIM), Part(disc(ih * 0.2 - line), ACCENT)]
        for side in (-1, 1):
            key = iw * 0.19
            x = side * (iw - key) / 2
            parts += [Part(rect(key, ih * 0.45, x), TRIM), Part(rect(key - 2 * line, ih * 0.45 - 2 * line, x), BODY)]
        mark((0, -ih / 2), (0, ih / 2))
    return Sketch(tuple(parts), rect(w, h))


def wind_turbine(rng: np.random.Generator) -> Sketch:
    """Three blades on a hub, a nacelle and a tower that throws a long shadow."""
    reach, chord = rng.uniform(20, 28.5), rng.uniform(3.4, 5.0)
    high = rng.uniform(14, 22)
    parts = [Part(disc(rng.uniform(4, 7), sides=20), ACCENT, shade=0.9), Part(disc(1.6, sides=12), rise=(0, high))]
    for turn in np.arange(3) * 2 * np.pi / 3:
        blade = np.array([(0, -1.0), (reach * 0.22, -chord / 2), (reach, -0.4), (reach, 0.4), (reach * 0.2, chord / 2)])
        c, s = np.cos(turn), np.sin(turn)
        parts.append(Part(blade @ np.array([[c, s], [-s, c]]), rise=(high - 1, high)))
    nacelle = rng.uniform(0, 2 * np.pi)
    end = (7 * float(np.cos(nacelle)), 7 * float(np.sin(nacelle)))
    parts += [Part(bar((0, 0), end, 3.2), shade=0.92, rise=(high - 1, high)), Part(disc(2.2, sides=12), TRIM)]
    return Sketch(tuple(parts), disc(reach, sides=12))


def helipad(rng: np.random.Generator) -> Sketch:
    """A round, square or eight-sided pad with a painted ring and a letter H."""
    r = rng.uniform(20, 29)
    kind = rng.integers(3)
    pad = (disc(r), rect(r * 1.4, r * 1.4), disc(r, sides=8))[kind]
    inner = r * (0.62 if kind == 1 else 0.84)
    line = rng.uniform(1.2, 2.0)
    parts = [Part(pad, rise=(0, float(rng.uniform(0, 4)))), Part(disc(inner), TRIM), Part(disc(inner - line), ACCENT)]
    tall, wide, thick = inner * rng.uniform(0.8, 1.0), inner * rng.uniform(0.5, 0.66), rng.uniform(2.6, 3.8)
    for side in (-1, 1):
        parts.append(Part(rect(thick, tall, side * wide / 2), TRIM))
    parts.append(Part(rect(wide, thick), TRIM))
    for x, y in disc(inner + line, sides=8):
        parts.append(Part(disc(0.9, float(x), float(y), 6), DARK))
    return Sketch(tuple(parts), pad if kind else disc(r, sides=24))


SKETCHES: dict[str, Callable[[np.random.Generator], Sketch]] = {
    f.__name__: f
    for f in (
        house,
        storage_tank,
        vehicle,
        plane,
        solar_array,
        greenhouse,
        swimming_pool,
        sports_court,
        wind_turbine,
        helipad,
    )
}
"""The classes, from the most to the least frequent; each rare kind has a frequent one that looks like it."""


def sketch(name: str, rng: np.random.Generator) -> Sketch:
    """One object of the class ``name``, within :data:`MAX_RADIUS` of the origin."""
    drawn = SKETCHES[name](rng)
    return drawn.scaled(min(1.0, MAX_RADIUS / drawn.radius))

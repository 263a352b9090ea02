"""The land the synthetic scene is made of: fields, woods, paved and bare ground, water, roads, hedges and trees."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw, ImageFilter
from shapely import affinity
from shapely.geometry import LineString, Polygon, box
from shapely.ops import split

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

KINDS: dict[str, tuple[float, tuple[int, int, int], tuple[float, float, float]]] = {
    # share of the parcels; mean colour; strength of coarse texture, fine texture and furrows
    "crop": (0.28, (116, 126, 78), (0.055, 0.05, 0.10)),
    "stubble": (0.17, (164, 150, 112), (0.055, 0.06, 0.07)),
    "meadow": (0.20, (98, 116, 72), (0.085, 0.09, 0.0)),
    "soil": (0.13, (128, 106, 86), (0.075, 0.08, 0.05)),
    "forest": (0.12, (58, 74, 46), (0.10, 0.12, 0.0)),
    "paved": (0.10, (136, 135, 132), (0.045, 0.04, 0.0)),
}
WARM = np.array([1.0, 0.1, -0.6], dtype=np.float32)
"""The direction in which ground colours differ: drier or moister, never violet."""
MASK_SCALE = 8
"""Pixels of the scene per pixel of the mask that says where no object may stand."""


class Noise:
    """Smooth random fields over the scene, read window by window so that none is ever held whole.

    Args:
        rng: Where the numbers come from.
        size: Side of the scene, pixels.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.size = size
        self._grids = {}
        for cell in (256, 64, 16, 4):
            side = -(-size // cell) + 4
            self._grids[cell] = Image.fromarray(rng.standard_normal((side, side), dtype=np.float32))

    def __call__(self, window: tuple[int, int, int, int], cells: tuple[int, ...]) -> Floats:
        """Sum of the octaves ``cells`` in (left, top, right, bottom), mean 0, deviation near 1; (h, w) float32."""
        left, top, right, bottom = window
        total = np.zeros((bottom - top, right - left), dtype=np.float32)
        for cell in cells:
            at = (left / cell + 1.5, top / cell + 1.5, right / cell + 1.5, bottom / cell + 1.5)
            part = self._grids[cell].resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=at)
            total += np.asarray(part)
        return total * np.float32(1.4 / np.sqrt(len(cells)))


@dataclass
class Ground:
    """A painted landscape.

    Attributes:
        image: The scene so far, RGB.
        blocked: L image, one pixel for :data:`MASK_SCALE` squared of the scene; 255 on roads and water.
        trees: (N, 3), x, y and diameter of the trees that are still to be planted, pixels.
        sun: (x, y) towards which shadows fall, unit length.
        noise: The fields the ground was painted with.
    """

    image: Image.Image
    blocked: Image.Image
    sun: Points
    noise: Noise
    trees: Points = field(default_factory=lambda: np.empty((0, 3)))


def paint(size: int, rng: np.random.Generator) -> Ground:
    """Paint a landscape of ``size`` x ``size`` pixels, without its trees (:func:`plant` sets those)."""
    turn = rng.uniform(0.1, 0.4) * np.pi
    small = -(-size // MASK_SCALE)
    ground = Ground(
        Image.new("RGB", (size, size)),
        Image.new("L", (small, small)),
        np.array([np.cos(turn), np.sin(turn)]),
        Noise(rng, size),
    )
    parcels, roads, hedges = _divide(size, rng)
    shares = np.array([kind[0] for kind in KINDS.values()])
    names = list(KINDS)
    trees = []
    for parcel in parcels:
        name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        _paint_parcel(ground, parcel, name, rng)
        step, share = {"forest": (11.0, 0.95), "meadow": (60.0, 0.15), "paved": (70.0, 0.15)}.get(name, (110.0, 0.1))
        trees.append(_scatter(parcel, step, share, rng))
    trees += [_row(hedge, rng) for hedge in hedges]
    bank = _river(size, rng)
    _paint_water(ground, bank, rng)
    for road, width in roads:
        _paint_road(ground, road, width, rng)
    ground.trees = np.concatenate(trees)
    keep = ~_is_blocked(ground.blocked, ground.trees[:, :2])
    ground.trees = ground.trees[keep]
    return ground


def _is_blocked(blocked: Image.Image, points: Points) -> npt.NDArray[np.bool_]:
    mask = np.asarray(blocked)
    at = np.clip((points / MASK_SCALE).astype(int), 0, len(mask) - 1)
    hit: npt.NDArray[np.bool_] = mask[at[:, 1], at[:, 0]] > 0
    return hit


def is_free(ground: Ground, x: float, y: float, radius: float) -> bool:
    """Whether no road and no water comes within ``radius`` pixels of (x, y)."""
    turn = np.arange(8) * np.pi / 4
    ring = np.column_stack([np.cos(turn), np.sin(turn)])
    around = np.concatenate([ring * radius, ring * (radius / 2), [[0.0, 0.0]]]) + np.array([x, y])
    return not _is_blocked(ground.blocked, around).any()


def _divide(size: int, rng: np.random.Generator) -> tuple[list[Polygon], list[tuple[LineString, float]], list[Points]]:
    """Cut the scene into parcels; early cuts become roads and tracks, some of the later ones hedges."""
    parcels: list[Polygon] = []
    roads: list[tuple[LineString, float]] = []
    hedges: list[Points] = []
    queue = [(box(0, 0, size, size), 0)]
    first_track = max(1, round(np.log2(size / 1024)))
    while queue:
        piece, depth = queue.pop(0)
        if piece.area < rng.uniform(220, 560) ** 2:
            parcels.append(piece)
            continue
        frame = shapely.get_coordinates(piece.minimum_rotated_rectangle)
        sides = np.diff(frame[:3], axis=0)
        across = sides[int(np.argmin(np.hypot(*sides.T)))]
        turn = np.arctan2(across[1], across[0]) + rng.normal(0, 0.16)
        middle = np.asarray(piece.centroid.coords[0]) + rng.normal(0, 0.08, 2) * np.hypot(*sides.T).max()
        reach = 2 * size * np.array([np.cos(turn), np.sin(turn)])
        knife = LineString([middle - reach, middle + reach])
        parts = [part for part in split(piece, knife).geoms if isinstance(part, Polygon)]
        if len(parts) < 2:
            parcels.append(piece)
            continue
        cut = LineString(shapely.get_coordinates(piece.intersection(knife)))
        if depth <= first_track:
            roads.append((cut, float(rng.uniform(17, 22))))
        elif depth <= first_track + 2:
            roads.append((cut, float(rng.uniform(6, 10))))
        elif rng.random() < 0.5:
            hedges.append(np.asarray(cut.coords))
        queue += [(part, depth + 1) for part in parts]
    return parcels, roads, hedges


def _window(shape: Polygon, size: int) -> tuple[int, int, int, int] | None:
    """Whole pixels around ``shape``, clipped to the scene; None where nothing is left."""
    if shape.is_empty:
        return None
    left, top, right, bottom = shape.bounds
    window = (max(int(left), 0), max(int(top), 0), min(int(right) + 2, size), min(int(bottom) + 2, size))
    return window if window[2] > window[0] and window[3] > window[1] else None


def _paste(ground: Ground, colour: Floats, shape: Polygon, window: tuple[int, int, int, int], soft: float = 0) -> None:
    """Lay ``colour`` (h, w, 3) over the window, inside ``shape`` only."""
    mask = Image.new("L", (window[2] - window[0], window[3] - window[1]))
    ImageDraw.Draw(mask).polygon([(x - window[0], y - window[1]) for x, y in shape.exterior.coords], fill=255)
    if soft:
        mask = mask.filter(ImageFilter.GaussianBlur(soft))
    patch = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    ground.image.paste(patch, window[:2], mask)


def _textured(
    ground: Ground, window: tuple[int, int, int, int], colour: npt.ArrayLike, coarse: float, fine: float
) -> Floats:
    base = np.asarray(colour, dtype=np.float32)
    light = 1 + coarse * ground.noise(window, (256, 64, 16)) + fine * ground.noise(window, (4, 16))
    # A slow drift between dry and green keeps large parcels from looking flat.
    tint = 3 * ground.noise(window, (64,))[..., None] * WARM
    textured: Floats = base * light[..., None] + tint
    return textured


def _paint_parcel(ground: Ground, parcel: Polygon, name: str, rng: np.random.Generator) -> None:
    _, mean, (coarse, fine, furrow) = KINDS[name]
    colour = np.array(mean) * rng.uniform(0.8, 1.2) + rng.normal(0, 5) * WARM
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(4, 9)
    window = _window(parcel, ground.noise.size)
    if window is None:
        return
    patch = _textured(ground, window, colour, coarse, fine)
    if furrow:
        y, x = np.ogrid[window[1] : window[3], window[0] : window[2]]
        wave = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32) * np.float32(2 * np.pi / pitch)
        wobble = 0.8 * ground.noise(window, (64,))
        tramlines = np.cos((wave + wobble) / 5) > 0.97
        patch *= (1 + furrow * np.sin(wave + wobble) - 0.12 * tramlines)[..., None]
    _paste(ground, patch, parcel, window)
    if name == "paved":
        _paint_yard(ground, parcel, turn, rng)


def _paint_yard(ground: Ground, parcel: Polygon, turn: float, rng: np.random.Generator) -> None:
    """Slabs of differing age on a paved parcel, and painted lines, all along one direction."""
    for _ in range(int(parcel.area / 9000)):
        x, y = _inside(parcel, rng)
        slab = affinity.rotate(box(-1, -1, 1, 1), turn, use_radians=True)
        slab = affinity.translate(affinity.scale(slab, rng.uniform(20, 70), rng.uniform(15, 40)), x, y)
        visible = slab.intersection(parcel)
        window = _window(visible, ground.noise.size) if isinstance(visible, Polygon) else None
        if isinstance(visible, Polygon) and window is not None:
            colour = np.full(3, rng.uniform(95, 165)) + rng.normal(0, 3) * WARM
            _paste(ground, _textured(ground, window, colour, 0.06, 0.05), visible, window)


def _inside(parcel: Polygon, rng: np.random.Generator) -> tuple[float, float]:
    left, top, right, bottom = parcel.bounds
    return float(rng.uniform(left, right)), float(rng.uniform(top, bottom))


def lot(
    ground: Ground, x: float, y: float, rng: np.random.Generator, reach: tuple[float, float] = (26.0, 52.0)
) -> None:
    """Lay an irregular patch of one of the ground kinds around (x, y); ``reach`` is its range of radii, pixels."""
    names = [name for name in KINDS if name != "forest"]
    _, mean, (coarse, fine, _) = KINDS[names[int(rng.integers(len(names)))]]
    turn = np.sort(rng.uniform(0, 2 * np.pi, 7))
    corners = np.column_stack([np.cos(turn), np.sin(turn)]) * rng.uniform(*reach, (7, 1))
    shape = Polygon(corners + np.array([x, y])).buffer(reach[0] / 4)
    window = _window(shape, ground.noise.size)
    if window is not None:
        colour = np.array(mean) * rng.uniform(0.75, 1.25) + rng.normal(0, 5) * WARM
        _paste(ground, _textured(ground, window, colour, coarse, fine * 1.3), shape, window, rng.uniform(0.5, 6))


def _river(size: int, rng: np.random.Generator) -> Polygon:
    along = np.linspace(-0.05, 1.05, 90) * size
    phase = rng.uniform(0, 2 * np.pi, 3)
    across = rng.uniform(0.2, 0.8) * size + (along - size / 2) * rng.uniform(-0.25, 0.25)
    for swing, bends, start in zip((0.05, 0.02, 0.008), (6, 14, 31), phase, strict=True):
        across += size * swing * np.sin(along / size * bends + start)
    half = size * (0.011 + 0.003 * np.sin(along / size * 11 + phase[0])) + 4
    banks = np.concatenate([np.column_stack([across - half, along]), np.column_stack([across + half, along])[::-1]])
    points = banks[:, ::-1] if rng.random() < 0.7 else banks
    return Polygon(points)


def _paint_water(ground: Ground, water: Polygon, rng: np.random.Generator) -> None:
    colour = np.array([62, 84, 88]) + rng.normal(0, 8, 3)
    for shape, base, soft in ((water.buffer(9), np.array([126, 124, 92]), 3.0), (water, colour, 1.0)):
        for top in range(0, ground.noise.size, 512):
            # Painted in overlapping bands, since the river crosses the whole scene.
            part = shape.intersection(box(-99, top - 8, ground.noise.size + 99, top + 520))
            for piece in getattr(part, "geoms", [part]):
                window = _window(piece, ground.noise.size) if isinstance(piece, Polygon) else None
                if window is not None:
                    _paste(ground, _textured(ground, window, base, 0.05, 0.04), piece, window, soft)
    _block(ground, water.buffer(14))


def _block(ground: Ground, shape: Polygon) -> None:
    ImageDraw.Draw(ground.blocked).polygon([(x / MASK_SCALE, y / MASK_SCALE) for x, y in shape.exterior.coords], 255)


def _paint_road(ground: Ground, road: LineString, width: float, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(ground.image)
    wide = width > 12
    tone = rng.uniform(105, 140) if wide else rng.uniform(140, 175)
    colour = np.array([tone, tone, tone]) if wide else np.array([tone, tone * 0.92, tone * 0.76])
    verge = (colour * (0.9, 1.0, 0.75)).astype(int)
    ends = np.asarray(road.coords)
    for swath, ink in ((width + 5, verge), (width, colour.astype(int))):
        draw.polygon(
            [(float(x), float(y)) for x, y in road.buffer(swath / 2).exterior.coords], fill=tuple(map(int, ink))
        )
    along = ends[1] - ends[0]
    length = float(np.hypot(*along))
    unit = along / length
    if wide:
        for start in np.arange(0, length, 24):
            a, b = ends[0] + unit * start, ends[0] + unit * min(start + 10, length)
            draw.line([tuple(map(float, a)), tuple(map(float, b))], fill=(205, 205, 200), width=1)
    else:
        # Wheels wear two lanes; the middle stays green.
        draw.line([tuple(map(float, p)) for p in ends], fill=tuple(map(int, verge * 0.85)), width=2)
    _block(ground, road.buffer(width / 2 + 8))


def _scatter(parcel: Polygon, step: float, share: float, rng: np.random.Generator) -> Points:
    """Trees on a jittered grid over a parcel: x, y, diameter."""
    left, top, right, bottom = parcel.bounds
    x, y = np.meshgrid(np.arange(left, right, step), np.arange(top, bottom, step))
    at = np.column_stack([x.ravel(), y.ravel()]) + rng.uniform(-0.6, 0.6, (x.size, 2)) * step
    at = at[rng.random(len(at)) < share]
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(mask).polygon([(px - left, py - top) for px, py in parcel.exterior.coords], fill=1)
    cell = np.clip((at - (left, top)).astype(int), 0, np.array(mask.size) - 1)
    at = at[np.asarray(mask)[cell[:, 1], cell[:, 0]] > 0]
    return np.column_stack([at, rng.uniform(9, 24, len(at))])


def _row(ends: Points, rng: np.random.Generator) -> Points:
    length = float(np.hypot(*(ends[-1] - ends[0])))
    along = np.arange(0, length, 8.0)
    at = ends[0] + (ends[-1] - ends[0]) * (along / max(length, 1))[:, None] + rng.normal(0, 1.6, (len(along), 2))
    rows = np.column_stack([at, rng.uniform(7, 19, len(at))])
    kept: Points = rows[rng.random(len(rows)) < 0.85]
    return kept


def crowns(sun: Points, rng: np.random.Generator, count: int = 96) -> list[Image.Image]:
    """A stock of tree crowns with their shadows, RGBA, for :func:`plant`; diameters 7..24 px ascending."""
    stock = []
    for diameter in np.linspace(7, 24, count):
        side = int(diameter * 1.9) + 4
        y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2 + diameter * 0.2
        turn, radius = np.arctan2(y, x), np.hypot(x, y)
        lobes = rng.uniform(0, 2 * np.pi, 3)
        edge = diameter / 2 * (1 + sum(0.07 * np.sin(k * turn + p) for k, p in zip((3, 5, 8), lobes, strict=True)))
        crown = np.clip(edge - radius + 0.5, 0, 1)
        far = np.hypot(x - sun[0] * diameter * 0.38, y - sun[1] * diameter * 0.38)
        shadow = 0.55 * np.clip((edge - far) / 2 + 0.5, 0, 1)
        bump = np.sqrt(np.clip(1 - (radius / edge) ** 2, 0, 1))
        lit = 0.75 + 0.45 * bump - 0.5 * (x * sun[0] + y * sun[1]) / diameter + rng.normal(0, 0.13, radius.shape)
        colour = np.array([66, 88, 46]) * rng.uniform(0.75, 1.3) + rng.normal(0, 8, 3)
        alpha = np.maximum(crown, shadow)
        rgb = colour * lit[..., None] * (crown / np.maximum(alpha, 1e-6))[..., None]
        chip = np.dstack([np.clip(rgb, 0, 255), alpha * 255]).astype(np.uint8)
        stock.append(Image.fromarray(chip, "RGBA"))
    return stock


def plant(image: Image.Image, trees: Points, stock: list[Image.Image], rng: np.random.Generator) -> None:
    """Set trees, (N, 3) of x, y and diameter in pixels, onto the scene; crowns are chosen near the diameter."""
    picks = np.clip((trees[:, 2] - 7) / 17 * (len(stock) - 1) + rng.normal(0, 4, len(trees)), 0, len(stock) - 1)
    for (x, y, _), pick in zip(trees, picks.astype(int), strict=True):
        chip = stock[pick]
        image.paste(chip, (int(x - chip.width / 2), int(y - chip.height / 2)), chip)

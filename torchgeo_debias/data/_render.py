"""From a sketch to pixels: colour, sun, shadow, wear and blur, drawn alike for every class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from torchgeo_debias.data._sketches import Points, Sketch

SIDE = 128
"""Side of the chip an object is rendered in, pixels: the object and its shadow."""
_FINE = 4  # drawn at four times the resolution, then averaged

CONTRAST = (0.5, 1.0)
"""Share of its own colour an object keeps; the rest is the ground's."""
BLUR = (0.3, 0.9)
"""Deviation of an object's blur, pixels."""
WEAR = (0.03, 0.14)
"""Deviation of the stains on an object, as a share of its brightness."""


def colours(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Four inks, (4, 3) in 0..255, from one wide distribution that knows no class.

    Each ink differs from the one before by at least a step of brightness, up or down, so that the structure
    shows and yet neither its sign nor its hue tells anything.
    """
    inks = np.empty((4, 3))
    level = rng.uniform(50, 225)
    for i in range(4):
        tint = rng.normal(0, 1, 3)
        tint -= tint.mean()
        inks[i] = level + tint * rng.gamma(1.5, 13)
        step = rng.uniform(28, 80)
        up = rng.random() < (245 - level) / 220
        level = np.clip(level + (step if up else -step), 20, 245)
    return np.clip(inks, 8, 250)


def place(sketch: Sketch, x: float, y: float, angle: float) -> Points:
    """The sketch's outline in scene pixels, (N, 2): turned by ``angle`` radians and centred at (x, y)."""
    outline: Points = _turn(sketch.outline, angle) + np.array([x, y])
    return outline


def _turn(points: Points, angle: float) -> Points:
    c, s = np.cos(angle), np.sin(angle)
    turned: Points = points @ np.array([[c, s], [-s, c]])
    return turned


def render(
    image: Image.Image, sketch: Sketch, x: float, y: float, angle: float, sun: Points, rng: np.random.Generator
) -> None:
    """Paint an object into the scene.

    Args:
        image: The scene, RGB, changed in place.
        sketch: What to paint.
        x: Centre, scene pixels.
        y: Centre, scene pixels.
        angle: Rotation, radians from x towards y.
        sun: (x, y), unit length, towards which shadows fall.
        rng: Colours, contrast, wear and blur are drawn from it.
    """
    left, top = int(x) - SIDE // 2, int(y) - SIDE // 2
    centre = np.array([x - left, y - top])
    inks = colours(rng)
    ground = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32)
    shade = _shadow(sketch, centre, angle, sun, rng.uniform(0.35, 0.6))
    drawn = Image.new("RGBA", (SIDE * _FINE, SIDE * _FINE), (*map(int, inks[0]), 0))
    draw = ImageDraw.Draw(drawn)
    for part in sketch.parts:
        slope = _turn(np.array([part.slope]), angle)[0]
        # Facets that look towards the sun, against the shadows, are brighter.
        colour = np.clip(inks[part.ink] * part.shade * (1 - 0.32 * float(slope @ sun)), 0, 255)
        points = (_turn(part.points, angle) + centre) * _FINE
        draw.polygon([(px, py) for px, py in points], fill=(*map(int, colour), 255))
    chip = drawn.resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    rgba = np.asarray(chip, dtype=np.float32)
    alpha = rgba[..., 3:] / 255
    stains = Image.fromarray(rng.standard_normal((24, 24), dtype=np.float32)).resize((SIDE, SIDE))
    rgb = rgba[..., :3] * (1 + rng.uniform(*WEAR) * np.asarray(stains)[..., None])
    mean = (ground * alpha).sum((0, 1)) / max(float(alpha.sum()), 1.0)
    rgb = mean + (rgb - mean) * rng.uniform(*CONTRAST)
    out = ground * (1 - shade[..., None]) * (1 - alpha) + rgb * alpha
    image.paste(Image.fromarray(np.clip(out, 0, 255).astype(np.uint8)), (left, top))


def _shadow(sketch: Sketch, centre: Points, angle: float, sun: Points, depth: float) -> npt.NDArray[np.float32]:
    """How much light each pixel of the chip loses, (SIDE, SIDE) in 0..1."""
    mask = Image.new("L", (SIDE * 2, SIDE * 2))
    draw = ImageDraw.Draw(mask)
    for part in sketch.parts:
        low, high = part.rise
        if high > 0:
            points = _turn(part.points, angle) + centre
            for level in np.arange(low, high + 0.5):
                draw.polygon([(px, py) for px, py in (points + sun * level) * 2], fill=255)
    soft = mask.resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(soft, dtype=np.float32) * np.float32(depth / 255)

"""Class colours, one palette for class rasters, layers and figures."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]

BACKGROUND: Colour = (190, 194, 200)

# Okabe and Ito, "Color Universal Design" (2008), without black; the order puts unlike hues next to each other.
_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)

# Linear RGB as seen without long-wave, then without medium-wave cones: Machado, Oliveira, Fernandes (2009), severity 1.
_PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
# Linear RGB to OKLab, in which distances follow perceived difference: Ottosson (2020).
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def palette(n: int, background: int | None = None) -> list[Colour]:
    """Colours of ``n`` classes that stay apart for people with and without colour vision deficiency.

    The first seven are those of Okabe and Ito; each further one is the colour farthest, in OKLab and for the
    least favourable of (half the) normal, protanopic and deuteranopic vision, from all before it and from the
    background's grey. So the palette is deterministic and adding a class never recolours the others.

    Args:
        n: Number of classes, the background included.
        background: Class id drawn in neutral grey, if there is one.

    Returns:
        One (red, green, blue) in 0..255 a class, in the order of class ids.
    """
    objects = _distinct(n)
    if background is None:
        return list(objects)
    return [*objects[:background], BACKGROUND, *objects[background : n - 1]]


@lru_cache(maxsize=32)
def _distinct(n: int) -> tuple[Colour, ...]:
    if n <= len(_OKABE_ITO):
        return _OKABE_ITO[:n]
    levels = np.linspace(0, 255, 16).astype(np.int64)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _seen(candidates)
    # Near black and near white vanish on a map and on a page.
    visible = (seen[:, 0, 0] > 0.33) & (seen[:, 0, 0] < 0.88)
    candidates, seen = candidates[visible], seen[visible]

    colours = list(_OKABE_ITO)
    nearest = np.full(len(candidates), np.inf)
    for colour in (*_OKABE_ITO, BACKGROUND):
        nearest = np.minimum(nearest, _distance(seen, _seen(np.array([colour]))))
    while len(colours) < n:
        best = int(nearest.argmax())
        red, green, blue = candidates[best].tolist()
        colours.append((red, green, blue))
        nearest = np.minimum(nearest, _distance(seen, seen[best : best + 1]))
    return tuple(colours)


def _seen(colours: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """OKLab values (N, 3 visions, 3) of sRGB ``colours`` (N, 3)."""
    srgb = colours / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear, linear @ _PROTANOPIA.T, linear @ _DEUTERANOPIA.T], axis=1).clip(0, 1)
    lab: npt.NDArray[np.float64] = np.cbrt(views @ _TO_CONES.T) @ _TO_LAB.T
    return lab


def _distance(seen: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Most readers see all hues; asking the same of every vision would leave them a page of blues, so theirs counts
    # half.
    weights = np.array([0.5, 1.0, 1.0])
    distances: npt.NDArray[np.float64] = (np.linalg.norm(seen - other, axis=-1) * weights).min(axis=1)
    return distances

"""Models and data small enough to train in a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

BACKBONE = "timm:test_vit"
CHIP = 32
COLOURS = {"bare": (170, 140, 100), "field": (70, 150, 60), "water": (30, 60, 140)}
COUNTS = {"bare": 15, "field": 10, "water": 5}
TRAIN_COUNTS = {"bare": 12, "field": 8, "water": 4}
"""What is left of ``COUNTS`` for training."""


def write_images(root: Path, counts: Mapping[str, int] = COUNTS, side: int = 64, seed: int = 0) -> Path:
    """A folder ``<class>/<n>.png`` of noisy squares in the colours of the classes."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(COLOURS[name]) + rng.integers(-25, 26, (side, side, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def listing(folder: Path) -> list[str]:
    """All files and folders within, hidden ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))

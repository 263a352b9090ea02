"""Images with coloured rectangles and detectors small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny
from torchgeo_debias.backbones import AdapterSettings
from torchgeo_debias.boxes.convert import horizontal_to_oriented
from torchgeo_debias.data.objects import ArrayPicture, LabelledImage, ObjectSet, TileSpec
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.detection import DetectorConfig
from torchgeo_debias.training.detection import DetectConfig

SIDE = 64
TILES = TileSpec(SIDE)
NAMES = ("red", "green", "blue")
COLOURS = np.array([[220, 40, 40], [40, 220, 60], [50, 60, 230]])


def scene(seed: int, *, oriented: bool, side: int = SIDE, bands: tuple[str, ...] = NAMES) -> LabelledImage:
    """A noisy square with a rectangle in the colour of its class in each field of 32 pixels; every third has blue."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (len(bands), side, side)).astype(np.uint8)
    labels = rng.permutation(np.resize([0, 0, 1, 1 if seed % 3 else 2], (side // 32) ** 2))
    boxes: list[list[int]] = []
    for row in range(0, side, 32):
        for column in range(0, side, 32):
            width, height = rng.integers(10, 22, 2)
            x, y = column + rng.integers(3, 30 - width), row + rng.integers(3, 30 - height)
            pixels[:3, y : y + height, x : x + width] = COLOURS[labels[len(boxes)]][:, None, None]
            boxes.append([x, y, x + width, y + height])
    rows = np.array(boxes, np.float64)
    return LabelledImage(
        name=f"scene{seed}",
        source=f"scene{seed}",
        picture=ArrayPicture(pixels, bands=bands),
        boxes=horizontal_to_oriented(rows) if oriented else rows,
        labels=labels,
        ignored=np.zeros(len(rows), bool),
    )


def scenes(n: int = 6, *, oriented: bool = False, first: int = 0, **options: Any) -> ObjectSet:
    """A set of such images, of which the third class is rare."""
    images = [scene(first + i, oriented=oriented, **options) for i in range(n)]
    return ObjectSet.of(images, NAMES, oriented=oriented)


def settings(weights: Path, /, *, oriented: bool = False, **options: Any) -> DetectConfig:
    """The cheapest configuration that trains; options go before."""
    usual: dict[str, Any] = {
        "method": "lora",
        "backbone": tiny.BACKBONE,
        "weights": str(weights),
        "adapter": AdapterSettings(rank=4),
        "debias": DebiasSettings(n_clusters=4, gamma0=2.0),
        "detector": DetectorConfig(oriented=oriented, channels=32, convs=1, levels=2, up=2),
        "epochs": 2,
        "batch_size": 4,
        "lr": 3e-3,
        "precision": "32",
    }
    return DetectConfig(**{**usual, **options})

"""Small data sets in the two forms that recipes take, and recipes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests import tiny
from torchgeo_debias.recipes import Recipe, find_recipe

CLASSES = {"bare": "head", "field": "middle", "water": "tail"}
TRAINING = {
    "method": "deblora", "backbone": tiny.BACKBONE, "epochs": 1, "batch_size": 8, "adapter": {"rank": 2},
    "align_loss": "l2", "head": "ce", "head_on": "features", "debias": {"n_clusters": 3}, "precision": "32",
}  # fmt: skip


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A file; names with a dot go into the data."""
    data: dict[str, Any] = {
        "name": "made up", "where": "nowhere.", "licence": "none", "form": "scenes", "layout": "train, val, test",
        "groups": "ours", "parts": {"train": "train", "validation": "val", "test": "test"}, "classes": CLASSES,
    }  # fmt: skip
    values: dict[str, Any] = {"name": "mine", "title": "made up", "status": "made up", "training": TRAINING}
    values["variants"] = {"small": {"chip_size": tiny.CHIP, "training": {}}}
    for name, value in changes.items():
        owner = values if name in ("training", "variants", "after") else data
        owner[name] = value
    path = folder / "mine.json"
    path.write_text(json.dumps({**values, "data": data}))
    return path


def recipe(folder: Path, **changes: Any) -> Recipe:
    return find_recipe(str(write_recipe(folder, **changes)))[0]


def write_scenes(root: Path) -> Path:
    for seed, part in enumerate(("train", "val", "test")):
        tiny.write_images(root / part, side=40, seed=seed)
    return root


DOTA = {
    "form": "dota",
    "parts": {
        "train": {"images": "train/images", "labels": "train/labelTxt"},
        "test": {"images": "val/images", "labels": "val/labelTxt"},
    },
}


def write_dota(root: Path, images: int = 10) -> Path:
    """Each image has three bare objects, two fields, and every other one a difficult water."""
    for seed, part in enumerate(("train", "val")):
        rng = np.random.default_rng(seed)
        for name in ("images", "labelTxt"):
            (root / part / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(80, 120, (64, 96, 3)).astype(np.uint8)
            lines = ["imagesource:made", "gsd:0.5"]
            objects = ["bare"] * 3 + ["field"] * 2 + ["water"] * (number % 2)
            for place, kind in enumerate(objects):
                x, y = 32 * (place % 3) + 4, 32 * (place // 3) + 6
                pixels[y : y + 12, x : x + 20] = tiny.COLOURS[kind]
                lines.append(f"{x} {y} {x + 20} {y} {x + 20} {y + 12} {x} {y + 12} {kind} {int(kind == 'water')}")
            Image.fromarray(pixels).save(root / part / "images" / f"P{number}.png")
            (root / part / "labelTxt" / f"P{number}.txt").write_text("\n".join(lines))
    return root

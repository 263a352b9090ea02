"""The rasters of the benchmark, drawn from a seed strip by strip, in memory that does not depend on their size.

Run::

    python -m benchmarks.tiling.rasters --data-dir DIR [--only tiled striped bands huge] [--side PIXELS]

What they hold resembles an orthophoto in the two respects that matter: regions of two kinds with sharp borders (so
that a segmentation has something to find), and a texture that deflate halves (so that decoding costs what it does on
real imagery). A raster that lies there already with the same recipe is kept.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

GSD = 0.3
"""Metres per pixel."""
STRIP = 512
"""Rows drawn at once, and side of the blocks of tiled files."""


@dataclass(frozen=True)
class Recipe:
    """All that a raster depends on.

    Attributes:
        side: Width and height, pixels.
        bands: 3 of uint8, or more of uint16.
        tiled: Blocks of 512 x 512 pixels; else strips as GDAL makes them.
        nodata_share: Of the area, in bays from the west and patches, each wider than several tiles.
        seed: Of everything random.
        version: Of this script; raised with each change of what it draws.
    """

    side: int
    bands: int = 3
    tiled: bool = True
    nodata_share: float = 0.0
    seed: int = 0
    version: int = 1


RECIPES = {
    "tiled": Recipe(8192),
    "striped": Recipe(8192, tiled=False),
    "bands": Recipe(16384, bands=8, nodata_share=0.3),
    "huge": Recipe(32768),
}


def make(name: str, folder: Path, side: int | None = None) -> Path:
    """Draw one raster unless it is there.

    Args:
        name: A key of :data:`RECIPES`.
        folder: Where rasters are kept; made where missing.
        side: Takes the place of the recipe's.
    """
    recipe = RECIPES[name]
    if side is not None:
        recipe = Recipe(**{**asdict(recipe), "side": side})
    path = folder / f"{name}_{recipe.side}.tif"
    stamp = path.with_suffix(".json")
    facts = asdict(recipe)
    if path.exists() and stamp.exists() and json.loads(stamp.read_text()) == facts | {"bytes": path.stat().st_size}:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    staged = path.with_suffix(".part.tif")
    draw(recipe, staged)
    os.replace(staged, path)
    stamp.write_text(json.dumps(facts | {"bytes": path.stat().st_size}))
    return path


def draw(recipe: Recipe, path: Path) -> None:
    """Write the raster of a recipe."""
    layout = {"tiled": True, "blockxsize": STRIP, "blockysize": STRIP} if recipe.tiled else {"tiled": False}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=recipe.side,
        height=recipe.side,
        count=recipe.bands,
        dtype="uint8" if recipe.bands == 3 else "uint16",
        nodata=0 if recipe.nodata_share else None,
        crs="EPSG:32632",
        transform=from_origin(500_000, 5_400_000, GSD, GSD),
        compress="deflate",
        predictor=2,
        num_threads="all_cpus",
        bigtiff="if_safer",
        **layout,
    ) as target:
        for top, pixels in strips(recipe):
            target.write(pixels, window=Window(0, top, recipe.side, pixels.shape[1]))


def strips(recipe: Recipe) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """First row and pixels (C, rows, W), from the top; every strip has a stream of random numbers of its own."""
    regions, light, gaps = (Field(recipe, i, period) for i, period in enumerate((192, 24, 2048)))
    sea = gaps.level(recipe.nodata_share)
    wide = recipe.bands > 3
    tints = np.random.default_rng([recipe.seed, 9]).uniform(-1, 1, (recipe.bands, 1, 1)).astype(np.float32)
    for top in range(0, recipe.side, STRIP):
        rows = np.arange(top, min(top + STRIP, recipe.side))
        rng = np.random.default_rng([recipe.seed, 10, top])
        inside = regions.at(rows) > 0
        shade = light.at(rows)
        base = (110 + 28 * shade + np.where(inside, 45, 0)).astype(np.float32)
        pixels = base[None] + tints * np.where(inside, 30, -15)
        # Half of the grain is common to the bands, as the texture of the ground is.
        shape = (len(rows), recipe.side)
        common = rng.integers(-9, 10, (1, *shape), dtype=np.int8)
        pixels += common + rng.integers(-5, 6, (recipe.bands, *shape), dtype=np.int8)
        image = (pixels.clip(1, 255) * (12 if wide else 1)).astype(np.uint16 if wide else np.uint8)
        if recipe.nodata_share:
            image[:, gaps.at(rows) < sea] = 0
        yield top, image


class Field:
    """Smooth noise over the whole raster, about normal, with a given distance between its random values."""

    def __init__(self, recipe: Recipe, index: int, period: int) -> None:
        self._side, self._period = recipe.side, min(period, max(recipe.side // 4, 1))
        knots = recipe.side // self._period + 2
        self._lattice = np.random.default_rng([recipe.seed, index]).standard_normal((knots, knots)).astype(np.float32)

    def at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Values (rows, W)."""
        some = self._between(rows, self._lattice)
        return np.ascontiguousarray(self._between(np.arange(self._side), np.ascontiguousarray(some.T)).T)

    def level(self, share: float) -> float:
        """The value that a share of the raster lies below."""
        rows = np.arange(0, self._side, max(self._period // 16, 1))
        return float(np.quantile(self.at(rows), share))

    def _between(self, places: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        knot, rest = np.divmod(places, self._period)
        t = (rest / self._period).astype(np.float32)[:, None]
        mixed: npt.NDArray[np.float32] = values[knot] * (1 - t) + values[knot + 1] * t
        return mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--side", type=int, help="of every raster, pixels; for trials")
    options = parser.parse_args()
    for name in options.only:
        path = make(name, options.data_dir, options.side)
        print(path, f"{path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

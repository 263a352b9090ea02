"""What drawing windows costs, beside TorchGeo's samplers and beside drawing mere numbers.

1. Windows balanced over classes against TorchGeo's random windows: as many of the same size from the same files.
2. The same against torch's ``WeightedRandomSampler``, which draws the objects' numbers alone.
3. The grid that stays inside the files against TorchGeo's, where the size divides the files. Both must hold the same
   windows before anything is timed.

The chi-square test of the balanced draws against equal shares is printed too: its p-value falls below 0.01 once in a
hundred seeds if the classes are drawn evenly, and to nearly 0 if not.

Run::

    python -m benchmarks.samplers

No pixel is read: the files, four of 20,480 pixels squared, are empty.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import scipy.stats
import shapely
from rasterio.transform import from_origin
from torch.utils.data import WeightedRandomSampler
from torchgeo.datasets import RasterDataset
from torchgeo.samplers import GridGeoSampler, RandomGeoSampler

from benchmarks.measure import ForeignLoad, Times, in_turn, save, timed
from torchgeo_debias.data import ClassBalancedGeoSampler, InBoundsGridGeoSampler

SIDE, GSD, FILES = 20_480, 0.5, 4
SIZE, STRIDE = 256, 128
CLASSES, OBJECTS, DRAWS = 12, 50_000, 100_000
LEFT, TOP = 500_000.0, 5_400_000.0


def make_files(folder: Path) -> RasterDataset:
    """Side by side; nothing is stored of blocks that were never written."""
    for i in range(FILES):
        profile = {
            "driver": "GTiff", "width": SIDE, "height": SIDE, "count": 1, "dtype": "uint8", "crs": "EPSG:32632",
            "transform": from_origin(LEFT + i * SIDE * GSD, TOP, GSD, GSD), "tiled": True, "sparse_ok": True,
        }  # fmt: skip
        rasterio.open(folder / f"{i}.tif", "w", **profile).close()
    return RasterDataset(folder)


def long_tailed_objects(dataset: RasterDataset) -> gpd.GeoDataFrame:
    """Points in the middle of windows that lie inside, no two at one place; each class half as common as the last."""
    rng = np.random.default_rng(0)
    margin = SIZE // 2
    places = rng.integers(margin, (SIDE * FILES - margin, SIDE - margin), (OBJECTS, 2))
    places = np.unique(places[(places[:, 0] % SIDE >= margin) & (places[:, 0] % SIDE <= SIDE - margin)], axis=0)
    shares = 0.5 ** np.arange(CLASSES)
    kinds = rng.choice(CLASSES, len(places), p=shares / shares.sum())
    points = shapely.points(places * [GSD, -GSD] + [LEFT, TOP])
    return gpd.GeoDataFrame({"kind": kinds}, geometry=points, crs=dataset.crs)


def drawn(sampler: Iterable[object]) -> Callable[[], Times]:
    """The time of one epoch, each item dropped as the loader drops it."""
    return lambda: timed(lambda: deque(sampler, maxlen=0))


def evenness(sampler: ClassBalancedGeoSampler, objects: gpd.GeoDataFrame) -> dict[str, Any]:
    points = shapely.get_coordinates(objects.geometry.to_numpy())
    kind_at = dict(zip(map(tuple, points.tolist()), objects["kind"], strict=True))
    counts = Counter(int(kind_at[(x.start + x.stop) / 2, (y.start + y.stop) / 2]) for x, y, _ in sampler)
    return {
        "objects_of_class": np.bincount(objects["kind"], minlength=CLASSES).tolist(),
        "windows_of_class": [counts[kind] for kind in range(CLASSES)],
        "chi_square_p": float(scipy.stats.chisquare([counts[kind] for kind in range(CLASSES)]).pvalue),
    }


def same_windows(ours: Iterable[tuple[slice, ...]], theirs: Iterable[tuple[slice, ...]]) -> int:
    """The number of windows, if both have the same ones, each once; their order may differ."""
    a, b = (Counter((round(x.start, 6), round(x.stop, 6), round(y.start, 6), round(y.stop, 6), t.start)
                    for x, y, t in side) for side in (ours, theirs))  # fmt: skip
    if a != b or max(a.values()) > 1:
        raise SystemExit("The two grids hold different windows, so that their times cannot be compared.")
    return len(a)


def compared(windows: int, ours: Callable[[], Times], theirs: Callable[[], Times], repeats: int) -> dict[str, Any]:
    times = in_turn(ours, theirs, repeats)
    rates = {f"{side}_per_s": round(windows / times[f"{side}_s"]["median"]) for side in ("ours", "theirs")}
    return {"windows": windows, **rates, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    load = ForeignLoad()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_files(Path(folder))
        objects = long_tailed_objects(dataset)
        made = timed(lambda: ClassBalancedGeoSampler(dataset, objects, "kind", SIZE, DRAWS))
        balanced = ClassBalancedGeoSampler(dataset, objects, "kind", SIZE, DRAWS)
        jittered = ClassBalancedGeoSampler(dataset, objects, "kind", SIZE, DRAWS, jitter=0.5)
        scattered = RandomGeoSampler(dataset, SIZE, DRAWS)
        weights = 1 / np.bincount(objects["kind"])[objects["kind"]]
        numbers = WeightedRandomSampler(weights.tolist(), DRAWS)
        grid, their_grid = InBoundsGridGeoSampler(dataset, SIZE, STRIDE), GridGeoSampler(dataset, SIZE, STRIDE)
        windows = same_windows(grid, their_grid)
        figures = {
            "torchgeo": version("torchgeo"),
            "objects": len(objects),
            "classes": CLASSES,
            "balanced_made_s": round(made.wall, 3),
            "balanced": evenness(balanced, objects),
            "balanced_against_random_windows": compared(DRAWS, drawn(balanced), drawn(scattered), repeats),
            "jittered_against_random_windows": compared(DRAWS, drawn(jittered), drawn(scattered), repeats),
            "balanced_against_weighted_numbers": compared(DRAWS, drawn(balanced), drawn(numbers), repeats),
            "grid_against_grid": compared(windows, drawn(grid), drawn(their_grid), repeats),
        }
    save("samplers", load, figures)


if __name__ == "__main__":
    main()

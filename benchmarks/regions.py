"""Polygons of a class map from strips, against GDAL's of the whole map at once.

1. Processor time against ``rasterio.features.shapes`` of the map in memory, 4096 x 4096 pixels of five classes in
   blobs, ours from strips of 512 rows. GDAL's dictionaries are not even turned into polygons; that is timed on its
   own. Both must give the same polygons before anything is timed.
2. Peak memory for maps 2048 pixels wide, 4096 and 16384 rows high, each in a process of its own, above what is
   resident before the first strip.

Run::

    python -m benchmarks.regions
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes
from scipy import ndimage

from benchmarks.measure import ForeignLoad, in_turn, peak, reset_peak, save, timed
from torchgeo_debias.tiling.regions import regions

SIDE, STRIP, CLASSES, BLOB, NODATA = 4096, 512, 5, 8.0, 255
WIDTH, HEIGHTS = 2048, (4096, 16384)

Ids = npt.NDArray[np.uint8]


def blobs(height: int, width: int) -> Ids:
    """The class whose smooth noise is highest, as the map of a model looks: no class spans the map."""
    rng = np.random.default_rng(0)
    ids, best = np.zeros((height, width), np.uint8), np.full((height, width), -np.inf, np.float32)
    for c in range(CLASSES):
        noise = ndimage.gaussian_filter(rng.standard_normal((height, width), dtype=np.float32), BLOB)
        higher = noise > best
        ids[higher], best[higher] = c, noise[higher]
    return ids


def strips(ids: Ids, height: int) -> Iterator[tuple[int, Ids]]:
    """The map over and over until it is as high."""
    return ((top, ids[top % len(ids) :][:STRIP]) for top in range(0, height, STRIP))


def ours(ids: Ids) -> int:
    return sum(len(part.ids) for part in regions(strips(ids, len(ids)), NODATA))


def theirs(ids: Ids) -> list[tuple[dict[str, Any], float]]:
    return list(shapes(ids, mask=ids != NODATA, connectivity=4))


def check(ids: Ids) -> dict[str, int]:
    """Same polygons, vertex for vertex but for where rings begin and how they run."""
    parts = list(regions(strips(ids, len(ids)), NODATA))
    found = np.concatenate([part.geometries for part in parts])
    found_ids = np.concatenate([part.ids for part in parts]).tolist()
    expected = theirs(ids)
    whole = shapely.normalize([shapely.geometry.shape(geometry) for geometry, _ in expected])
    if sorted(zip(found_ids, shapely.to_wkb(shapely.normalize(found)).tolist(), strict=True)) != sorted(
        zip((int(c) for _, c in expected), shapely.to_wkb(whole).tolist(), strict=True)
    ):
        raise RuntimeError("The two sides do not give the same polygons.")
    return {"polygons": len(found), "vertices": int(shapely.get_num_coordinates(found).sum())}


def memory(path: Path, height: int) -> dict[str, float]:
    """Batches are dropped as a writer would drop them."""
    ids = np.load(path, allow_pickle=False)
    before = reset_peak()
    count = sum(len(part.ids) for part in regions(strips(ids, height), NODATA))
    return {"height": height, "polygons": count, "peak_above_start_mb": round(peak() - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Polygons from strips against GDAL's of the whole map.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    load = ForeignLoad()

    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh,
    ):
        path = Path(folder) / "ids.npy"
        np.save(path, blobs(HEIGHTS[0], WIDTH))
        lean = list(fresh.map(memory, [path] * len(HEIGHTS), HEIGHTS))

    ids = blobs(SIDE, SIDE)
    same = check(ids)
    timing = in_turn(lambda: timed(lambda: ours(ids)), lambda: timed(lambda: theirs(ids)), repeats)
    dictionaries = [geometry for geometry, _ in theirs(ids)]
    to_polygons = timed(lambda: [shapely.geometry.shape(geometry) for geometry in dictionaries])
    save(
        "regions",
        load,
        {
            "map": {"side": SIDE, "classes": CLASSES, "blob_sigma": BLOB, "strip_rows": STRIP, **same},
            "against_shapes": timing,
            "their_dictionaries_to_polygons_cpu_s": round(to_polygons.cpu, 3),
            "memory": {"width": WIDTH, "runs": lean},
        },
    )


if __name__ == "__main__":
    main()

"""Writing a layer in batches against geopandas' writing of the whole at once.

Half a million squares with the attributes of classified tiles, as GeoPackage and as FlatGeobuf, both with a spatial
index. Both files must hold the same features before anything is timed. Peak memory is that of a process of its own
a side, which draws the squares: ours part by part, theirs all.

Run::

    python -m benchmarks.vector_writing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from benchmarks.measure import ForeignLoad, Times, in_turn, peak, reset_peak, save, timed
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.tiling.layers import write_layer

CRS, SIDE, COLUMNS = "EPSG:32632", 20.0, 1000
TABLE = ClassTable.from_counts({f"class {c}": 100 - 10 * c for c in range(8)})
FIELDS = {"class": "string", "class_id": "Int32", "score": "float64", "group": "string"}


def squares(start: int, count: int) -> gpd.GeoDataFrame:
    """Squares ``start`` to ``start + count`` of a wide grid, which do not depend on how the grid is cut."""
    place = np.arange(start, start + count)
    ids = place * 2654435761 % 2**32 % len(TABLE.names)
    left, top = 500_000 + place % COLUMNS * SIDE, 5_400_000 - place // COLUMNS * SIDE
    columns = {
        "class": pd.Series(np.array(TABLE.names, dtype=object)[ids], dtype="string"),
        "class_id": pd.array(ids, dtype="Int32"),
        "score": (place % 1000) / 1000,
        "group": pd.Series(np.array(TABLE.groups, dtype=object)[ids], dtype="string"),
    }
    return gpd.GeoDataFrame(columns, geometry=shapely.box(left, top - SIDE, left + SIDE, top), crs=CRS)


def parts(count: int, rows: int) -> Iterator[gpd.GeoDataFrame]:
    for start in range(0, count, rows):
        yield squares(start, min(rows, count - start))


def fields_and_shapes(path: Path) -> pd.DataFrame:
    found = gpd.read_file(path, layer=path.stem)
    table = pd.DataFrame(found.drop(columns="geometry")).assign(geometry=found.geometry.normalize().to_wkb())
    return table.sort_values("geometry", ignore_index=True)


def compare(folder: Path, ending: str, count: int, repeats: int) -> dict[str, Any]:
    whole = squares(0, count)
    chunks = [whole.iloc[start : start + 4096] for start in range(0, count, 4096)]
    ours, theirs = folder / f"ours{ending}", folder / f"theirs{ending}"

    def in_batches() -> Times:
        ours.unlink(missing_ok=True)
        return timed(lambda: write_layer(ours, chunks, crs=CRS, fields=FIELDS, table=TABLE))

    def at_once() -> Times:
        theirs.unlink(missing_ok=True)
        return timed(lambda: whole.to_file(theirs))

    in_batches(), at_once()
    pd.testing.assert_frame_equal(fields_and_shapes(ours), fields_and_shapes(theirs))
    times = in_turn(in_batches, at_once, repeats)
    # Above 1 we are faster.
    speed = {clock: round(1 / times[f"ratio_{clock}"]["median"], 3) for clock in ("wall", "cpu")}
    sizes = {"ours_mb": ours.stat().st_size / 1e6, "theirs_mb": theirs.stat().st_size / 1e6}
    memory = {
        f"{side}_{n}_peak_mb": _peak_of(side, folder / f"{side}-memory{ending}", n)
        for side in ("ours", "theirs")
        for n in (count // 5, count)
    }
    return {
        **times,
        "speed_of_one_shot": speed,
        "pass_mark": 0.8,
        "passed": min(speed.values()) >= 0.8,
        **sizes,
        **memory,
    }


def _peak_of(side: str, path: Path, count: int) -> float:
    """Of a fresh process, above what it holds after its imports, MB."""
    command = [sys.executable, "-m", "benchmarks.vector_writing", "--peak-of", side, str(path), str(count)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def print_peak(side: str, path: Path, count: int) -> None:
    write_layer(path, parts(100, 100), crs=CRS, fields=FIELDS)
    path.unlink()
    before = reset_peak()
    if side == "ours":
        write_layer(path, parts(count, 4096), crs=CRS, fields=FIELDS, table=TABLE)
    else:
        squares(0, count).to_file(path)
    print(json.dumps(round(peak() - before)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", nargs=3, metavar=("SIDE", "PATH", "COUNT"))
    options = parser.parse_args()
    if options.peak_of:
        side, path, count = options.peak_of
        print_peak(side, Path(path), int(count))
        return
    load = ForeignLoad()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            ending[1:]: compare(Path(folder), ending, options.count, options.repeats) for ending in (".gpkg", ".fgb")
        }
    libraries = {name: version(name) for name in ("geopandas", "pyogrio", "pyarrow", "shapely")}
    save("vector_writing", load, {"features": options.count, "libraries": libraries, **figures})


if __name__ == "__main__":
    main()

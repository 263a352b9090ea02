"""Twenty SIGKILLs at random moments, then completion: the results must be those of an undisturbed run.

Every attempt is the same command. Where it finishes before its kill, what it wrote is compared and the next attempt
begins from nothing, so that kills fall on first starts, resumptions and the writing of the files alike.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd

from benchmarks.tiling.child import Job, environment
from benchmarks.tiling.grids import Unequal
from benchmarks.tiling.harness import ROOT, Failed


def kills(python: Path, raster: Path, model: Path, scratch: Path, count: int = 20, seed: int = 0) -> dict[str, Any]:
    """Kill runs that write a class map and its polygons.

    Raises:
        Unequal: If a run that was killed ends with other bytes in the map, or other features.
    """
    undisturbed, disturbed = scratch / "undisturbed", scratch / "disturbed"
    for folder in (undisturbed, disturbed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    seconds = _finish(_start(python, raster, model, undisturbed))["wall"]
    expected = _digest(undisturbed / "map.tif"), _features(undisturbed / "areas.gpkg")

    rng = random.Random(seed)
    completed = resumed = strays = 0
    kept: list[int] = []
    while len(kept) < count or not completed or _unfinished(disturbed):
        resumed += _bands(disturbed) > 0
        process = _start(python, raster, model, disturbed)
        try:
            process.wait(rng.uniform(0, 0.9 * seconds) if len(kept) < count else None)
            _finish(process)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kept.append(_bands(disturbed))
            print(f"  kill {len(kept)}: {kept[-1]} bands kept, {completed} completions so far", flush=True)
        # A name may stand only for a complete file, also while the other one is missing.
        found = [path for path in (disturbed / "map.tif", disturbed / "areas.gpkg") if path.exists()]
        for path in found:
            _compare(path, expected)
        if len(found) == 2 and not _unfinished(disturbed):  # it may have been killed on its way out, all work done
            completed += 1
            strays += len(list(disturbed.iterdir())) - len(list(undisturbed.iterdir()))
            if len(kept) < count:
                shutil.rmtree(disturbed)
                disturbed.mkdir()
    return {
        "raster": raster.name,
        "model": model.stem,
        "undisturbed_s": round(seconds, 2),
        "kills": len(kept),
        "completed": completed,
        "resumed": resumed,
        "files_left_behind": strays,
        "bands_kept_at_each_kill": kept,
        "equal": True,
    }


def _start(python: Path, raster: Path, model: Path, folder: Path) -> subprocess.Popen[str]:
    options = {"layer": str(folder / "areas.gpkg")}
    job = Job(str(raster), str(model), str(folder / "map.tif"), 1, options)
    command = [str(python), "-m", "benchmarks.tiling.contenders_ours", json.dumps(job.__dict__)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment(1), stdout=pipe, stderr=pipe, text=True)
    if process.stdout is not None:
        process.stdout.readline()  # the work begins; a kill before would prove nothing
    return process


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, complained = process.communicate()
    if process.returncode:
        raise Failed(f"A run that nobody killed failed: {complained.strip()[-2000:]}")
    report: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return report


def _journals(folder: Path) -> Iterator[Path]:
    return folder.glob("*.partial/journal.jsonl")


def _unfinished(folder: Path) -> bool:
    return any(_journals(folder))


def _bands(folder: Path) -> int:
    return sum(len(list(journal.parent.glob("*.npz"))) for journal in _journals(folder))


def _compare(path: Path, expected: tuple[str, pd.DataFrame]) -> None:
    if path.suffix == ".tif":
        equal = _digest(path) == expected[0]
    else:
        equal = _features(path).equals(expected[1])
    if not equal:
        raise Unequal(f"{path.name} of a run that was killed differs from that of an undisturbed one.")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _features(path: Path) -> pd.DataFrame:
    """Attributes and geometry, in an order of their own: that of the features in the file is not promised."""
    layer = gpd.read_file(path, layer=path.stem)
    frame = pd.DataFrame(layer.drop(columns=layer.geometry.name)).assign(geometry=layer.geometry.to_wkb())
    return frame.sort_values(list(frame.columns)).reset_index(drop=True)

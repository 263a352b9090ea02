"""The tiling engine beside its peers, beside the physical limit, in its memory, and under SIGKILL.

Run, in the root of the repository::

    python -m benchmarks.tiling.peers                       # once: the environment of the peers, outside of it
    python -m benchmarks.tiling --data-dir DIR              # all sections; DIR takes 6 GB

Every contender runs in a process of its own, on the same raster with the same net, tiles of 512 pixels and a stride
of 460, on a fixed number of cores. No figure is taken unless all class maps are equal (IoU of each class at least
0.999 away from seams); the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ForeignLoad, machine
from benchmarks.tiling import models, rasters, suppression
from benchmarks.tiling.grids import Unequal
from benchmarks.tiling.harness import Failed, Runner
from benchmarks.tiling.kills import kills
from benchmarks.tiling.peers import FOLDER, python_of
from benchmarks.tiling.sections import blending, memory, say, speed
from benchmarks.tiling.table import table

VERSIONS = ("geodeep", "geoai-py", "torchgeo", "torch", "onnxruntime", "rasterio", "numpy")
QUICK_SIDE = 2048


@dataclass(frozen=True)
class Bench:
    """The options of a run."""

    runner: Runner
    data: Path
    threads: tuple[int, ...]
    repeats: int
    side: int | None

    def raster(self, name: str) -> Path:
        return rasters.make(name, self.data, self.side)

    def model(self, name: str, bands: int = 3) -> Path:
        return models.make(name, bands, self.data)

    def speed(self, raster: str, model: str) -> dict[str, Any]:
        return {
            f"{threads} threads": speed(self.runner, self.raster(raster), self.model(model), threads, self.repeats)
            for threads in self.threads
        }

    def memory(self) -> dict[str, Any]:
        jobs = {
            "tiled": (self.raster("tiled"), self.model("light")),
            "striped": (self.raster("striped"), self.model("light")),
            "bands": (self.raster("bands"), self.model("light", 8)),
            "huge": (self.raster("huge"), self.model("light")),
        }
        return memory(self.runner, jobs, max(self.threads), min(self.repeats, 3))

    def blending(self) -> dict[str, Any]:
        return blending(self.runner, self.raster("tiled"), self.model("light"), max(self.threads), self.repeats)

    def kills(self) -> dict[str, Any]:
        raster = rasters.make("tiled", self.data, self.side or 4096)
        return kills(self.runner.python, raster, self.model("heavy"), self.runner.scratch)

    def suppression(self) -> dict[str, Any]:
        scenes = [scene._replace(size=scene.size // (100 if self.side else 1)) for scene in suppression.SCENES]
        folder = self.runner.scratch
        return {scene.name: suppression.compare(self.runner.python, scene, folder, self.repeats) for scene in scenes}


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "light": lambda bench: bench.speed("tiled", "light"),
    "heavy": lambda bench: bench.speed("tiled", "heavy"),
    "striped": lambda bench: bench.speed("striped", "light"),
    "memory": Bench.memory,
    "blending": Bench.blending,
    "kills": Bench.kills,
    "suppression": Bench.suppression,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="keeps rasters and models; a temporary folder where left out")
    parser.add_argument("--peer-python", type=Path, default=python_of(FOLDER))
    parser.add_argument("--only", help=f"sections, separated by commas: {', '.join(SECTIONS)}", default="")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="cores a contender may use")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"rasters of {QUICK_SIDE} pixels; results are not kept")
    parser.add_argument("--cold", action="store_true", help="drop the raster from memory before each run")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    if options.repeats < 2:
        parser.error("quartiles need at least 2 repeats")
    if not options.peer_python.exists():
        parser.error("the environment of the peers is missing; make it with: python -m benchmarks.tiling.peers")

    with tempfile.TemporaryDirectory(dir=options.data_dir and _made(options.data_dir)) as scratch:
        bench = Bench(
            # Not resolved: the name is what makes it the python of its environment.
            Runner(options.peer_python.absolute(), Path(scratch), options.cold),
            options.data_dir or Path(scratch),
            tuple(options.threads),
            options.repeats,
            QUICK_SIDE if options.quick else None,
        )
        try:
            results = {name: _section(name, bench) for name in names}
        except (Unequal, Failed) as failure:
            print(f"Stopped, nothing is compared: {failure}", file=sys.stderr)
            return 1
    say(table(results))
    if not options.quick:
        _keep(results, options.peer_python)
    return 0


def _section(name: str, bench: Bench) -> dict[str, Any]:
    say(f"== {name}")
    load = ForeignLoad()
    figures = SECTIONS[name](bench)
    return {"date": date.today().isoformat(), "foreign_load_cores": load.cores(), "repeats": bench.repeats} | figures


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keep(results: dict[str, Any], python: Path) -> None:
    """Into the file of results, beside the sections of earlier runs."""
    path = RESULTS / "tiling.json"
    kept = json.loads(path.read_text())["sections"] if path.exists() else {}
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {VERSIONS}}}))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    facts = {"benchmark": "tiling", "machine": machine(), "versions": json.loads(said)}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({**facts, "sections": kept | results}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

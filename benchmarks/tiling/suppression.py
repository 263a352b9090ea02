"""Suppression of overlapping boxes: ours beside sahi, supervision, torchvision and a plain script.

Run::

    python -m benchmarks.tiling.peers          # once: the environment of the peers
    python -m benchmarks.tiling.suppression [--peer-python ../bench-venv/bin/python] [--quick]

Scenes are drawn from a seed. *Sparse*: objects of 10 to 60 pixels, one a square of 60 pixels on average, every tenth
box another detection of the object before it, some pixels beside: what tiles with an overlap give. *Crowded*: a
hundred detections of each object, many objects in each other's way: what a detector gives before any suppression.

All keep by intersection over union of 0.5, whatever the class. Coordinates are random and scores differ, so whether
an overlap of exactly 0.5 suppresses (sahi: yes; the others: no) and how equal scores are ordered makes no difference;
the kept sets must be equal, or nothing is reported. Each run is a process of its own; contenders take turns. Before
the clock starts each imports its library, reads the scene and suppresses its first boxes once. Memory is the highest
resident memory above what was resident then.

supervision builds two matrices of all pairs (13 GB for 16,200 boxes): it takes part up to there, once, and only where
memory allows. torchvision takes minutes for 200,000: it takes part up to 50,000.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.measure import ForeignLoad, Spread, save
from benchmarks.tiling import peers
from benchmarks.tiling.child import Job, Report, environment

ROOT = Path(__file__).resolve().parents[2]
PLACE = 60
SUPERVISION_GB = 16

Boxes = npt.NDArray[np.float64]


class Scene(NamedTuple):
    """A number of boxes, how they are drawn, and who suppresses them."""

    draw: Callable[[np.random.Generator, int], Boxes]
    size: int
    contenders: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.draw.__name__} {self.size:,}"


def sparse(rng: np.random.Generator, count: int) -> Boxes:
    centres, sizes = rng.uniform(0, PLACE * count**0.5, (count, 2)), rng.uniform(10, 60, (count, 2))
    again = np.arange(9, count, 10)
    centres[again] = centres[again - 1] + rng.normal(0, 2, (len(again), 2))
    sizes[again] = sizes[again - 1] * rng.uniform(0.9, 1.1, (len(again), 2))
    return np.hstack([centres - sizes / 2, centres + sizes / 2])


def crowded(rng: np.random.Generator, count: int) -> Boxes:
    objects = rng.uniform(0, 1000, (count // 100, 2))
    centres = objects[rng.integers(0, len(objects), count)] + rng.normal(0, 3, (count, 2))
    sizes = rng.uniform(20, 60, (count, 2))
    return np.hstack([centres - sizes / 2, centres + sizes / 2])


def oriented(rng: np.random.Generator, count: int) -> Boxes:
    low, high = np.split(sparse(rng, count), 2, axis=1)
    angles = rng.uniform(0, 180, count)
    angles[9::10] = angles[8::10][: len(angles[9::10])] + rng.normal(0, 3, len(angles[9::10]))
    return np.column_stack([(low + high) / 2, high - low, angles])


SCENES = (
    Scene(sparse, 16_200, ("ours", "sahi", "torchvision", "supervision")),
    Scene(sparse, 50_000, ("ours", "sahi", "torchvision")),
    Scene(sparse, 200_000, ("ours", "ours, streamed", "sahi")),
    Scene(sparse, 1_000_000, ("ours", "ours, streamed", "sahi")),
    Scene(crowded, 33_000, ("ours", "sahi", "torchvision")),
    Scene(oriented, 200_000, ("ours", "ours, streamed", "STRtree + shapely")),
)


def contend(python: Path, scene: Path, contender: str, out: Path) -> Report:
    job = Job(str(scene), "", str(out), 1, {"contender": contender})
    command = [str(python), "-m", "benchmarks.tiling.contenders_suppression", json.dumps(asdict(job))]
    run = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{contender} failed on {scene.stem}: {run.stderr.strip()[-2000:]}")
    return Report(**json.loads(run.stdout.strip().splitlines()[-1]))


def compare(python: Path, scene: Scene, folder: Path, repeats: int) -> dict[str, Any]:
    """Run all contenders of a scene in turn; ends the program where they keep different boxes."""
    rng = np.random.default_rng(0)
    path = folder / f"{scene.name}.npz"
    np.savez(path, boxes=scene.draw(rng, scene.size), scores=(rng.permutation(scene.size) + 0.5) / scene.size)
    kept: npt.NDArray[np.int64] | None = None
    reports: dict[str, list[Report]] = {name: [] for name in scene.contenders if name != "supervision" or _room()}
    for repeat in range(repeats):
        names = list(reports)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if name == "supervision" and reports[name]:
                continue
            out = folder / "kept.npy"
            reports[name].append(contend(python, path, name, out))
            answer = np.load(out)
            if kept is not None and not np.array_equal(answer, kept):
                raise SystemExit(f"{name} keeps {len(answer)} boxes of {scene.name} and another {len(kept)}: not equal")
            kept = answer
    path.unlink()
    return {
        "boxes": scene.size,
        "kept": len(kept) if kept is not None else 0,
        "contenders": {
            name: {
                "repeats": len(runs),
                "wall_s": _spread([run.facts["wall"] for run in runs]),
                "cpu_s": _spread([run.facts["cpu"] for run in runs]),
                "peak_above_imports_mb": _spread([run.above_mb for run in runs]),
            }
            for name, runs in reports.items()
        },
    }


def table(figures: dict[str, Any]) -> str:
    lines = [
        "| boxes | contender | wall s (quartiles) | cpu s | memory MB | cpu / ours |",
        "|---|---|---|--:|--:|--:|",
    ]
    for name, scene in figures.items():
        ours = scene["contenders"]["ours"]["cpu_s"]["median"]
        for contender, facts in scene["contenders"].items():
            wall, cpu = facts["wall_s"], facts["cpu_s"]["median"]
            once = ", once" if facts["repeats"] == 1 else ""
            lines.append(
                f"| {name} | {contender}{once} | {wall['median']:.3f} ({wall['low']:.3f} to {wall['high']:.3f}) "
                f"| {cpu:.3f} | {facts['peak_above_imports_mb']['median']:.0f} | {cpu / ours:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, default=peers.python_of(peers.FOLDER))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the boxes, two repeats, nothing saved")
    options = parser.parse_args()
    if not options.peer_python.exists():
        raise SystemExit(f"no interpreter at {options.peer_python}: make it with python -m benchmarks.tiling.peers")
    load = ForeignLoad()
    scenes = [scene._replace(size=scene.size // 100) for scene in SCENES] if options.quick else SCENES
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            scene.name: compare(options.peer_python, scene, Path(folder), 2 if options.quick else options.repeats)
            for scene in scenes
        }
    if not options.quick:
        pins = dict(pin.split("==") for pin in peers.PINS)
        names = ("sahi", "supervision", "torch", "torchvision")
        save("suppression", load, {"peers": {name: pins[name] for name in names}, "scenes": figures})
    print(table(figures))


def _spread(values: list[float]) -> dict[str, float]:
    return asdict(Spread.of(values if len(values) > 1 else values * 2))


def _room() -> bool:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(available.split()[1]) > SUPERVISION_GB * 2**20


if __name__ == "__main__":
    main()

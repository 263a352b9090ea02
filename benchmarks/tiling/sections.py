"""What is measured: speed beside the peers and the physical limit, memory, and the price of blending."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rasterio

from benchmarks.measure import Spread
from benchmarks.tiling.child import Report
from benchmarks.tiling.grids import agreement
from benchmarks.tiling.harness import OURS, PEERS, Contender, Run, Runner
from benchmarks.tiling.limits import WAYS


def say(text: str) -> None:
    print(text, flush=True)


def speed(runner: Runner, raster: Path, model: Path, threads: int, repeats: int, peers: bool = True) -> dict[str, Any]:
    """All contenders on one raster with one model, in turn, beside the physical limit.

    Raises:
        Unequal: If one of them gives another map than ours; nothing is timed then.
    """
    contenders = (OURS, *(PEERS if peers else ()))
    equal = {}
    for contender in contenders:
        runner.run(contender, raster, model, threads)
        if contender is not OURS:
            equal[contender.name] = agreement(runner.out(OURS), runner.out(contender))._asdict()
            say(f"  {contender.name}: equal map, IoU {min(equal[contender.name]['iou']):.5f}")
    stages = _fastest(runner, raster, model, threads)
    runs: dict[str, list[Run]] = defaultdict(list)
    for _ in range(repeats):
        for contender in (*contenders, *stages.values()):
            runs[contender.name].append(_run(runner, contender, raster, model, threads))
    limits = [limit([runs[stage.name][i].report for stage in stages.values()], threads) for i in range(repeats)]
    ours = [run.report.wall for run in runs[OURS.name]]
    return {
        "raster": raster.name,
        "model": model.stem,
        "threads": threads,
        "megapixels": round(_pixels(raster) / 1e6, 1),
        "agreement": equal,
        "contenders": {contender.name: _facts(runs[contender.name]) for contender in contenders},
        "stages": {
            stage: _facts(runs[contender.name]) | {"way": contender.options["way"]}
            for stage, contender in stages.items()
        },
        "limit_s": asdict(Spread.of(limits)),
        "ours_over_limit": asdict(Spread.of([a / b for a, b in zip(ours, limits, strict=True)])),
        "cpu_over_stages": asdict(Spread.of(_cpu_over_stages(runs, stages.values(), repeats))),
        "peers_over_ours": {
            peer.name: asdict(Spread.of([run.report.wall / a for run, a in zip(runs[peer.name], ours, strict=True)]))
            for peer in contenders[1:]
        },
    }


def limit(stages: list[Report], cores: int) -> float:
    """Seconds that nobody can do it in: the slowest stage, or all their processor time on all cores."""
    return max(max(stage.wall for stage in stages), sum(stage.cpu for stage in stages) / cores)


def memory(runner: Runner, jobs: dict[str, tuple[Path, Path]], threads: int, repeats: int) -> dict[str, Any]:
    """Peak of ours above its base line, on rasters of several sizes; ``jobs`` has a raster and a model each."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for _ in range(repeats):
        for name, (raster, model) in jobs.items():
            runs[name].append(_run(runner, OURS, raster, model, threads))
    return {name: _facts(found) | {"raster": jobs[name][0].name} for name, found in runs.items()}


def blending(runner: Runner, raster: Path, model: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Ours with blended overlaps against ours that takes each tile's own part as it is, at the same stride."""
    plain = replace(OURS, name="no blending", options={"blend": False})
    runs: dict[str, list[Run]] = defaultdict(list)
    for repeat in range(repeats):
        pair = (OURS, plain) if repeat % 2 else (plain, OURS)
        for contender in pair:
            runs[contender.name].append(_run(runner, contender, raster, model, threads))
    pairs = [(a.report, b.report) for a, b in zip(runs[OURS.name], runs[plain.name], strict=True)]
    return {
        "blended": _facts(runs[OURS.name]),
        "plain": _facts(runs[plain.name]),
        "ratio_wall": asdict(Spread.of([a.wall / b.wall for a, b in pairs])),
        "ratio_cpu": asdict(Spread.of([a.cpu / b.cpu for a, b in pairs])),
    }


def _fastest(runner: Runner, raster: Path, model: Path, threads: int) -> dict[str, Contender]:
    """Of each stage, the way that was faster in one trial."""
    chosen = {}
    for stage, ways in WAYS.items():
        options = {"stage": stage, "map": str(runner.out(OURS))}
        tried = [Contender(f"{stage} alone", "limits", options | {"way": way}) for way in ways]
        trials = [_run(runner, contender, raster, model, threads) for contender in tried]
        chosen[stage] = min(zip(trials, tried, strict=True), key=lambda pair: pair[0].report.wall)[1]
    return chosen


def _run(runner: Runner, contender: Contender, raster: Path, model: Path, threads: int) -> Run:
    run = runner.run(contender, raster, model, threads)
    say(
        f"  {contender.name:26} {run.report.wall:8.2f} s  cpu {run.report.cpu:8.2f} s  "
        f"{run.report.above_mb:7.0f} MB  others {run.foreign:.2f} cores"
    )
    return run


def _facts(runs: list[Run]) -> dict[str, Any]:
    reports = [run.report for run in runs]
    return {
        "wall_s": asdict(Spread.of([report.wall for report in reports])),
        "cpu_s": asdict(Spread.of([report.cpu for report in reports])),
        "peak_above_imports_mb": round(max(report.above_mb for report in reports)),
        "imports_mb": round(reports[0].baseline_mb),
        "foreign_cores": round(sum(run.foreign for run in runs) / len(runs), 2),
    }


def _cpu_over_stages(runs: dict[str, list[Run]], stages: Iterable[Contender], repeats: int) -> list[float]:
    names = [stage.name for stage in stages]
    return [runs[OURS.name][i].report.cpu / sum(runs[name][i].report.cpu for name in names) for i in range(repeats)]


def _pixels(raster: Path) -> int:
    with rasterio.open(raster) as dataset:
        return int(dataset.width * dataset.height)

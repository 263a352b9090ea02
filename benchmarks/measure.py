"""What the benchmarks share: timing two sides in turn, peak memory, foreign load, facts about the machine, results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Times:
    """Seconds of one block of work: on the clock, and of processor time over all threads of this process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(round(median, 4), round(low, 4), round(high, 4))


def timed(work: Callable[[], object]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def in_turn(ours: Callable[[], Times], theirs: Callable[[], Times], repeats: int) -> dict[str, Any]:
    """Run A B, B A, A B ... and report both sides and the ratio of each pair, ours over theirs.

    Both halves of a pair see about the same foreign load, so the ratio is steadier than the times; that of processor
    time hardly feels the load at all.
    """
    pairs: list[tuple[Times, Times]] = []
    for repeat in range(repeats):
        if repeat % 2:
            second = theirs()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, theirs()))
    return {
        "repeats": repeats,
        "ours_s": asdict(Spread.of([a.wall for a, _ in pairs])),
        "theirs_s": asdict(Spread.of([b.wall for _, b in pairs])),
        "ratio_wall": asdict(Spread.of([a.wall / b.wall for a, b in pairs])),
        "ratio_cpu": asdict(Spread.of([a.cpu / b.cpu for a, b in pairs])),
    }


class ForeignLoad:
    """Cores that others kept busy while this benchmark ran, on average."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        foreign = (busy - self._busy) - (_own_seconds() - self._own)
        return round(max(foreign, 0.0) / (time.perf_counter() - self._wall), 2)


def reset_peak() -> float:
    """Forget this process's peak of resident memory (Linux only); returns what is resident now, MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """Highest resident memory since :func:`reset_peak`, MB."""
    return _status("VmHWM")


def save(name: str, load: ForeignLoad, figures: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` with the facts that the figures hang on, and print the figures."""
    result = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "machine": machine(),
        "foreign_load_cores": load.cores(),
        "versions": {p: version(p) for p in ("torch", "timm", "peft", "lightning", "scikit-learn", "rasterio")},
        **figures,
    }
    text = json.dumps(result, indent=2) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text)
    print(text)


def machine() -> dict[str, Any]:
    """In general words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    extra = ["bf16"] if torch.cpu._is_avx512_bf16_supported() else []
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "ram_gib": round(memory),
        "instructions": [torch.backends.cpu.get_cpu_capability(), *extra],
        "gpu": torch.cuda.is_available(),
        "python": platform.python_version(),
    }


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def _busy_seconds() -> float | None:
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, stat.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

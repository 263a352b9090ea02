"""Runs contenders as processes of their own and keeps what they report."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import ForeignLoad
from benchmarks.tiling.child import Job, Report, environment

ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """A contender ended with an error."""


@dataclass(frozen=True)
class Contender:
    """A module of this folder, with what it is told."""

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    processes: bool = False
    """Whether it starts processes of its own, whose memory then counts too."""


OURS = Contender("torchgeo-debias", "contenders_ours")
PEERS = (
    Contender("GeoDeep 0.9.13", "contenders_geodeep"),
    Contender("geoai 0.40.1", "contenders_geoai"),
    Contender("TorchGeo 0.8.1", "contenders_torchgeo", {"workers": 0}),
    Contender("TorchGeo 0.8.1, 2 workers", "contenders_torchgeo", {"workers": 2}, processes=True),
    Contender("plain rasterio loop", "contenders_naive"),
)


@dataclass(frozen=True)
class Run:
    """One run of a contender: its report, and the cores that others kept busy meanwhile."""

    report: Report
    foreign: float


@dataclass(frozen=True)
class Runner:
    """How processes are started.

    Attributes:
        python: Of the environment of the peers.
        scratch: Folder for results.
        cold: Whether the raster is dropped from the memory of the system before each run; else it is read once.
    """

    python: Path
    scratch: Path
    cold: bool = False

    def out(self, contender: Contender) -> Path:
        """Where a contender's map goes."""
        return self.scratch / f"{contender.module}_{contender.options.get('workers', '')}.tif"

    def run(
        self, contender: Contender, raster: Path, model: Path, threads: int, options: dict[str, Any] | None = None
    ) -> Run:
        """Carry out one job.

        Raises:
            Failed: If the process ends with an error; its last words are in the message.
        """
        out = self.out(contender)
        out.unlink(missing_ok=True)
        _fill_or_drop_cache(raster, self.cold)
        job = Job(str(raster), str(model), str(out), threads, contender.options | (options or {}))
        load = ForeignLoad()
        process = subprocess.Popen(
            [self.python, "-m", f"benchmarks.tiling.{contender.module}", json.dumps(job.__dict__)],
            cwd=ROOT, env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        family = _Family(process.pid) if contender.processes else None
        said, complained = process.communicate()
        if process.returncode:
            raise Failed(f"{contender.name} failed on {raster.name}: {complained.strip()[-2000:]}")
        report = Report(**json.loads(said.strip().splitlines()[-1]))
        if family is not None:
            report = replace(report, peak_mb=max(report.peak_mb, family.peak()))
        return Run(report, load.cores() or 0.0)


class _Family:
    """Samples the memory of a process and all its children, pages that they share counted once."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._over = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> float:
        """Highest sum, MB; ends the watch."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._over.is_set():
            self._peak = max(self._peak, _tree_mb(self._pid))
            time.sleep(0.1)


def _tree_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return 0.0
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return own + sum(_tree_mb(int(child)) for child in children)


def _fill_or_drop_cache(path: Path, cold: bool) -> None:
    with path.open("rb") as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass

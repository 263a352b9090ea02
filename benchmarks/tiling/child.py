"""What every contender process shares: its job, the measuring, and the one line it reports. Standard library only.

A contender is a module with a function that takes a :class:`Job`, makes its imports and returns the work; the imports
are the base line of memory, the work alone is timed. ``python -m benchmarks.tiling.<module> '<job as JSON>'`` prints
a :class:`Report` as JSON in the last line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Work = Callable[[], dict[str, Any] | None]
"""Runs the job; may return facts for the report."""


READY = "ready"
"""Printed after the imports, when the work begins."""


@dataclass(frozen=True)
class Job:
    """What a contender is to do.

    Attributes:
        raster: To map.
        model: ONNX file; the torch weights lie beside it.
        out: GeoTIFF of class ids to write.
        threads: Cores the process may use, and threads of the model.
        options: What one contender alone understands.
    """

    raster: str
    model: str
    out: str
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What it took.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds of processor time, of child processes too.
        baseline_mb: Resident memory after the imports.
        peak_mb: Highest resident memory during the work, of this process alone.
        facts: What the work returned.
    """

    wall: float
    cpu: float
    baseline_mb: float
    peak_mb: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def above_mb(self) -> float:
        """Peak above the base line, MB."""
        return self.peak_mb - self.baseline_mb


def contend(prepare: Callable[[Job], Work]) -> None:
    """Carry out the job of the command line and print the report."""
    job = Job(**json.loads(sys.argv[1]))
    # Before any import that counts the cores. Whatever a contender starts stays on them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    work = prepare(job)
    print(READY, flush=True)
    baseline = _reset_peak()
    wall, cpu = time.perf_counter(), _cpu()
    facts = work() or {}
    wall, cpu = time.perf_counter() - wall, _cpu() - cpu
    print("\n" + json.dumps(asdict(Report(wall, cpu, baseline, _status("VmHWM"), facts))), flush=True)


def environment(threads: int) -> dict[str, str]:
    """For a contender process."""
    return os.environ | {
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
    }


def session(model: str | Path, threads: int) -> Any:  # noqa: ANN401
    """An ONNX Runtime session as all contenders use it whose own code does not make one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait in a busy loop would take the cores from reading and writing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

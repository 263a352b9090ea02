"""How soon a worker can be used and what it holds while it waits, beside a bare ``import torch``.

Measured are the time from the start of the process to its ``hello``, that to the answer of ``probe``, which loads what
the verbs compute with, and resident memory at both moments; beside them a Python of the same environment that imports
torch and says so. Both sides import the same torch; that is asserted before a figure is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import ForeignLoad, Spread

WORKER = [sys.executable, "-I", "-m", "torchgeo_debias.worker", "--protocol", "1"]
TORCH = [sys.executable, "-I", "-c", "import torch; print(torch.__version__, flush=True); input()"]
PROBE = b'{"type": "run", "id": 1, "verb": "probe", "arguments": []}\n'


@dataclass(frozen=True)
class Start:
    """One start: seconds since it, and resident memory in MB, of both moments."""

    hello_s: float
    ready_s: float
    hello_mb: float
    ready_mb: float
    torch: str


def start_worker() -> Start:
    begin = time.perf_counter()
    with subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "hello"
        hello_s, hello_mb = time.perf_counter() - begin, resident(process.pid)
        process.stdin.write(PROBE)
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        ready_s, ready_mb = time.perf_counter() - begin, resident(process.pid)
        process.stdin.close()
    return Start(hello_s, ready_s, hello_mb, ready_mb, answer["result"]["versions"]["torch"])


def start_torch() -> tuple[float, float, str]:
    begin = time.perf_counter()
    with subprocess.Popen(TORCH, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        version = process.stdout.readline().decode().strip()
        seconds, memory = time.perf_counter() - begin, resident(process.pid)
        process.stdin.write(b"\n")
        process.stdin.close()
    return seconds, memory, version


def resident(pid: int) -> float:
    """Resident memory of a process, MB (Linux only)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise KeyError(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    load = ForeignLoad()
    start_worker(), start_torch()  # fills the cache of the disk
    workers: list[Start] = []
    bare: list[tuple[float, float, str]] = []
    for repeat in range(repeats):
        if repeat % 2:
            bare.append(start_torch())
            workers.append(start_worker())
        else:
            workers.append(start_worker())
            bare.append(start_torch())
    for worker, (_, _, version) in zip(workers, bare, strict=True):
        assert worker.torch == version.partition("+")[0], (worker.torch, version)
    pairs = list(zip(workers, bare, strict=True))
    sides = {
        "worker_hello_s": [worker.hello_s for worker in workers],
        "worker_probe_s": [worker.ready_s for worker in workers],
        "torch_s": [seconds for seconds, _, _ in bare],
        "worker_hello_mb": [worker.hello_mb for worker in workers],
        "worker_probe_mb": [worker.ready_mb for worker in workers],
        "torch_mb": [memory for _, memory, _ in bare],
        "ratio_hello": [worker.hello_s / seconds for worker, (seconds, _, _) in pairs],
        "ratio_probe": [worker.ready_s / seconds for worker, (seconds, _, _) in pairs],
        "ratio_hello_memory": [worker.hello_mb / memory for worker, (_, memory, _) in pairs],
        "ratio_probe_memory": [worker.ready_mb / memory for worker, (_, memory, _) in pairs],
    }
    measure.save("worker", load, {"repeats": repeats, **{name: asdict(Spread.of(of)) for name, of in sides.items()}})


if __name__ == "__main__":
    main()

"""Workers that are small scripts with the faults of real ones, each standing where a Python is expected."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from debias_mapper.runtime import client as client_module
from debias_mapper.runtime.client import WorkerClient

HEAD = """\
#!{python}
import json, os, signal, subprocess, sys, threading, time

def say(kind, **fields):
    sys.stdout.write(json.dumps({{"type": kind, **fields}}) + "\\n")
    sys.stdout.flush()

def hello(protocol=1):
    say("hello", protocol=protocol, library="9.9.9", python="3.11.7", pid=os.getpid(), verbs=["echo"])

def hear():
    line = sys.stdin.readline()
    return json.loads(line) if line else {{"type": "quit"}}

def jobs():
    while (message := hear())["type"] != "quit":
        if message["type"] == "run":
            yield message

"""
ECHO = """\
hello()
for job in jobs():
    say("done", id=job["id"], result={"pid": os.getpid(), "arguments": job["arguments"], "verb": job["verb"]})
"""

FakeWorker = Callable[[str], str]
MakeClient = Callable[[str], WorkerClient]


def write_worker(path: Path, body: str) -> str:
    """An executable that ignores its arguments and is a worker, standing where a Python is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD.format(python=sys.executable) + body, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def fake(tmp_path: Path) -> FakeWorker:
    """Makes a worker of the given script, in a folder whose name has spaces and other letters than English ones."""
    return lambda body: write_worker(tmp_path / "my földer 地图" / "python", body)


@pytest.fixture
def make_client(fake: FakeWorker) -> Iterator[MakeClient]:
    """Makes a client of a worker of the given script; none outlives the test."""
    made: list[WorkerClient] = []

    def make(body: str) -> WorkerClient:
        made.append(WorkerClient(fake(body)))
        return made[-1]

    yield make
    for client in made:
        client.close(0)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits three seconds for a worker that will not end."""
    monkeypatch.setattr(client_module, "GRACE", 0.3)


def gone(pid: int, within: float = 30) -> bool:
    """Whether a process ends within some seconds; one that nobody has fetched yet counts as ended."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False

"""A worker ends with the program that started it, however that one ends, and whatever the worker is doing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worker.client import ROOT, STRANGE, Client, talking

DEEDS = ["steps", "sleep", "flood"]
"""Stops when it is told to; never asks whether it should; does not either, and fills the pipe."""


def busy(client: Client, deed: str) -> None:
    client.send(type="run", id=1, verb="strange", arguments=[deed, "100000"])
    client.until("progress", "log")


def test_an_idle_worker_ends_when_told_to_quit_or_left_alone() -> None:
    with talking() as client:
        client.send(type="quit")
        assert client.rest() == []
        assert client.process.returncode == 0
    with talking() as client:
        client.hang_up()
        assert client.rest() == []
        assert client.process.returncode == 0


@pytest.mark.parametrize(
    ("deed", "farewell"), [*((deed, "hang up") for deed in DEEDS), ("steps", "quit"), ("steps", "unfinished line")]
)
def test_a_busy_worker_ends_all_the_same(deed: str, farewell: str) -> None:
    with talking() as client:
        busy(client, deed)
        if farewell == "quit":
            client.send(type="quit")
        else:
            client.write(b'{"type": "qu' if farewell == "unfinished line" else b"")
            client.hang_up()
        rest = client.rest()
        if deed == "steps":
            assert (rest[-1]["type"], rest[-1]["code"]) == ("error", "cancelled")
            assert client.process.returncode == 0
        else:
            assert {message["type"] for message in rest} <= {"log"}
            assert client.process.returncode == 1


def test_a_run_that_waits_is_answered_before_the_end() -> None:
    with talking() as client:
        client.write(b'{"type": "run", "id": 3, "verb": "strange", "arguments": ["steps", "9999"]}\n{"type": "quit"}\n')
        assert client.rest()[-1]["code"] == "cancelled"
        assert client.process.returncode == 0


@pytest.mark.parametrize("deed", DEEDS)
def test_it_ends_when_nobody_reads_any_more(deed: str) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(STRANGE, cwd=ROOT, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.DEVNULL)
    os.close(writing)
    assert process.stdin is not None
    assert os.read(reading, 10_000).startswith(b'{"type": "hello"')
    process.stdin.write(b'{"type": "run", "id": 1, "verb": "strange", "arguments": ["%b", "100000"]}\n' % deed.encode())
    process.stdin.flush()
    assert os.read(reading, 10_000)
    os.close(reading)
    if deed == "sleep":  # which says nothing more by itself
        process.stdin.write(b"nonsense\n")
        process.stdin.flush()
    assert process.wait(timeout=60) == (0 if deed == "steps" else 1)
    process.stdin.close()


def test_a_native_crash_leaves_its_place_on_stderr() -> None:
    with talking() as client:
        client.send(type="run", id=1, verb="strange", arguments=["crash"])
        assert client.rest() == []
        assert client.process.returncode not in (0, 1, 2)
        assert b"in _crash" in client.stderr


posix = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


@posix
@pytest.mark.parametrize("deed", DEEDS)
def test_sigterm_ends_it(deed: str) -> None:
    with talking() as client:
        busy(client, deed)
        client.process.terminate()
        client.rest()
        assert client.process.returncode == (0 if deed == "steps" else 1)
    with talking() as client:
        client.process.terminate()
        assert client.rest() == []
        assert client.process.returncode == 0


@posix
def test_ctrl_c_is_left_to_others() -> None:
    with talking() as client:
        busy(client, "steps")
        client.process.send_signal(signal.SIGINT)
        client.send(type="cancel", id=1)
        assert client.until("error")["code"] == "cancelled"
        client.process.send_signal(signal.SIGINT)
        assert client.result("strange", "echo", "well")["words"] == ["well"]


PARENT = """
import subprocess, sys, time
worker = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True)
worker.stdout.readline()
worker.stdin.write(sys.argv[1].encode() + b"\\n")
worker.stdin.flush()
worker.stdout.readline()
print(worker.pid, flush=True)
time.sleep(600)
"""


@posix
@pytest.mark.parametrize("deed", [*DEEDS, "mutter"])
def test_it_does_not_outlive_a_parent_that_was_killed(deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what stderr cannot get rid of must stay in its buffer
    request = json.dumps({"type": "run", "id": 1, "verb": "strange", "arguments": [deed, "100000"]})
    command = [sys.executable, "-c", PARENT, request, *STRANGE]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert is_alive(worker)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended may still be listed until somebody asks for its code."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

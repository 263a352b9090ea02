"""A plain client of the worker, which tests talk to it with."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REAL = [sys.executable, "-I", "-m", "torchgeo_debias.worker"]
STRANGE = [
    sys.executable,
    "-c",
    "import tests.worker.strange, runpy; runpy.run_module('torchgeo_debias.worker', run_name='__main__')",
]
"""The same with the verb ``strange``."""

_PATIENCE = 300
"""Seconds to wait for what must come; shared machines are slow."""

Message = dict[str, Any]


class Client:
    """A worker's process, and the lines it wrote, read as they come."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.stderr = b""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._drain)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _drain(self) -> None:
        assert self.process.stderr is not None
        while chunk := os.read(self.process.stderr.fileno(), 2**16):
            self.stderr += chunk

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, **message: Any) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def next(self) -> Message | None:
        """The next message, None at the end."""
        line = self._lines.get(timeout=_PATIENCE)
        if line is None:
            return None
        assert line.endswith(b"\n")
        message = json.loads(line, parse_constant=lambda name: 1 / 0)
        assert isinstance(message, dict)
        return message

    def until(self, *types: str) -> Message:
        """The first message of one of these types; those before it are passed over."""
        while True:
            message = self.next()
            assert message is not None, self.stderr.decode()
            if message["type"] in types:
                return message

    def run(self, verb: str, *arguments: object, id: int = 1) -> list[Message]:
        """All that a run is answered with."""
        self.send(type="run", id=id, verb=verb, arguments=[str(argument) for argument in arguments])
        found: list[Message] = []
        while not found or found[-1]["type"] not in ("done", "error"):
            message = self.next()
            assert message is not None, self.stderr.decode()
            found.append(message)
        assert {message["id"] for message in found} == {id}
        return found

    def result(self, verb: str, *arguments: object) -> Any:
        """What a run that must succeed came to."""
        last = self.run(verb, *arguments)[-1]
        assert last["type"] == "done", last
        return last["result"]

    def refusal(self, verb: str, *arguments: object) -> Message:
        """How a run that must fail ended."""
        last = self.run(verb, *arguments)[-1]
        assert last["type"] == "error", last
        return last

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def rest(self) -> list[Message]:
        """The messages up to the end of the process."""
        found = []
        while (message := self.next()) is not None:
            found.append(message)
        self._wait()
        return found

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self._wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _wait(self) -> None:
        self.process.wait(timeout=_PATIENCE)
        for thread in self._threads:
            thread.join(timeout=_PATIENCE)


@contextlib.contextmanager
def talking(command: list[str] = STRANGE, **options: Any) -> Iterator[Client]:
    """A worker that has said hello; it does not outlast the block."""
    client = Client(command, **options)
    try:
        assert client.until("hello")["pid"] == client.process.pid
        yield client
    finally:
        client.close()

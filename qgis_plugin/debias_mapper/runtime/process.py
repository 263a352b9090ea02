"""Child processes that cannot hang, flood or outlive the plugin."""

from __future__ import annotations

import collections
import os
import queue
import signal
import subprocess  # nosec B404 # the plugin's work is done by a child process, never through a shell
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from .protocol import LINE_LIMIT

POLL = 0.05
KEPT_LINES = 200
LINE_LENGTH = 500
KILLING = 1.0
"""Seconds that a child which is ended by force is waited for, where nobody may be held up."""
TASKKILL = 10.0
"""Seconds that Windows has to end a child and all that it started, before the child alone is ended."""
KILLER = "ending of a child"
"""Name of the thread that goes on waiting for it."""
KILLED = -9
"""Exit status that stands for a child which was ended by force and is not gone yet."""
DROPPED = frozenset(
    {
        "VIRTUAL_ENV",
        "__PYVENV_LAUNCHER__",
        "GDAL_DATA",
        "GDAL_DRIVER_PATH",
        "PROJ_LIB",
        "PROJ_DATA",
        "QT_PLUGIN_PATH",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_PYTHON",
    }
)
DROPPED_PREFIXES = ("PYTHON", "DYLD_", "QGIS_")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: this process's without what would draw QGIS's own libraries into another Python.

    Args:
        extra: Variables to set, such as those of a proxy.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in DROPPED and not name.upper().startswith(DROPPED_PREFIXES)
    }
    kept.update(extra or {})
    return kept


def spawning() -> dict[str, Any]:
    """Options of Popen for a child that has no window and heads a process group of its own."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        return {"creationflags": flags}
    return {"start_new_session": True}


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a child of :func:`spawning` and every process that it started; nothing happens where all are gone."""
    if sys.platform == "win32":
        if process.poll() is None:
            command = [os.path.join(os.environ["SYSTEMROOT"], "System32", "taskkill.exe"), "/F", "/T", "/PID"]
            try:
                subprocess.run(  # nosec B603 # a program of the system with a number
                    [*command, str(process.pid)],
                    capture_output=True,
                    check=False,
                    timeout=TASKKILL,
                    creationflags=subprocess.CREATE_NO_WINDOW,
                )
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError where only zombies are left
        os.killpg(process.pid, signal.SIGKILL)


class Child:
    """A running child whose output lines arrive in a queue, and whose pipes can never block the caller.

    Attributes:
        process: The child itself.
        killed: Whether :meth:`end` had to end it by force.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, one_output: bool = False) -> None:
        """Start it.

        Args:
            command: Program and arguments.
            environment: All of its environment variables.
            one_output: Whether its standard error joins the standard output.

        Raises:
            OSError: The program cannot be started.
        """
        self.process = subprocess.Popen(  # nosec B603 # a list of words, no shell
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if one_output else subprocess.PIPE,
            **spawning(),
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._outgoing: queue.Queue[bytes | None] = queue.Queue()
        self._kept: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._status: int | None = None
        self.killed = False
        self._threads = [self._thread(self._read, self.process.stdout), self._thread(self._write, self.process.stdin)]
        if not one_output:
            self._threads.append(self._thread(self._drain, self.process.stderr))

    @staticmethod
    def _thread(work: Any, pipe: IO[bytes] | None) -> threading.Thread:  # noqa: ANN401 - a method of this class
        thread = threading.Thread(target=work, args=(pipe,), daemon=True)
        thread.start()
        return thread

    def _read(self, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError), pipe:
            while line := pipe.readline(LINE_LIMIT):
                self._lines.put(line)
        self._lines.put(None)

    def _drain(self, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError), pipe:
            while line := pipe.readline(65536):
                self._kept.append(line.decode("utf-8", "replace").rstrip()[:LINE_LENGTH])

    def _write(self, pipe: IO[bytes]) -> None:
        # A thread of its own, since a child that hangs would block the writer once the pipe is full.
        with suppress(OSError, ValueError), pipe:
            while (data := self._outgoing.get()) is not None:
                pipe.write(data)
                pipe.flush()

    def send(self, data: bytes) -> None:
        """Hand bytes to the child's standard input; returns at once, also where the child is gone."""
        self._outgoing.put(data)

    def end_input(self) -> None:
        """Close the child's standard input after what was sent."""
        self._outgoing.put(None)

    def line(self) -> bytes | None:
        """The next line of output; None after 50 ms without one.

        Raises:
            EOFError: The output has ended, or the child has, and all it wrote was read.
        """
        gone = self.process.poll() is not None
        try:
            # Beyond the end of a child, a process that it started may hold the pipe open: its end would not come.
            line = self._lines.get(timeout=1 if gone else POLL)
        except queue.Empty:
            if not gone:
                return None
            line = None
        if line is None:
            raise EOFError
        return line

    def errors(self) -> str:
        """The last lines of its standard error."""
        return "\n".join(list(self._kept))

    def end(self, grace: float, killing: float = KILLING) -> int:
        """Give the child time to end by itself, then end it and whatever it started. May be called again.

        Args:
            grace: Seconds; 0 ends it at once.
            killing: Seconds more for one that the system is slow to end; it is left to a thread then.

        Returns:
            Its exit status; on POSIX systems, minus the signal's number where a signal ended it.
        """
        if self._status is None:
            self.end_input()
            with suppress(subprocess.TimeoutExpired):
                if grace > 0:
                    self.process.wait(grace)
            self.killed = self.killed or self.process.poll() is None
            killer = threading.Thread(target=self._kill, name=KILLER, daemon=True)
            killer.start()
            killer.join(killing)
            self._status = self.process.poll()
        return KILLED if self._status is None else self._status

    def _kill(self) -> None:
        kill_tree(self.process)
        self.process.wait()  # may be for long, where it hangs in the kernel, in a driver or on a lost network disk
        for thread in self._threads:
            thread.join(1)  # a process that left the group may hold a pipe open: it costs a second, no more


class Stopped(Exception):
    """A child was ended since it was cancelled or took too long."""


def run_to_end(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    *,
    timeout: float = float("inf"),
    is_cancelled: Callable[[], bool] | None = None,
) -> int:
    """Run a program without input and hand on each line of both its outputs.

    Args:
        command: Program and arguments.
        environment: All of its environment variables.
        on_line: Told each line, without its end.
        timeout: Seconds until it is ended.
        is_cancelled: Asked every 50 ms.

    Returns:
        Its exit status.

    Raises:
        OSError: The program cannot be started.
        Stopped: It was cancelled or took too long, and was ended with all that it had started.
    """
    child = Child(command, environment, one_output=True)
    child.end_input()
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline and not (is_cancelled is not None and is_cancelled()):
            line = child.line()
            if line is not None:
                on_line(line.decode("utf-8", "replace").rstrip())
        raise Stopped
    except EOFError:
        return child.end(10)
    finally:
        child.end(0, TASKKILL)  # what is done next may be to delete the files that it uses

"""One worker process, asked for one job at a time."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .process import Child, clean_environment
from .protocol import LINE_LIMIT, PROTOCOL, Hello, as_int, decode, encode, parse_hello, run_request

GRACE = 3.0
"""Seconds that a worker has to end a cancelled job, or itself, before it is killed."""
NOISE_LIMIT = 1000
"""Lines before the worker's hello that are taken for noise of a foreign start-up file."""
CLOSED = "The worker was closed."
MODULE = "torchgeo_debias.worker"
NATIVE_CRASHES = {-4, -6, -7, -8, -11, 0xC0000005, 0xC0000409, 0xC000001D, 0xC00000FD, 0xC0000374}
MEMORY_KILLS = {-9, 0xC0000017}

OnProgress = Callable[[str, int, int], None]
"""Called with the stage's name, steps done and steps in all (0 = unknown)."""
OnLog = Callable[[str, str], None]
"""Called with the level (``"warning"``, ``"info"``...) and the text."""


class WorkerError(Exception):
    """What kept a worker from doing its job; ``str(error)`` is one sentence for a person.

    Attributes:
        code: One of the protocol's codes, or ``"start"``, ``"crashed"``, ``"memory"``, ``"protocol"``.
        details: A traceback or the last lines of the worker's standard error; empty where there are none.
    """

    def __init__(self, message: str, code: str = "failed", details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class Cancelled(WorkerError):
    """The job was cancelled; nothing half-written is left under its final name."""

    def __init__(self, message: str = "Cancelled.", details: str = "") -> None:
        super().__init__(message, "cancelled", details)


class WorkerClient:
    """A worker of one Python.

    Attributes:
        python: Path of the interpreter.
        device: Where its models run.
        hello: What the worker said on its start; None before.
        last_used: When its last job ended, in seconds of :func:`time.monotonic`.
    """

    def __init__(self, python: str, *, environment: Mapping[str, str] | None = None, device: str = "auto") -> None:
        """Nothing starts yet.

        Args:
            python: Path of an interpreter that has the library.
            environment: Variables to add to the worker's environment, such as those of a proxy.
            device: ``"auto"``, ``"cpu"``, or the number of a graphics card (``"0"``, ``"cuda:0"``).

        Raises:
            ValueError: Another device.
        """
        self.python = python
        self.device = device
        self.hello: Hello | None = None
        self.last_used = time.monotonic()
        self._environment = {**(environment or {}), **device_variables(device)}
        self._child: Child | None = None
        self._number = 0
        self._busy = threading.Lock()
        self._stopping = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        child = self._child
        return child is not None and child.process.poll() is None

    def start(self, timeout: float = 60, is_cancelled: Callable[[], bool] | None = None) -> Hello:
        """Start the process and wait for its hello; nothing happens where it runs already.

        Args:
            timeout: Seconds until a worker that says nothing is given up.
            is_cancelled: Asked every 50 ms.

        Raises:
            Cancelled: It was cancelled meanwhile.
            WorkerError: The Python cannot be started, lacks the library, says nothing or speaks another protocol.
        """
        with self._taken():
            return self._start(timeout, is_cancelled)

    def run(
        self,
        verb: str,
        arguments: Sequence[str],
        *,
        on_progress: OnProgress | None = None,
        on_log: OnLog | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Run one verb and wait for its result; for a background thread. A worker that is not running starts.

        Args:
            verb: Such as ``"detect"``.
            arguments: Words of the command line.
            on_progress: Told of each step.
            on_log: Told of the worker's warnings.
            is_cancelled: Asked every 50 ms; True cancels the job, and kills the worker if that takes over 3 s.

        Returns:
            The verb's result.

        Raises:
            Cancelled: The job was cancelled, or the client closed meanwhile.
            WorkerError: The job was refused, failed, or the worker broke.
        """
        with self._taken():
            self._start(60, is_cancelled)
            self._number += 1
            self._send(run_request(self._number, verb, arguments))
            try:
                return self._follow(on_progress, on_log, is_cancelled)
            except WorkerError as error:
                if error.code not in ("refused", "cancelled"):  # a failure may leave memory or a device in disorder
                    self._end(0)
                raise
            except BaseException:  # a callback raised: the job must not run on unseen
                self._end(0)
                raise
            finally:
                self.last_used = time.monotonic()

    def stop(self) -> None:
        """Ask a running job to end and refuse all later ones; returns at once. :meth:`close` waits."""
        self._stopping.set()

    def close(self, grace: float | None = None) -> None:
        """Cancel what runs, end the process, kill it if that takes too long. For good; may be called again.

        Args:
            grace: Seconds to wait in all; 3 where left out.
        """
        deadline = time.monotonic() + (GRACE if grace is None else grace)
        self.stop()
        free = self._busy.acquire(timeout=max(0.0, deadline - time.monotonic()))
        try:
            if free:
                self._send({"type": "quit"})
                self._end(deadline - time.monotonic())
            else:
                child = self._child
                if child is not None:  # the thread that runs the job finds it dead and forgets it
                    child.end(0)
        finally:
            if free:
                self._busy.release()

    @contextmanager
    def _taken(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            if self._stopping.is_set():
                raise Cancelled(CLOSED)
            raise WorkerError("The worker is busy with another job.", "busy")
        try:
            yield
        finally:
            self._busy.release()

    def _start(self, timeout: float, is_cancelled: Callable[[], bool] | None) -> Hello:
        if self._stopping.is_set():
            raise Cancelled(CLOSED)
        if self.alive and self.hello is not None:
            return self.hello
        self._end(0)
        command = [self.python, "-I", "-m", MODULE, "--protocol", str(PROTOCOL)]
        try:
            self._child = Child(command, clean_environment(self._environment))
        except (OSError, ValueError) as error:
            text = f"The Python {self.python} cannot be started ({reason(error)}): choose another one."
            raise WorkerError(text, "start") from error
        try:
            self.hello = self._await_hello(time.monotonic() + timeout, timeout, is_cancelled)
        except BaseException:
            self._end(0)
            raise
        return self.hello

    def _await_hello(self, deadline: float, timeout: float, is_cancelled: Callable[[], bool] | None) -> Hello:
        noise = 0
        while time.monotonic() < deadline:
            if self._stopping.is_set() or (is_cancelled is not None and is_cancelled()):
                raise Cancelled
            line = self._line()
            if line is None:
                continue
            message = decode(line)
            if message is not None and message["type"] == "hello":
                return self._checked(parse_hello(message))
            if message is not None and message["type"] == "error":
                raise WorkerError(str(message.get("message")), str(message.get("code", "protocol")))
            noise += 1
            if noise > NOISE_LIMIT:
                text = (
                    f"{self.python} prints other things than a worker does: its environment is not usable, choose one"
                )
                raise WorkerError(f"{text} that has torchgeo-debias.", "start", tail(line))
        text = (
            f"The worker of {self.python} said nothing for {timeout:.0f} s: try again, or choose another environment."
        )
        raise WorkerError(text, "start", self._errors())

    def _checked(self, hello: Hello) -> Hello:
        if hello.protocol != PROTOCOL:
            older = "environment" if hello.protocol < PROTOCOL else "plugin"
            raise WorkerError(
                f"The library {hello.library} in {self.python} speaks protocol {hello.protocol}, this plugin protocol "
                f"{PROTOCOL}: update the {older}.",
                "protocol",
            )
        return hello

    def _follow(
        self, on_progress: OnProgress | None, on_log: OnLog | None, is_cancelled: Callable[[], bool] | None
    ) -> dict[str, Any]:
        """Hand on the messages of the current job until it ends."""
        deadline: float | None = None
        while True:
            if deadline is None and (self._stopping.is_set() or (is_cancelled is not None and is_cancelled())):
                self._send({"type": "cancel", "id": self._number})
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                self._end(0)
                raise Cancelled("Cancelled; the worker did not end in time and was killed.")
            try:
                line = self._line()
            except WorkerError as error:
                if deadline is not None:
                    raise Cancelled(details=error.details) from error
                raise
            message = None if line is None else self._message(line)
            if message is None or message.get("id") not in (None, self._number):
                continue
            kind = message["type"]
            if kind == "progress" and on_progress is not None:
                on_progress(str(message.get("stage", "")), as_int(message.get("done")), as_int(message.get("total")))
            elif kind == "log" and on_log is not None:
                on_log(str(message.get("level", "info")), str(message.get("text", "")))
            elif kind == "error":
                raise job_error(message, cancelled=deadline is not None)
            elif kind == "done":
                if deadline is not None:
                    raise Cancelled
                result = message.get("result")
                return result if isinstance(result, dict) else {}

    def _message(self, line: bytes) -> dict[str, Any]:
        message = decode(line)
        if message is None:
            size = "a message that is too long" if len(line) >= LINE_LIMIT else "what is no message"
            raise WorkerError(
                f"The worker of {self.python} sent {size} and was ended: run again.", "protocol", tail(line)
            )
        return message

    def _line(self) -> bytes | None:
        """The next line, or None after 50 ms without one.

        Raises:
            Cancelled: The client was closed meanwhile, which ends the process.
            WorkerError: The process has ended.
        """
        child = self._child
        if child is None:
            raise WorkerError("The worker was ended.", "crashed")
        try:
            return child.line()
        except EOFError:
            status = child.end(GRACE)
            started = self.hello is not None
            self._child, self.hello = None, None
            if self._stopping.is_set():
                raise Cancelled(CLOSED, child.errors()) from None
            if child.killed:
                text = f"The worker of {self.python} fell silent for good and was ended: run again."
                raise WorkerError(text, "crashed", child.errors()) from None
            raise ended(self.python, status, child.errors(), started=started) from None

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._child is not None:
            self._child.send(encode(message))

    def _errors(self) -> str:
        return "" if self._child is None else self._child.errors()

    def _end(self, grace: float) -> None:
        child, self._child, self.hello = self._child, None, None
        if child is not None:
            child.end(grace)


def device_variables(device: str) -> dict[str, str]:
    """Environment variables that confine a worker to a device: it sees no other graphics card.

    Raises:
        ValueError: A device of another form.
    """
    if device == "auto":
        return {}
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": "-1"}
    match = re.fullmatch(r"(?:cuda:)?(\d+)", device)
    if match is None:
        raise ValueError(
            f"The device {device!r} is none of auto, cpu, and the number of a graphics card such as cuda:0."
        )
    return {"CUDA_VISIBLE_DEVICES": match[1]}


def job_error(message: Mapping[str, Any], *, cancelled: bool) -> WorkerError:
    """The exception that an ``error`` message stands for; after a cancel, every end of a job is a cancelled one."""
    code, details = str(message.get("code", "failed")), str(message.get("traceback") or "")
    if cancelled or code == "cancelled":
        return Cancelled(details=details)
    return WorkerError(str(message.get("message") or "The worker failed without a word."), code, details)


def ended(python: str, status: int, errors: str, *, started: bool) -> WorkerError:
    """Say why a worker's process ended by itself.

    Args:
        python: Its interpreter.
        status: Exit status, on POSIX systems minus the number of a signal.
        errors: Last lines of its standard error.
        started: Whether it had said hello.
    """
    if sys.platform == "win32":
        status &= 0xFFFFFFFF
    if status in MEMORY_KILLS:
        text = "The worker was killed by the system, most likely because the memory ran out"
        return WorkerError(f"{text}: close other programs, or take a smaller area or batch.", "memory", errors)
    if status in NATIVE_CRASHES:
        text = f"The worker crashed in native code ({status if status < 0 else hex(status)}); QGIS is not affected"
        return WorkerError(f"{text}: run again, on the CPU if it ran on a graphics card.", "crashed", errors)
    missing = re.search(r"No module named '?([\w.]+)", errors)
    if not started and missing is not None:
        library = missing[1].split(".")[0]
        if library == "torchgeo_debias":
            text = f"The environment of {python} lacks the library torchgeo-debias, or has one that is too old"
            return WorkerError(f"{text}: install it there, or choose another environment.", "start", errors)
        return WorkerError(f"The environment of {python} lacks the package {library}: repair it.", "start", errors)
    when = "in the middle of a job" if started else "before it was ready"
    text = f"The worker of {python} ended {when} with exit status {status}"
    return WorkerError(f"{text}: the details hold its last words.", "crashed" if started else "start", errors)


def reason(error: Exception) -> str:
    """The system's words for an error, without the path that the sentence around it names."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def tail(line: bytes) -> str:
    """The beginning of a line that could not be understood, for the details of an error."""
    return line[:500].decode("utf-8", "replace").rstrip()

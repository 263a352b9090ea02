"""Running a command of the library for an algorithm: in the worker, with QGIS's feedback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qgis.core import QgsProcessingException, QgsProcessingFeedback

from . import settings
from .runtime.client import Cancelled, WorkerError
from .runtime.commands import Command
from .runtime.pool import Workers

NO_ENVIRONMENT = (
    "There is no Python environment for the worker yet: open the dock of Debias Mapper and set one up, or name the "
    f"Python of one that has torchgeo-debias in the environment variable {settings.ENVIRONMENT_VARIABLE}."
)

_lock = threading.Lock()
_workers: Workers | None = None
_closed = False
_running = 0


def open_workers(*, warm: bool) -> Workers:
    """Make the pool that the whole plugin shares, unless there is an open one.

    Args:
        warm: Whether a worker waits for the next job; ``qgis_process`` has only one job.
    """
    global _workers, _closed
    with _lock:
        if _workers is None or _closed:
            _workers, _closed = Workers(warm=warm), False
        return _workers


def close_workers() -> None:
    """Cancel what runs, and end every worker; a run that comes later is refused until a pool is opened again."""
    global _workers, _closed
    with _lock:
        _workers = closing = _workers or Workers(warm=False)
        _closed = True
    closing.close()


def workers() -> Workers:
    """The pool, be it closed; without a window, workers live for one job."""
    with _lock:
        if _workers is not None:
            return _workers
    return open_workers(warm=False)


def busy() -> bool:
    """Whether a command runs now."""
    with _lock:
        return _running > 0


def run_command(command: Command, feedback: QgsProcessingFeedback, *, device: str = "auto") -> dict[str, Any]:
    """Run a command and wait for its result; for the thread of an algorithm.

    The feedback gets the command as a line for the shell, a text and 0 to 100 % for each stage, and what the library
    logs.

    Args:
        command: What to run.
        feedback: Told about it; may cancel.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:0"``.

    Returns:
        What ``--json`` prints; empty where the user cancelled.

    Raises:
        QgsProcessingException: With a sentence for a person. Details go to the feedback.
    """
    python = settings.python_path()
    if python is None:
        raise QgsProcessingException(NO_ENVIRONMENT)
    feedback.pushCommandInfo(command.shell())
    listener = _Listener(feedback)
    try:
        with _counted(), workers().client(python, device, settings.proxy_variables()) as client:
            return client.run(
                command.verb, command.arguments,
                on_progress=listener.progress, on_log=listener.log, is_cancelled=feedback.isCanceled,
            )  # fmt: skip
    except Cancelled as error:
        if feedback.isCanceled():
            feedback.pushInfo("Cancelled; nothing was left half-written.")
            return {}
        raise QgsProcessingException(str(error)) from error
    except WorkerError as error:
        if error.details:
            feedback.pushDebugInfo(error.details)
        raise QgsProcessingException(str(error)) from error


@contextmanager
def _counted() -> Iterator[None]:
    global _running
    with _lock:
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1


class _Listener:
    """From the worker's messages to QGIS's feedback."""

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        self._feedback = feedback
        self._stage = ""

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._feedback.setProgressText(stage.capitalize())
        if total:
            self._feedback.setProgress(100.0 * done / total)

    def log(self, level: str, text: str) -> None:
        push = self._feedback.pushWarning if level in ("warning", "error") else self._feedback.pushInfo
        push(text)

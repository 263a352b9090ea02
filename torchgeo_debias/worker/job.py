"""One run of a verb: its progress and result as messages, and what any exception means to the one who asked."""

from __future__ import annotations

import errno
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from torchgeo_debias.cli import app, show
from torchgeo_debias.errors import Cancelled, DebiasError
from torchgeo_debias.progress import Progress
from torchgeo_debias.worker import messages
from torchgeo_debias.worker.messages import Message, Run

_INTERVAL = 0.1
"""Seconds between two messages about one stage."""

_MEMORY = "There is not enough memory for this run: close other programs, or give a smaller --batch-size."


class Job:
    """A verb that runs, or waits to; it listens to the verb in place of a terminal.

    Attributes:
        request: What was asked for.
    """

    def __init__(self, request: Run, send: Callable[[Message], None]) -> None:
        self.request = request
        self._send = send
        self._cancelled = threading.Event()
        self._result: dict[str, Any] = {}
        self._lock = threading.Lock()  # a verb may report from several threads
        self._last: Progress | None = None
        self._waiting: Progress | None = None
        self._sent = 0.0

    def cancel(self) -> None:
        """Stop at the next step that the verb reports."""
        self._cancelled.set()

    def run(self) -> Message:
        """Run the verb in this thread, and say how it ended."""
        try:
            self._stop_if_cancelled()
            with show.listening(self):
                app.run([self.request.verb, "--json", *self.request.arguments])
        except BaseException as error:  # noqa: BLE001 - whatever it is, the asker is to hear of it and the worker goes on
            return _ending(self.request.id, error)
        finally:
            self._flush()
        return messages.done(self.request.id, self._result)

    def progress(self, progress: Progress) -> None:
        """Send a step: the first and the last of a stage, and of those between no more than can be read."""
        self._stop_if_cancelled()
        with self._lock:
            last, self._last = self._last, progress
            new = last is None or progress.stage != last.stage or progress.done < last.done
            if new:
                self._send_waiting()
            self._waiting = progress
            if new or progress.done == progress.total or time.monotonic() >= self._sent + _INTERVAL:
                self._send_waiting()

    def result(self, value: dict[str, Any]) -> None:
        """Keep what the verb came to; what is no JSON is an error of the verb."""
        messages.to_line(value)
        self._result = value

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("Stopped; nothing was left half-written.")

    def _flush(self) -> None:
        with self._lock:
            self._send_waiting()

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._send(messages.progress(self.request.id, waiting))
            self._sent = time.monotonic()


def _ending(id: int, error: BaseException) -> Message:
    if isinstance(error, Cancelled):
        return messages.error(id, "cancelled", str(error))
    if isinstance(error, DebiasError):
        return messages.error(id, "refused", str(error))
    text = "".join(traceback.format_exception(error))
    if _is_memory(error):
        return messages.error(id, "memory", _MEMORY, text)
    return messages.error(id, "failed", f"{type(error).__name__}: {error}".removesuffix(": "), text)


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU, as Python, the system and torch say it."""
    # By name and text: torch need not be imported for it, and says it with a plain RuntimeError on the CPU.
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and "you tried to allocate" in str(error))
    )


def free_memory() -> None:
    """Give back what the last run held, on the GPU too, while the worker waits."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()

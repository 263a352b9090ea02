"""Functions that run in the background, so that the interface never waits.

Threads of our own: QGIS's task manager has as few threads as the machine has cores, which long runs keep busy, and it
can lose short tasks that are started while others end (it takes a finished one out of the queue by its address, which
the next one may have by then).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qgis.core import QgsTask
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QCoreApplication, QObject, pyqtSignal

from ..runtime.client import Cancelled
from ..runtime.installing import SetupCancelled


@dataclass(frozen=True)
class Outcome:
    """How a function in the background ended.

    Attributes:
        value: What it returned.
        sentence: Why it failed, for a person; empty if it did not.
        details: A traceback or the last lines of a process, for a report.
        cancelled: Whether it was stopped.
    """

    value: Any = None
    sentence: str = ""
    details: str = ""
    cancelled: bool = False


class BackgroundTask(QObject):
    """One function in a thread. Its signals may be emitted there; they are delivered in the main thread.

    Attributes:
        delivered: Whether the main thread knows how it ended; until then it must be kept.
    """

    stage = pyqtSignal(str, int, int)
    """What is being done, how much of it is done, and how much there is (0 = unknown)."""
    text = pyqtSignal(str)
    """A line of a log."""
    _over = pyqtSignal(object)

    def __init__(self, title: str, work: Callable[[BackgroundTask], Any], ended: Callable[[Outcome], None]) -> None:
        """Nothing starts yet.

        Args:
            title: Of the thread.
            work: The function; it may look at :meth:`isCanceled`.
            ended: Called in the main thread with the outcome, unless :meth:`forget` came first.
        """
        super().__init__()
        self.delivered = False
        self._work = work
        self._ended: Callable[[Outcome], None] | None = ended
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name=title, daemon=True)
        self._over.connect(self._deliver)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def cancel(self) -> None:
        """Ask the function to end."""
        self._cancelled.set()

    def isCanceled(self) -> bool:
        """Whether the function is to end; named as in QGIS's tasks and feedbacks."""
        return self._cancelled.is_set()

    def forget(self) -> None:
        """Cancel it, and tell nobody how it ends."""
        self._ended = None
        self.cancel()

    def is_over(self) -> bool:
        """Whether the thread has left this code."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            outcome = Outcome(self._work(self))
        except (Cancelled, SetupCancelled):
            outcome = Outcome(cancelled=True)
        except Exception as error:  # noqa: BLE001 (a thread would lose it: whatever fails ends as a sentence)
            details = getattr(error, "details", "") or traceback.format_exc()
            outcome = Outcome(sentence=str(error) or type(error).__name__, details=details)
        self._over.emit(outcome)

    def _deliver(self, outcome: Outcome) -> None:
        self.delivered = True
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended(Outcome(cancelled=True) if self.isCanceled() else outcome)


class Background:
    """The tasks of one widget."""

    def __init__(self) -> None:
        self._tasks: list[BackgroundTask] = []

    def start(
        self, title: str, work: Callable[[BackgroundTask], Any], ended: Callable[[Outcome], None]
    ) -> BackgroundTask:
        """Start a function; see :class:`BackgroundTask`."""
        self._tasks = [task for task in self._tasks if not task.delivered]
        task = BackgroundTask(title, work, ended)
        self._tasks.append(task)
        task.start()
        return task

    def stop(self) -> list[BackgroundTask]:
        """Cancel all of them; gives those that still run."""
        for task in self._tasks:
            task.forget()
        return [task for task in self._tasks if not task.is_over()]


class QgisTask:
    """A task of QGIS, as those of this module are asked and cancelled."""

    def __init__(self, task: QgsTask) -> None:
        self._task = task

    def is_over(self) -> bool:
        """Whether QGIS has seen its end.

        QGIS sees it in the main thread, by an event of the task that is delivered here: until then it uses context and
        feedback of the run, which go with the plugin.
        """
        if sip.isdeleted(self._task):
            return True
        QCoreApplication.sendPostedEvents(self._task, 0)
        ends = (QgsTask.TaskStatus.Complete, QgsTask.TaskStatus.Terminated)
        return bool(sip.isdeleted(self._task)) or self._task.status() in ends

    def cancel(self) -> None:
        """Ask it to end."""
        if not sip.isdeleted(self._task):
            self._task.cancel()


def wait_for(tasks: list[Any], seconds: float) -> None:
    """Wait until cancelled tasks have left this code, without running the event loop; sleeping lets them go on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(task.is_over() for task in tasks):
        time.sleep(0.02)

"""Functions that run in the background, so that the interface never waits."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qgis.core import QgsApplication, QgsTask
from qgis.PyQt.QtCore import QObject, pyqtSignal

from ..runtime.client import Cancelled


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


class Messages(QObject):
    """What a thread tells the interface: signals of an object that lives in the main thread are delivered there."""

    stage = pyqtSignal(str, int, int)
    text = pyqtSignal(str)


class BackgroundTask(QgsTask):
    """One function in a thread of QGIS's task manager.

    Args:
        title: What the task manager shows.
        work: The function; it may look at ``task.isCanceled`` and report through ``task.messages``.
        ended: Called in the main thread with the outcome, unless :meth:`forget` came first.
    """

    def __init__(self, title: str, work: Callable[[BackgroundTask], Any], ended: Callable[[Outcome], None]) -> None:
        super().__init__(title, QgsTask.Flag.CanCancel | QgsTask.Flag.Silent)
        self.messages = Messages()
        self._work = work
        self._ended: Callable[[Outcome], None] | None = ended
        self._outcome = Outcome(cancelled=True)

    def run(self) -> bool:
        """The function, in the thread."""
        try:
            self._outcome = Outcome(self._work(self))
        except Cancelled:
            return False
        except Exception as error:  # noqa: BLE001 (QGIS would lose it: what fails in a thread ends as a sentence)
            details = getattr(error, "details", "") or traceback.format_exc()
            self._outcome = Outcome(sentence=str(error) or type(error).__name__, details=details)
        return not self._outcome.sentence

    def finished(self, result: bool) -> None:
        """Hand the outcome over, in the main thread."""
        outcome = Outcome(cancelled=True) if self.isCanceled() else self._outcome
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended(outcome)

    def forget(self) -> None:
        """Cancel it, and tell nobody how it ends."""
        self._ended = None
        if not over(self):
            self.cancel()


class Background:
    """The tasks of one widget. They end with it."""

    def __init__(self) -> None:
        self._tasks: list[BackgroundTask] = []

    def start(
        self, title: str, work: Callable[[BackgroundTask], Any], ended: Callable[[Outcome], None]
    ) -> BackgroundTask:
        """Start a function; see :class:`BackgroundTask`."""
        self._tasks = [task for task in self._tasks if not over(task)]
        task = BackgroundTask(title, work, ended)
        self._tasks.append(task)  # Python must hold it as long as it runs
        QgsApplication.taskManager().addTask(task)
        return task

    def stop(self) -> list[QgsTask]:
        """Cancel all of them; gives those that still run."""
        for task in self._tasks:
            task.forget()
        return [task for task in self._tasks if not over(task)]


_OVER = (QgsTask.TaskStatus.Complete, QgsTask.TaskStatus.Terminated)


def over(task: QgsTask) -> bool:
    """Whether a task has ended, or is already deleted by the task manager."""
    try:
        return task.status() in _OVER
    except RuntimeError:  # its C++ half is gone
        return True


def wait_for(tasks: list[QgsTask], seconds: float) -> None:
    """Wait until cancelled tasks have left this code, without running the event loop; sleeping lets them go on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(map(over, tasks)):
        time.sleep(0.02)

"""Plays a scenario in QGIS as a user would, step by step, and ends QGIS.

A scenario is a generator that yields what it waits for. Its report says what it found, how long the event loop was kept
from running, and why it stopped if it did.

From one look to the next the interface cannot answer for longer than the gap between them, in which the timer's own
20 ms are counted too. The wall time of a gap says what a user would have felt on this machine. A part of it may be that
the main thread was ready to run and got no processor, since other programs had them all. Linux counts that for each
thread (the second number of ``schedstat``, https://docs.kernel.org/scheduler/sched-stats.html). The rest is how long
the interface itself was blocked: it computed, slept, or waited for a disk, a lock or another process.
"""

from __future__ import annotations

import faulthandler
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qgis.core import QgsApplication, QgsProject, QgsSettings
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtWidgets import QAbstractButton, QApplication, QMessageBox, QWidget
from qgis.utils import iface

TICK = 20
"""Milliseconds between two looks."""


class Wait:
    """A condition that a scenario waits for.

    Args:
        condition: Looked at every 20 ms.
        what: For the sentence if it never comes.
        seconds: Until the scenario has failed.
    """

    def __init__(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
        self.condition, self.what, self.seconds = condition, what, seconds


Scenario = Iterator[Wait]


class Clock:
    """Wall time, and how long this thread has waited for a processor until then."""

    def __init__(self) -> None:
        """Begin now.

        Raises:
            OSError: The kernel does not tell it.
        """
        self._file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._begin = self._waited()

    def read(self) -> tuple[float, float]:
        """Both, in seconds; the second one since the beginning."""
        return time.monotonic(), self._waited() - self._begin

    def _waited(self) -> float:
        return int(self._file.read_text().split()[1]) / 1e9


class Driver:
    """Plays a scenario.

    Attributes:
        plan: Where things are: ``zip``, ``sample``, ``out``, ``python``.
        report: What the test reads afterwards.
    """

    def __init__(self, plan: dict[str, Any], scenario: Callable[[Driver], Scenario]) -> None:
        self.plan = plan
        self.out = Path(plan["out"])
        self.report: dict[str, Any] = {"steps": [], "gaps": {}, "questions": [], "python": [], "regions": {}}
        self.report["error"] = None
        self._crash = (self.out / "crash.txt").open("w")
        faulthandler.enable(self._crash)  # beside QGIS's own words, what Python did in each thread
        self._scenario = scenario(self)
        self._wait = Wait(lambda: True, "the start")
        self._since = time.monotonic()
        self._step = "start"
        self._clock = Clock()
        self._last: tuple[float, float] | None = None
        self._over = False
        iface.mainWindow().showMaximized()
        QgsApplication.messageLog().messageReceived.connect(self._hear)
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._timer.start(TICK)

    @property
    def sample(self) -> Path:
        """Data and models."""
        return Path(self.plan["sample"])

    def step(self, name: str) -> None:
        """What follows has this name in the report."""
        self._step = name
        self.report["steps"].append(name)
        self.save()

    def shot(self, name: str) -> None:
        """Take a picture of the whole screen."""
        with self.unwatched():
            QApplication.processEvents()
            QApplication.primaryScreen().grabWindow(0).save(str(self.out / f"{name}.png"))

    def region(self, name: str, widget: QWidget) -> None:
        """Say where the window is that a picture is about."""
        corner = widget.mapToGlobal(widget.rect().topLeft())
        self.report["regions"][name] = [corner.x(), corner.y(), widget.width(), widget.height()]

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What is done here is not the plugin's doing, and cut out of the gap around it."""
        began = self._clock.read()
        try:
            yield
        finally:
            ended = self._clock.read()
            if self._last is not None:
                wall, waited = self._last
                self._last = wall + ended[0] - began[0], waited + ended[1] - began[1]

    def pause(self, seconds: float) -> Wait:
        """Wait for nothing."""
        end = time.monotonic() + seconds
        return Wait(lambda: time.monotonic() >= end, "time to pass", seconds + 60)

    def save(self) -> None:
        """Write the report as it is."""
        (self.out / "report.json").write_text(json.dumps(self.report, indent=1))

    def leave(self) -> None:
        """End QGIS as File > Exit does, without its question about temporary layers."""
        self._over = True
        self.save()
        QgsSettings().setValue("app/askToSaveMemoryLayers", False)
        QgsProject.instance().setDirty(False)
        QTimer.singleShot(0, iface.actionExit().trigger)

    def _hear(self, text: str, tag: str, level: Any) -> None:
        """Keep what QGIS logs of errors in Python."""
        if tag.startswith("Python"):
            self.report["python"].append(text)

    def _exit_again(self) -> None:
        """QGIS asks whether tasks are to be cancelled, and then wants to be told to end once more."""
        if self.report["questions"] and QgsApplication.taskManager().countActiveTasks() == 0:
            self._timer.stop()
            QTimer.singleShot(0, iface.actionExit().trigger)

    def _measure(self) -> None:
        """Keep the longest gap of each step."""
        now = self._clock.read()
        if self._last is not None:
            wall, waited = now[0] - self._last[0], now[1] - self._last[1]
            longest = self.report["gaps"].setdefault(self._step, {"wall": 0.0, "blocked": 0.0})
            for name, gap in (("wall", wall), ("blocked", wall - waited)):
                longest[name] = max(gap, longest[name])
        self._last, self.report["waited"] = now, now[1]

    def _tick(self) -> None:
        self._answer()
        if self._over:
            self._exit_again()
            return
        try:
            self._measure()
            if self._wait.condition():
                self._wait = next(self._scenario)
                self._since = time.monotonic()
            elif time.monotonic() - self._since > self._wait.seconds:
                raise AssertionError(f"{self._wait.what} did not come within {self._wait.seconds} s")
        except StopIteration:
            self.leave()
        except Exception:  # noqa: BLE001 (whatever it is goes into the report)
            self.report["error"] = f"in {self._step}: {traceback.format_exc()}"
            tasks = QgsApplication.taskManager().tasks()
            self.report["tasks"] = [f"{task.description()}: {int(task.status())}" for task in tasks]
            self.shot("failure")
            self.leave()

    def _answer(self) -> None:
        """Say yes to QGIS's own questions, as one who wants to leave would."""
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            self.report["questions"].append(box.text())
            self.save()
            self.shot(f"question{len(self.report['questions'])}")
            button: QAbstractButton = box.button(QMessageBox.StandardButton.Yes) or box.buttons()[0]
            button.click()

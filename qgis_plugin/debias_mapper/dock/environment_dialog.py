"""The dialog of the worker's Python environment: its state, and the ways to get one."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgis.core import Qgis
from qgis.gui import QgsCollapsibleGroupBox, QgsFileWidget
from qgis.PyQt.QtCore import QT_VERSION_STR, Qt, QUrl, pyqtSignal
from qgis.PyQt.QtGui import QDesktopServices
from qgis.PyQt.QtWidgets import (
    QApplication,
    QComboBox,
    QDialog,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from .. import jobs, settings
from ..runtime import environment as env
from ..runtime.diagnostics import diagnostics
from ..runtime.installing import GIGABYTE, Registry, Source, WheelFolder
from ..runtime.pythons import NEWEST, OLDEST, Python, find_pythons
from .tasks import Background, BackgroundTask, Outcome

REGISTRY, WHEELS = range(2)
WIDTH = 640
LOG_HEIGHT = 120


class EnvironmentDialog(QDialog):
    """Shows the environment in use, makes, repairs and removes one; everything slow happens in the background."""

    changed = pyqtSignal()
    """Another environment is in use, or the one in use has changed."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Debias Mapper: Python environment")
        self._background = Background()
        self._checking: BackgroundTask | None = None
        self._work: BackgroundTask | None = None
        self._measuring: BackgroundTask | None = None
        self.status: env.Status | None = None
        layout = QVBoxLayout(self)
        for box in (self._build_state(), self._build_existing(), self._build_new()):
            box.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
            layout.addWidget(box)
        layout.addLayout(self._build_progress())
        layout.addWidget(self._build_log(), 1)
        layout.addLayout(self._build_buttons())
        self.refresh()
        self._adapt()
        self.resize(WIDTH, 0)  # no higher than it must be
        self._background.start("Look for Pythons", lambda task: find_pythons(), self._found_pythons)

    @property
    def busy(self) -> bool:
        """Whether an environment is being made, repaired or removed."""
        return self._work is not None

    @property
    def folder(self) -> Path:
        """Where an environment is made."""
        return Path(self.place.filePath() or env.default_folder())

    def refresh(self) -> None:
        """Look at the environment in use."""
        if self._checking is not None:
            self._checking.forget()
        python = settings.python_path()
        self.state.setText("Looking…")
        self._checking = self._background.start("Look at the environment", lambda task: look_at(python), self._checked)

    def use(self) -> None:
        """Take the Python that was chosen."""
        path = self.existing.filePath().strip()

        def done(outcome: Outcome) -> None:
            status = outcome.value
            if isinstance(status, env.Status) and status.ready:
                self._take(path)
            else:
                self._fail(outcome.sentence or getattr(status, "sentence", "Cancelled."))

        self._begin("Look at the Python", lambda task: env.check(path), done)

    def create(self) -> None:
        """Make an environment."""
        base, source, folder = self._base(), self._source(), self.folder
        proxies = settings.proxy_variables()
        settings.set_folder(self.place.filePath() or None)

        def work(task: BackgroundTask) -> str:
            return env.create(folder, base, source, proxies=proxies, **self._reports(task))

        self._change("Make the environment", work, self._made)

    def repair(self) -> None:
        """Install again what the environment lacks."""
        base, source, folder = self._base(), self._source(), self.folder
        proxies = settings.proxy_variables()

        def work(task: BackgroundTask) -> str:
            return env.repair(folder, base, source, proxies=proxies, **self._reports(task))

        self._change("Repair the environment", work, self._made)

    def remove(self) -> None:
        """Remove the environment that was made, after a question."""
        folder = self.folder
        question = f"Remove the environment in {folder}, with all that was installed there?"
        if self._refuses():
            return
        if QMessageBox.question(self, self.windowTitle(), question) == QMessageBox.StandardButton.Yes:
            self._change("Remove the environment", lambda task: env.remove(folder), self._removed_from(folder))

    def cancel(self) -> None:
        """Stop what runs."""
        if self._work is not None:
            self._work.cancel()
            self.stage.setText("Cancelling…")

    def close_down(self) -> list[BackgroundTask]:
        """Close, and cancel what runs; gives the tasks to wait for."""
        self.close()
        return self._background.stop()

    def _build_state(self) -> QWidget:
        box = QGroupBox("Environment in use")
        self.state, self.versions = QLabel(), QLabel()
        self.versions.setTextFormat(Qt.TextFormat.PlainText)
        for label in (self.state, self.versions):
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.again = QPushButton("Check again")
        self.repair_button, self.remove_button = QPushButton("Repair"), QPushButton("Remove…")
        self.again.clicked.connect(self.refresh)
        self.repair_button.clicked.connect(self.repair)
        self.remove_button.clicked.connect(self.remove)
        column = QVBoxLayout(box)
        column.addWidget(self.state)
        column.addWidget(self.versions)
        column.addLayout(_row(None, self.again, self.repair_button, self.remove_button))
        return box

    def _build_existing(self) -> QWidget:
        box = QGroupBox("Use a Python that has torchgeo-debias")
        self.existing = QgsFileWidget()
        self.existing.setDialogTitle("Python of an environment with torchgeo-debias")
        self.existing.lineEdit().setPlaceholderText("For instance /path/of/environment/bin/python")
        self.use_button = QPushButton("Use it")
        self.existing.fileChanged.connect(self._adapt)
        self.use_button.clicked.connect(self.use)
        QHBoxLayout(box)
        box.layout().addWidget(self.existing, 1)
        box.layout().addWidget(self.use_button)
        return box

    def _build_new(self) -> QWidget:
        box = QGroupBox("Make a new environment")
        form = QFormLayout(box)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self.base = QComboBox()
        self.base.addItem("Looking for Pythons…")
        self.place = QgsFileWidget()
        self.place.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.place.lineEdit().setPlaceholderText(str(env.default_folder()))
        self.place.setFilePath(settings.folder() or "")
        self.origin = QComboBox()
        self.origin.addItems(["Package index (internet)", "Folder of wheels (offline)"])
        self.index = QLineEdit()
        self.index.setPlaceholderText("The usual one of pip")
        self.torch = QLineEdit()
        self.torch.setPlaceholderText("Only for other builds, as those without CUDA: see the manual")
        self.wheels = QgsFileWidget()
        self.wheels.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.space = QLabel()
        self.space.setTextFormat(Qt.TextFormat.PlainText)
        self.create_button = QPushButton("Create")
        self._form = form
        for combo in (self.base, self.origin):
            combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        for name, widget in (
            ("Made with", self.base), ("Folder", self.place), ("Install from", self.origin),
            ("Index", self.index), ("Index of PyTorch", self.torch), ("Wheels", self.wheels),
        ):  # fmt: skip
            form.addRow(name, widget)
        form.addRow(_row(self.space, self.create_button))
        self.place.fileChanged.connect(self._measure)
        self.torch.editingFinished.connect(self._measure)
        self.origin.currentIndexChanged.connect(self._measure)
        self.wheels.fileChanged.connect(self._adapt)
        self.create_button.clicked.connect(self.create)
        return box

    def _build_progress(self) -> QHBoxLayout:
        self.stage = QLabel()
        self.stage.setTextFormat(Qt.TextFormat.PlainText)
        self.stage.setWordWrap(True)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setMaximumWidth(160)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.clicked.connect(self.cancel)
        row = QHBoxLayout()
        row.addWidget(self.stage, 1)
        row.addWidget(self.bar)
        row.addWidget(self.cancel_button)
        return row

    def _build_log(self) -> QWidget:
        box = QgsCollapsibleGroupBox("Log")
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(5000)
        self.log.setMinimumHeight(1)  # the box folds only when it is shown, and would have kept room for the log
        QVBoxLayout(box).addWidget(self.log)
        box.setCollapsed(True)
        box.collapsedStateChanged.connect(lambda folded: self.log.setMinimumHeight(1 if folded else LOG_HEIGHT))
        return box

    def _build_buttons(self) -> QHBoxLayout:
        self.open_log, self.copy = QPushButton("Open log file"), QPushButton("Copy diagnostics")
        close = QPushButton("Close")
        self.open_log.clicked.connect(lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._log_file()))))
        self.copy.clicked.connect(self._copy_diagnostics)
        self.copy.setToolTip("Versions and the end of the log, without names of users and folders")
        close.clicked.connect(self.close)
        row = QHBoxLayout()
        row.addWidget(self.open_log)
        row.addWidget(self.copy)
        row.addStretch()
        row.addWidget(close)
        return row

    def _base(self) -> Python:
        """The Python that an environment is made from."""
        python = self.base.currentData()
        assert isinstance(python, Python)  # nosec B101 - the buttons that come here are off without one
        return python

    def _source(self) -> Source:
        """Where packages are to come from."""
        if self.origin.currentIndex() == WHEELS:
            return WheelFolder(Path(self.wheels.filePath()))
        return Registry(self.index.text().strip() or None, self.torch.text().strip() or None)

    def _refuses(self) -> bool:
        """Say that the files of an environment cannot be changed while a job uses them."""
        if jobs.busy():
            self.stage.setText("A run is under way: wait for its end or cancel it, then press again.")
            return True
        return False

    def _change(self, title: str, work: Callable[[BackgroundTask], Any], done: Callable[[Outcome], None]) -> None:
        """Start what changes files of an environment."""

        def alone(task: BackgroundTask) -> Any:  # noqa: ANN401 - whatever the work gives
            jobs.close_workers()  # an idle one holds files of the environment
            jobs.open_workers(warm=True)
            return work(task)

        if not self._refuses():
            self._begin(title, alone, done)

    def _begin(self, title: str, work: Callable[[BackgroundTask], Any], done: Callable[[Outcome], None]) -> None:
        """Start something slow; one at a time."""

        def ended(outcome: Outcome) -> None:
            self._work = None
            self.stage.setText("Cancelled." if outcome.cancelled else "")
            done(outcome)
            self._adapt()

        self.log.clear()
        self.bar.setRange(0, 0)
        self.stage.setText(title)
        self._work = self._background.start(title, work, ended)
        self._work.stage.connect(self._progress)
        self._work.text.connect(self.log.appendPlainText)
        self._adapt()

    def _reports(self, task: BackgroundTask) -> dict[str, Any]:
        """How a set-up talks to this dialog from its thread."""
        return {
            "on_progress": task.stage.emit,
            "on_log": lambda level, text: task.text.emit(text),
            "is_cancelled": task.isCanceled,
        }

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.stage.setText(stage)
        self.bar.setRange(0, 1000 if total else 0)
        self.bar.setValue(1000 * done // total if total else 0)

    def _checked(self, outcome: Outcome) -> None:
        self.status = outcome.value if isinstance(outcome.value, env.Status) else None
        status = self.status or env.Status(False, outcome.sentence)
        self.state.setText(f"<b>{html.escape(status.sentence)}</b>")
        shown = ("python", "torch", "torchgeo", "rasterio")
        facts = [f"{name} {status.versions[name]}" for name in shown if name in status.versions]
        lines = [settings.python_path() or "", ", ".join(facts)]
        if os.environ.get(settings.ENVIRONMENT_VARIABLE):
            lines.append(f"The environment variable {settings.ENVIRONMENT_VARIABLE} goes before what is chosen here.")
        self.versions.setText("\n".join(line for line in lines if line))
        self._adapt()

    def _found_pythons(self, outcome: Outcome) -> None:
        self.base.clear()
        for python in outcome.value or ():
            self.base.addItem(f"Python {'.'.join(map(str, python.version))} ({python.path})", python)
        if not self.base.count():
            oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
            self.base.addItem(outcome.sentence or f"No Python {oldest} to {newest} was found: install one")
        self._adapt()
        self._measure()

    def _measure(self) -> None:
        """Tell the room that is needed and free."""
        if self._measuring is not None:
            self._measuring.forget()
        source, folder = self._source(), self.folder
        self._measuring = self._background.start(
            "Measure the disk", lambda task: env.space(folder, source), self._measured
        )
        self._adapt()

    def _measured(self, outcome: Outcome) -> None:
        room = outcome.value
        if isinstance(room, env.Space):
            self.space.setText(f"Needs {room.needed / GIGABYTE:.1f} GB, {room.free / GIGABYTE:.0f} GB are free")
        else:
            self.space.setText(outcome.sentence)

    def _made(self, outcome: Outcome) -> None:
        if isinstance(outcome.value, str):
            self._take(outcome.value)
            self.stage.setText("The environment is set up.")
        else:
            self.refresh()
            self._fail(outcome.sentence)

    def _removed_from(self, folder: Path) -> Callable[[Outcome], None]:
        """What follows a removal: a Python that lay elsewhere stays in use."""

        def removed(outcome: Outcome) -> None:
            if outcome.sentence:
                self._fail(outcome.sentence)
            elif not outcome.cancelled:
                python = settings.python_path()
                if python is not None and Path(os.path.abspath(folder)) in Path(os.path.abspath(python)).parents:
                    settings.set_python_path(None)
                self.stage.setText("The environment was removed.")
            self.refresh()
            self.changed.emit()

        return removed

    def _take(self, python: str) -> None:
        """Use this Python from now on."""
        settings.set_python_path(python)
        self.refresh()
        self.changed.emit()

    def _fail(self, sentence: str) -> None:
        if sentence:
            self.stage.setText(sentence)

    def _log_file(self) -> Path:
        return env.log_path(self.folder)

    def _copy_diagnostics(self) -> None:
        status = self.status
        facts = {
            "plugin": env.plugin_version(), "QGIS": Qgis.QGIS_VERSION, "Qt": QT_VERSION_STR,
            "environment": status.sentence if status is not None else "not looked at",
            **(status.versions if status is not None else {}),
        }  # fmt: skip
        QApplication.clipboard().setText(diagnostics(facts, self._log_file()))
        self.stage.setText("The diagnostics are in the clipboard.")

    def _adapt(self) -> None:
        """Let the controls say what can be done now."""
        offline = self.origin.currentIndex() == WHEELS
        for widget, shown in ((self.index, not offline), (self.torch, not offline), (self.wheels, offline)):
            widget.setVisible(shown)
            self._form.labelForField(widget).setVisible(shown)
        idle, based = not self.busy, self.base.currentData() is not None
        ours = env.is_ours(self.folder)
        self.use_button.setEnabled(idle and bool(self.existing.filePath().strip()))
        self.create_button.setEnabled(idle and based and (not offline or bool(self.wheels.filePath())))
        self.repair_button.setEnabled(idle and based and ours)
        self.remove_button.setEnabled(idle and ours)
        self.open_log.setEnabled(self._log_file().exists())
        self.cancel_button.setVisible(not idle)
        self.bar.setVisible(not idle)


def look_at(python: str | None) -> env.Status:
    """The state of the environment in use, if there is one."""
    if python is None:
        return env.Status(False, "There is no environment yet: make one, or choose a Python that has torchgeo-debias.")
    return env.check(python)


def _row(first: QWidget | None, *others: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    if first is not None:
        row.addWidget(first, 1)
    else:
        row.addStretch()
    for widget in others:
        row.addWidget(widget)
    return row

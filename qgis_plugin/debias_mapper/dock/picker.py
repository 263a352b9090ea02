"""Choosing a model: a path, the last ones, and the card of the chosen one."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsApplication, QgsSettings
from qgis.PyQt.QtCore import QTimer, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QAction,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QMenu,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .. import jobs, settings
from ..runtime.client import WorkerError
from .card import ModelCard
from .model import Model
from .tasks import Background, BackgroundTask, Outcome

RECENT = "debias_mapper/recent_models"
KEPT = 8
"""Models that are offered again."""
TYPING = 400
"""Milliseconds after the last key until a typed path is read."""


def recent_models() -> list[str]:
    """The models chosen last, newest first."""
    return [str(path) for path in QgsSettings().value(RECENT, []) or []]


def remember_model(path: str) -> None:
    """Put a model first among the last ones."""
    QgsSettings().setValue(RECENT, [path, *(other for other in recent_models() if other != path)][:KEPT])


class ModelPicker(QWidget):
    """Path and card of a model. The worker reads it, in the background."""

    modelChanged = pyqtSignal(object)
    """The :class:`Model` that is chosen and readable, else None."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model: Model | None = None
        self._background = Background()
        self._task: BackgroundTask | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(TYPING)
        self._timer.timeout.connect(self.read)

        self.paths = QComboBox()
        self.paths.setEditable(True)
        self.paths.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.paths.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.paths.setMinimumContentsLength(12)
        self.paths.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.paths.lineEdit().setPlaceholderText("Folder or .tgd file of a model")
        self.paths.lineEdit().setClearButtonEnabled(True)
        self.paths.addItems(recent_models())
        self.paths.setCurrentIndex(-1)
        self.paths.editTextChanged.connect(self._changed)

        browse = QToolButton()
        browse.setIcon(QgsApplication.getThemeIcon("/mActionFileOpen.svg"))
        browse.setToolTip("Choose a model package")
        browse.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(browse)
        for text, slot in (("Folder…", self._browse_folder), ("File (.tgd)…", self._browse_file)):
            action = QAction(text, menu)
            action.triggered.connect(slot)
            menu.addAction(action)
        browse.setMenu(menu)

        self.card = ModelCard()
        row = QHBoxLayout()
        row.addWidget(self.paths, 1)
        row.addWidget(browse)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row)
        layout.addWidget(self.card)

    @property
    def path(self) -> str:
        """What is typed or chosen."""
        return self.paths.currentText().strip().strip('"')

    def choose(self, path: str) -> None:
        """Choose a model and read it at once."""
        self.paths.setEditText(path)
        self.read()

    def read(self) -> None:
        """Let the worker describe the model, and show that; also after the environment has changed."""
        self._timer.stop()
        if self._task is not None:
            self._task.forget()
            self._task = None
        path = self.path
        self._set(None)
        if not path:
            self.card.say("Choose a model package to see what it knows.")
        elif not Path(path).exists():
            self.card.say(f"There is no model at {path}.")
        else:
            self.card.say("Reading the model…")
            python, device, proxies = settings.python_path(), settings.device(), settings.proxy_variables()

            def describe(task: BackgroundTask) -> Model:
                if python is None:
                    raise WorkerError(jobs.NO_ENVIRONMENT, "start")
                with jobs.workers().client(python, device, proxies) as client:
                    return Model.of(path, client.run("info", [path], is_cancelled=task.isCanceled))

            self._task = self._background.start("Read the model", describe, self._read)

    def close_down(self) -> list[BackgroundTask]:
        """Cancel what runs; gives the tasks to wait for."""
        self._timer.stop()
        return self._background.stop()

    def _changed(self) -> None:
        self._set(None)
        self._timer.start()

    def _read(self, outcome: Outcome) -> None:
        if outcome.sentence:
            self.card.say(outcome.sentence)
        elif isinstance(outcome.value, Model):
            self.card.show_model(outcome.value)
            self._remember(outcome.value.path)
            self._set(outcome.value)

    def _remember(self, path: str) -> None:
        remember_model(path)
        self.paths.blockSignals(True)
        self.paths.clear()
        self.paths.addItems(recent_models())
        self.paths.setCurrentIndex(0)
        self.paths.blockSignals(False)

    def _set(self, model: Model | None) -> None:
        if model is not self.model:
            self.model = model
            self.modelChanged.emit(model)

    def _browse_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Folder of a model package", self._beginning())
        if path:
            self.choose(path)

    def _browse_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "File of a model package", self._beginning(), "Model packages (*.tgd)"
        )
        if path:
            self.choose(path)

    def _beginning(self) -> str:
        return str(Path(self.path or next(iter(recent_models()), "")).parent)

"""The dock: three tabs, one run at a time, and the state of the environment."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsMapLayer,
    QgsProject,
    QgsReferencedRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgisInterface, QgsDockWidget
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QFontDatabase
from qgis.PyQt.QtWidgets import (
    QAction,
    QApplication,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QTabWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .. import settings
from ..icons import icon
from ..runtime.environment import Status
from .counting import GROUPS_PROPERTY
from .environment_dialog import EnvironmentDialog, look_at
from .results import PLAIN_LAYER, ResultsPanel, is_result
from .run_panel import RunPanel, destination
from .running import Ended, Runner
from .tasks import Background, BackgroundTask, Outcome

TITLE = "Debias Mapper"
SECONDS = 8
"""How long a message stays."""
LINES = 2000
"""Of the log that are kept."""


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        algorithm: Of the toolbox.
        parameters: Of the algorithm.
        groups: Class to group.
        twin: Whether it can be run again with the plain LoRA.
        plain_of: For the plain LoRA: id of the layer to compare with.
    """

    algorithm: str
    parameters: Mapping[str, Any]
    groups: Mapping[str, str] = field(default_factory=dict)
    twin: bool = False
    plain_of: str = ""


class DebiasDock(QgsDockWidget):
    """Maps with a model, and looks at the result.

    Args:
        iface: QGIS's interface.
    """

    def __init__(self, iface: QgisInterface) -> None:
        super().__init__(TITLE, iface.mainWindow())
        self.setObjectName("DebiasDock")
        self._iface = iface
        self._background = Background()
        self._checking: BackgroundTask | None = None
        self._run = Asked("", {})
        self._missing = ""
        self._repeatable: dict[str, Asked] = {}
        self.dialogs: list[Any] = []
        self.environment: EnvironmentDialog | None = None
        self.runner = Runner(self)
        self.inputs = RunPanel(self._visible)
        self.results = ResultsPanel()
        self.results.set_plain_check(lambda layer: layer.id() in self._repeatable)
        self._build()
        self._connect()
        self._update()
        self.check_environment()

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self.runner.running

    def run(self) -> None:
        """Run what is chosen."""
        chosen = self.inputs.chosen
        model = self.inputs.model
        if chosen is not None and model is not None and not self.inputs.missing() and not self.busy:
            groups = {entry.name: entry.group for entry in model.classes}
            parameters = self.inputs.parameters()
            self._start(Asked(chosen.algorithm, parameters, groups, twin=model.can_show_plain_apart()))

    def run_plain(self, layer: QgsVectorLayer) -> None:
        """Find the objects of the plain LoRA, to compare this layer with."""
        asked = self._repeatable.get(layer.id())
        if asked is not None and not self.busy:
            parameters = {**asked.parameters, "RAW": True, "OUTPUT": destination()}
            self._start(Asked(asked.algorithm, parameters, asked.groups, plain_of=layer.id()))

    def cancel(self) -> None:
        """Stop the run."""
        self.runner.cancel()
        self._say("Cancelling…")

    def check_environment(self) -> None:
        """Look at the worker's environment, in the background."""
        if self._checking is not None:
            self._checking.forget()
        python = settings.python_path()
        self._line.setText("Looking at the environment…")
        self._checking = self._background.start("Look at the environment", lambda task: look_at(python), self._checked)

    def open_environment(self) -> None:
        """Show the dialog of the environment."""
        if self.environment is None:
            self.environment = EnvironmentDialog(self)
            self.environment.changed.connect(self._environment_changed)
        self.environment.show()
        self.environment.raise_()

    def close_down(self) -> list[Any]:
        """Cancel all that runs; gives the tasks to wait for. The dock is of no use afterwards."""
        for dialog in self.dialogs:
            if not sip.isdeleted(dialog):
                dialog.destroyed.disconnect(self._forget_dialogs)
                dialog.close()
        parts = [part for part in (self.runner, self.inputs, self.results, self.environment) if part is not None]
        return [*self._background.stop(), *(task for part in parts for task in part.close_down())]

    def _build(self) -> None:
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(LINES)
        self.log.setPlaceholderText("What a run says is kept here.")
        self.command = QPlainTextEdit()
        self.command.setReadOnly(True)
        self.command.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.command.setPlaceholderText("The command of the last run, to be used in a shell.")
        self.command.setFixedHeight(6 * self.command.fontMetrics().lineSpacing())
        self.copy = QPushButton(QgsApplication.getThemeIcon("/mActionEditCopy.svg"), "Copy command")
        log = QWidget()
        layout = QVBoxLayout(log)
        layout.addWidget(self.log, 1)
        layout.addWidget(self.command)
        layout.addWidget(self.copy, 0, Qt.AlignmentFlag.AlignRight)

        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        for widget, title in ((self.inputs, "Map"), (self.results, "Result"), (log, "Log")):
            self.tabs.addTab(widget, title)

        self.sentence = QLabel()
        self.sentence.setTextFormat(Qt.TextFormat.PlainText)  # it may quote what others wrote
        self.sentence.setWordWrap(True)
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.hide()
        self.run_button = QPushButton(QgsApplication.getThemeIcon("/mActionStart.svg"), "Run")
        self.cancel_button = QPushButton(QgsApplication.getThemeIcon("/mTaskCancel.svg"), "Cancel")
        self.train_button = QToolButton()
        self.train_button.setText("Train…")
        self.train_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.train_button.setIcon(icon("train"))
        self.train_button.setToolTip("Train a model on a labelled layer")
        self.train_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        buttons = QHBoxLayout()
        buttons.addWidget(self.train_button)
        buttons.addStretch()
        buttons.addWidget(self.cancel_button)
        buttons.addWidget(self.run_button)

        self._line = QLabel()
        self._line.setWordWrap(True)
        self.environment_button = QPushButton("Environment…")
        environment = QHBoxLayout()
        environment.addWidget(self._line, 1)
        environment.addWidget(self.environment_button)

        rule = QFrame()
        rule.setFrameShape(QFrame.Shape.HLine)
        rule.setFrameShadow(QFrame.Shadow.Sunken)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(4, 4, 4, 4)
        column.addWidget(self.tabs, 1)
        column.addWidget(self.sentence)
        column.addWidget(self.bar)
        column.addLayout(buttons)
        column.addWidget(rule)
        column.addLayout(environment)
        inside.setMinimumWidth(320)
        self.setWidget(inside)

    def _connect(self) -> None:
        menu = QMenu(self.train_button)
        for text, algorithm in (("A classifier…", "debias:train"), ("A detector…", "debias:train_detector")):
            action = QAction(text, menu)
            action.triggered.connect(lambda _=False, name=algorithm: self._open_dialog(name, {}))
            menu.addAction(action)
        self.train_button.setMenu(menu)
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.copy.clicked.connect(lambda: QApplication.clipboard().setText(self.command.toPlainText()))
        self.environment_button.clicked.connect(self.open_environment)
        self.inputs.changed.connect(self._update)
        self.inputs.moreWanted.connect(self._open_more)
        self.results.plainWanted.connect(self.run_plain)
        self.runner.progressed.connect(lambda value: self.bar.setValue(round(value)))
        self.runner.staged.connect(self._stage)
        self.runner.said.connect(self._note)
        self.runner.commanded.connect(self._show_command)
        self.runner.ended.connect(self._ended)

    def _visible(self) -> QgsReferencedRectangle:
        canvas = self._iface.mapCanvas()
        return QgsReferencedRectangle(canvas.extent(), canvas.mapSettings().destinationCrs())

    def _start(self, asked: Asked) -> None:
        self._run = asked
        self._began = time.monotonic()
        self.log.clear()
        self._say("")
        self.bar.setValue(0)
        self.bar.setFormat("Starting")
        self.runner.start(asked.algorithm, asked.parameters)
        self._update()

    def _update(self) -> None:
        """Let the buttons say what can be done now."""
        missing = self.inputs.missing()
        self.run_button.setEnabled(not self.busy and not missing)
        self.run_button.setToolTip(missing)
        self.cancel_button.setEnabled(self.busy)
        self.bar.setVisible(self.busy)
        self.copy.setEnabled(bool(self.command.toPlainText()))
        if not self.busy and missing != self._missing:  # how a run ended stays to be read
            self._missing = missing
            self._say(missing)

    def _say(self, sentence: str) -> None:
        self.sentence.setText(sentence)
        self.sentence.setVisible(bool(sentence))

    def _stage(self, text: str) -> None:
        self.bar.setFormat(f"{text}: %p%")
        self.log.appendPlainText(text)

    def _note(self, kind: str, text: str) -> None:
        self.log.appendPlainText(f"{kind}: {text}" if kind else text)

    def _show_command(self, command: str) -> None:
        self.command.setPlainText(command)
        self.copy.setEnabled(True)

    def _ended(self, ended: Ended) -> None:
        """Say how the run ended, and look at its layer."""
        self._update()
        if ended.cancelled:
            self._tell("Cancelled; nothing was left half-written.", Qgis.MessageLevel.Info)
        elif ended.sentence:
            self._note("Error", ended.sentence)
            self._tell(ended.sentence, Qgis.MessageLevel.Critical)
        else:
            seconds = time.monotonic() - self._began
            layer = ended.layers.get("OUTPUT")
            self._tell(summary(layer, seconds), Qgis.MessageLevel.Success)
            if is_result(layer):
                self._look_at(layer)

    def _look_at(self, layer: QgsVectorLayer) -> None:
        first = QgsProject.instance().mapLayer(self._run.plain_of)
        layer.setCustomProperty(GROUPS_PROPERTY, json.dumps(dict(self._run.groups)))
        if first is not None:
            layer.setName(f"{first.name()} (plain LoRA)")
            first.setCustomProperty(PLAIN_LAYER, layer.id())
        elif self._run.twin:
            self._repeatable[layer.id()] = self._run
        self.results.show_layer(layer if first is None else first)
        self.tabs.setCurrentWidget(self.results)

    def _open_more(self) -> None:
        chosen = self.inputs.chosen
        if chosen is not None:
            self._open_dialog(chosen.algorithm, self.inputs.parameters())

    def _open_dialog(self, algorithm: str, parameters: Mapping[str, Any]) -> None:
        """Open the toolbox's dialog, which runs by itself."""
        from processing import createAlgorithmDialog

        dialog = createAlgorithmDialog(algorithm, dict(parameters))
        if dialog is not None:
            self.dialogs.append(dialog)  # without its Python half, its buttons would do nothing
            dialog.destroyed.connect(self._forget_dialogs)  # QGIS deletes it once it is closed and its run has ended
            dialog.show()

    def _forget_dialogs(self) -> None:
        """Let go of dialogs that are no more."""
        self.dialogs = [dialog for dialog in self.dialogs if not sip.isdeleted(dialog)]

    def _checked(self, outcome: Outcome) -> None:
        status = outcome.value
        ready = isinstance(status, Status) and status.ready
        sentence = html.escape(status.sentence if isinstance(status, Status) else outcome.sentence)
        self._line.setText(sentence if ready else f"<b>{sentence}</b>")

    def _environment_changed(self) -> None:
        """Another environment is in use: the worker of the old one goes, and the model is read anew."""
        self.check_environment()
        self.inputs.picker.read()

    def _tell(self, sentence: str, level: Qgis.MessageLevel) -> None:
        self._say(sentence)
        self._note("", sentence)
        self._iface.messageBar().pushMessage(TITLE, html.escape(sentence), level, SECONDS)


def summary(layer: QgsMapLayer | None, seconds: float) -> str:
    """What a run came to, in a sentence."""
    if isinstance(layer, QgsVectorLayer):
        return f"Done in {seconds:.0f} s: {layer.name()}, {layer.featureCount():n} features."
    return f"Done in {seconds:.0f} s."

"""Running one of the plugin's algorithms as a task, as the toolbox does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgis.core import (
    QgsApplication,
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsProject,
)
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .tasks import QgisTask


class Feedback(QgsProcessingFeedback):
    """Hands on what an algorithm says, from its thread, as signals."""

    staged = pyqtSignal(str)
    said = pyqtSignal(str, str)
    commanded = pyqtSignal(str)

    def __init__(self) -> None:
        super().__init__(False)
        self.errors: list[str] = []

    def setProgressText(self, text: str) -> None:
        """A stage begins."""
        self.staged.emit(text)

    def pushCommandInfo(self, info: str) -> None:
        """The command for a shell."""
        self.commanded.emit(info)

    def pushInfo(self, info: str) -> None:
        """Of interest."""
        self.said.emit("", info)

    def pushConsoleInfo(self, info: str) -> None:
        """Of a program."""
        self.said.emit("", info)

    def pushDebugInfo(self, info: str) -> None:
        """For a report."""
        self.said.emit("Details", info)

    def pushWarning(self, warning: str) -> None:
        """To be looked at."""
        self.said.emit("Warning", warning)

    def reportError(self, error: str, fatalError: bool = False) -> None:
        """Why it ends."""
        self.errors.append(error)
        self.said.emit("Error", error)


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        results: Of the algorithm.
        layers: Those that came into the project, by the name of their output.
        sentence: Why it failed; empty if it did not.
        cancelled: Whether it was stopped.
    """

    results: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, QgsMapLayer] = field(default_factory=dict)
    sentence: str = ""
    cancelled: bool = False


class Runner(QObject):
    """Runs one algorithm at a time."""

    progressed = pyqtSignal(float)
    staged = pyqtSignal(str)
    said = pyqtSignal(str, str)
    commanded = pyqtSignal(str)
    ended = pyqtSignal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._run: _Run | None = None
        # What comes out belongs to the project that it was asked for in.
        QgsProject.instance().cleared.connect(self.cancel)

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self._run is not None

    def start(self, algorithm: str, parameters: Mapping[str, Any]) -> None:
        """Start an algorithm of the toolbox; :attr:`ended` tells how it went.

        Args:
            algorithm: Its id, such as ``"debias:detect"``.
            parameters: As in the toolbox.
        """
        self._run = run = _Run(algorithm, dict(parameters))
        feedback = run.feedback
        feedback.progressChanged.connect(self.progressed)
        for name in ("staged", "said", "commanded"):
            getattr(feedback, name).connect(getattr(self, name))
        refusal = run.refusal()
        if refusal:
            self._run = None
            self.ended.emit(Ended(sentence=refusal))
            return
        run.task.executed.connect(self._executed)
        QgsApplication.taskManager().addTask(run.task)

    def cancel(self) -> None:
        """Stop the run; nothing happens without one."""
        if self._run is not None:
            self._run.feedback.cancel()
            QgisTask(self._run.task).cancel()

    def close_down(self) -> list[QgisTask]:
        """Cancel the run; gives the task to wait for."""
        QgsProject.instance().cleared.disconnect(self.cancel)
        if self._run is None:
            return []
        self._run.task.executed.disconnect(self._executed)
        self.cancel()
        return [QgisTask(self._run.task)]

    def _executed(self, successful: bool, results: Mapping[str, Any]) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run.feedback.isCanceled() or (successful and not results):
            self.ended.emit(Ended(cancelled=True))
        elif not successful:
            sentence = (
                run.feedback.errors[-1] if run.feedback.errors else "The run failed; the log says how far it came."
            )
            self.ended.emit(Ended(sentence=sentence))
        else:
            self.ended.emit(run.load(results))


class _Run:
    """One run, with all that Python must hold until it ends."""

    def __init__(self, algorithm: str, parameters: dict[str, Any]) -> None:
        self.algorithm: QgsProcessingAlgorithm = QgsApplication.processingRegistry().createAlgorithmById(algorithm)
        self.parameters = parameters
        self.feedback = Feedback()
        self.context = QgsProcessingContext()
        self.context.setProject(QgsProject.instance())
        self.context.setFeedback(self.feedback)
        self.task: Any = None

    def refusal(self) -> str:
        """Check the parameters and make the task; the sentence of what is wrong, empty if nothing is."""
        fine, sentence = self.algorithm.checkParameterValues(self.parameters, self.context)
        if not fine:
            return str(sentence)
        self.task = QgsProcessingAlgRunnerTask(self.algorithm, self.parameters, self.context, self.feedback)
        if self.task.isCanceled():  # what its preparation refused
            return self.feedback.errors[-1] if self.feedback.errors else "The run could not be prepared."
        return ""

    def load(self, results: Mapping[str, Any]) -> Ended:
        """Put the results into the project, in the way of the toolbox."""
        from processing.gui.Postprocessing import handleAlgorithmResults

        names = {where: details.outputName for where, details in self.context.layersToLoadOnCompletion().items()}
        handleAlgorithmResults(self.algorithm, self.context, self.feedback, self.parameters)
        layers = {}
        for where, name in names.items():
            layer = QgsProcessingUtils.mapLayerFromString(where, self.context, False)
            if layer is None:
                return Ended(results, sentence=f"The result was written to {where}, but QGIS cannot open it.")
            layers[name] = layer
        return Ended(results, layers)

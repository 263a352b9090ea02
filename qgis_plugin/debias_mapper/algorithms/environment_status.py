"""Whether the worker has what it needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputBoolean,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFileDestination,
)

from .. import jobs, settings
from ..runtime.commands import Command
from ..runtime.environment import check
from . import parameters as p
from .base import DebiasAlgorithm, Values
from .run import Run

PROBE = "PROBE"
JSON = "JSON"
READY = "READY"
SENTENCE = "SENTENCE"
STATUS = "STATUS"


class EnvironmentStatus(DebiasAlgorithm):
    """Say whether the worker has what it needs, and what to do if not."""

    NAME = "environment_status"
    TITLE = "Environment status"
    GROUP = "Check"
    SUMMARY = "Says whether the Python environment of the worker is ready, and what to do if it is not."
    ABOUT = ("It never fails: that there is no environment is an answer too.",)
    EXAMPLE: ClassVar[dict[str, str]] = {"PROBE": "true", "JSON": "status.json"}
    TAGS = ("environment", "python", "install", "diagnostics", "GPU", "CUDA")

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        self.add(
            [
                p.described(
                    QgsProcessingParameterBoolean(PROBE, "Start the worker", True),
                    "Ask it for its devices and their memory as well, which takes some seconds.",
                ),
                p.device(),
                QgsProcessingParameterFileDestination(
                    JSON, "Status as JSON", "JSON files (*.json)", optional=True, createByDefault=False
                ),
            ]
        )
        self.addOutput(QgsProcessingOutputBoolean(READY, "Whether it is ready"))
        self.addOutput(QgsProcessingOutputString(SENTENCE, "In words"))
        self.addOutput(QgsProcessingOutputString(STATUS, "Everything that is known, as JSON"))

    def checkParameterValues(self, parameters: Values, context: QgsProcessingContext) -> tuple[bool, str]:
        """Needs no environment."""
        return self.check_destinations(parameters, context)

    def processAlgorithm(
        self, parameters: Values, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Values:
        """Look at the environment and, where that is wanted and possible, ask a worker in it."""
        run = Run(self, parameters, context, feedback, "")
        python = settings.python_path()
        known: Values = {"python": python, "ready": False, "sentence": jobs.NO_ENVIRONMENT}
        if python is not None:
            known.update(asdict(check(python)))
        if known["ready"] and run.value(PROBE):
            try:
                known["probe"] = jobs.run_command(Command("probe"), feedback, device=run.value(p.DEVICE))
            except QgsProcessingException as error:
                known.update(ready=False, sentence=str(error))
        feedback.pushInfo(known["sentence"])
        outputs = {READY: known["ready"], SENTENCE: known["sentence"], STATUS: p.as_json(known)}
        if run.value(JSON) is not None:
            p.write_json(run.value(JSON), known)
            outputs[JSON] = run.value(JSON)
        return outputs

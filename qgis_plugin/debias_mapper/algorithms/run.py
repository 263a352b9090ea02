"""One run of an algorithm: its parameters by their types, and a folder for what is only needed meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingUtils,
)

from ..outputs import MODEL_FILE
from ..runtime.commands import option
from . import parameters as p


@dataclass(frozen=True)
class Run:
    """What ``processAlgorithm`` has to do with.

    Attributes:
        algorithm: Whose run it is.
        parameters: As QGIS gives them.
        context: Of the run.
        feedback: Of the run.
        folder: A temporary folder; it goes away whatever happens.
    """

    algorithm: QgsProcessingAlgorithm
    parameters: Mapping[str, Any]
    context: QgsProcessingContext
    feedback: QgsProcessingFeedback
    folder: str
    _destinations: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    @contextmanager
    def of(
        cls,
        algorithm: QgsProcessingAlgorithm,
        parameters: Mapping[str, Any],
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> Iterator[Run]:
        """A run with a folder of its own."""
        folder = tempfile.mkdtemp(prefix="debias_", dir=QgsProcessingUtils.tempFolder())
        try:
            yield cls(algorithm, parameters, context, feedback, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def path(self, name: str) -> str:
        """A name in the folder."""
        return os.path.join(self.folder, name)

    def value(self, name: str) -> Any:  # noqa: ANN401 - a number, a text, a truth value
        """The value of a parameter by its type, None where it was left empty or there is no such parameter.

        That of a destination is the same each time: QGIS makes up another path of a temporary one at each look.
        """
        if name not in self._destinations:
            value = self._read(name)
            definition = self.algorithm.parameterDefinition(name)
            if definition is None or not definition.isDestination():
                return value
            self._destinations[name] = value
        return self._destinations[name]

    def _read(self, name: str) -> Any:  # noqa: ANN401 - as above
        definition = self.algorithm.parameterDefinition(name)
        if definition is None:
            return None
        given = self.parameters.get(name, definition.defaultValue())
        if given is None or given == "" or (hasattr(given, "isNull") and given.isNull()):
            return None
        read = {
            "boolean": self.algorithm.parameterAsBoolean,
            "enum": self.algorithm.parameterAsEnumString,
            "file": self.algorithm.parameterAsFile,
            "fileDestination": self.algorithm.parameterAsFileOutput,
            "number": self.algorithm.parameterAsDouble,
            "rasterDestination": self.algorithm.parameterAsOutputLayer,
        }.get(definition.type(), self.algorithm.parameterAsString)
        if definition.type() == "number" and definition.dataType() == Qgis.ProcessingNumberParameterType.Integer:
            read = self.algorithm.parameterAsInt
        value = read(self.parameters, name, self.context)
        if name == p.MODEL and os.path.basename(value) == MODEL_FILE:
            value = os.path.dirname(value)  # what a dialog for files can pick of a package that is a folder
        return None if value == "" else value

    def options(self, flags: Mapping[str, str]) -> list[str]:
        """Words of the options that have a value.

        Args:
            flags: Option by parameter.
        """
        return [word for name, flag in flags.items() for word in option(flag, self.value(name))]

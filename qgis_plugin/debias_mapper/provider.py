"""The provider of the toolbox."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms import ALGORITHMS
from .icons import icon


class DebiasProvider(QgsProcessingProvider):
    """All algorithms; they are there with or without an environment for the worker, and say what to do without."""

    ID = "debias"

    def id(self) -> str:
        """Before the colon in ids such as ``debias:detect``."""
        return self.ID

    def name(self) -> str:
        """In the toolbox."""
        return "Debias (rare classes)"

    def longName(self) -> str:
        """In messages."""
        return "Debias Mapper (rare classes)"

    def icon(self) -> QIcon:
        """In the toolbox."""
        return icon("debias")

    def supportsNonFileBasedOutput(self) -> bool:
        """Features go into whatever sink the user picks, memory layers among them."""
        return True

    def loadAlgorithms(self) -> None:
        """Make one of each."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

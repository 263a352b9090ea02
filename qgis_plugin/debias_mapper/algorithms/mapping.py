"""What the algorithms that look at a raster with a model have in common."""

from __future__ import annotations

from typing import ClassVar

from ..outputs import Origin
from ..runtime.commands import Command, option
from . import parameters as p
from .base import DebiasAlgorithm, Values
from .run import Run

RESULT = "result.gpkg"


class MappingAlgorithm(DebiasAlgorithm):
    """An algorithm that makes a layer of features from a raster and a model.

    Attributes:
        VERB: Of the library.
        RESULT_TITLE: Of the layer that it makes.
        FLAGS: Options of the verb by parameter, besides those that all have.
    """

    GROUP = "Map"
    VERB: ClassVar[str]
    RESULT_TITLE: ClassVar[str]
    FLAGS: ClassVar[dict[str, str]] = {}

    COMMON: ClassVar[dict[str, str]] = {
        p.MODEL: "--model",
        p.BATCH_SIZE: "--batch-size",
        p.WEIGHTS: "--weights",
        p.PRECISION: "--precision",
    }

    @property
    def has_area(self) -> bool:
        """Whether the verb has ``--area``."""
        return True

    def command(self, run: Run) -> Command:
        """The verb with a layer in the folder."""
        path, words = self.raster_words(run, with_area=self.has_area)
        return Command(self.VERB, [path, *words, *self.further(run), *option("--out", run.path(RESULT))])

    def further(self, run: Run) -> list[str]:
        """Words of all other options."""
        return run.options({**self.COMMON, **self.FLAGS})

    def results(self, run: Run, command: Command, facts: Values) -> Values:
        """The layer and its counts."""
        origin = Origin(self.RESULT_TITLE, command, run.value(p.MODEL))
        return {p.OUTPUT: self.hand_over(run, run.path(RESULT), origin), **self.counts(facts)}

"""Class rasters."""

from __future__ import annotations

from typing import Any, ClassVar

from qgis.core import QgsProcessingException, QgsProcessingParameterRasterDestination

from ..outputs import Dress, Origin, move_raster
from ..runtime.commands import Command, option
from . import parameters as p
from .base import Values
from .mapping import MappingAlgorithm
from .run import Run

SCORES = "SCORES"


class ClassifyPixels(MappingAlgorithm):
    """A class for every pixel, and how sure it is."""

    NAME = "classify_pixels"
    TITLE = "Classify pixels"
    VERB = "classify"
    RESULT_TITLE = "Class raster"
    SUMMARY = "Makes a raster of classes, and one of scores, from overlapping tiles."
    ABOUT = (
        "The class raster has the pixels of the input, the numbers of the classes with their colours and names, and no "
        "data where the input has none, outside the area, and below the lowest score. The score raster is in per cent.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "MODEL": "model.tgd", "AREA": "districts.gpkg",
        "OUTPUT": "classes.tif", "SCORES": "scores.tif",
    }  # fmt: skip
    TAGS = ("classify", "pixels", "land cover", "raster")
    FLAGS: ClassVar[dict[str, str]] = {
        p.MIN_SCORE: "--min-score",
        p.OVERLAP: "--overlap",
        p.BACKEND: "--backend",
        p.VIEWS: "--views",
    }

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        self.add([p.raster(), p.model("'Train a classifier'"), *p.area(), p.bands()])
        self.add(
            [
                p.min_score(0.0, "Pixels below this score become no data."),
                p.overlap(0.5, "Share by which neighbouring tiles overlap: more is finer, and takes longer."),
                *p.reading(),
                *p.computing(batch="Tiles"),
                *p.classifier(),
                QgsProcessingParameterRasterDestination(p.OUTPUT, "Class raster"),
                QgsProcessingParameterRasterDestination(SCORES, "Score raster", optional=True, createByDefault=False),
            ]
        )
        self.add_counts("tiles")

    def command(self, run: Run) -> Command:
        """The verb with rasters in the folder."""
        for name in self._wanted(run):
            if not run.value(name).lower().endswith((".tif", ".tiff")):
                raise QgsProcessingException("Rasters are written as GeoTIFF: choose a name that ends in .tif.")
        path, words = self.raster_words(run)
        outputs = [word for name, flag in self._wanted(run).items() for word in option(flag, run.path(f"{name}.tif"))]
        return Command(self.VERB, [path, *words, *self.further(run), *outputs])

    def results(self, run: Run, command: Command, facts: Values) -> Values:
        """The rasters and the counts."""
        titles = {p.OUTPUT: self.RESULT_TITLE, SCORES: "Score raster"}
        outputs: Values = {}
        for name in self._wanted(run):
            destination = run.value(name)
            move_raster(run.path(f"{name}.tif"), destination)
            origin = Origin(titles[name], command, run.value(p.MODEL))
            self.dress(run.context, Dress(destination, None, origin.metadata()))
            outputs[name] = destination
        return {**outputs, **self.counts(facts)}

    def _wanted(self, run: Run) -> dict[str, str]:
        """Options by the outputs that are asked for."""
        flags = {p.OUTPUT: "--map", SCORES: "--scores"}
        return {name: flag for name, flag in flags.items() if run.value(name) is not None}

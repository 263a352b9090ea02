"""The features of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from qgis.core import (
    QgsFeature,
    QgsField,
    QgsFields,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
)

from ..layers import ROW, Features
from ..outputs import Origin, Result, all_fields
from ..runtime.commands import Command, option
from . import parameters as p
from .base import Values
from .mapping import RESULT, MappingAlgorithm
from .run import Run

FEATURES = "FEATURES"


class ClassifyFeatures(MappingAlgorithm):
    """Give every feature of a layer a class."""

    NAME = "classify_features"
    TITLE = "Classify features"
    VERB = "classify-features"
    RESULT_TITLE = "Classified features"
    SUMMARY = "Gives the polygons or points of a layer their classes, from what a raster shows there."
    ABOUT = (
        "The result is a copy of the layer with its attributes and CRS, and with class, class_id, score and group. "
        "Attributes of yours with one of these names become class_label and so on. Features outside the raster keep "
        "empty classes.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "FEATURES": "footprints.gpkg", "MODEL": "model.tgd", "OUTPUT": "objects.gpkg",
    }  # fmt: skip
    TAGS = ("classify", "features", "footprints", "parcels")
    FLAGS: ClassVar[dict[str, str]] = {p.BACKEND: "--backend", p.VIEWS: "--views"}

    def __init__(self) -> None:
        super().__init__()
        self.features: Features | None = None

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        kinds = [QgsProcessing.SourceType.TypeVectorPolygon, QgsProcessing.SourceType.TypeVectorPoint]
        self.add(
            [
                p.raster(),
                p.described(
                    QgsProcessingParameterFeatureSource(FEATURES, "Features to classify", kinds),
                    "Points need a model that was trained with a fixed window.",
                ),
                p.model("'Train a classifier'"),
                *p.area("Only features that touch it are classified; the others are left out"),
                p.bands(),
                *p.reading(),
                *p.computing(batch="Features"),
                *p.classifier(),
                QgsProcessingParameterFeatureSink(p.OUTPUT, "Classified features"),
            ]
        )
        self.add_counts("features")

    def prepare(self, parameters: Values, context: QgsProcessingContext) -> None:
        """Take the features."""
        self.features = Features.of(self, parameters, FEATURES, context)

    def command(self, run: Run) -> Command:
        """The verb on the geometry alone: attributes come from the layer itself, as they are."""
        features = self._given(run)
        path, words = self.raster_words(run, with_area=False)
        layer = run.path("features.gpkg")
        features.write(layer, run.context, run.feedback, within=self.area.geometry(features, run.context))
        out = option("--out", run.path(RESULT))
        return Command(self.VERB, [path, layer, *words, *self.further(run), *out])

    def results(self, run: Run, command: Command, facts: Values) -> Values:
        """The copy and its counts."""
        features = self._given(run)
        result = Result.read(run.path(RESULT))
        new = [field for field in result.fields if field.name() != ROW]
        answers = {each[ROW]: [each[field.name()] for field in new] for each in result.layer.getFeatures()}
        fields = all_fields(free_names(features.fields, [field.name() for field in new]), new)
        origin = Origin(self.RESULT_TITLE, command, run.value(p.MODEL))
        copies = _copies(features, answers)
        destination = self.fill_sink(run, copies, fields, features.wkb_type, features.crs, result, origin)
        return {p.OUTPUT: destination, **self.counts(facts)}

    def _given(self, run: Run) -> Features:
        if self.features is None:
            raise QgsProcessingException(self.invalidSourceError(dict(run.parameters), FEATURES))
        return self.features


def _copies(features: Features, answers: dict[int, list[Any]]) -> Iterator[QgsFeature]:
    """Features with their answers; those that the layer gained during the run have none, and are left out.

    A new feature that was saved during the run comes a second time, under another id.
    """
    left = dict(answers)
    for feature in features:
        answer = left.pop(feature.id(), None)
        if answer is not None:
            copy = QgsFeature()
            copy.setGeometry(feature.geometry())
            copy.setAttributes([*feature.attributes(), *answer])
            yield copy


def free_names(fields: QgsFields, new: list[str]) -> list[QgsField]:
    """Fields under names that leave the new ones free, as the library names them; letters' case aside."""
    seen = {name.lower() for name in new}
    taken = seen | {field.name().lower() for field in fields}
    renamed = []
    for field in fields:
        copy, name = QgsField(field), field.name()
        if name.lower() in seen:
            while name.lower() in taken:
                name += "_label"
            copy.setName(name)
        taken.add(name.lower())
        seen.add(name.lower())
        renamed.append(copy)
    return renamed

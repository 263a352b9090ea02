"""Layers of predictions against a reference."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
)

from ..layers import Features, file_name
from ..runtime.commands import Command, option
from . import parameters as p
from .base import DebiasAlgorithm, Values
from .run import Run

PREDICTIONS = "PREDICTIONS"
REFERENCE = "REFERENCE"
CLASS_FIELD = "CLASS_FIELD"
PREDICTED_FIELD = "PREDICTED_FIELD"
SCORE_FIELD = "SCORE_FIELD"
HOW = "HOW"
IOU = "IOU"
REPORT = "REPORT"
JSON = "JSON"
SCORES = "SCORES"
GROUPS = ("head", "middle", "tail", "macro")
_OBJECTS = "objects"
_OTHERS = ("score", "score_raw", "class_raw", "group")
"""Fields of predictions that count where they are there."""


class Evaluate(DebiasAlgorithm):
    """Score a layer of predictions."""

    NAME = "evaluate"
    TITLE = "Evaluate predictions"
    GROUP = "Check"
    SUMMARY = "Scores a layer of predictions against a reference layer, per class and per group, and writes a report."
    ABOUT = (
        "Compared by features, each reference feature takes the class of the prediction on it; the scores are F1. "
        "Compared as objects, boxes are matched one to one; the scores are average precision at the overlap 0.5. "
        "Where the predictions keep the plain LoRA (class_raw), it is scored beside.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "PREDICTIONS": "objects.gpkg", "REFERENCE": "truth.gpkg", "CLASS_FIELD": "class", "HOW": "objects",
        "REPORT": "report.html",
    }  # fmt: skip
    TAGS = ("evaluate", "accuracy", "F1", "average precision", "confusion matrix", "report")
    FLAGS: ClassVar[dict[str, str]] = {
        PREDICTED_FIELD: "--predicted-field",
        SCORE_FIELD: "--score-field",
        HOW: "--how",
        p.MIN_SCORE: "--min-score",
        IOU: "--iou",
    }

    def __init__(self) -> None:
        super().__init__()
        self.predictions: Features | None = None
        self.reference: Features | None = None

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        kinds = [QgsProcessing.SourceType.TypeVectorPolygon, QgsProcessing.SourceType.TypeVectorPoint]
        field = QgsProcessingParameterField
        self.add(
            [
                p.described(
                    QgsProcessingParameterFeatureSource(PREDICTIONS, "Predictions", kinds),
                    "A layer that an algorithm here made, or any other with a class.",
                ),
                field(PREDICTED_FIELD, "Field with the predicted class", "class", PREDICTIONS),
                p.described(
                    QgsProcessingParameterFeatureSource(REFERENCE, "Reference", kinds),
                    "A layer with the true classes; in any CRS.",
                ),
                field(CLASS_FIELD, "Field with the true class", None, REFERENCE),
                p.choice(
                    HOW,
                    "Compare",
                    "By features: the class on each reference feature. Objects: boxes, one to one.",
                    ["features", _OBJECTS],
                    "features",
                ),
                *p.area("Where the reference is complete"),
                p.plain_number(
                    p.MIN_SCORE, "Lowest score", "Predictions below it do not count; all do if left out.", optional=True
                ),
                p.advanced(field(SCORE_FIELD, "Field with the score", None, PREDICTIONS, optional=True)),
                p.number(IOU, "Overlap", "From which an object counts as found.", optional=True, low=0, high=1),
                QgsProcessingParameterFileDestination(REPORT, "Report", "HTML files (*.html)"),
                QgsProcessingParameterFileDestination(
                    JSON, "Scores as JSON", "JSON files (*.json)", optional=True, createByDefault=False
                ),
            ]
        )
        for group in GROUPS:
            self.addOutput(QgsProcessingOutputNumber(group.upper(), f"Score of the group {group}"))
            self.addOutput(QgsProcessingOutputNumber(f"{group.upper()}_RAW", f"Score of the group {group}, plain LoRA"))
        self.addOutput(QgsProcessingOutputString(SCORES, "All scores, as JSON"))

    def prepare(self, parameters: Values, context: QgsProcessingContext) -> None:
        """Take both layers."""
        self.predictions = Features.of(self, parameters, PREDICTIONS, context)
        self.reference = Features.of(self, parameters, REFERENCE, context)

    def command(self, run: Run) -> Command:
        """The verb on copies of the two layers with the fields that count."""
        if self.predictions is None or self.reference is None:
            missing = PREDICTIONS if self.predictions is None else REFERENCE
            raise QgsProcessingException(self.invalidSourceError(dict(run.parameters), missing))
        os.mkdir(run.path("reference"))  # the two layers may have one name
        predictions = run.path(file_name(self.predictions.name))
        reference = run.path(os.path.join("reference", file_name(self.reference.name)))
        truth = run.value(CLASS_FIELD)
        reference = self.reference.as_file(reference, run.context, run.feedback, [truth])
        fields = self._fields(run, self.predictions)
        predictions = self.predictions.as_file(predictions, run.context, run.feedback, fields)
        area = self.area.argument(self.reference.crs, run.path("area.gpkg"), run.context, run.feedback)
        return Command(
            "evaluate-layer",
            [
                predictions, reference, *option("--class-field", truth), *option("--area", area),
                *run.options({**self.FLAGS, REPORT: "--report"}),
            ],
        )  # fmt: skip

    def results(self, run: Run, command: Command, facts: Values) -> Values:
        """The report and the scores of the groups; those that are undefined are left out."""
        outputs: Values = {REPORT: run.value(REPORT), SCORES: p.as_json(facts)}
        key = "ap50" if run.value(HOW) == _OBJECTS else "f1"
        for suffix, part in (("", facts.get("scores")), ("_RAW", facts.get("raw"))):
            for group in GROUPS:
                value = (part or {}).get(key, {}).get(group)
                if value is not None:
                    outputs[f"{group.upper()}{suffix}"] = value
                    run.feedback.pushInfo(f"{group}{' of the plain LoRA' if suffix else ''}: {100 * value:.1f}")
        if run.value(JSON) is not None:
            p.write_json(run.value(JSON), facts)
            outputs[JSON] = run.value(JSON)
        return outputs

    @staticmethod
    def _fields(run: Run, predictions: Features) -> list[str]:
        given = [run.value(PREDICTED_FIELD), run.value(SCORE_FIELD)]
        wanted = [name for name in given if name is not None]
        twins = [f"{name}_raw" for name in wanted]
        present = set(predictions.names)
        return list(dict.fromkeys([*wanted, *(name for name in (*twins, *_OTHERS) if name in present)]))

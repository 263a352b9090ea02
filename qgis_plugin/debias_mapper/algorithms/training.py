"""What the two trainings have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
)
from qgis.core import QgsProcessingParameterDefinition as Parameter

from ..layers import Features, file_name
from ..runtime.commands import Command, option
from . import parameters as p
from .base import DebiasAlgorithm, Values
from .run import Run

LABELS = "LABELS"
CLASS_FIELD = "CLASS_FIELD"
METHOD = "METHOD"
EPOCHS = "EPOCHS"
HOLD_OUT = "HOLD_OUT"
SEED = "SEED"
RANK = "RANK"
BACKBONE = "BACKBONE"
STRETCH = "STRETCH"
CONFIG = "CONFIG"
CHECKPOINTS = "CHECKPOINTS"
REPORT = "REPORT"
CLASSES = "CLASSES"
TABLE = "TABLE"


class TrainingAlgorithm(DebiasAlgorithm):
    """An algorithm that makes a model package from a raster and a labelled layer.

    Attributes:
        VERB: Of the library.
        FLAGS: Options of the verb by parameter, besides those that both have.
        KINDS: Of geometry that labels may have.
        METHODS: Of which the last is the default.
        METHOD_HELP: What to know of them.
    """

    GROUP = "Train"
    VERB: ClassVar[str]
    FLAGS: ClassVar[dict[str, str]] = {}
    KINDS: ClassVar[tuple[Any, ...]] = (QgsProcessing.SourceType.TypeVectorPolygon,)
    METHODS: ClassVar[tuple[str, ...]]
    METHOD_HELP: ClassVar[str]

    COMMON: ClassVar[dict[str, str]] = {
        METHOD: "--method",
        EPOCHS: "--epochs",
        HOLD_OUT: "--hold-out",
        SEED: "--seed",
        RANK: "--rank",
        BACKBONE: "--backbone",
        STRETCH: "--stretch",
        CONFIG: "--config",
        CHECKPOINTS: "--checkpoints",
        p.BATCH_SIZE: "--batch-size",
        p.WEIGHTS: "--weights",
        p.PRECISION: "--precision",
    }

    def __init__(self) -> None:
        super().__init__()
        self.labels: Features | None = None

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        self.add(
            [
                p.raster(),
                p.described(
                    QgsProcessingParameterFeatureSource(LABELS, "Labelled layer", list(self.KINDS)),
                    "The objects that teach; in any CRS.",
                ),
                QgsProcessingParameterField(CLASS_FIELD, "Field with the class", parentLayerParameterName=LABELS),
                *p.area("Only where labels are complete; nothing outside teaches"),
                p.bands(),
                p.choice(METHOD, "Method", self.METHOD_HELP, self.METHODS, self.METHODS[-1]),
                p.plain_number(EPOCHS, "Epochs", "Of each stage.", whole=True, optional=True, low=1),
                p.plain_number(
                    HOLD_OUT, "Share held out for the report",
                    "Whole pieces of ground of this share do not teach; the report scores the model on them.",
                    optional=True, low=0, high=0.9,
                ),
                *self.own_parameters(),
                *self._how(),
                QgsProcessingParameterFileDestination(p.OUTPUT, "Model package", "Model package (*.tgd)"),
                QgsProcessingParameterFileDestination(
                    REPORT, "Report", "HTML files (*.html)", optional=True, createByDefault=False
                ),
            ]
        )  # fmt: skip
        self.addOutput(QgsProcessingOutputNumber(CLASSES, "Number of classes"))
        self.addOutput(QgsProcessingOutputString(TABLE, "Classes with counts and groups, as JSON"))

    def own_parameters(self) -> list[Parameter]:
        """Those that only one of the trainings has."""
        return []

    def prepare(self, parameters: Values, context: QgsProcessingContext) -> None:
        """Take the labels."""
        self.labels = Features.of(self, parameters, LABELS, context)

    def command(self, run: Run) -> Command:
        """The verb with the package where the user wants it: the library writes it whole or not at all."""
        if self.labels is None:
            raise QgsProcessingException(self.invalidSourceError(dict(run.parameters), LABELS))
        path, words = self.raster_words(run)
        field = self.parameterAsString(dict(run.parameters), CLASS_FIELD, run.context)
        labels = self.labels.as_file(run.path(file_name(self.labels.name)), run.context, run.feedback, [field])
        return Command(
            self.VERB,
            [
                *option("--raster", path), *option("--labels", labels), *option("--class-field", field), *words,
                *run.options({**self.COMMON, **self.FLAGS, REPORT: "--report", p.OUTPUT: "--out"}),
            ],
        )  # fmt: skip

    def results(self, run: Run, command: Command, facts: Values) -> Values:
        """The package, the report and the class table."""
        table = facts.get("classes", [])
        for entry in table:
            run.feedback.pushInfo(f"{entry['name']}: {entry['count']} ({entry['group']})")
        outputs: Values = {p.OUTPUT: run.value(p.OUTPUT), CLASSES: len(table), TABLE: p.as_json(table)}
        if run.value(REPORT) is not None:
            outputs[REPORT] = run.value(REPORT)
        return outputs

    def _how(self) -> list[Parameter]:
        file = QgsProcessingParameterFile
        folder = QgsProcessingParameterFile.Behavior.Folder
        return [
            p.number(SEED, "Seed", "Of everything random.", 0, whole=True, low=0),
            p.text(BACKBONE, "Backbone", "A name in the library's registry, or timm:<architecture>."),
            p.number(
                RANK,
                "Rank of the LoRA",
                "Higher ranks learn more, and more by heart.",
                whole=True,
                optional=True,
                low=1,
            ),
            p.advanced(p.choice(STRETCH, "Amplitude stretch", "For SAR.", ["none", "sqrt", "log", "percentile"])),
            p.advanced(
                p.described(
                    file(CONFIG, "Configuration", optional=True, fileFilter="JSON files (*.json)"),
                    "Any further settings of the library; the parameters here go before it.",
                )
            ),
            p.advanced(
                p.described(
                    file(CHECKPOINTS, "Folder for checkpoints", folder, optional=True),
                    "A run that was stopped goes on from there.",
                )
            ),
            *p.reading(),
            *p.computing(batch="Chips"),
        ]

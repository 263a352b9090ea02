"""Training of classifiers."""

from __future__ import annotations

from typing import ClassVar

from qgis.core import QgsProcessing
from qgis.core import QgsProcessingParameterDefinition as Parameter

from . import parameters as p
from .training import TrainingAlgorithm

CHIP_SIZE = "CHIP_SIZE"
WINDOW = "WINDOW"
WINDOW_UNIT = "WINDOW_UNIT"
MARGIN = "MARGIN"
BACKGROUND = "BACKGROUND"
HEAD = "HEAD"


class Train(TrainingAlgorithm):
    """Train a classifier on a labelled layer."""

    NAME = "train"
    TITLE = "Train a classifier"
    VERB = "train"
    SUMMARY = "Trains a model that names objects and scenes, on a raster and a labelled layer."
    ABOUT = (
        "Around each feature of the layer a chip is cut from the raster. debLoRA pulls the features of rare classes "
        "away from those of the common ones, and keeps a plain LoRA for comparison. The model goes into one file, "
        "which the other algorithms take.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "LABELS": "labels.gpkg", "CLASS_FIELD": "class", "BACKGROUND": "300",
        "HOLD_OUT": "0.2", "OUTPUT": "model.tgd", "REPORT": "report.html",
    }  # fmt: skip
    TAGS = ("train", "classifier", "debLoRA", "LoRA", "fine-tune")
    KINDS = (QgsProcessing.SourceType.TypeVectorPolygon, QgsProcessing.SourceType.TypeVectorPoint)
    METHODS = ("probe", "lora", "finetune", "deblora")
    METHOD_HELP = "deblora is the method of this plugin; the others are plain ones to compare with."
    FLAGS: ClassVar[dict[str, str]] = {
        CHIP_SIZE: "--chip-size",
        WINDOW: "--window",
        WINDOW_UNIT: "--window-unit",
        MARGIN: "--margin",
        BACKGROUND: "--background",
        HEAD: "--head",
        p.VIEWS: "--views",
    }

    def own_parameters(self) -> list[Parameter]:
        """How chips are cut."""
        return [
            p.plain_number(
                BACKGROUND, "Chips of background", "From ground clear of all labels; needed for maps of tiles.",
                0, whole=True, low=0,
            ),
            p.plain_number(
                WINDOW, "Side of the window around an object",
                "Fitted to each object if left out; needed for points and for maps of tiles.", optional=True, low=0,
            ),
            p.choice(WINDOW_UNIT, "Unit of the window", "Pixels or metres.", ["px", "m"]),
            p.number(CHIP_SIZE, "Side of the model's input in pixels", "Windows are resampled to it.", 112, **p.COUNT),
            p.text(
                HEAD, "Classifier on the features",
                "As the library names it: own for the one that is trained along; ce, la, smote, cosine and others are "
                "fitted in the end, each with its way of favouring rare classes. Left out: own for lora and finetune, "
                "ce for probe, la for deblora.",
            ),
            p.views(
                "Turned copies of a chip whose features are averaged, by maps as well: 4 is best for rare classes, 1 "
                "maps about four times as fast. Left out: 4."
            ),
            p.number(MARGIN, "Context around a fitted object", "As a share of its longest side.", optional=True, low=0),
        ]  # fmt: skip

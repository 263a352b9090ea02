"""Objects as boxes."""

from __future__ import annotations

from typing import Any, ClassVar

from qgis.core import QgsProcessing, QgsProcessingParameterBoolean, QgsProcessingParameterFeatureSink

from . import parameters as p
from .mapping import MappingAlgorithm

SHAPE = "SHAPE"
SUPPRESSION = "SUPPRESSION"
AGNOSTIC = "AGNOSTIC"
RAW = "RAW"


class Detect(MappingAlgorithm):
    """Find objects and draw boxes round them."""

    NAME = "detect"
    TITLE = "Detect objects"
    VERB = "detect"
    RESULT_TITLE = "Detected objects"
    SUMMARY = "Finds the objects in a raster and draws an oriented or upright box round each, as the model does."
    ABOUT = (
        "Choose a low score here and a higher one later in the dock or by a filter: the scores stay with the features. "
        "Oriented boxes have angle (degrees counter-clockwise from east), length and width. Objects larger than the "
        "overlap may come in pieces; these are marked as cut.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "MODEL": "detector.tgd", "AREA": "harbours.gpkg", "MIN_SCORE": "0.3",
        "OUTPUT": "objects.gpkg",
    }  # fmt: skip
    TAGS = ("detect", "object detection", "boxes", "oriented")
    FLAGS: ClassVar[dict[str, str]] = {
        SHAPE: "--shape",
        p.MIN_SCORE: "--min-score",
        p.OVERLAP: "--overlap",
        SUPPRESSION: "--suppression",
        AGNOSTIC: "--agnostic",
        RAW: "--raw",
    }

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        self.add([p.raster(), p.model("'Train a detector'"), *p.area(), p.bands()])
        self.add(
            [
                p.choice(SHAPE, "Features", "Boxes, or their centres.", ["boxes", "points"], "boxes"),
                p.min_score(0.3, "Objects below this score are left out."),
                p.overlap(0.25, "Share of a tile that the next one covers again: objects should fit into it."),
                p.number(
                    SUPPRESSION, "Suppression", "Overlap above which the weaker of two boxes goes.", 0.5, low=0, high=1
                ),
                p.advanced(
                    p.described(
                        QgsProcessingParameterBoolean(AGNOSTIC, "Suppress across classes", False),
                        "Take boxes of two classes for one object too.",
                    )
                ),
                p.advanced(
                    p.described(
                        QgsProcessingParameterBoolean(RAW, "Use the plain LoRA", False),
                        "The same model without de-biasing, if it was kept for comparison.",
                    )
                ),
                *p.reading(),
                *p.computing(batch="Tiles"),
                QgsProcessingParameterFeatureSink(
                    p.OUTPUT, "Detected objects", QgsProcessing.SourceType.TypeVectorAnyGeometry
                ),
            ]
        )
        self.add_counts("objects")

"""Objects as outlines."""

from __future__ import annotations

from typing import Any, ClassVar

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingParameterBand,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
)

from ..layers import Features, list_argument
from ..runtime.commands import option
from . import parameters as p
from .base import Values
from .mapping import MappingAlgorithm
from .run import Run

SAM = "SAM_CHECKPOINT"
BOXES = "BOXES"
TILE_SIZE = "TILE_SIZE"
POINTS = "POINTS"
RGB = "RGB"
STRETCH = "STRETCH"
MIN_PIXELS = "MIN_PIXELS"


class Segment(MappingAlgorithm):
    """Outline objects with Segment Anything."""

    NAME = "segment"
    TITLE = "Segment objects"
    VERB = "segment"
    RESULT_TITLE = "Segmented objects"
    SUMMARY = "Outlines objects with Segment Anything: all of them, labelled by a model, or those in given boxes."
    ABOUT = (
        "With boxes, such as 'Detect objects' makes, the outline of the object in each is looked for; its attributes "
        "stay; lowest score, overlap, points and smallest mask have no meaning then. Without boxes a model is "
        "needed, which names what was outlined. The environment needs the extra 'sam' of torchgeo-debias.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "SAM_CHECKPOINT": "sam_vit_b.pth", "BOXES": "objects.gpkg", "OUTPUT": "outlines.gpkg",
    }  # fmt: skip
    TAGS = ("segment", "SAM", "segment anything", "outlines", "masks")
    FLAGS: ClassVar[dict[str, str]] = {
        SAM: "--sam-checkpoint",
        TILE_SIZE: "--tile-size",
        STRETCH: "--stretch",
        p.BACKEND: "--backend",
        p.VIEWS: "--views",
    }
    WITHOUT_BOXES: ClassVar[dict[str, str]] = {
        p.MIN_SCORE: "--min-score",
        p.OVERLAP: "--overlap",
        POINTS: "--points",
        MIN_PIXELS: "--min-pixels",
        p.BATCH_SIZE: "--batch-size",
    }

    def __init__(self) -> None:
        super().__init__()
        self.boxes: Features | None = None

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        polygons = [QgsProcessing.SourceType.TypeVectorPolygon]
        self.add(
            [
                p.raster(),
                p.described(
                    QgsProcessingParameterFile(SAM, "Weights of Segment Anything", fileFilter="Weights (*.pth *.pt)"),
                    "A local file of SAM (ViT-B, -L or -H) or MobileSAM.",
                ),
                p.model("'Train a classifier'", optional=True),
                p.described(
                    QgsProcessingParameterFeatureSource(BOXES, "Boxes", polygons, optional=True),
                    "Outline what is in each of these; everything if left out.",
                ),
                *p.area(),
                p.bands(),
                p.min_score(0.0, "Objects whose class is less sure are left out."),
                p.overlap(0.25, "Share of a tile that the next one covers again: objects should fit into it."),
                p.number(TILE_SIZE, "Side of the tiles in pixels", "That SAM looks at.", 1024, whole=True, low=1),
                p.number(POINTS, "Points along a tile", "At which SAM looks.", 32, whole=True, low=1),
                p.number(MIN_PIXELS, "Smallest mask in pixels", "Smaller ones are left out.", 16, whole=True, low=1),
                p.advanced(
                    p.described(
                        QgsProcessingParameterBand(
                            RGB,
                            "Bands that SAM sees",
                            parentLayerParameterName=p.INPUT,
                            optional=True,
                            allowMultiple=True,
                        ),
                        "As red, green and blue.",
                    )
                ),
                p.text(
                    STRETCH,
                    "Values that are black and white for SAM",
                    "Two numbers with a comma, for rasters of more than 8 bits.",
                ),
                *p.reading(),
                *p.computing(batch="Tiles"),
                *p.classifier(),
                QgsProcessingParameterFeatureSink(
                    p.OUTPUT, "Segmented objects", QgsProcessing.SourceType.TypeVectorPolygon
                ),
            ]
        )
        self.add_counts("objects")

    def prepare(self, parameters: Values, context: QgsProcessingContext) -> None:
        """Take the boxes."""
        self.boxes = Features.of(self, parameters, BOXES, context)

    @property
    def has_area(self) -> bool:
        """Beside boxes, the area chooses among these."""
        return self.boxes is None

    def further(self, run: Run) -> list[str]:
        """Words of all other options; those without a meaning beside boxes are left out."""
        rgb = list_argument(self.parameterAsInts(dict(run.parameters), RGB, run.context))
        flags = {**self.COMMON, **self.FLAGS}
        if self.boxes is None:
            return [*run.options({**flags, **self.WITHOUT_BOXES}), *option("--rgb", rgb)]
        del flags[p.BATCH_SIZE]
        path = run.path("boxes.gpkg")
        within = self.area.geometry(self.boxes, run.context)
        self.boxes.write(path, run.context, run.feedback, self.boxes.names, within)
        return [*run.options(flags), *option("--rgb", rgb), *option("--boxes", path)]

"""Scenes by tiles."""

from __future__ import annotations

from typing import Any, ClassVar

from qgis.core import QgsProcessing, QgsProcessingParameterBoolean, QgsProcessingParameterFeatureSink

from . import parameters as p
from .mapping import MappingAlgorithm

SHAPE = "SHAPE"
KEEP_BACKGROUND = "KEEP_BACKGROUND"


class ClassifyTiles(MappingAlgorithm):
    """Lay a grid of tiles over a raster and name each."""

    NAME = "classify_tiles"
    TITLE = "Classify scene tiles"
    VERB = "classify"
    RESULT_TITLE = "Classified tiles"
    SUMMARY = "Lays a grid of tiles over a raster and gives each its class."
    ABOUT = (
        "A tile covers the ground that a training chip covered. Where footprints or points of the objects are known, "
        "'Classify features' is the better choice. In the result, class_raw and score_raw are those of the plain LoRA, "
        "where the model keeps one: filter on class <> class_raw to see what the de-biasing changed.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "MODEL": "model.tgd", "EXTENT": "412000,412300,5317600,5318000",
        "OVERLAP": "0.5", "OUTPUT": "tiles.gpkg",
    }  # fmt: skip
    TAGS = ("classify", "scene", "tiles", "land cover")
    FLAGS: ClassVar[dict[str, str]] = {
        SHAPE: "--shape",
        p.MIN_SCORE: "--min-score",
        p.OVERLAP: "--overlap",
        KEEP_BACKGROUND: "--keep-background",
        p.BACKEND: "--backend",
        p.VIEWS: "--views",
    }

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ANN401 - QGIS's
        """Declare parameters and outputs."""
        self.add([p.raster(), p.model("'Train a classifier'"), *p.area(), p.bands()])
        self.add(
            [
                p.choice(
                    SHAPE,
                    "Features",
                    "Tiles, their centres, or regions: the areas of one class, as polygons along the pixels. Regions "
                    "have no class_raw.",
                    ["tiles", "points", "regions"],
                    "tiles",
                ),
                p.min_score(0.0, "Tiles below this score are left out."),
                p.overlap(
                    0.0, "Share by which neighbouring tiles overlap; 0.5 makes the map finer in four times the time."
                ),
                p.described(
                    QgsProcessingParameterBoolean(KEEP_BACKGROUND, "Keep background", False),
                    "Write features of the class background as well.",
                ),
                *p.reading(),
                *p.computing(batch="Tiles"),
                *p.classifier(),
                QgsProcessingParameterFeatureSink(
                    p.OUTPUT, "Classified tiles", QgsProcessing.SourceType.TypeVectorAnyGeometry
                ),
            ]
        )
        self.add_counts("tiles")

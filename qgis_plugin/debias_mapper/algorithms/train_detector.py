"""Training of detectors."""

from __future__ import annotations

from typing import ClassVar

from qgis.core import QgsProcessingParameterBoolean
from qgis.core import QgsProcessingParameterDefinition as Parameter

from . import parameters as p
from .training import TrainingAlgorithm

TILE_SIZE = "TILE_SIZE"
GSD = "GSD"
BLOCK = "BLOCK"
HORIZONTAL = "HORIZONTAL"


class TrainDetector(TrainingAlgorithm):
    """Train a detector on a labelled layer."""

    NAME = "train_detector"
    TITLE = "Train a detector"
    VERB = "train-detector"
    SUMMARY = "Trains a model that finds objects, on a raster and a layer of polygons drawn round them."
    ABOUT = (
        "What bears no label teaches that there is nothing: give the area where the labels are complete. On a "
        "processor alone this takes long; a small backbone and a few epochs give a first impression.",
    )
    EXAMPLE: ClassVar[dict[str, str]] = {
        "INPUT": "ortho.tif", "LABELS": "ships.gpkg", "CLASS_FIELD": "class", "AREA": "labelled.gpkg",
        "OUTPUT": "detector.tgd",
    }  # fmt: skip
    TAGS = ("train", "detector", "object detection", "debLoRA", "LoRA")
    METHODS = ("probe", "lora", "finetune", "rfs", "class-balanced", "ecm", "efl", "deblora")
    METHOD_HELP = "deblora is the method of this plugin; the others are published ones to compare with."
    FLAGS: ClassVar[dict[str, str]] = {
        TILE_SIZE: "--tile-size",
        GSD: "--gsd",
        BLOCK: "--block",
        HORIZONTAL: "--horizontal",
    }

    def own_parameters(self) -> list[Parameter]:
        """How tiles and boxes are made."""
        return [
            p.described(
                QgsProcessingParameterBoolean(HORIZONTAL, "Upright boxes", False),
                "In place of oriented ones, which are the smallest rectangles round the polygons.",
            ),
            p.number(TILE_SIZE, "Side of the model's input in pixels", "Objects must fit into it.", 448, **p.COUNT),
            p.number(GSD, "Metres of a model's pixel", "Those of the raster if left out.", optional=True, low=0),
            p.number(
                BLOCK, "Side of a piece of ground",
                "In units of the raster's CRS. The raster is split by such pieces, of which a share can be held out.",
                optional=True, low=0,
            ),
        ]  # fmt: skip

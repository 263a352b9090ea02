"""Map the rare things in remote-sensing imagery with de-biased LoRA.

Names are loaded on first use, so that importing this package costs nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgeo_debias.classes import ClassTable
    from torchgeo_debias.data.chips import Chips, ChipSpec
    from torchgeo_debias.data.folders import read_folder
    from torchgeo_debias.data.layers import chips_from_layer
    from torchgeo_debias.data.longtail import long_tail
    from torchgeo_debias.data.objects import (
        ObjectSet,
        TileSpec,
        objects_from_layer,
        objects_from_torchgeo,
        read_coco,
        read_dota,
        read_yolo,
    )
    from torchgeo_debias.data.synthetic import write_scene
    from torchgeo_debias.demo import run_demo
    from torchgeo_debias.inference.backends import load_predictor
    from torchgeo_debias.inference.classifier import PackagePredictor
    from torchgeo_debias.inference.detection_evaluation import evaluate_objects
    from torchgeo_debias.inference.detections import DetectOptions, detect_raster, detect_rasters
    from torchgeo_debias.inference.detector import DetectorPredictor
    from torchgeo_debias.inference.evaluation import evaluate_chips
    from torchgeo_debias.inference.export import export_package
    from torchgeo_debias.inference.features import classify_features
    from torchgeo_debias.inference.layer_evaluation import evaluate_layer
    from torchgeo_debias.inference.mapping import MapOptions, OutputFormats, Outputs, Resources
    from torchgeo_debias.inference.pixels import classify_pixels
    from torchgeo_debias.inference.rasters import classify_raster, classify_rasters
    from torchgeo_debias.package import DetectorPackage, ModelPackage
    from torchgeo_debias.tiling.opening import open_source
    from torchgeo_debias.training import TrainConfig, train
    from torchgeo_debias.training.detection import DetectConfig, train_detector

__version__ = "0.6.0"

__all__ = [
    "ChipSpec",
    "Chips",
    "ClassTable",
    "DetectConfig",
    "DetectOptions",
    "DetectorPackage",
    "DetectorPredictor",
    "MapOptions",
    "ModelPackage",
    "ObjectSet",
    "OutputFormats",
    "Outputs",
    "PackagePredictor",
    "Resources",
    "TileSpec",
    "TrainConfig",
    "__version__",
    "chips_from_layer",
    "classify_features",
    "classify_pixels",
    "classify_raster",
    "classify_rasters",
    "detect_raster",
    "detect_rasters",
    "evaluate_chips",
    "evaluate_layer",
    "evaluate_objects",
    "export_package",
    "load_predictor",
    "long_tail",
    "objects_from_layer",
    "objects_from_torchgeo",
    "open_source",
    "read_coco",
    "read_dota",
    "read_folder",
    "read_yolo",
    "run_demo",
    "train",
    "train_detector",
    "write_scene",
]

_HOMES = {
    "classes": ("ClassTable",),
    "data.chips": ("ChipSpec", "Chips"),
    "data.folders": ("read_folder",),
    "data.layers": ("chips_from_layer",),
    "data.longtail": ("long_tail",),
    "data.objects": (
        "ObjectSet",
        "TileSpec",
        "objects_from_layer",
        "objects_from_torchgeo",
        "read_coco",
        "read_dota",
        "read_yolo",
    ),
    "data.synthetic": ("write_scene",),
    "demo": ("run_demo",),
    "inference.backends": ("load_predictor",),
    "inference.classifier": ("PackagePredictor",),
    "inference.detection_evaluation": ("evaluate_objects",),
    "inference.detections": ("DetectOptions", "detect_raster", "detect_rasters"),
    "inference.detector": ("DetectorPredictor",),
    "inference.evaluation": ("evaluate_chips",),
    "inference.export": ("export_package",),
    "inference.features": ("classify_features",),
    "inference.layer_evaluation": ("evaluate_layer",),
    "inference.mapping": ("MapOptions", "OutputFormats", "Outputs", "Resources"),
    "inference.pixels": ("classify_pixels",),
    "inference.rasters": ("classify_raster", "classify_rasters"),
    "package": ("DetectorPackage", "ModelPackage"),
    "tiling.opening": ("open_source",),
    "training": ("TrainConfig", "train"),
    "training.detection": ("DetectConfig", "train_detector"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the type of each name is declared above)
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

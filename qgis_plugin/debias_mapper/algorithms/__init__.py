"""The algorithms of the toolbox, one a file."""

from __future__ import annotations

from .classify_features import ClassifyFeatures
from .classify_pixels import ClassifyPixels
from .classify_tiles import ClassifyTiles
from .detect import Detect
from .environment_status import EnvironmentStatus
from .evaluate import Evaluate
from .segment import Segment
from .train import Train
from .train_detector import TrainDetector

ALGORITHMS = (
    Train,
    TrainDetector,
    ClassifyTiles,
    ClassifyPixels,
    ClassifyFeatures,
    Detect,
    Segment,
    Evaluate,
    EnvironmentStatus,
)

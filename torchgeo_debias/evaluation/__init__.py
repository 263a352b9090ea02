"""Scores of classes and of boxes by class and group, distances between classes, figures and the HTML report.

Names load on first use, so that importing the room costs neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgeo_debias.evaluation.decisions import (
        DecisionScores,
        decision_scores,
        fit_detection_thresholds,
        fit_thresholds,
    )
    from torchgeo_debias.evaluation.detection import DetectionScores, Guess, Truth, average_precision
    from torchgeo_debias.evaluation.detection_figures import ap_class_bars, ap_group_bars, precision_recall
    from torchgeo_debias.evaluation.detection_report import detector_report
    from torchgeo_debias.evaluation.distances import ClassDistances, class_distances
    from torchgeo_debias.evaluation.figures import class_bars, confusion_matrix, feature_plot, group_bars, map_picture
    from torchgeo_debias.evaluation.found import FoundScores, found_scores
    from torchgeo_debias.evaluation.metrics import Interval, Scores, compare, confusion, score, summarise
    from torchgeo_debias.evaluation.report import Card, Section, comparison_report, training_report, write_report
    from torchgeo_debias.evaluation.thresholds import Thresholds

_MODULES = {
    "DecisionScores": "decisions",
    "decision_scores": "decisions",
    "fit_detection_thresholds": "decisions",
    "fit_thresholds": "decisions",
    "DetectionScores": "detection",
    "Guess": "detection",
    "Truth": "detection",
    "average_precision": "detection",
    "ap_class_bars": "detection_figures",
    "ap_group_bars": "detection_figures",
    "precision_recall": "detection_figures",
    "detector_report": "detection_report",
    "ClassDistances": "distances",
    "class_distances": "distances",
    "class_bars": "figures",
    "confusion_matrix": "figures",
    "feature_plot": "figures",
    "group_bars": "figures",
    "map_picture": "figures",
    "FoundScores": "found",
    "found_scores": "found",
    "Interval": "metrics",
    "Scores": "metrics",
    "compare": "metrics",
    "confusion": "metrics",
    "score": "metrics",
    "summarise": "metrics",
    "Card": "report",
    "Section": "report",
    "comparison_report": "report",
    "training_report": "report",
    "write_report": "report",
    "Thresholds": "thresholds",
}

__all__ = [
    "Card",
    "ClassDistances",
    "DecisionScores",
    "DetectionScores",
    "FoundScores",
    "Guess",
    "Interval",
    "Scores",
    "Section",
    "Thresholds",
    "Truth",
    "ap_class_bars",
    "ap_group_bars",
    "average_precision",
    "class_bars",
    "class_distances",
    "compare",
    "comparison_report",
    "confusion",
    "confusion_matrix",
    "decision_scores",
    "detector_report",
    "feature_plot",
    "fit_detection_thresholds",
    "fit_thresholds",
    "found_scores",
    "group_bars",
    "map_picture",
    "precision_recall",
    "score",
    "summarise",
    "training_report",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type of each name is declared above
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

"""Scores by class and group, distances between classes, figures and the HTML report.

Names load on first use, so that importing the room costs neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgeo_debias.evaluation.distances import ClassDistances, class_distances
    from torchgeo_debias.evaluation.figures import class_bars, confusion_matrix, feature_plot, group_bars, map_picture
    from torchgeo_debias.evaluation.metrics import Interval, Scores, compare, confusion, score, summarise
    from torchgeo_debias.evaluation.report import Card, Section, comparison_report, training_report, write_report

_MODULES = {
    "ClassDistances": "distances",
    "class_distances": "distances",
    "class_bars": "figures",
    "confusion_matrix": "figures",
    "feature_plot": "figures",
    "group_bars": "figures",
    "map_picture": "figures",
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
}

__all__ = [
    "Card",
    "ClassDistances",
    "Interval",
    "Scores",
    "Section",
    "class_bars",
    "class_distances",
    "compare",
    "comparison_report",
    "confusion",
    "confusion_matrix",
    "feature_plot",
    "group_bars",
    "map_picture",
    "score",
    "summarise",
    "training_report",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type of each name is declared above
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

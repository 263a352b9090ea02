"""The evaluation of boxes as one HTML page, in the manner of :mod:`torchgeo_debias.evaluation.report`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation import detection_figures as figures
from torchgeo_debias.evaluation.detection import DetectionScores
from torchgeo_debias.evaluation.report import (
    CLASSES_TEXT,
    GROUPS_TEXT,
    Card,
    Section,
    change_card,
    percent,
    points,
    write_report,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = ("LoRA", "debLoRA")
_ORDER = ("tail", "head", "middle", "macro")
CURVES_TEXT = (
    "From the surest guess to the least sure one, recall grows and precision falls; the area under a line is its AP50. "
    "On the right, rare classes are in colour, with their AP50 in brackets, and the others in grey."
)

Table = tuple[tuple[str, ...], list[list[str]]]
"""Column names, and rows of cells: what :class:`~torchgeo_debias.evaluation.report.Section` takes."""


def detector_report(
    path: Path,
    *,
    title: str,
    scores: DetectionScores,
    facts: Mapping[str, str],
    before: DetectionScores | None = None,
    names: tuple[str, str] = _NAMES,
    map_figure: Figure | None = None,
) -> None:
    """Write the report on one detector, or on one in comparison with another.

    Args:
        path: HTML file to write.
        title: Title of the page.
        scores: Scores of the detector, with curves.
        facts: Seed, versions and whatever else a repetition needs.
        before: Scores of the detector that it is compared with, on the same images.
        names: What to call the two, ``before`` first.
        map_figure: A picture of the map, if there is one.

    Raises:
        ConfigError: If the two have other classes or were scored in another way.
        OutputError: If the file cannot be written.
    """
    if before is not None and _terms(before) != _terms(scores):
        raise ConfigError("A comparison needs two scores of the same classes, form, overlaps and number of guesses.")
    first, second = (scores, None) if before is None else (before, scores)
    both = "" if before is None else f", {names[0]} and {names[1]}"
    sections = [
        Section("", "" if before is None else _verdict(before, scores, names), cards=_cards(scores, before)),
        Section(
            "Groups of classes",
            GROUPS_TEXT,
            [(figures.ap_group_bars(first, second, names), f"AP50 of each group{both}.")],
            group_table(scores, before, names),
        ),
        Section(
            "Every class",
            CLASSES_TEXT,
            [(figures.ap_class_bars(first, second, names), f"AP50 of each class{both}.")],
            class_table(scores, before, names),
        ),
    ]
    if scores.curves and (before is None or before.curves):
        curves = figures.precision_recall(first, second, names)
        sections.append(Section("Precision and recall", CURVES_TEXT, [(curves, f"Precision over recall{both}.")]))
    if map_figure is not None:
        caption = "The image and the objects found on it."
        sections.append(Section("On the map", "The detector run over the raster.", [(map_figure, caption)]))
    sections.append(Section("How the numbers are defined", scores.definition))
    write_report(path, title, sections, facts)


def group_table(
    scores: DetectionScores, before: DetectionScores | None = None, names: tuple[str, str] = _NAMES
) -> Table:
    """AP of every group at every overlap that is told, in percent, with the change where there are two detectors."""
    values = scores.summary()
    if before is None:
        return ("Measure", "Value"), [[key, percent(value)] for key, value in values.items()]
    old = before.summary()
    rows = [[key, percent(old[key]), percent(value), points(old[key], value)] for key, value in values.items()]
    return ("Measure", *names, "Change"), rows


def class_table(
    scores: DetectionScores, before: DetectionScores | None = None, names: tuple[str, str] = _NAMES
) -> Table:
    """AP and recall of every class in percent, the most frequent in training first; two detectors by AP50 alone."""
    rows = sorted(scores.per_class.items(), key=lambda item: -item[1]["train_count"])
    cells = [[name, row["group"], f"{row['train_count']:,}", f"{row['objects']:,}"] for name, row in rows]
    columns: tuple[str, ...] = ("Class", "Group", "Training", "Test")
    if before is None:
        measured = [[percent(row[key]) for key in ("ap50", "ap75", "ap", "recall")] for _, row in rows]
        columns += ("AP50", "AP75", scores.ap_name, "Recall")
    else:
        pairs = [(before.per_class[name]["ap50"], row["ap50"]) for name, row in rows]
        measured = [[percent(old), percent(new), points(old, new)] for old, new in pairs]
        columns += (f"AP50 {names[0]}", f"AP50 {names[1]}", "Change")
    return columns, [left + right for left, right in zip(cells, measured, strict=True)]


def _terms(scores: DetectionScores) -> tuple[object, ...]:
    return tuple(scores.per_class), scores.form, scores.thresholds, scores.max_per_image


def _cards(scores: DetectionScores, before: DetectionScores | None) -> list[Card]:
    if before is None:
        return [Card(f"{key} AP50", percent(scores.ap50[key])) for key in _ORDER]
    return [change_card(f"{key} AP50", before.ap50[key], scores.ap50[key]) for key in _ORDER]


def _verdict(before: DetectionScores, after: DetectionScores, names: tuple[str, str]) -> str:
    objects = sum(row["objects"] for row in after.per_class.values())
    tail, head = (after.ap50[key] - before.ap50[key] for key in ("tail", "head"))
    if math.isnan(tail) or math.isnan(head):
        return f"{names[1]} against {names[0]} on the same {objects:,} test objects."
    return (
        f"On the same {objects:,} test objects, {names[1]} moves the AP50 of the rare (tail) classes by "
        f"{100 * tail:+.1f} points and that of the frequent (head) classes by {100 * head:+.1f} points, "
        f"compared with {names[0]}."
    )

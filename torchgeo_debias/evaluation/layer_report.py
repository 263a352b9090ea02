"""The comparison of a layer of predictions with a reference layer as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.evaluation import detection_figures, figures
from torchgeo_debias.evaluation._drawing import bars_of_classes, bars_of_groups
from torchgeo_debias.evaluation.detection import DetectionScores
from torchgeo_debias.evaluation.detection_report import CURVES_TEXT, group_table
from torchgeo_debias.evaluation.found import FoundScores
from torchgeo_debias.evaluation.metrics import Scores
from torchgeo_debias.evaluation.report import (
    Card,
    Section,
    change_card,
    measures,
    percent,
    points,
    write_report,
)

NAMES = ("twin", "model")
"""What the plain twin and the model are called."""

_ORDER = ("tail", "head", "middle", "macro")
_CLASSES_TEXT = "From the most frequent class of the reference to the rarest. Values are in percent, changes in points."
_CONFUSION_TEXT = (
    "Each row is a true class and adds up to 100 %; a perfect layer fills the diagonal alone. The last column is what "
    "no prediction answers."
)


@dataclass(frozen=True)
class LayerFacts:
    """What was compared, and how.

    Attributes:
        reference: Name of the reference layer.
        predictions: Name of the layer of predictions.
        features: Reference features that count.
        predicted: Features of the layer of predictions.
        groups: A sentence on where the groups come from.
        measured_in: Name of the CRS in which areas and overlaps are measured.
        min_score: Lowest score asked for; None where all count.
        bounded: Whether an area bounds what counts.
        notes: Sentences that a reader of the numbers should know.
    """

    reference: str
    predictions: str
    features: int
    predicted: int
    groups: str
    measured_in: str
    min_score: float | None
    bounded: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "notes": list(self.notes)}

    def rows(self) -> dict[str, str]:
        """For the foot of a report."""
        return {
            "Reference": f"{self.reference}, {self.features:,} features{' within the area' * self.bounded}",
            "Predictions": f"{self.predictions}, {self.predicted:,} features",
            "Lowest score": "none" if self.min_score is None else f"{self.min_score:g}",
            "Groups": self.groups,
            "Measured in": self.measured_in,
        }


def feature_report(path: Path, title: str, scores: Scores, raw: Scores | None, facts: LayerFacts) -> None:
    """Write the report on features that take the prediction on them.

    Args:
        path: HTML file to write.
        title: Title of the page.
        scores: Scores of the model; its last class stands for features without a prediction.
        raw: Scores of its plain twin, if there is one.
        facts: What was compared.

    Raises:
        OutputError: If the file cannot be written.
    """
    both = scores if raw is None else raw, None if raw is None else scores
    table = _table(scores.per_class)
    shown = [row for row in (raw, scores) if row is not None]
    rows = [[row["f1"] for row in list(one.per_class.values())[:-1]] for one in shown]
    labels = NAMES if raw is not None else NAMES[1:]
    sections = [
        _opening(facts, scores.f1, None if raw is None else raw.f1, "F1"),
        Section(
            "Groups of classes",
            facts.groups,
            [(bars_of_groups([one.f1 for one in shown], labels, table, "F1"), "F1 of each group.")],
            (("Measure", "Value") if raw is None else ("Measure", *NAMES, "Change"), measures(*both)),
        ),
        Section(
            "Every class",
            _CLASSES_TEXT,
            [(bars_of_classes(rows, labels, table, "F1", "feature", "reference"), "F1 of each class.")],
            _feature_table(scores, raw),
        ),
        Section(
            "What is taken for what",
            _CONFUSION_TEXT,
            [
                (figures.confusion_matrix(one, name if raw is not None else ""), f"Confusion matrix, {name}.")
                for one, name in zip(shown, labels, strict=True)
            ],
        ),
        Section("How the numbers are defined", scores.definition),
    ]
    write_report(path, title, sections, facts.rows())


def object_report(
    path: Path,
    title: str,
    scores: DetectionScores,
    found: FoundScores,
    facts: LayerFacts,
    *,
    before: tuple[DetectionScores, FoundScores] | None = None,
) -> None:
    """Write the report on objects that are matched one to one.

    Args:
        path: HTML file to write.
        title: Title of the page.
        scores: Average precision of the model.
        found: Its precision, recall and F1.
        facts: What was compared.
        before: The same of its plain twin, if there is one.

    Raises:
        OutputError: If the file cannot be written.
    """
    raw, raw_found = (None, None) if before is None else before
    shown = [one for one in (raw, scores) if one is not None]
    labels = NAMES if raw is not None else NAMES[1:]
    table = detection_figures.table_of(scores)
    rows = [[row["ap50"] for row in one.per_class.values()] for one in shown]
    first, second = (scores, None) if raw is None else (raw, scores)
    names = NAMES if raw is not None else (NAMES[1], "")
    which = "all predictions" if found.min_score is None else f"the predictions from the score {found.min_score:g} on"
    found_text = f"Of {which}, at the overlap {found.iou:g}."
    sections = [
        _opening(facts, scores.ap50, None if raw is None else raw.ap50, "AP50"),
        Section(
            "Groups of classes",
            facts.groups,
            [(bars_of_groups([one.ap50 for one in shown], labels, table, "AP50"), "AP50 of each group.")],
            group_table(scores, raw, NAMES),
        ),
        Section(
            "Every class",
            _CLASSES_TEXT,
            [(bars_of_classes(rows, labels, table, "AP50", "object", "reference"), "AP50 of each class.")],
            _object_table(scores, raw),
        ),
        Section("What a map with this threshold holds", found_text, table=_found_means(found, raw_found)),
        Section("The same by class", found_text, table=_found_table(found, raw_found)),
        Section(
            "Precision and recall",
            CURVES_TEXT,
            [(detection_figures.precision_recall(first, second, names), "Precision over recall.")],
        ),
        Section("How the numbers are defined", f"{scores.definition}\n\n{found.definition}"),
    ]
    write_report(path, title, sections, facts.rows())


def _opening(
    facts: LayerFacts, after: Mapping[str, float], before: Mapping[str, float] | None, measure: str
) -> Section:
    text = "\n\n".join([f"{facts.features:,} reference features were compared.", *facts.notes])
    if before is None:
        return Section("", text, cards=[Card(f"{key} {measure}", percent(after[key])) for key in _ORDER])
    return Section("", text, cards=[change_card(f"{key} {measure}", before[key], after[key]) for key in _ORDER])


def _table(per_class: Mapping[str, Any]) -> ClassTable:
    """The classes but the last, which stands for no prediction."""
    rows = list(per_class.values())[:-1]
    return ClassTable(
        tuple(per_class)[:-1], tuple(row["train_count"] for row in rows), tuple(row["group"] for row in rows)
    )


Cells = tuple[tuple[str, ...], list[list[str]]]


def _feature_table(scores: Scores, raw: Scores | None) -> Cells:
    columns: tuple[str, ...] = ("Class", "Group", "Reference", "No prediction", "Precision", "Recall", "F1")
    rows = [
        [name, row["group"], f"{row['support']:,}", f"{scores.confusion[i][-1]:,}"]
        + [percent(value) for value in (row["precision"], row["recall"], row["f1"])]
        + ([] if raw is None else _change(raw.per_class[name]["f1"], row["f1"]))
        for i, (name, row) in enumerate(list(scores.per_class.items())[:-1])
    ]
    missed, all_of = sum(row[-1] for row in scores.confusion), sum(map(sum, scores.confusion))
    end = ["all", "", f"{all_of:,}", f"{missed:,}", "n/a", percent(scores.accuracy), "n/a"]
    rows.append(end + ([] if raw is None else ["n/a", "n/a"]))
    return (*columns, f"F1 {NAMES[0]}", "Change") if raw is not None else columns, rows


def _object_table(scores: DetectionScores, raw: DetectionScores | None) -> Cells:
    columns: tuple[str, ...] = ("Class", "Group", "Reference", "Predictions", "AP50", "AP75", scores.ap_name)
    rows = [
        [name, row["group"], f"{row['objects']:,}", f"{row['guesses']:,}"]
        + [percent(value) for value in (row["ap50"], row["ap75"], row["ap"])]
        + ([] if raw is None else _change(raw.per_class[name]["ap50"], row["ap50"]))
        for name, row in scores.per_class.items()
    ]
    return (*columns, f"AP50 {NAMES[0]}", "Change") if raw is not None else columns, rows


def _found_means(found: FoundScores, raw: FoundScores | None) -> Cells:
    rows = []
    for measure, values in found.means.items():
        for key in (*GROUPS, "macro", "overall"):
            name, value = f"{measure.replace('f1', 'F1')} {key}", values[key]
            if raw is None:
                rows.append([name, percent(value)])
            else:
                old = raw.means[measure][key]
                rows.append([name, percent(old), percent(value), points(old, value)])
    return ("Measure", "Value") if raw is None else ("Measure", *NAMES, "Change"), rows


def _found_table(found: FoundScores, raw: FoundScores | None) -> Cells:
    columns: tuple[str, ...] = ("Class", "Group", "Found", "Missed", "False alarms", "Precision", "Recall", "F1")
    rows = [
        [name, row["group"], f"{row['found']:,}", f"{row['missed']:,}", f"{row['false_alarms']:,}"]
        + [percent(value) for value in (row["precision"], row["recall"], row["f1"])]
        + ([] if raw is None else _change(raw.per_class[name]["f1"], row["f1"]))
        for name, row in found.per_class.items()
    ]
    return (*columns, f"F1 {NAMES[0]}", "Change") if raw is not None else columns, rows


def _change(before: float | None, after: float | None) -> list[str]:
    return [percent(before), points(before, after)]

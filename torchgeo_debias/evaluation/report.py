"""The evaluation as one HTML page that needs nothing beside itself: no network, no scripts, no image files."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation import figures
from torchgeo_debias.evaluation._drawing import INK, MUTED
from torchgeo_debias.evaluation.distances import class_distances
from torchgeo_debias.evaluation.metrics import Scores
from torchgeo_debias.files import atomic

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from torchgeo_debias.evaluation.decisions import DecisionScores

# A figure whose drawing is larger than this (pictures, many points) is stored as pixels instead.
_LARGEST_DRAWING = 400_000
_PIXELS_PER_INCH = 200

GROUPS_TEXT = "Classes are grouped by how often they occur in training. Values are in percent, changes in points."
CLASSES_TEXT = "From the most frequent class in training to the rarest. Values are in percent, changes in points."
_CONFUSION_TEXT = (
    "Each row is a true class and adds up to 100 %; a perfect model fills the diagonal alone. Classes run from the "
    "most frequent in training to the rarest, so rare classes that are taken for frequent ones show at the lower left."
)


@dataclass(frozen=True)
class Card:
    """A headline number.

    Attributes:
        label: What is measured.
        value: The number as text.
        before: The number it is compared with, if any.
        change: Signed difference as text, if any.
        good: Whether the change is an improvement; None for neither.
    """

    label: str
    value: str
    before: str = ""
    change: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        heading: Its heading; empty for the opening.
        text: Plain text; a blank line starts a new paragraph.
        figures: Figures with their captions, which also serve as text for people who do not see them.
        table: Column names and rows of cells. Columns whose cells all look like numbers are aligned as such.
        cards: Headline numbers.
    """

    heading: str
    text: str = ""
    figures: Sequence[tuple[Figure, str]] = ()
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    cards: Sequence[Card] = ()


def write_report(path: Path, title: str, sections: Sequence[Section], facts: Mapping[str, str]) -> None:
    """Write a self-contained HTML page: readable offline, on a light or dark screen and on paper.

    All text is escaped. The file appears under its name only once it is complete.

    Args:
        path: File to write; its folder must exist.
        title: Title of the page.
        sections: What it shows, in order.
        facts: What somebody needs to repeat the run: seed, versions, digests.

    Raises:
        OutputError: If the file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    template = resources.files("torchgeo_debias.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["paragraphs"] = lambda text: [part for part in re.split(r"\n\s*\n", text.strip()) if part]
    environment.tests["numeric"] = _numeric
    drawn = [
        [
            (_drawing(figure, f"{i}-{j}"), figure.get_figwidth(), caption)
            for j, (figure, caption) in enumerate(section.figures)
        ]
        for i, section in enumerate(sections)
    ]
    page = environment.from_string(template).render(
        title=title, parts=list(zip(sections, drawn, strict=True)), facts=facts, ink=INK, muted=MUTED
    )
    with atomic(path) as part:
        part.write_text(page, encoding="utf-8")


def comparison_report(
    path: Path,
    *,
    title: str,
    before: Scores,
    after: Scores,
    table: ClassTable,
    facts: Mapping[str, str],
    names: tuple[str, str] = ("LoRA", "debLoRA"),
    features_before: npt.NDArray[np.floating[Any]] | None = None,
    features_after: npt.NDArray[np.floating[Any]] | None = None,
    labels: npt.NDArray[np.integer[Any]] | None = None,
    map_figure: Figure | None = None,
    decisions: DecisionScores | None = None,
) -> None:
    """Write the report on two models that were tested on the same samples.

    Args:
        path: HTML file to write.
        title: Title of the page.
        before: Scores of the first model.
        after: Scores of the second model.
        table: The classes with their training counts.
        facts: Seed, versions and whatever else a repetition needs.
        names: What the two models are called.
        features_before: Features (N, D) of the first model, for the feature plot; all three or none.
        features_after: Features (N, D) of the second model, same samples.
        labels: True class ids (N,) of the features.
        map_figure: A picture of the map, see :func:`~torchgeo_debias.evaluation.figures.map_picture`.
        decisions: What the thresholds of the model come to, None where it has none.

    Raises:
        ConfigError: If the two scores are not about the classes of ``table``, or only some of the features are given.
        OutputError: If the file cannot be written.
    """
    if not list(before.per_class) == list(after.per_class) == list(table.names):
        raise ConfigError("A comparison needs two scores of the same classes in the same order as the class table.")
    sections = [
        Section(
            "",
            _verdict(before, after, names),
            cards=[
                change_card(f"{key} F1", before.f1[key], after.f1[key]) for key in ("tail", "head", "middle", "macro")
            ],
        ),
        Section(
            "Groups of classes",
            GROUPS_TEXT,
            [(figures.group_bars(before, after, names), f"F1 of each group, {names[0]} and {names[1]}.")],
            (("Measure", *names, "Change"), measures(before, after)),
        ),
        Section(
            "Every class",
            CLASSES_TEXT,
            [(figures.class_bars(before, after, names), f"F1 of each class, {names[0]} and {names[1]}.")],
            (
                ("Class", "Group", "Training", "Test", f"F1 {names[0]}", f"F1 {names[1]}", "Change"),
                _class_rows(before, after),
            ),
        ),
        Section(
            "What is taken for what",
            _CONFUSION_TEXT,
            [
                (figures.confusion_matrix(scores, name), f"Confusion matrix of {name}.")
                for scores, name in zip((before, after), names, strict=True)
            ],
        ),
    ]
    given = (features_before is not None, features_after is not None, labels is not None)
    if features_before is not None and features_after is not None and labels is not None:
        sections.append(_features(features_before, features_after, labels, table, names))
    elif any(given):
        raise ConfigError(
            "The feature plot needs the features of both models and their labels; give all three or none."
        )
    if map_figure is not None:
        sections.append(_map(map_figure))
    if decisions is not None:
        sections.append(_limits(decisions))
    sections.append(Section("How the numbers are defined", after.definition))
    write_report(path, title, sections, facts)


def training_report(
    path: Path,
    *,
    title: str,
    scores: Scores,
    facts: Mapping[str, str],
    map_figure: Figure | None = None,
    decisions: DecisionScores | None = None,
) -> None:
    """Write the report on one model.

    Args:
        path: HTML file to write.
        title: Title of the page.
        scores: Scores of the model.
        facts: Seed, versions and whatever else a repetition needs.
        map_figure: A picture of the map, if there is one.
        decisions: What the thresholds of the model come to, None where it has none.

    Raises:
        OutputError: If the file cannot be written.
    """
    sections = [
        Section("", cards=[Card(f"{key} F1", percent(scores.f1[key])) for key in ("tail", "head", "middle", "macro")]),
        Section(
            "Groups of classes",
            GROUPS_TEXT,
            [(figures.group_bars(scores), "F1 of each group.")],
            (("Measure", "Value"), measures(scores)),
        ),
        Section(
            "Every class",
            CLASSES_TEXT,
            [(figures.class_bars(scores), "F1 of each class.")],
            (("Class", "Group", "Training", "Test", "F1"), _class_rows(scores)),
        ),
        Section(
            "What is taken for what",
            _CONFUSION_TEXT,
            [(figures.confusion_matrix(scores), "Confusion matrix.")],
        ),
    ]
    if map_figure is not None:
        sections.append(_map(map_figure))
    if decisions is not None:
        sections.append(_limits(decisions))
    sections.append(Section("How the numbers are defined", scores.definition))
    write_report(path, title, sections, facts)


def percent(value: float | None) -> str:
    """A share of 1 as text; None and nan are "n/a"."""
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def points(before: float | None, after: float | None) -> str:
    """The signed difference of two shares of 1 in percentage points."""
    if before is None or after is None or math.isnan(after - before):
        return "n/a"
    return f"{100 * (after - before):+.1f}"


def change_card(label: str, before: float, after: float) -> Card:
    """A headline number in percent beside the one it is compared with; nan is "n/a"."""
    change = after - before
    good = None if math.isnan(change) or abs(change) < 0.0005 else change > 0
    return Card(label, percent(after), percent(before), points(before, after), good)


def _verdict(before: Scores, after: Scores, names: tuple[str, str]) -> str:
    tail, head = (after.f1[key] - before.f1[key] for key in ("tail", "head"))
    if math.isnan(tail) or math.isnan(head):
        return f"{names[1]} against {names[0]} on the same {_samples(after):,} test samples."
    return (
        f"On the same {_samples(after):,} test samples, {names[1]} moves the F1 of the rare (tail) classes by "
        f"{100 * tail:+.1f} points and that of the frequent (head) classes by {100 * head:+.1f} points, "
        f"compared with {names[0]}."
    )


def _samples(scores: Scores) -> int:
    return sum(row["support"] for row in scores.per_class.values())


def measures(before: Scores, after: Scores | None = None) -> list[list[str]]:
    """Every mean in percent as rows of a table, with the change where there are two models."""

    def values(scores: Scores) -> dict[str, float]:
        return {
            **{f"F1 {key}": value for key, value in scores.f1.items()},
            "Balanced accuracy": scores.balanced_accuracy,
            "g-mean of the recalls": scores.g_mean,
            "Accuracy": scores.accuracy,
            "Expected calibration error (lower is better)": math.nan if scores.ece is None else scores.ece,
            **{f"compat F1 {key}": value for key, value in scores.compat.items()},
        }

    first = values(before)
    if after is None:
        return [[label, percent(value)] for label, value in first.items()]
    second = values(after)
    return [
        [label, percent(value), percent(second[label]), points(value, second[label])] for label, value in first.items()
    ]


def _class_rows(before: Scores, after: Scores | None = None) -> list[list[str]]:
    rows = []
    for name, row in sorted(before.per_class.items(), key=lambda item: -item[1]["train_count"]):
        cells = [name, row["group"], f"{row['train_count']:,}", f"{row['support']:,}", percent(row["f1"])]
        if after is not None:
            second = after.per_class[name]["f1"]
            cells += [percent(second), points(row["f1"], second)]
        rows.append(cells)
    return rows


def _features(
    before: npt.NDArray[np.floating[Any]],
    after: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    table: ClassTable,
    names: tuple[str, str],
) -> Section:
    spread = [class_distances(features, labels, table).means for features in (before, after)]
    rows = [[key, *(distance(means[key]) for means in spread)] for key in spread[0]]
    return Section(
        "Where the features lie",
        "The same samples as each model sees them, on the two directions in which they vary most. Below, mean cosine "
        "distances: within classes to the class mean, and between the means of different classes; rare classes are "
        "easier to tell apart where the first are small and the second are large.",
        [(figures.feature_plot(before, after, labels, table, names), "Rare classes in colour, the others in grey.")],
        (("Cosine distance", *names), rows),
    )


def _limits(decisions: DecisionScores) -> Section:
    rows = [
        [
            name,
            f"{row['threshold']:.3f}",
            "yes" if row["guaranteed"] else "no",
            f"{row['support']:,}",
            *(percent(value) for value in (row["coverage"], row["recall"], row["precision"])),
        ]
        for name, row in decisions.per_class.items()
    ]
    columns = ("Class", "Threshold", "Guaranteed", "Test", "Coverage", "Recall", "Precision")
    return Section("The thresholds of the classes", decisions.definition, table=(columns, rows))


def _map(figure: Figure) -> Section:
    return Section(
        "On the map",
        "The model run over the raster, tile by tile.",
        [(figure, "The image and the classes found on it, with the share of the mapped ground.")],
    )


def distance(value: float) -> str:
    """A distance as text; nan is "n/a"."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _numeric(cells: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[+-]?[\d,.]+|n/a", cell) for cell in cells)


def _drawing(figure: Figure, salt: str) -> Markup:
    """The figure as inline SVG in the page's colours or, where that is large, as a picture."""
    import matplotlib as mpl
    from markupsafe import Markup

    buffer = io.StringIO()
    # The salt keeps the ids of several drawings on one page apart, and equal figures give equal bytes.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", dpi=_PIXELS_PER_INCH, facecolor="none", metadata={"Date": None})
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(MUTED, "var(--muted)")
    if len(svg) <= _LARGEST_DRAWING:
        return Markup(svg)
    pixels = io.BytesIO()
    figure.savefig(pixels, format="webp", dpi=_PIXELS_PER_INCH, pil_kwargs={"quality": 86})
    data = base64.b64encode(pixels.getvalue()).decode("ascii")
    return Markup('<img class="picture" alt="" src="data:image/webp;base64,{}">').format(data)

"""How well a layer of predictions agrees with a reference layer, feature by feature or object by object."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.boxes.convert import Floats, polygons_to_oriented
from torchgeo_debias.boxes.overlap import area as box_area
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, LabelError
from torchgeo_debias.evaluation.detection import DetectionScores, average_precision
from torchgeo_debias.evaluation.detection_inputs import Guess, Truth
from torchgeo_debias.evaluation.feature_matching import MATCHING, Candidates, candidates
from torchgeo_debias.evaluation.found import FoundScores, found_scores
from torchgeo_debias.evaluation.layer_report import LayerFacts, feature_report, object_report
from torchgeo_debias.evaluation.metrics import Scores, score
from torchgeo_debias.inference.layer_pair import Answers, LayerLike, LayerPair, read_pair
from torchgeo_debias.progress import Progress, ProgressCallback, silent
from torchgeo_debias.tiling.area import AreaLike

How = Literal["features", "objects"]

NO_PREDICTION = "(no prediction)"
"""Stands in the confusion matrix for what no prediction answers."""

IOU = 0.5

_RIGHT_ANGLE = 0.01
"""Degrees by which the sides of an upright box may be off the axes."""
_RECTANGLE = 0.99
"""Share of the smallest rectangle around it that a rectangle fills, but for rounding."""

_LAYER_AP = (
    "Average precision is that of the features in the layer: what was left out when it was written, below the lowest "
    "score or suppressed, is not known here."
)


class ObjectScores(NamedTuple):
    """Scores of objects.

    Attributes:
        average: Average precision at all overlaps, of all predictions.
        found: Precision, recall and F1 at one overlap, of the predictions from a score on.
    """

    average: DetectionScores
    found: FoundScores

    def to_json(self) -> dict[str, Any]:
        """The keys of the average precision, and ``found``."""
        return {**self.average.to_json(), "found": self.found.to_json()}


@dataclass(frozen=True)
class LayerEvaluation:
    """Scores of a layer of predictions against a reference layer.

    Attributes:
        how: ``features``, each reference feature with the prediction on it; ``objects``, boxes matched one to one.
        scores: Of the model: :class:`~torchgeo_debias.evaluation.Scores` of features, whose last class
            :data:`NO_PREDICTION` stands for the missed ones, or :class:`ObjectScores`.
        raw: Of its plain twin by ``class_raw`` and ``score_raw``, None where the layer holds none.
        facts: What was compared, and how.
    """

    how: How
    scores: Scores | ObjectScores
    raw: Scores | ObjectScores | None
    facts: LayerFacts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; undefined numbers are null."""
        return {
            "how": self.how,
            **self.facts.to_json(),
            "scores": self.scores.to_json(),
            "raw": None if self.raw is None else self.raw.to_json(),
        }

    def write_report(self, path: Path, *, title: str = "") -> None:
        """Write the HTML report; a comparison where there is a twin.

        Raises:
            OutputError: If the file cannot be written.
        """
        title = title or f"{self.facts.predictions} against {self.facts.reference}"
        if isinstance(self.scores, Scores):
            feature_report(path, title, self.scores, cast(Scores | None, self.raw), self.facts)
        else:
            raw = cast(ObjectScores | None, self.raw)
            object_report(
                path, title, self.scores.average, self.scores.found, self.facts,
                before=None if raw is None else (raw.average, raw.found),
            )  # fmt: skip


def evaluate_layer(
    predictions: LayerLike,
    reference: LayerLike,
    class_field: str,
    *,
    predicted_field: str = "class",
    score_field: str | None = None,
    how: How = "features",
    min_score: float | None = None,
    iou: float = IOU,
    area: AreaLike | None = None,
    progress: ProgressCallback = silent,
) -> LayerEvaluation:
    """Score a layer of predictions, of this library or of any other, against a reference layer in any CRS.

    Args:
        predictions: File or frame of points or polygons with a class and, for objects, a score.
        reference: File or frame of points or polygons with the true class; for objects polygons.
        class_field: Field of the true class.
        predicted_field: Field of the predicted class. A field of that name with ``_raw`` is that of a plain twin,
            which is scored beside.
        score_field: Field of the score; ``score`` where left out, which features can do without.
        how: ``features`` (see :data:`~torchgeo_debias.evaluation.feature_matching.MATCHING`) or ``objects``:
            average precision of the smallest rectangles around the polygons, of upright boxes where all predictions
            are such; each part of a multi-part feature is an object.
        min_score: Features: predictions below are taken as not there. Objects: precision, recall and F1 are those from
            this score on; average precision is that of all. All count where left out.
        iou: Objects: overlap from which one counts as found, for precision, recall and F1.
        area: Where the reference is complete, polygons or bounds in its CRS: reference features count by a point that
            represents them. Predicted objects outside count only where they overlap a reference that counts.
        progress: Told about the stage "compare layers".

    Raises:
        LabelError: If a layer cannot be used or has no such field, the layers do not overlap, or objects are no
            polygons or have no scores.
        ConfigError: If an option is out of range.
    """
    if how not in get_args(How):
        raise ConfigError(f"Layers are compared by {' or '.join(get_args(How))}; received {how!r}.")
    if min_score is not None and not math.isfinite(min_score):
        raise ConfigError(f"The lowest score must be a number; received {min_score}.")
    progress(Progress("compare layers", 0, 3))
    pair = read_pair(
        predictions, reference, class_field, predicted_field=predicted_field, score_field=score_field, area=area,
        parts=how == "objects",
    )  # fmt: skip
    if min_score is not None and not pair.scored:
        if min_score > 0:
            raise LabelError(
                f"{pair.names[1]} has no scores, so none can be asked for: name their field, or give none."
            )
        min_score = None
    progress(Progress("compare layers", 1, 3))
    # Both give the scores of the model, those of its twin, and notes.
    scores, raw, notes = _features(pair, min_score) if how == "features" else _objects(pair, iou, min_score)
    progress(Progress("compare layers", 3, 3))
    return LayerEvaluation(how, scores, raw, _facts(pair, notes, min_score, area is not None))


def _features(pair: LayerPair, min_score: float | None) -> tuple[Scores, Scores | None, list[str]]:
    here = np.flatnonzero(pair.inside)
    pairs = candidates(pair.reference[here], pair.predictions)
    pair.refuse_apart(len(pairs.truth))
    labels = pair.labels[here]
    scores, missed = _of_features(pairs, labels, pair.answers, pair.table, min_score)
    raw = None if pair.raw is None else _of_features(pairs, labels, pair.raw, pair.table, min_score)[0]
    notes = [f"{missed:,} of {len(here):,} reference features have no prediction."] if missed else []
    return scores, raw, [*notes, *_unusable(pair.answers, np.unique(pairs.guess), min_score is not None)]


def _of_features(
    pairs: Candidates, labels: npt.NDArray[np.int64], answers: Answers, table: ClassTable, min_score: float | None
) -> tuple[Scores, int]:
    usable = answers.ids >= 0
    if min_score is not None:
        usable &= answers.scores >= min_score
    taken = pairs.best(answers.scores, usable, len(labels))
    none = len(table.names)
    answered = np.append(answers.ids, none)[taken]
    scores = score(labels, None, with_no_prediction(table), answered)
    absent = [name for name in scores.absent if name != NO_PREDICTION]
    scores = replace(scores, absent=absent, definition=f"{MATCHING} {scores.definition}")
    return scores, int((answered == none).sum())


def with_no_prediction(table: ClassTable) -> ClassTable:
    """The classes and, for what has no answer, one that is never true: it costs recall and stays outside the means."""
    return ClassTable((*table.names, NO_PREDICTION), (*table.counts, 0), (*table.groups, "background"))


def _objects(
    pair: LayerPair, iou: float, min_score: float | None
) -> tuple[ObjectScores, ObjectScores | None, list[str]]:
    for name, shapes in zip(pair.names, (pair.reference, pair.predictions), strict=True):
        if (shapely.get_dimensions(shapes) != 2).any():
            raise LabelError(f"{name} has points, which have no overlap: compare by features, or give polygons.")
    if not pair.scored:
        raise LabelError(f"{pair.names[1]} has no scores, which objects are ranked by: name their field.")
    near = np.unique(candidates(pair.reference[pair.inside], pair.predictions).guess)
    pair.refuse_apart(len(near))
    truths, guesses = polygons_to_oriented(pair.reference), polygons_to_oriented(pair.predictions)
    odd = int((shapely.area(pair.reference) < _RECTANGLE * box_area(truths)).sum())
    off_axes = np.mod(guesses[:, 4], 90.0)
    upright = bool((np.minimum(off_axes, 90.0 - off_axes) < _RIGHT_ANGLE).all())
    if upright:
        truths, guesses = shapely.bounds(pair.reference), shapely.bounds(pair.predictions)
        form = "All predictions are upright boxes: compared are the upright boxes around the objects."
    else:
        form = "Compared are the smallest rectangles around the objects, turned as they lie."
    notes = [form]
    if odd:
        notes.append(f"{odd:,} of {len(truths):,} reference polygons are no rectangles; the box stands for them.")
    # Beside those within the area also those on a reference that counts, which may lie across its edge.
    counts = pair.reached.copy()
    counts[near] = True
    notes += _unusable(pair.answers, np.flatnonzero(counts), scored=True)
    truth = Truth(truths, pair.labels, ~pair.inside)
    scores = _of_objects(truth, guesses, counts, pair.answers, pair.table, iou, min_score)
    raw = None if pair.raw is None else _of_objects(truth, guesses, counts, pair.raw, pair.table, iou, min_score)
    return scores, raw, notes


def _of_objects(
    truth: Truth,
    boxes: Floats,
    counts: npt.NDArray[np.bool_],
    answers: Answers,
    table: ClassTable,
    iou: float,
    min_score: float | None,
) -> ObjectScores:
    kept = counts & (answers.ids >= 0) & np.isfinite(answers.scores)
    guess = Guess(boxes[kept], answers.scores[kept], answers.ids[kept])
    average = average_precision([truth], [guess], table, max_per_image=None)
    average = replace(average, definition=f"{average.definition} {_LAYER_AP}")
    return ObjectScores(average, found_scores([truth], [guess], table, iou=iou, min_score=min_score))


def _unusable(answers: Answers, guesses: npt.NDArray[np.int64], scored: bool) -> list[str]:
    """A note on the predictions among ``guesses`` that do not count for want of a class or, if asked for, a score."""
    classless = answers.ids[guesses] < 0
    scoreless = ~classless & ~np.isfinite(answers.scores[guesses]) & scored
    kinds = {"class": int(classless.sum()), "score": int(scoreless.sum())}
    if not (total := sum(kinds.values())):
        return []
    why = " and ".join(f"{count:,} without a {kind}" for kind, count in kinds.items() if count)
    return [f"{total:,} of {len(guesses):,} predictions do not count: {why}."]


def _facts(pair: LayerPair, notes: list[str], min_score: float | None, bounded: bool) -> LayerFacts:
    if pair.silent:
        notes = [*notes, f"No prediction names {', '.join(pair.silent)}."]
    return LayerFacts(
        reference=Path(pair.names[0]).name,
        predictions=Path(pair.names[1]).name,
        features=int(pair.inside.sum()),
        predicted=len(pair.predictions),
        groups=pair.grouped,
        measured_in=pair.crs.name,
        min_score=min_score,
        bounded=bounded,
        notes=tuple(notes),
    )

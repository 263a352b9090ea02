"""Scores of a model on labelled chips, with those of its biased twin beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation import (
    DecisionScores,
    Scores,
    Thresholds,
    comparison_report,
    decision_scores,
    score,
    training_report,
)
from torchgeo_debias.inference.layer_evaluation import NO_PREDICTION, with_no_prediction
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction, thresholds_of
from torchgeo_debias.inference.results import best
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.progress import ProgressCallback, silent, track

_DECIDED = (
    "The thresholds of the model decide on its classes (recall asked for: {recall:g}), and its scores are those after "
    "the temperature {temperature:.3g}; the highest score decides for the twin."
)


@dataclass(frozen=True)
class Evaluation:
    """Scores on one set of chips.

    Attributes:
        scores: Of the model.
        raw: Of its biased twin, None where there is none.
        decisions: What the thresholds of the model come to, None where it has none.
    """

    scores: Scores
    raw: Scores | None
    decisions: DecisionScores | None = None

    def to_json(self, package: ModelPackage) -> dict[str, Any]:
        """The scores with the training counts, the seed and the versions the model was made with."""
        return {
            **self.scores.to_json(),
            "counts": dict(zip(package.table.names, package.table.counts, strict=True)),
            "method": package.method.get("method"),
            "seed": package.provenance["seed"],
            "versions": package.provenance["versions"],
            "raw": None if self.raw is None else self.raw.to_json(),
            "decisions": None if self.decisions is None else self.decisions.to_json(),
        }


def predict_chips(
    predictor: ChipPredictor, chips: Chips, *, batch_size: int = 64, progress: ProgressCallback = silent
) -> Prediction:
    """Predict all chips in their order."""
    starts = range(0, len(chips), batch_size)
    parts = [
        predictor.predict(chips.images[i : i + batch_size], chips.valid[i : i + batch_size])
        for i in track(starts, "predict", progress)
    ]
    raws = [part.raw for part in parts if part.raw is not None]
    return Prediction(np.concatenate([part.probabilities for part in parts]), np.concatenate(raws) if raws else None)


def evaluate_chips(
    predictor: ChipPredictor, chips: Chips, *, batch_size: int = 64, progress: ProgressCallback = silent
) -> Evaluation:
    """Score a model on chips whose class ids follow its class table, and whose thresholds decide where it has any.

    Chips on which they abstain stand in a class of their own at the end, as in
    :func:`~torchgeo_debias.inference.layer_evaluation.evaluate_layer`.

    Raises:
        DataError: If there are no chips, or they have other classes, or the same in another order.
    """
    check_classes(chips, predictor)
    prediction = predict_chips(predictor, chips, batch_size=batch_size, progress=progress)
    thresholds, table = thresholds_of(predictor), predictor.table
    if thresholds is None:
        raw = None if prediction.raw is None else score(chips.labels, prediction.raw, table)
        return Evaluation(score(chips.labels, prediction.probabilities, table), raw)
    decisions = decision_scores(chips.labels, prediction.probabilities, table, thresholds)
    return replace(_decided(chips.labels, prediction, table, thresholds), decisions=decisions)


def _decided(
    labels: npt.NDArray[np.int64], prediction: Prediction, table: ClassTable, thresholds: Thresholds
) -> Evaluation:
    """Scores of what thresholds decide."""
    ids, _ = best(prediction.probabilities, thresholds)
    parts = [prediction.probabilities, *([] if prediction.raw is None else [prediction.raw])]
    if thresholds.abstain != "never":
        ids = np.where(ids < 0, len(table.names), ids)
        table = with_no_prediction(table)
        parts = [np.pad(part, ((0, 0), (0, 1))) for part in parts]
    scores = [score(labels, parts[0], table, ids), *(score(labels, part, table) for part in parts[1:])]
    told = _DECIDED.format(recall=thresholds.recall, temperature=thresholds.temperature)
    found = [
        replace(
            one,
            absent=[name for name in one.absent if name != NO_PREDICTION],
            definition=f"{one.definition} {told}",
        )
        for one in scores
    ]
    return Evaluation(found[0], found[1] if len(found) > 1 else None)


def check_classes(chips: Chips, predictor: ChipPredictor) -> None:
    """Refuse chips that a model cannot be held against.

    Raises:
        DataError: If there are none, or they have other classes, or the same in another order.
    """
    if not len(chips):
        raise DataError("There are no chips to score the model on; give some that are labelled.")
    if chips.table.names != predictor.table.names:
        raise DataError(
            f"The chips' classes ({', '.join(chips.table.names)}) are not those of the model in its order "
            f"({', '.join(predictor.table.names)}); read them with classes=model.table.names."
        )


def write_evaluation(path: Path, evaluation: Evaluation, package: ModelPackage, *, source: str, split: str) -> None:
    """Write the HTML report of an evaluation: a comparison where the model kept its biased twin."""
    facts = report_facts(package, {"Data": source, "Split": split})
    if evaluation.decisions is not None:
        facts["Thresholds"] = evaluation.decisions.sentence
    table = with_no_prediction(package.table) if NO_PREDICTION in evaluation.scores.per_class else package.table
    title = f"{package.method.get('method')} on {source}"
    if evaluation.raw is None:
        training_report(path, title=title, scores=evaluation.scores, facts=facts, decisions=evaluation.decisions)
    else:
        comparison_report(
            path, title=title, before=evaluation.raw, after=evaluation.scores, table=table, facts=facts,
            decisions=evaluation.decisions,
        )  # fmt: skip


def report_facts(package: ModelPackage, data: dict[str, str]) -> dict[str, str]:
    """What a repetition needs, for the foot of a report."""
    return {
        **data,
        "Seed": str(package.provenance["seed"]),
        "Training chips": str(package.provenance["training_chips"]),
        "Backbone": f"{package.backbone.name}, weights {package.backbone.digest[:12]} ({package.backbone.licence})",
        "Views of a chip": str(package.backbone.views),
        "Versions": ", ".join(f"{name} {number}" for name, number in package.provenance["versions"].items()),
    }

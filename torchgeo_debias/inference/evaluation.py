"""Scores of a model on labelled chips, with those of its biased twin beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation import Scores, comparison_report, score, training_report
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.progress import ProgressCallback, silent, track


@dataclass(frozen=True)
class Evaluation:
    """Scores on one set of chips.

    Attributes:
        scores: Of the model.
        raw: Of its biased twin, None where there is none.
    """

    scores: Scores
    raw: Scores | None

    def to_json(self, package: ModelPackage) -> dict[str, Any]:
        """The scores with the training counts, the seed and the versions the model was made with."""
        return {
            **self.scores.to_json(),
            "counts": dict(zip(package.table.names, package.table.counts, strict=True)),
            "method": package.method.get("method"),
            "seed": package.provenance["seed"],
            "versions": package.provenance["versions"],
            "raw": None if self.raw is None else self.raw.to_json(),
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
    """Score a model on chips whose class ids follow its class table.

    Raises:
        DataError: If there are no chips, or they have other classes, or the same in another order.
    """
    if not len(chips):
        raise DataError("There are no chips to score the model on; give some that are labelled.")
    if chips.table.names != predictor.table.names:
        raise DataError(
            f"The chips' classes ({', '.join(chips.table.names)}) are not those of the model in its order "
            f"({', '.join(predictor.table.names)}); read them with classes=model.table.names."
        )
    prediction = predict_chips(predictor, chips, batch_size=batch_size, progress=progress)
    return Evaluation(
        score(chips.labels, prediction.probabilities, predictor.table),
        None if prediction.raw is None else score(chips.labels, prediction.raw, predictor.table),
    )


def write_evaluation(path: Path, evaluation: Evaluation, package: ModelPackage, *, source: str, split: str) -> None:
    """Write the HTML report of an evaluation: a comparison where the model kept its biased twin."""
    facts = report_facts(package, {"Data": source, "Split": split})
    title = f"{package.method.get('method')} on {source}"
    if evaluation.raw is None:
        training_report(path, title=title, scores=evaluation.scores, facts=facts)
    else:
        comparison_report(
            path, title=title, before=evaluation.raw, after=evaluation.scores, table=package.table, facts=facts
        )


def report_facts(package: ModelPackage, data: dict[str, str]) -> dict[str, str]:
    """What a repetition needs, for the foot of a report."""
    return {
        **data,
        "Seed": str(package.provenance["seed"]),
        "Training chips": str(package.provenance["training_chips"]),
        "Backbone": f"{package.backbone.name}, weights {package.backbone.digest[:12]} ({package.backbone.licence})",
        "Versions": ", ".join(f"{name} {number}" for name, number in package.provenance["versions"].items()),
    }

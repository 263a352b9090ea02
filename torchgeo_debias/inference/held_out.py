"""What a training held out for a test: how it was chosen, and how the trained model does on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torchgeo_debias.backbones import Precision
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.objects import ObjectSet
from torchgeo_debias.inference import detection_evaluation, evaluation
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.package import DetectorPackage, ModelPackage
from torchgeo_debias.progress import ProgressCallback, silent

METRICS = "hold_out"
"""Under what name the scores stand among the metrics of a package."""


@dataclass(frozen=True)
class Split:
    """How a part was held out.

    Attributes:
        share: Share that was asked for.
        seed: Of the choice.
        by: What stayed together, in the plural, such as ``images``.
        training: Chips, or images of a detector, to train on.
        test: Chips or images held out.
        left_out: Chips in neither part, since they reach into the ground of a training chip.
        shared: Images held out that show ground of a training image, where all images overlap in a chain.
    """

    share: float
    seed: int
    by: str
    training: int
    test: int
    left_out: int = 0
    shared: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def sentence(self, unit: str) -> str:
        """For a report; ``unit`` is what is counted, in the plural."""
        apart = f"; {self.left_out:,} in neither, since they reach into training {unit}" if self.left_out else ""
        if self.shared:
            apart += f"; {self.shared:,} of those to test share ground with training {unit}, so scores may be too high"
        return (
            f"{100 * self.share:g} % held out by {self.by} (seed {self.seed}): {self.test:,} {unit} to test, "
            f"{self.training:,} to train{apart}"
        )


Scored = evaluation.Evaluation | detection_evaluation.DetectorEvaluation


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of a model on what was held out.

    Attributes:
        split: How that was chosen.
        evaluation: The scores, those of the twin beside.
        unit: What was held out, ``chips`` or ``images``.
        twin: What the twin is called.
    """

    split: Split
    evaluation: Scored
    unit: Literal["chips", "images"]
    twin: str

    @property
    def sentence(self) -> str:
        """What was held out, and how."""
        return self.split.sentence(self.unit)

    def to_json(self) -> dict[str, Any]:
        """The fields of the split, ``scores`` of the model and ``raw`` of its twin, null where there is none."""
        raw = self.evaluation.raw
        return {
            **self.split.to_json(),
            "scores": self.evaluation.scores.to_json(),
            "raw": None if raw is None else raw.to_json(),
        }


def score_held_out(
    package: ModelPackage | DetectorPackage,
    held: Chips | ObjectSet,
    split: Split,
    *,
    weights: str = "auto",
    precision: Precision = "auto",
    progress: ProgressCallback = silent,
) -> HeldOutScores:
    """Score a model on chips, or a detector on images, that it was not trained on; kept in ``package.metrics``.

    Args:
        package: The trained model, saved or not; its metrics are written when it is saved again.
        held: What was held out, with the classes of the model.
        split: How.
        weights: Of the backbone, as in training.
        precision: As in training.
        progress: Told about each batch.

    Raises:
        DataError: If the classes, bands or pixels are not those of the model.
    """
    found: Scored
    if isinstance(package, ModelPackage):
        predictor = PackagePredictor(package, weights=weights, precision=precision)
        found = evaluation.evaluate_chips(predictor, cast(Chips, held), progress=progress)
    else:
        found = detection_evaluation.evaluate_package(
            package, cast(ObjectSet, held), weights=weights, precision=precision, progress=progress
        )
    result = HeldOutScores(split, found, "chips" if isinstance(package, ModelPackage) else "images", package.twin_name)
    package.metrics[METRICS] = result.to_json()
    return result


def write_held_out(path: Path, result: HeldOutScores, package: ModelPackage | DetectorPackage, source: str) -> None:
    """Write the HTML report: split, seed, counts, scores beside those of the twin, and what they mean.

    Raises:
        OutputError: If the file cannot be written.
    """
    room: Any = evaluation if result.unit == "chips" else detection_evaluation
    room.write_evaluation(path, result.evaluation, package, source=source, split=result.sentence)

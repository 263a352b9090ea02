"""Thresholds of a model from labelled chips or images that it has not seen."""

from __future__ import annotations

from typing import NamedTuple

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.objects import ObjectSet
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation import (
    DecisionScores,
    FoundScores,
    Thresholds,
    decision_scores,
    fit_detection_thresholds,
    fit_thresholds,
)
from torchgeo_debias.evaluation.thresholds import Abstain, tempered
from torchgeo_debias.inference.detection_evaluation import find_objects, fitting, found_by, truths_of
from torchgeo_debias.inference.detector import DetectorPredictor
from torchgeo_debias.inference.evaluation import check_classes, predict_chips
from torchgeo_debias.inference.predictor import ChipPredictor, RasterPredictor, thresholds_of
from torchgeo_debias.progress import ProgressCallback, silent


class Calibrated(NamedTuple):
    """What was found for a classifier.

    Attributes:
        thresholds: To be put into its package.
        scores: What they come to on the samples that they were found on; on others the answers do rather worse.
    """

    thresholds: Thresholds
    scores: DecisionScores


class CalibratedDetector(NamedTuple):
    """What was found for a detector.

    Attributes:
        thresholds: To be put into its package.
        scores: What ``detect`` finds with them in the images that they were found on.
    """

    thresholds: Thresholds
    scores: FoundScores


def calibrate_chips(
    predictor: ChipPredictor,
    chips: Chips,
    *,
    recall: float = 0.9,
    abstain: Abstain = "never",
    seed: int = 0,
    batch_size: int = 64,
    progress: ProgressCallback = silent,
) -> Calibrated:
    """Temperature and thresholds of a classifier; see :func:`~torchgeo_debias.evaluation.decisions.fit_thresholds`.

    Args:
        predictor: Made without thresholds; scores of another backend or precision differ a little.
        chips: That it was not trained on, with its classes.
        recall: Wanted of each class, above 0 and below 1.
        abstain: What becomes of a chip whose nearest class is not possible.
        seed: Of the choice of the samples that the temperature is fitted on.
        batch_size: Chips in one call of the model.
        progress: Told about each batch; may cancel.

    Raises:
        ConfigError: If an option is out of range, or the model has thresholds.
        DataError: If there are no chips, or their classes are others.
    """
    _check_bare(predictor)
    check_classes(chips, predictor)
    scores = predict_chips(predictor, chips, batch_size=batch_size, progress=progress).probabilities
    thresholds = fit_thresholds(chips.labels, scores, predictor.table, recall=recall, abstain=abstain, seed=seed)
    after = tempered(scores, thresholds.temperature)
    return Calibrated(thresholds, decision_scores(chips.labels, after, predictor.table, thresholds))


def calibrate_objects(
    predictor: DetectorPredictor, objects: ObjectSet, *, recall: float = 0.9, progress: ProgressCallback = silent
) -> CalibratedDetector:
    """Least scores of a detector at which it finds the objects of each class.

    :func:`~torchgeo_debias.evaluation.decisions.fit_detection_thresholds` says how. Objects are found as ``detect``
    finds them by default.

    Args:
        predictor: Made without thresholds.
        objects: Images that it was not trained on, with its classes.
        recall: Wanted of each class, above 0 and below 1.
        progress: Told after each call of the model.

    Raises:
        ConfigError: If the recall is out of range, or the model has thresholds.
        DataError: If there are no images, or they do not fit the model.
    """
    _check_bare(predictor)
    if not len(objects):
        raise DataError("There are no images to find thresholds on; give some that are labelled.")
    objects = fitting(objects, predictor)
    truths, guesses = truths_of(objects), find_objects(predictor, objects, progress=progress)
    thresholds = fit_detection_thresholds(truths, guesses, predictor.table, recall=recall)
    return CalibratedDetector(thresholds, found_by(thresholds, truths, guesses, predictor.table))


def _check_bare(predictor: RasterPredictor) -> None:
    if thresholds_of(predictor) is not None:
        raise ConfigError("The model has thresholds, which would be found on top of themselves: load it without them.")

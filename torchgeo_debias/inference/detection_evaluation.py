"""Scores of a detector on whole labelled images, whose objects are found tile by tile as on rasters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchgeo_debias.backbones import Precision
from torchgeo_debias.boxes.suppress import suppress
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.objects import ObjectSet, Picture
from torchgeo_debias.data.windows import cut_square
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation.detection import DetectionScores, Form, Guess, Truth, average_precision
from torchgeo_debias.evaluation.detection_report import detector_report
from torchgeo_debias.evaluation.found import FoundScores, found_scores
from torchgeo_debias.evaluation.thresholds import Thresholds
from torchgeo_debias.inference.box_rows import BoxMerger
from torchgeo_debias.inference.detections import DetectOptions, FindObjects
from torchgeo_debias.inference.detector import MIN_SCORE, DetectorPredictor
from torchgeo_debias.inference.predictor import thresholds_of
from torchgeo_debias.package import DetectorPackage
from torchgeo_debias.progress import ProgressCallback, silent, track
from torchgeo_debias.tiling.area import Area, Wanted
from torchgeo_debias.tiling.plan import Tile, TilePlan


class _Job(NamedTuple):
    """One tile of one image."""

    image: int
    picture: Picture
    tile: Tile


def find_objects(
    predictor: DetectorPredictor,
    objects: ObjectSet,
    *,
    overlap: float = DetectOptions.overlap,
    suppression: float = DetectOptions.suppression,
    batch_size: int = 16,
    progress: ProgressCallback = silent,
) -> list[Guess]:
    """Find the objects in whole images by the rules of :func:`~torchgeo_debias.inference.detections.detect_raster`.

    Args:
        predictor: The model; images are brought to its resolution as its training tiles were.
        objects: The images; what is known to be in them is not looked at.
        overlap: Share of a tile's side that neighbours have in common.
        suppression: Intersection over union above which the weaker of two boxes of one class is left out.
        batch_size: Tiles in one call of the model.
        progress: Told after each call.

    Returns:
        Of each image its boxes in its pixel frame, with scores from :data:`MIN_SCORE` on.
    """
    pictures = [image.picture for image in objects.images]
    task = FindObjects(predictor, (MIN_SCORE,) * len(predictor.table.names), predictor.table.background)
    plans = [
        TilePlan.of(picture.width, picture.height, predictor.spec.side(picture.gsd), overlap) for picture in pictures
    ]
    mergers = [BoxMerger(Wanted(plan, Area()), predictor.oriented, predictor.size) for plan in plans]
    guesses: list[Guess] = []
    jobs = [_Job(i, pictures[i], tile) for i, plan in enumerate(plans) for tile in plan]
    for start in track(range(0, len(jobs), batch_size), "detect", progress):
        some = jobs[start : start + batch_size]
        cuts = [_cut(job, predictor.size) for job in some]
        (answers,) = task.predict(np.stack([pixels for pixels, _ in cuts]), np.stack([valid for _, valid in cuts]))
        for job, (_, valid), found in zip(some, cuts, answers, strict=True):
            mergers[job.image].add(job.tile, valid, (found,))
        # A tile has thousands of boxes, near duplicates as they are: no image keeps them for longer than need be.
        ahead = jobs[start + batch_size].image if start + batch_size < len(jobs) else len(pictures)
        guesses += [_suppressed(merger, suppression) for merger in mergers[len(guesses) : ahead]]
    return guesses


def evaluate_objects(
    predictor: DetectorPredictor,
    objects: ObjectSet,
    *,
    overlap: float = DetectOptions.overlap,
    suppression: float = DetectOptions.suppression,
    form: Form = "coco",
    batch_size: int = 16,
    progress: ProgressCallback = silent,
) -> DetectionScores:
    """Score a detector on whole images whose class ids follow its class table.

    Args:
        predictor: The model.
        objects: Images with boxes; oriented ones are made upright for a horizontal detector.
        overlap: See :func:`find_objects`.
        suppression: See there.
        form: See :func:`~torchgeo_debias.evaluation.detection.average_precision`.
        batch_size: Tiles in one call of the model.
        progress: Told after each call.

    Raises:
        DataError: If the images have other classes, bands or pixels than the model, or horizontal boxes are to score an
            oriented detector.
    """
    objects = fitting(objects, predictor)
    guesses = find_objects(
        predictor,
        objects,
        overlap=overlap,
        suppression=suppression,
        batch_size=batch_size,
        progress=progress,
    )
    return average_precision(truths_of(objects), guesses, predictor.table, form=form)


def truths_of(objects: ObjectSet) -> list[Truth]:
    """What is in each of the images."""
    return [Truth(image.boxes, image.labels, image.ignored) for image in objects.images]


def fitting(objects: ObjectSet, predictor: DetectorPredictor) -> ObjectSet:
    """Images with boxes of the form that a detector finds.

    Raises:
        DataError: If they do not fit it, see :func:`evaluate_objects`.
    """
    if objects.table.names != predictor.table.names:
        raise DataError(
            f"The images' classes ({', '.join(objects.table.names)}) are not those of the model in its order "
            f"({', '.join(predictor.table.names)}); read them with the names of the model."
        )
    if (len(objects.bands), str(objects.dtype)) != (len(predictor.bands), predictor.dtype):
        raise DataError(
            f"The images have {len(objects.bands)} bands of {objects.dtype} and the model was trained on "
            f"{len(predictor.bands)} of {predictor.dtype} ({', '.join(predictor.bands)}); give images of that kind."
        )
    if objects.bands != predictor.bands and sorted(objects.bands) == sorted(predictor.bands):
        raise DataError(
            f"The images have the bands {', '.join(objects.bands)} and the model takes them in another order "
            f"({', '.join(predictor.bands)}); read them in that one."
        )
    if predictor.oriented and not objects.oriented:
        raise DataError(
            "The boxes of the images are horizontal and the model finds oriented ones; give oriented boxes."
        )
    return objects if predictor.oriented else objects.horizontal()


def _cut(job: _Job, size: int) -> tuple[Any, Any]:
    window = job.tile.window
    return cut_square(job.picture.read, np.array([window.col_off, window.row_off, window.width]), size)


def _suppressed(merger: BoxMerger, threshold: float) -> Guess:
    part = merger.settle(0)
    kept = suppress(part["boxes"], part["scores"], part["classes"], threshold)
    return Guess(part["boxes"][kept], part["scores"][kept], part["classes"][kept])


class DetectorEvaluation(NamedTuple):
    """How well a detector does, and its twin.

    Attributes:
        scores: Of the detector.
        raw: Of the twin kept for comparison, None where there is none.
        found: What of the objects ``detect`` finds with the thresholds of the detector, None where it has none.
    """

    scores: DetectionScores
    raw: DetectionScores | None
    found: FoundScores | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        raw, found = (None if part is None else part.to_json() for part in (self.raw, self.found))
        return {"scores": self.scores.to_json(), "raw": raw, "found": found}


def evaluate_package(
    package: DetectorPackage,
    objects: ObjectSet,
    *,
    weights: str = "auto",
    precision: Precision = "auto",
    form: Form = "coco",
    progress: ProgressCallback = silent,
) -> DetectorEvaluation:
    """Score a package's detector and, where it keeps one, its biased twin; see :func:`evaluate_objects`."""
    scores, found = _scored(DetectorPredictor(package, weights=weights, precision=precision), objects, form, progress)
    if package.raw is None:
        return DetectorEvaluation(scores, None, found)
    twin = DetectorPredictor(package, weights=weights, precision=precision, raw=True)
    return DetectorEvaluation(scores, _scored(twin, objects, form, progress)[0], found)


def _scored(
    predictor: DetectorPredictor, objects: ObjectSet, form: Form, progress: ProgressCallback
) -> tuple[DetectionScores, FoundScores | None]:
    objects = fitting(objects, predictor)
    truths, guesses = truths_of(objects), find_objects(predictor, objects, progress=progress)
    scores = average_precision(truths, guesses, predictor.table, form=form)
    thresholds = thresholds_of(predictor)
    if thresholds is None:
        return scores, None
    return scores, found_by(thresholds, truths, guesses, predictor.table)


def found_by(
    thresholds: Thresholds, truths: Sequence[Truth], guesses: Sequence[Guess], table: ClassTable
) -> FoundScores:
    """What of the objects ``detect`` finds with thresholds."""
    limits = thresholds.limits(DetectOptions.min_score)
    found = found_scores(truths, [_from(guess, limits) for guess in guesses], table)
    kept = f"Boxes below the threshold of their class ({DetectOptions.min_score:g} without one) are no guesses here."
    return replace(found, definition=f"{found.definition} {kept}")


def _from(guess: Guess, limits: npt.NDArray[np.float64]) -> Guess:
    sure = np.asarray(guess.scores) >= limits[np.asarray(guess.classes)]
    return Guess(*(np.asarray(values)[sure] for values in guess))


def write_evaluation(
    path: Path, evaluation: DetectorEvaluation, package: DetectorPackage, *, source: str, split: str
) -> None:
    """Write the HTML report of an evaluation: a comparison where the model kept its biased twin."""
    facts = {
        "Data": source,
        "Split": split,
        "Seed": str(package.provenance["seed"]),
        "Training objects": str(package.provenance["training_objects"]),
        "Backbone": f"{package.backbone.name}, weights {package.backbone.digest[:12]} ({package.backbone.licence})",
        "Versions": ", ".join(f"{name} {number}" for name, number in package.provenance["versions"].items()),
    }
    title = f"{package.method.get('method')} on {source}"
    names = package.twin_name, "debLoRA"
    detector_report(path, title=title, scores=evaluation.scores, facts=facts, before=evaluation.raw, names=names)

"""Objects of whole images are found tile by tile, and scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from tests.tiling.rasters import write_raster
from tests.tiny_objects import NAMES, SIDE, scenes
from torchgeo_debias.boxes.convert import Floats, horizontal_to_oriented
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.objects import ArrayPicture, LabelledImage, ObjectSet, SourcePicture, TileSpec
from torchgeo_debias.errors import DataError
from torchgeo_debias.inference import detection_evaluation
from torchgeo_debias.inference.detection_evaluation import evaluate_objects, find_objects
from torchgeo_debias.inference.detections import DetectOptions, detect_raster
from torchgeo_debias.inference.detector import DetectorPredictor
from torchgeo_debias.inference.mapping import Outputs, Resources
from torchgeo_debias.inference.predictor import Found
from torchgeo_debias.package import DetectorPackage
from torchgeo_debias.tiling.plan import TilePlan


class Seer:
    """Sees bright rectangles, each of one grey value from 100 on, in single-band tiles: the value says the class."""

    bands = ("band_1",)
    dtype = "uint8"
    table = ClassTable.from_counts({"a": 5, "b": 3, "c": 1})
    oriented = False

    def __init__(self, spec: TileSpec) -> None:
        self.spec, self.size, self.gsd = spec, spec.size, spec.gsd
        self.calls: list[int] = []

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> list[Found]:
        self.calls.append(len(images))
        return [self._see(image[0]) for image in images]

    def _see(self, image: npt.NDArray[Any]) -> Found:
        # What is blurred by resampling has half its brightness at the true edge, and all of it within.
        regions, count = ndimage.label(image >= 60)
        rows = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(regions)]
        values = np.array([image[regions == i + 1].max() for i in range(count)], np.int64)
        boxes = np.array(rows, np.float64).reshape(-1, 4)
        return Found(boxes, np.full(count, 0.9, np.float32), (values - 100) % 3)


def painted(boxes: Floats, width: int, height: int, name: str = "image", gsd: float | None = None) -> LabelledImage:
    pixels = np.zeros((1, height, width), np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        pixels[0, y0:y1, x0:x1] = 100 + i
    labels = np.arange(len(boxes)) % 3
    return LabelledImage(name, name, ArrayPicture(pixels, gsd=gsd), boxes, labels, np.zeros(len(boxes), bool))


def scattered(seed: int, width: int, height: int, step: int = 20) -> Floats:
    """Boxes of up to 8 pixels apart from each other, some across the rims of tiles."""
    rng = np.random.default_rng(seed)
    boxes = []
    for y in range(0, height - step + 1, step):
        for x in range(0, width - step + 1, step):
            w, h = rng.integers(4, 9, 2)
            left, top = x + rng.integers(2, step - w), y + rng.integers(2, step - h)
            boxes.append([left, top, left + w, top + h])
    return np.array(boxes, np.float64)


def set_of(*images: LabelledImage, oriented: bool = False) -> ObjectSet:
    return ObjectSet.of(images, Seer.table.names, oriented=oriented)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_each_object_of_an_image_of_many_tiles_is_found_once(overlap: float) -> None:
    images = [painted(scattered(i, 150, 110), 150, 110, f"image{i}") for i in range(2)]
    seer: Any = Seer(TileSpec(48))
    guesses = find_objects(seer, set_of(*images), overlap=overlap, batch_size=7)
    for image, guess in zip(images, guesses, strict=True):
        boxes = np.asarray(guess.boxes)
        order, wanted = np.lexsort(boxes.T), np.lexsort(image.boxes.T)
        np.testing.assert_array_equal(boxes[order], image.boxes[wanted])
        np.testing.assert_array_equal(np.asarray(guess.classes)[order], image.labels[wanted])
    assert max(seer.calls) == 7
    scores = evaluate_objects(seer, set_of(*images), overlap=overlap)
    assert scores.ap["macro"] == pytest.approx(1.0)


def test_boxes_of_an_image_are_suppressed_as_soon_as_all_its_tiles_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile may give thousands, so that those of all images would fill the memory."""
    images = [painted(scattered(i, 150, 110), 150, 110, f"image{i}") for i in range(4)]
    seer: Any = Seer(TileSpec(48))
    calls: list[int] = []
    suppressed = detection_evaluation._suppressed

    def watched(*given: Any) -> Any:
        calls.append(len(seer.calls))
        return suppressed(*given)

    monkeypatch.setattr(detection_evaluation, "_suppressed", watched)
    tiles = len(TilePlan.of(150, 110, 48, 0.25))
    guesses = find_objects(seer, set_of(*images), batch_size=5)
    assert calls == [-(-tiles * (i + 1) // 5) for i in range(4)]
    (alone,) = find_objects(seer, set_of(images[2]))
    np.testing.assert_array_equal(np.asarray(guesses[2].boxes), np.asarray(alone.boxes))


class Placed(Seer):
    """As runs over rasters know models."""

    identity = "seer"

    @property
    def scale(self) -> float:
        return self.spec.scale

    def use_threads(self, n: int) -> None:
        pass

    def _see(self, image: npt.NDArray[Any]) -> Found:
        boxes, scores, classes = super()._see(image)
        total = image.astype(np.float64).sum()  # whatever pixel differs is seen in the scores
        return Found(boxes, (scores * (0.5 + total % 997 / 2000)).astype(np.float32), classes % 3)


@pytest.mark.parametrize("gsd", [2.0, 1.9, 2.06, 3.1, 0.7])
def test_rasters_are_seen_as_the_images_of_a_test_are(tmp_path: Path, gsd: float) -> None:
    rng = np.random.default_rng(0)
    pixels = ndimage.gaussian_filter(rng.random((1, 180, 150)), (0, 2, 2))
    pixels = ((pixels - pixels.min()) / np.ptp(pixels) * 110).astype(np.uint8)
    path = write_raster(tmp_path / "r.tif", pixels)  # of 2 m
    model: Any = Placed(TileSpec(48, gsd=gsd))
    options = DetectOptions(min_score=0.05)
    detect_raster(path, model, Outputs(tmp_path / "a.parquet"), options, resources=Resources(4, 1, 1))
    found = gpd.read_parquet(tmp_path / "a.parquet")
    image = LabelledImage("r", "r", SourcePicture(path), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    (guess,) = find_objects(model, set_of(image))
    assert len(found) == len(np.asarray(guess.scores)) > 20
    boxes = (found.bounds.to_numpy()[:, [0, 3, 2, 1]] - np.array([500_000, 5_400_000] * 2)) / np.array([2, -2] * 2)
    ours, theirs = np.lexsort(boxes.round(6).T), np.lexsort(np.asarray(guess.boxes).round(6).T)
    np.testing.assert_allclose(boxes[ours], np.asarray(guess.boxes)[theirs], atol=1e-6)
    np.testing.assert_allclose(found["score"].to_numpy()[ours], np.asarray(guess.scores)[theirs], atol=1e-6)


@pytest.mark.parametrize(
    "spec", [TileSpec(48, scale=0.5), TileSpec(48, gsd=1.0), TileSpec(48, scale=9.0, gsd=1.0)], ids=str
)
def test_boxes_come_back_at_the_resolution_of_the_image(spec: TileSpec) -> None:
    """Pixels of half a metre, a model of one."""
    small = painted(scattered(3, 120, 90), 120, 90)
    pixels, _ = small.picture.read(0, 0, 120, 90)
    picture = ArrayPicture(pixels.repeat(2, axis=1).repeat(2, axis=2), gsd=0.5)
    image = replace(small, picture=picture, boxes=small.boxes * 2)
    (guess,) = find_objects(Seer(spec), set_of(image))  # type: ignore[arg-type]
    boxes = np.asarray(guess.boxes)
    np.testing.assert_array_equal(boxes[np.lexsort(boxes.T)], image.boxes[np.lexsort(image.boxes.T)])


def test_an_image_smaller_than_a_tile_is_one_tile() -> None:
    image = painted(np.array([[2.0, 3, 9, 8], [10, 1, 14, 12]]), 20, 15)
    seer: Any = Seer(TileSpec(48))
    (guess,) = find_objects(seer, set_of(image))
    assert seer.calls == [1]
    assert len(guess.scores) == 2  # type: ignore[arg-type]


def test_images_without_objects_or_findings_are_scored_too() -> None:
    empty = painted(np.zeros((0, 4)), 30, 30, "empty")
    full = painted(np.array([[2.0, 3, 9, 8]]), 30, 30, "full")
    blind = replace(full, name="blind", picture=ArrayPicture(np.zeros((1, 30, 30), np.uint8)))
    scores = evaluate_objects(Seer(TileSpec(32)), set_of(empty, full, blind))  # type: ignore[arg-type]
    assert scores.per_class["a"]["recall"] == pytest.approx(0.5)


def test_a_real_predictor_scores_objects_that_it_was_taught(tiny_detector: DetectorPackage, tiny_weights: Path) -> None:
    predictor = DetectorPredictor(tiny_detector, weights=str(tiny_weights), precision="32")
    objects = scenes(3, oriented=True, side=2 * SIDE)
    seen: list[int] = []
    scores = evaluate_objects(predictor, objects, batch_size=4, progress=lambda progress: seen.append(progress.done))
    assert set(scores.per_class) == set(NAMES)
    assert sum(row["objects"] for row in scores.per_class.values()) == 48
    assert seen[-1] == 7  # 27 tiles, nine an image, in batches of four


def test_what_does_not_fit_is_refused(tiny_detector: DetectorPackage, tiny_weights: Path) -> None:
    predictor = DetectorPredictor(tiny_detector, weights=str(tiny_weights), precision="32")
    objects = scenes(1, oriented=True)
    for odd, part in (
        (ObjectSet.of(objects.images, ["x", "y", "z"], oriented=True), "are not those of the model in its order"),
        (scenes(1, oriented=True, bands=("red", "green", "blue", "nir")), "4 bands of uint8 and the model was trained"),
        (scenes(1, oriented=True, bands=("blue", "green", "red")), "takes them in another order"),
        (scenes(1), "are horizontal and the model finds oriented ones"),
    ):
        with pytest.raises(DataError, match=part) as caught:
            evaluate_objects(predictor, odd)
        assert "\n" not in str(caught.value)


def test_oriented_truth_scores_a_horizontal_detector() -> None:
    boxes = np.array([[2.0, 3, 9, 8], [12, 3, 20, 10]])
    image = painted(boxes, 30, 30)
    turned = replace(image, boxes=horizontal_to_oriented(boxes))
    scores = evaluate_objects(Seer(TileSpec(32)), set_of(turned, oriented=True))  # type: ignore[arg-type]
    assert scores.ap50["macro"] == pytest.approx(1.0)

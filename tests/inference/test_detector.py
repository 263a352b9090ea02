"""A detector's package predicts as the detector that was trained, from any thread and in any process."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.tiny_objects import SIDE, TILES, scenes, settings
from torchgeo_debias.backbones import add_adapter, create_backbone
from torchgeo_debias.boxes.convert import canonical
from torchgeo_debias.boxes.overlap import iou
from torchgeo_debias.detection import Detector
from torchgeo_debias.errors import ConfigError, PackageError
from torchgeo_debias.inference.detection_evaluation import find_objects
from torchgeo_debias.inference.detector import NEAR_DUPLICATE, DetectorPredictor
from torchgeo_debias.inference.predictor import BoxPredictor, Found
from torchgeo_debias.package import DetectorPackage

Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]


@pytest.fixture(scope="module")
def predictor(tiny_detector: DetectorPackage, tiny_weights: Path) -> DetectorPredictor:
    return DetectorPredictor(tiny_detector, weights=str(tiny_weights), precision="32")


@pytest.fixture(scope="module")
def images() -> Images:
    windows = [image.picture.read(0, 0, SIDE, SIDE) for image in scenes(6, first=20).images]
    return np.stack([pixels for pixels, _ in windows]), np.stack([valid for _, valid in windows])


def same(one: list[Found], two: list[Found]) -> bool:
    pairs = [(np.asarray(a), np.asarray(b)) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs)


def test_it_tells_what_rasters_ask_of_it(predictor: DetectorPredictor, tiny_detector: DetectorPackage) -> None:
    boxes: BoxPredictor = predictor  # mypy sees to the rest
    assert (boxes.size, boxes.gsd, boxes.oriented) == (SIDE, None, True)
    assert boxes.bands == ("red", "green", "blue")
    assert boxes.dtype == "uint8"
    assert boxes.table == tiny_detector.table
    assert not predictor.twin


def test_answers_are_what_they_should_be(predictor: DetectorPredictor, images: Images) -> None:
    answers = predictor.predict(*images)
    assert len(answers) == len(images[0])
    assert any(len(found.scores) for found in answers)
    for found in answers:
        assert [str(part.dtype) for part in found] == ["float64", "float32", "int64"]
        assert found.boxes.shape == (len(found.scores), 5)
        assert ((found.scores >= 0.05) & (found.scores <= 1)).all()
        assert (np.diff(found.scores) <= 0).all()
        np.testing.assert_allclose(canonical(found.boxes), found.boxes)


def test_it_computes_what_the_trained_detector_does(
    predictor: DetectorPredictor, tiny_detector: DetectorPackage, tiny_weights: Path, images: Images
) -> None:
    """The detector with its LoRA beside the weights, put together by hand."""
    from peft import set_peft_model_state_dict

    config = settings(tiny_weights, oriented=True)
    backbone = create_backbone(config.backbone, size=SIDE, weights=config.weights)
    detector = Detector(backbone, 3, config.detector)
    add_adapter(backbone, config.adapter)
    adapter = tiny_detector.model.adapter
    assert adapter is not None
    set_peft_model_state_dict(backbone.model, adapter.tensors)
    detector.load_state_dict(tiny_detector.model.tensors, strict=False)
    with torch.inference_mode():
        normal = tiny_detector.normalisation(*(torch.from_numpy(part) for part in images))
        outputs = detector.eval()(normal)
    expected = detector.predict(outputs, min_score=0.05, nms=NEAR_DUPLICATE)
    for found, wanted in zip(predictor.predict(*images), expected, strict=True):
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.boxes[:, :4], wanted.boxes[:, :4], atol=1e-2)


def closest(boxes: npt.NDArray[np.float64], classes: npt.NDArray[np.int64]) -> float:
    """The largest overlap of two boxes of one class."""
    one, other = np.nonzero(np.triu(classes[:, None] == classes, 1))
    return float(iou(boxes[one], boxes[other]).max(initial=0))


@pytest.mark.parametrize(("limit", "expected"), [(0.6, (0.5, 0.6)), (NEAR_DUPLICATE, (0.7, NEAR_DUPLICATE))])
def test_only_near_duplicates_are_suppressed_within_a_tile(
    limit: float,
    expected: tuple[float, float],
    predictor: DetectorPredictor,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What overlaps less is left to the rule of the run."""
    monkeypatch.setattr("torchgeo_debias.inference.detector.NEAR_DUPLICATE", limit)
    overlaps = [closest(found.boxes, found.classes) for found in predictor.predict(*images)]
    assert expected[0] < max(overlaps) <= expected[1]


@pytest.mark.parametrize("suppression", [0.3, 0.5, 0.7])
def test_the_suppression_of_the_run_holds_within_a_tile(predictor: DetectorPredictor, suppression: float) -> None:
    guesses = find_objects(predictor, scenes(6, first=20, oriented=True), suppression=suppression)
    overlaps = [closest(np.asarray(guess.boxes), np.asarray(guess.classes)) for guess in guesses]
    assert suppression - 0.1 < max(overlaps) <= suppression


def test_batches_do_not_matter(predictor: DetectorPredictor, images: Images) -> None:
    whole = predictor.predict(*images)
    for i, found in enumerate(whole):
        (alone,) = predictor.predict(images[0][i : i + 1], images[1][i : i + 1])
        np.testing.assert_allclose(alone.scores, found.scores, rtol=1e-4, atol=1e-6)


def test_threads_do_not_disturb_each_other(predictor: DetectorPredictor, images: Images) -> None:
    expected = predictor.predict(*images)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: predictor.predict(*images), range(8)))
    assert all(same(answer, expected) for answer in answers)


def test_the_number_of_threads_holds_in_every_thread(
    tiny_detector: DetectorPackage, tiny_weights: Path, images: Images
) -> None:
    mine = DetectorPredictor(tiny_detector, weights=str(tiny_weights), precision="32")

    def threads() -> int:
        mine.predict(*images)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    mine.use_threads(2)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_invalid_pixels_are_not_looked_at(predictor: DetectorPredictor, images: Images) -> None:
    pixels, valid = images[0].copy(), images[1].copy()
    valid[:, 40:] = False
    first = predictor.predict(pixels, valid)
    pixels[:, :, 40:] = 255 - pixels[:, :, 40:]
    assert same(predictor.predict(pixels, valid), first)


def test_another_process_gets_the_same(
    tiny_detector: DetectorPackage, tiny_weights: Path, tmp_path: Path, images: Images
) -> None:
    tiny_detector.save(tmp_path / "model.tgd")
    for raw in (False, True):
        one = DetectorPredictor.load(tmp_path / "model.tgd", weights=str(tiny_weights), precision="32", raw=raw)
        two = pickle.loads(pickle.dumps(one))
        assert two.identity == one.identity
        assert same(two.predict(*images), one.predict(*images))


def test_a_model_in_memory_cannot_be_sent(predictor: DetectorPredictor) -> None:
    with pytest.raises(ConfigError, match="in memory alone"):
        pickle.dumps(predictor)


def test_identities_tell_models_apart(
    predictor: DetectorPredictor, tiny_detector: DetectorPackage, tiny_weights: Path
) -> None:
    def identity(package: DetectorPackage, **options: object) -> str:
        return DetectorPredictor(package, weights=str(tiny_weights), **options).identity  # type: ignore[arg-type]

    assert identity(tiny_detector, precision="32") == predictor.identity
    assert identity(replace(tiny_detector, metrics={"new": 1}), precision="32") == predictor.identity
    others = {
        identity(tiny_detector, precision="32", raw=True),
        identity(tiny_detector, precision="bf16"),
        identity(replace(tiny_detector, spec=replace(TILES, gsd=0.5)), precision="32"),
        predictor.identity,
    }
    assert len(others) == 4


def test_half_precision_finds_about_the_same(
    tiny_detector: DetectorPackage, tiny_weights: Path, images: Images
) -> None:
    found = DetectorPredictor(tiny_detector, weights=str(tiny_weights), precision="bf16").predict(*images)
    for one in found:
        assert np.isfinite(one.boxes).all()
        assert np.isfinite(one.scores).all()


def test_without_a_twin_there_is_none(tiny_detector: DetectorPackage, tiny_weights: Path) -> None:
    with pytest.raises(ConfigError, match="keeps no biased twin"):
        DetectorPredictor(replace(tiny_detector, raw=None), weights=str(tiny_weights), raw=True)


def test_other_weights_are_refused(tiny_detector: DetectorPackage) -> None:
    with pytest.raises(PackageError, match="not those the model was trained on"):
        DetectorPredictor(tiny_detector, weights="random")

"""Thresholds of a model from chips and images that it has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.tiny_objects import scenes
from torchgeo_debias import Chips, PackagePredictor, read_folder
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation import fit_thresholds
from torchgeo_debias.inference.calibration import calibrate_chips, calibrate_objects
from torchgeo_debias.inference.detector import DetectorPredictor
from torchgeo_debias.inference.evaluation import predict_chips
from torchgeo_debias.package import DetectorPackage, ModelPackage


@pytest.fixture(scope="module")
def predictor(tiny_package: ModelPackage, tiny_weights: Path) -> PackagePredictor:
    return PackagePredictor(tiny_package, weights=str(tiny_weights), precision="32")


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    counts = {"bare": 120, "field": 60, "water": 10}
    return read_folder(tiny.write_images(tmp_path_factory.mktemp("new") / "land", counts, seed=7), tiny.CHIP)


def test_thresholds_are_those_of_the_scores_of_the_model(predictor: PackagePredictor, chips: Chips) -> None:
    found = calibrate_chips(predictor, chips, recall=0.9, abstain="omit", seed=3)
    scores = predict_chips(predictor, chips).probabilities
    assert found.thresholds == fit_thresholds(chips.labels, scores, chips.table, recall=0.9, abstain="omit", seed=3)
    assert [one.samples for one in found.thresholds.classes] == [96, 48, 10]
    assert found.thresholds.guaranteed.all()
    for name, row in found.scores.per_class.items():
        coverage = row["coverage"]
        assert coverage is not None
        assert coverage >= 0.85, name


def test_new_chips_are_covered(predictor: PackagePredictor, chips: Chips, tmp_path: Path) -> None:
    found = calibrate_chips(predictor, chips, recall=0.9)
    package = replace(predictor.package, thresholds=found.thresholds)
    limited: Any = PackagePredictor(package, weights=predictor._weights, precision="32")
    new = read_folder(tiny.write_images(tmp_path / "land", {"bare": 80, "field": 80, "water": 80}, seed=9), tiny.CHIP)
    possible = found.thresholds.possible(predict_chips(limited, new).probabilities)
    for i in range(3):
        assert possible[new.labels == i, i].mean() >= 0.75  # 0.9 but for the luck of the draw


def test_a_model_with_thresholds_is_not_calibrated_on_top(
    predictor: PackagePredictor, chips: Chips, tiny_detector: DetectorPackage, tiny_weights: Path
) -> None:
    thresholds = calibrate_chips(predictor, chips).thresholds
    limited = PackagePredictor(replace(predictor.package, thresholds=thresholds), weights=str(tiny_weights))
    with pytest.raises(ConfigError, match="load it without them"):
        calibrate_chips(limited, chips)
    detector = DetectorPredictor(tiny_detector, weights=str(tiny_weights))
    found = calibrate_objects(detector, scenes(2, oriented=True)).thresholds
    again = DetectorPredictor(replace(tiny_detector, thresholds=found), weights=str(tiny_weights))
    with pytest.raises(ConfigError, match="load it without them"):
        calibrate_objects(again, scenes(2, oriented=True))


def test_data_that_do_not_fit_are_refused(
    predictor: PackagePredictor, chips: Chips, tiny_detector: DetectorPackage, tiny_weights: Path
) -> None:
    with pytest.raises(DataError, match="no chips"):
        calibrate_chips(predictor, chips.subset([]))
    turned = replace(chips, table=replace(chips.table, names=chips.table.names[::-1]))
    with pytest.raises(DataError, match="are not those of the model"):
        calibrate_chips(predictor, turned)
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        calibrate_chips(predictor, chips, recall=1.0)
    detector = DetectorPredictor(tiny_detector, weights=str(tiny_weights))
    with pytest.raises(DataError, match="horizontal"):
        calibrate_objects(detector, scenes(2))


def test_the_thresholds_of_a_detector_are_counted_on_all_objects(
    tiny_detector: DetectorPackage, tiny_weights: Path
) -> None:
    detector = DetectorPredictor(tiny_detector, weights=str(tiny_weights), precision="32")
    objects = scenes(8, oriented=True, first=60)
    found = calibrate_objects(detector, objects, recall=0.5)
    labels = np.concatenate([image.labels for image in objects.images])
    assert [one.samples for one in found.thresholds.classes] == np.bincount(labels, minlength=3).tolist()
    assert found.thresholds.facts["images"] == 8

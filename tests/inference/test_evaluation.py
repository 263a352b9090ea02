"""Scores of a package on labelled chips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from torchgeo_debias import Chips, ClassTable, PackagePredictor, evaluate_chips, read_folder
from torchgeo_debias.errors import Cancelled, DataError
from torchgeo_debias.inference.evaluation import predict_chips, report_facts, write_evaluation
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.progress import Progress


@pytest.fixture(scope="module")
def predictor(tiny_package: ModelPackage, tiny_weights: Path) -> PackagePredictor:
    return PackagePredictor(tiny_package, weights=str(tiny_weights), precision="32")


@pytest.fixture(scope="module")
def chips(tiny_images: Path) -> Chips:
    return read_folder(tiny_images, tiny.CHIP)


def test_chips_keep_their_order_whatever_the_batch(predictor: PackagePredictor, chips: Chips) -> None:
    whole, parts = predict_chips(predictor, chips), predict_chips(predictor, chips, batch_size=7)
    assert whole.probabilities.shape == (len(chips), 3)
    assert np.allclose(whole.probabilities, parts.probabilities, atol=1e-5)
    assert whole.raw is not None
    assert parts.raw is not None
    assert np.allclose(whole.raw, parts.raw, atol=1e-5)


def test_scores_are_those_of_the_predictions(predictor: PackagePredictor, chips: Chips) -> None:
    prediction = predict_chips(predictor, chips)
    result = evaluate_chips(predictor, chips)
    assert result.raw is not None
    assert prediction.raw is not None
    for scores, probabilities in ((result.scores, prediction.probabilities), (result.raw, prediction.raw)):
        right = probabilities.argmax(axis=1) == chips.labels
        assert scores.accuracy == pytest.approx(right.mean())
        assert np.sum(scores.confusion) == len(chips)


def test_a_model_without_a_twin_has_one_score(
    tiny_package: ModelPackage, tiny_weights: Path, chips: Chips, tmp_path: Path
) -> None:
    package = replace(tiny_package, raw=None)
    result = evaluate_chips(PackagePredictor(package, weights=str(tiny_weights)), chips)
    assert result.raw is None
    assert result.to_json(package)["raw"] is None
    write_evaluation(tmp_path / "report.html", result, package, source="land", split="all")
    assert "land" in (tmp_path / "report.html").read_text()


def test_the_json_says_what_a_repetition_needs(predictor: PackagePredictor, chips: Chips) -> None:
    values = evaluate_chips(predictor, chips).to_json(predictor.package)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values["f1"]) == {"head", "middle", "tail", "macro"}
    assert values["counts"] == tiny.TRAIN_COUNTS
    assert values["seed"] == 0
    assert set(values["per_class"]) == set(tiny.COUNTS)
    assert values["versions"] == predictor.package.provenance["versions"]


def test_report_facts_name_seed_weights_and_versions(tiny_package: ModelPackage) -> None:
    facts = report_facts(tiny_package, {"Data": "land"})
    assert facts["Data"] == "land"
    assert facts["Seed"] == "0"
    assert facts["Views of a chip"] == "4"
    assert tiny_package.backbone.digest[:12] in facts["Backbone"]
    assert "torch " in facts["Versions"]


@pytest.mark.parametrize("names", [("water", "field", "bare"), ("bare", "field"), ("bare", "field", "sea")])
def test_classes_in_another_order_are_not_silently_mixed_up(
    predictor: PackagePredictor, chips: Chips, names: tuple[str, ...]
) -> None:
    labels = np.minimum(chips.labels, len(names) - 1)
    other = replace(chips, labels=labels, table=ClassTable.from_labels(labels, names))
    with pytest.raises(DataError, match="are not those of the model"):
        evaluate_chips(predictor, other)


def test_no_chips_are_no_test(predictor: PackagePredictor, chips: Chips) -> None:
    with pytest.raises(DataError, match="no chips to score"):
        evaluate_chips(predictor, chips.subset([]))


def test_it_can_be_cancelled(predictor: PackagePredictor, chips: Chips) -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == 2:
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled):
        predict_chips(predictor, chips, batch_size=5, progress=stop)
    assert seen == [Progress("predict", done, 6) for done in range(3)]

"""Trainings that hold out a test, and what they tell of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny, tiny_objects
from tests.cli.test_detection import Sets, small
from tests.cli.verbs import Run, map_options, train_options
from torchgeo_debias import Chips, ChipSpec, PackagePredictor, chips_from_layer, evaluate_chips
from torchgeo_debias.data import split_apart
from torchgeo_debias.data.synthetic import Scene, write_scene
from torchgeo_debias.package import DetectorPackage, ModelPackage, load_package


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    counts = {"house": 30, "storage_tank": 15, "vehicle": 8}
    return write_scene(tmp_path_factory.mktemp("held_out"), size=1536, counts=counts, test_count=2)


@pytest.fixture(scope="module")
def chips(scene: Scene) -> Chips:
    return chips_from_layer([scene.raster], scene.labels, "class", ChipSpec(tiny.CHIP, window=64), background=10)


def labelled(scene: Scene) -> tuple[object, ...]:
    return (
        "--raster", scene.raster, "--labels", scene.labels, "--class-field", "class", "--window", 64,
        "--background", 10,
    )  # fmt: skip


def test_held_out_chips_of_a_raster_are_scored_kept_and_reported(
    run: Run, scene: Scene, chips: Chips, tiny_weights: Path, tmp_path: Path
) -> None:
    model, report = tmp_path / "model", tmp_path / "report.html"
    options = (*labelled(scene), "--hold-out", 0.3, "--report", report, "--out", model, *train_options(tiny_weights))
    found = run("train", *options, "--json").json["hold_out"]
    split = split_apart(chips, 0.3, seed=0)
    counts = len(split.kept), len(split.held), len(split.left_out)
    assert (found["training"], found["test"], found["left_out"]) == counts
    assert (found["share"], found["seed"]) == (0.3, 0)
    assert found["by"] == f"blocks of ground, {split.windows} chip windows wide"

    package = ModelPackage.load(model)
    assert package.metrics == {"hold_out": found}
    assert package.table.counts == tuple(np.bincount(chips.labels[split.kept]))
    assert (package.provenance["hold_out"], package.provenance["training_chips"]) == (0.3, len(split.kept))
    predictor = PackagePredictor(package, weights=str(tiny_weights), precision="32")
    again = evaluate_chips(predictor, chips.subset(split.held))
    assert found["scores"] == json.loads(json.dumps(again.scores.to_json()))
    assert again.raw is not None
    assert found["raw"] == json.loads(json.dumps(again.raw.to_json()))

    page = report.read_text()
    held = f"30 % held out by {found['by']} (seed 0): {found['test']} chips to test, {found['training']} to train"
    for part in (held, "scene.tif", "Each class has one F1", "vehicle", "debLoRA"):
        assert part in page


def test_people_read_the_scores_of_the_test(run: Run, scene: Scene, tiny_weights: Path, tmp_path: Path) -> None:
    options = (*labelled(scene), "--hold-out", 0.3, "--out", tmp_path / "model.tgd", *train_options(tiny_weights))
    result = run("train", *options, "--imbalance", 3)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[4].startswith("30 % held out by blocks of ground")
    assert lines[5].split() == ["F1", "LoRA", "model"]
    assert lines[-1] == f"Model written to {tmp_path / 'model.tgd'}"
    # The training is thinned, the test is not.
    package = load_package(tmp_path / "model.tgd")
    objects = [
        row for row in package.metrics["hold_out"]["scores"]["per_class"].values() if row["group"] != "background"
    ]
    assert max(row["train_count"] for row in objects) < 20
    assert sum(row["support"] for row in objects) > 10


def test_a_folder_is_held_out_by_images_that_evaluate_finds_again(
    run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    options = ("--data", tiny_images, "--hold-out", 0.4, "--out", model, *train_options(tiny_weights))
    found = run("train", *options, "--json").json["hold_out"]
    assert (found["by"], found["training"], found["test"], found["left_out"]) == ("images", 18, 12, 0)
    scores = run("evaluate", "--data", tiny_images, *map_options(model, tiny_weights), "--json").json
    assert found["scores"] == {key: scores[key] for key in found["scores"]}
    assert [row["support"] for row in scores["per_class"].values()] == [6, 4, 2]


def test_without_a_test_there_are_no_scores(run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    options = ("--data", tiny_images, "--method", "probe", "--out", tmp_path / "model", *train_options(tiny_weights))
    assert run("train", *options, "--json").json["hold_out"] is None
    assert ModelPackage.load(tmp_path / "model").metrics == {}


def test_a_detector_is_scored_on_the_images_it_holds_out(run: Run, tiny_weights: Path, tmp_path: Path) -> None:
    sets = Sets(tmp_path)
    config = tmp_path / "small.json"
    config.write_text(json.dumps({"detector": {"channels": 32, "convs": 1, "levels": 2, "up": 2}}))
    model, report = tmp_path / "model", tmp_path / "report.html"
    images: list[Any] = sets.options("dota")
    options = (*images, "--method", "lora", "--hold-out", 0.4, "--report", report, "--out", model)
    found = run("train-detector", *options, *small(tiny_weights, config), "--json").json["hold_out"]
    again = run("evaluate-detector", *images, "--split", "test", *map_options(model, tiny_weights), "--json").json
    assert (found["scores"], found["raw"]) == (again["scores"], None)
    package = DetectorPackage.load(model)
    assert package.metrics == {"hold_out": found}
    assert found["training"] == package.provenance["training_images"]
    assert found["training"] + found["test"] == len(sets.objects)
    page = report.read_text()
    for part in (f"40 % held out by images (seed 0): {found['test']} images to test", "AP50", tiny_objects.NAMES[0]):
        assert part in page


@pytest.mark.parametrize("verb", ["train", "train-detector"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--report", "report.html"), "--report needs --hold-out SHARE"),
        (("--hold-out", 1), "must lie between 0 and 1; received 1.0"),
        (("--hold-out", 0.2, "--report", "report.txt"), "the name must end in .html, .htm"),
        (("--hold-out", 0.2, "--report", "nowhere/report.html"), "nowhere"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_anything_is_read(
    run: Run, tmp_path: Path, verb: str, options: tuple[object, ...], sentence: str
) -> None:
    result = run(verb, "--data", tmp_path / "missing", "--out", tmp_path / "model", "--quiet", *options)
    assert sentence in result.sentence
    assert tiny.listing(tmp_path) == []


def test_a_test_that_cannot_be_held_out_is_refused(
    run: Run, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path
) -> None:
    tiny.write_images(tmp_path / "data" / "train")
    tiny.write_images(tmp_path / "data" / "test", {"bare": 1})
    base = ("train", "--out", tmp_path / "model", "--hold-out", 0.2, *train_options(tiny_weights))
    assert "has train and test already" in run(*base, "--data", tmp_path / "data").sentence
    wide = ("--raster", tiny_scene.raster, "--labels", tiny_scene.labels, "--class-field", "class", "--window", 5000)
    assert "No chip can be held out" in run(*base, *wide).sentence

"""The verb that finds thresholds, and the verbs that obey them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest

from tests import tiny
from tests.cli.test_detection import Sets, config, detector, ground, sets, small  # noqa: F401 - fixtures
from tests.cli.verbs import Run, map_options, train_options
from torchgeo_debias.cli.calibration import _trained_on
from torchgeo_debias.data.synthetic import Scene
from torchgeo_debias.package import MODEL, load_package


@pytest.fixture
def land(tmp_path: Path) -> Path:
    """Images that the tiny model has not seen."""
    return tiny.write_images(tmp_path / "new" / "land", {"bare": 60, "field": 40, "water": 12}, seed=5)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def use(weights: Path) -> tuple[str, ...]:
    return "--weights", str(weights), "--precision", "32", "--quiet"


def test_thresholds_go_into_the_package_and_evaluate_obeys_them(
    run: Run, model: Path, land: Path, tiny_weights: Path
) -> None:
    split = ("--data", land, "--split", "all")
    before = run("evaluate", "--model", model, *split, *use(tiny_weights), "--json").json
    assert before["decisions"] is None
    found = run("calibrate", "--model", model, *split, "--recall", "0.8", *use(tiny_weights), "--json").json
    thresholds = load_package(model).thresholds
    assert thresholds is not None
    assert found["thresholds"] == thresholds.to_json()
    assert found["model"] == str(model)
    assert thresholds.recall == 0.8
    assert thresholds.guaranteed.all()
    assert thresholds.facts["data"] == "land"
    obeyed = run("evaluate", "--model", model, *split, *use(tiny_weights), "--json").json
    assert obeyed["decisions"] == found["scores"]
    assert "thresholds" in obeyed["definition"]
    switched_off = run("evaluate", "--model", model, *split, *use(tiny_weights), "--no-thresholds", "--json").json
    assert switched_off == before
    # Found anew, and not on top of the old ones.
    again = run("calibrate", "--model", model, *split, "--recall", "0.8", *use(tiny_weights), "--json").json
    assert again == found


def test_people_read_limits_and_what_has_none(run: Run, model: Path, land: Path, tiny_weights: Path) -> None:
    told = run("calibrate", "--model", model, "--data", land, "--split", "all", "--recall", "0.95", *use(tiny_weights))
    assert told.code == 0, told.err
    assert "No guarantee for water: a recall of 0.95 needs 19 samples" in told.out
    assert "calibration error" in told.out
    assert told.err == ""
    assert f"Thresholds written to {model}" in told.out
    assert "recall 0.95 for 2 of 3 classes" in run("info", model).out
    assert "With the thresholds of the model: coverage" in run(
        "evaluate", "--model", model, "--data", land, "--split", "all", *use(tiny_weights)
    ).out  # fmt: skip


def test_who_gives_the_data_of_the_training_is_warned(run: Run, model: Path, land: Path, tiny_weights: Path) -> None:
    info = json.loads((model / MODEL).read_text())
    info["provenance"]["data"] = "land"
    (model / MODEL).write_text(json.dumps(info))
    told = run("calibrate", "--model", model, "--data", land, "--split", "all", *use(tiny_weights))
    assert told.code == 0
    assert "trained on land too" in told.err


@pytest.mark.parametrize(
    ("known", "source", "rasters", "shared"),
    [
        ("land", "land", [], "land"),
        ("land", "sea", [], ""),
        ("a.tif, b.tif", "b.tif", ["south/b.tif"], "b.tif"),
        ("b.tif", "c.tif, b.tif, a.tif", ["c.tif", "b.tif", "a.tif"], "b.tif"),
        ("a.tif, b.tif", "b.tif, a.tif", ["b.tif", "a.tif"], "a.tif, b.tif"),
        ("a.tif, b.tif", "c.tif", ["c.tif"], ""),
        ("a, b.tif", "a, b.tif", ["a, b.tif"], "a, b.tif"),
        ("", "c.tif", ["c.tif"], ""),
    ],
)
def test_any_raster_of_the_training_is_told(known: str, source: str, rasters: list[str], shared: str) -> None:
    assert _trained_on(known, source, [Path(name) for name in rasters]) == shared


def test_another_package_leaves_the_model_as_it_was(
    run: Run, tiny_model: Path, land: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    before = (tiny_model / MODEL).read_bytes()
    out = tmp_path / "careful.tgd"
    options = ("--data", land, "--split", "all", "--abstain", "unknown", "--out", out)
    assert run("calibrate", "--model", tiny_model, *options, *use(tiny_weights)).code == 0
    assert (tiny_model / MODEL).read_bytes() == before
    thresholds = load_package(out).thresholds
    assert thresholds is not None
    assert thresholds.abstain == "unknown"


@pytest.fixture
def scene_model(run: Run, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path) -> Path:
    options = (
        "--raster", tiny_scene.raster, "--labels", tiny_scene.labels, "--class-field", "class", "--window", "20",
        "--method", "probe", "--background", "20",
    )  # fmt: skip
    assert run("train", *options, "--out", tmp_path / "model", *train_options(tiny_weights)).code == 0
    return tmp_path / "model"


def test_who_gives_one_of_the_rasters_of_the_training_is_warned(
    run: Run, scene_model: Path, tiny_scene: Scene, tiny_weights: Path
) -> None:
    info = json.loads((scene_model / MODEL).read_text())
    assert info["provenance"]["data"] == tiny_scene.raster.name
    info["provenance"]["data"] = f"other.tif, {tiny_scene.raster.name}"
    (scene_model / MODEL).write_text(json.dumps(info))
    labelled = ("--raster", tiny_scene.raster, "--labels", tiny_scene.truth, "--class-field", "class")
    told = run("calibrate", "--model", scene_model, *labelled, *use(tiny_weights))
    assert told.code == 0, told.err
    assert f"trained on {tiny_scene.raster.name} too" in told.err


def test_labels_of_a_raster_do_as_well_and_maps_obey(
    run: Run, scene_model: Path, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path
) -> None:
    labelled = ("--raster", tiny_scene.raster, "--labels", tiny_scene.truth, "--class-field", "class")
    options = ("--background", "15", "--recall", "0.5", "--abstain", "omit", *use(tiny_weights), "--json")
    found = run("calibrate", "--model", scene_model, *labelled, *options).json
    package: Any = load_package(scene_model)
    truth = gpd.read_file(tiny_scene.truth)["class"].value_counts().to_dict()
    rows = found["thresholds"]["classes"]
    assert {name: row["samples"] for name, row in rows.items()} == {**truth, "background": 15}
    assert list(rows) == list(package.table.names)
    layer = tmp_path / "objects.gpkg"
    classify = ("classify-features", tiny_scene.raster, tiny_scene.footprints, "--out", layer, "--json")
    options = map_options(scene_model, tiny_weights)
    without = run(*classify, *options, "--no-thresholds").json
    # No score reaches 1: all that is known to be an object is then left without a class.
    info = json.loads((scene_model / MODEL).read_text())
    for row in info["thresholds"]["classes"].values():
        row |= {"threshold": 1.0, "guaranteed": True}
    (scene_model / MODEL).write_text(json.dumps(info))
    obeyed = run(*classify, *options).json
    assert sum(without["counts"].values()) == obeyed["tiles"]
    assert sum(obeyed["counts"].values()) == 0
    assert gpd.read_file(layer)["class"].isna().all()
    tiles = ("classify", tiny_scene.raster, "--map", tmp_path / "map.tif", "--batch-size", "16", "--workers", "1")
    assert sum(run(*tiles, "--threads", "1", *options, "--json").json["counts"].values()) == 0
    free = run(*tiles, "--threads", "1", *options, "--no-thresholds", "--json").json
    assert sum(free["counts"].values()) == free["tiles"] - free["skipped"]


def test_detectors_have_them_too(
    run: Run,
    detector: Path,  # noqa: F811
    sets: Sets,  # noqa: F811
    tiny_weights: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "careful"
    data = sets.options("dota")
    found = run("calibrate", "--model", detector, *data, "--recall", "0.5", "--out", out, *use(tiny_weights), "--json")
    thresholds = load_package(out).thresholds
    assert thresholds is not None
    assert found.json["thresholds"] == thresholds.to_json()
    score = ("evaluate-detector", "--model", out, *data, *use(tiny_weights), "--json")
    assert run(*score).json["found"] == found.json["scores"]
    assert run(*score, "--no-thresholds").json["found"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--recall", "1"), "above 0 and below 1"),
        (("--abstain", "sometimes"), "--abstain takes never, omit, unknown"),
        (("--split", "half"), "--split must be"),
        (("--format", "dota"), "--format has no meaning for a classifier"),
        (("--block", "5"), "--block has no meaning for a classifier"),
        (("--area", "0,0,1,1"), "--area has no meaning with --data"),
        (("--background", "3"), "--background has no meaning with --data"),
        (("--raster", "a.tif"), "either --data DIR, or --raster"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_stays(
    run: Run, model: Path, land: Path, tiny_weights: Path, options: tuple[str, ...], sentence: str
) -> None:
    before = (model / MODEL).read_bytes()
    refused = run("calibrate", "--model", model, "--data", land, *use(tiny_weights), *options)
    assert sentence in refused.sentence
    assert (model / MODEL).read_bytes() == before


def test_rasters_need_a_layer_and_have_no_splits(run: Run, model: Path, tiny_scene: Scene, tiny_weights: Path) -> None:
    raster = ("calibrate", "--model", model, "--raster", tiny_scene.raster, *use(tiny_weights))
    assert "--raster needs --labels" in run(*raster).sentence
    assert "--split has no meaning with --raster" in run(*raster, "--split", "test").sentence


def test_classes_that_the_model_does_not_know_are_named(
    run: Run, scene_model: Path, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path
) -> None:
    frame = gpd.read_file(tiny_scene.truth)
    frame.loc[0, "class"] = "zeppelin"
    frame.to_file(tmp_path / "odd.gpkg")
    options = ("--labels", tmp_path / "odd.gpkg", "--class-field", "class", *use(tiny_weights))
    refused = run("calibrate", "--model", scene_model, "--raster", tiny_scene.raster, *options)
    assert "does not know the class 'zeppelin'" in refused.sentence

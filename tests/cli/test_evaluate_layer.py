"""Layers that the verbs write, scored against the labels."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from sklearn import metrics as sk

from tests import tiny_objects
from tests.cli.test_detection import write_ground
from tests.cli.verbs import Run, map_options
from torchgeo_debias.data.synthetic import Scene
from torchgeo_debias.package import DetectorPackage

ALWAYS = ("--class-field", "kind", "--quiet")


@pytest.fixture
def named(run: Run, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path) -> tuple[Path, Path]:
    """What ``classify-features`` says of the footprints of a scene, and a reference of the model's classes."""
    footprints = gpd.read_file(tiny_scene.footprints)
    rng = np.random.default_rng(0)
    footprints["kind"] = rng.choice(["bare", "field", "water"], len(footprints))
    footprints.to_file(tmp_path / "truth.gpkg")
    out = tmp_path / "named.gpkg"
    options = map_options(tiny_model, tiny_weights)
    assert run("classify-features", tiny_scene.raster, tiny_scene.footprints, "--out", out, *options).code == 0
    return out, tmp_path / "truth.gpkg"


def test_what_classify_features_writes_is_scored_with_its_twin(
    run: Run, named: tuple[Path, Path], tmp_path: Path
) -> None:
    said, truth = gpd.read_file(named[0]), gpd.read_file(named[1])
    report = tmp_path / "report.html"
    found = run("evaluate-layer", *named, *ALWAYS, "--report", report, "--json").json
    assert found["scores"]["accuracy"] == sk.accuracy_score(truth["kind"], said["class"])
    assert found["raw"]["accuracy"] == sk.accuracy_score(truth["kind"], said["class_raw"])
    assert found["features"] == len(truth)
    groups = dict(zip(said["class"], said["group"], strict=True))
    assert groups.items() <= {name: row["group"] for name, row in found["scores"]["per_class"].items()}.items()
    assert "F1 twin" in report.read_text()

    result = run("evaluate-layer", *named, *ALWAYS)
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["F1", "twin", "model"]
    assert lines[4] == ["macro", *(f"{100 * found[key]['f1']['macro']:.1f}" for key in ("raw", "scores"))]


def test_what_detect_writes_is_scored_as_evaluate_detector_does(
    run: Run, tiny_detector: DetectorPackage, tiny_weights: Path, tmp_path: Path
) -> None:
    raster, truth = write_ground(tmp_path, tiny_objects.scene(1, oriented=True, side=192))
    tiny_detector.save(tmp_path / "detector")
    options = map_options(tmp_path / "detector", tiny_weights)
    run("detect", raster, "--out", tmp_path / "boxes.gpkg", "--min-score", "0.05", *options)
    labels = ("--raster", raster, "--labels", truth, "--class-field", "kind")
    whole = run("evaluate-detector", *labels, *options, "--json").json["scores"]
    layer = ("evaluate-layer", tmp_path / "boxes.gpkg", truth, *ALWAYS, "--how", "objects")
    found = run(*layer, "--min-score", "0.3", "--json").json
    assert found["raw"] is None
    assert found["measured_in"] == "WGS 84 / UTM zone 33N"
    for name, row in found["scores"]["per_class"].items():  # evaluate-detector takes a hundred boxes of a class
        assert row["objects"] == whole["per_class"][name]["objects"]
        if row["objects"]:
            assert row["ap50"] == pytest.approx(whole["per_class"][name]["ap50"], abs=0.05)
    assert whole["ap50"]["macro"] > 0.1
    people = run(*layer, "--min-score", "0.3")
    assert (people.code, people.err) == (0, "")
    groups = ["head", "middle", "tail", "macro"]
    assert [line.split()[0] for line in people.out.splitlines()[:13]] == [
        "AP50", *groups, "No", "From", "precision", *groups, "overall",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--how", "pixels"), "--how takes features, objects; received 'pixels'."),
        (("--iou", "0.5"), "--iou has no meaning with --how features: leave it out."),
        (("--report", "report.pdf"), "Cannot write report.pdf: the name must end in .html, .htm."),
        (("--report", "nowhere/report.html"), "nowhere"),
        (("--area", ""), "--area is empty"),
        (("--predicted-field", "sort"), "has no field 'sort'"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    run: Run, tiny_scene: Scene, options: tuple[str, ...], sentence: str
) -> None:
    layers = (tiny_scene.footprints, tiny_scene.labels)
    assert sentence in run("evaluate-layer", *layers, "--class-field", "class", "--quiet", *options).sentence

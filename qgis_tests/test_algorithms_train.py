"""Training and evaluation: models and scores are those of the library's own command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Feedback, Sample, library, opened, run
from debias_mapper import jobs
from debias_mapper.runtime.commands import Command
from qgis.core import (
    QgsFeatureRequest,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

EXTENT = "500000,500256,5399744,5399960 [EPSG:32633]"


def quick(sample: Sample, **further: Any) -> dict[str, Any]:
    return {
        "INPUT": sample.scene, "LABELS": sample.labels, "CLASS_FIELD": "kind", "BACKBONE": "timm:test_vit",
        "WEIGHTS": sample.weights, "EPOCHS": 1, "PRECISION": "32", **further,
    }  # fmt: skip


def quick_words(sample: Sample) -> list[object]:
    return [
        "--raster", sample.scene, "--labels", sample.labels, "--class-field", "kind", "--backbone", "timm:test_vit",
        "--weights", sample.weights, "--epochs", 1, "--precision", "32",
    ]  # fmt: skip


def parts(package: object) -> dict[str, str]:
    """The digests of the files of a package: they say whether two models are equal."""
    files: dict[str, str] = library("info", package)["files"]
    return files


def test_a_classifier_is_that_of_the_command(sample: Sample, tmp_path: Path) -> None:
    out, report = str(tmp_path / "model.tgd"), str(tmp_path / "report.html")
    ran = run("train", **quick(sample, CHIP_SIZE=32, WINDOW=32, HOLD_OUT=0.25, OUTPUT=out, REPORT=report))
    words = [*quick_words(sample), "--chip-size", 32, "--window", 32, "--hold-out", 0.25, "--seed", 0]
    said = library("train", *words, "--out", tmp_path / "own.tgd")
    assert parts(out) == parts(tmp_path / "own.tgd")
    assert json.loads(ran.results["TABLE"]) == said["classes"]
    assert ran.results["CLASSES"] == 3
    assert ran.results["OUTPUT"] == out
    assert "<html" in Path(ran.results["REPORT"]).read_text()
    assert len({"Read chips", "Adapt", "Align"} & set(ran.feedback.stages)) == 3


def test_a_detector_is_that_of_the_command(sample: Sample, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"detector": {"channels": 32, "convs": 1, "levels": 2, "up": 2}}))
    out = str(tmp_path / "model.tgd")
    options = {"TILE_SIZE": 64, "HORIZONTAL": True, "METHOD": "lora", "BLOCK": 64, "CONFIG": str(config)}
    run("train_detector", **quick(sample, **options, OUTPUT=out, EXTENT=EXTENT))
    words = [
        *quick_words(sample), "--tile-size", 64, "--horizontal", "--method", "lora", "--block", 64, "--config", config,
        "--seed", 0, "--area", "500000.0,5399744.0,500256.0,5399960.0",
    ]  # fmt: skip
    library("train-detector", *words, "--out", tmp_path / "own.tgd")
    assert parts(out) == parts(tmp_path / "own.tgd")


def test_only_selected_labels_teach(sample: Sample, tmp_path: Path) -> None:
    layer = QgsVectorLayer(sample.labels, "labels", "ogr")
    QgsProject.instance().addMapLayer(layer)
    layer.selectByExpression("number < 40")
    selected = QgsProcessingFeatureSourceDefinition(layer.id(), selectedFeaturesOnly=True)
    out = str(tmp_path / "model.tgd")
    options = {"CHIP_SIZE": 32, "METHOD": "probe", "LABELS": selected, "OUTPUT": out}
    table = json.loads(run("train", **quick(sample, **options)).results["TABLE"])
    assert sum(entry["count"] for entry in table) == 40


def test_only_labels_in_the_area_teach(sample: Sample, tmp_path: Path) -> None:
    options = {"CHIP_SIZE": 32, "METHOD": "probe", "EXTENT": EXTENT, "OUTPUT": str(tmp_path / "model.tgd")}
    table = json.loads(run("train", **quick(sample, **options)).results["TABLE"])
    bottom = [each.geometry().centroid().asPoint().y() < 5399960 for each in opened(sample.labels).getFeatures()]
    assert sum(entry["count"] for entry in table) == sum(bottom) < 64


def test_a_cancelled_training_leaves_no_model(sample: Sample, tmp_path: Path) -> None:
    feedback = Feedback(cancel_at="Adapt")
    out = tmp_path / "model.tgd"
    ran = run("train", feedback, **quick(sample, CHIP_SIZE=32, EPOCHS=50, OUTPUT=str(out)))
    assert (ran.results, list(tmp_path.iterdir())) == ({}, [])


def test_scores_are_those_of_the_command(sample: Sample, tmp_path: Path) -> None:
    guess = QgsVectorLayer(sample.labels, "my guess", "ogr").materialize(QgsFeatureRequest())
    guess.setName("my guess")
    column = guess.fields().lookupField("kind")
    changes = {each.id(): {column: "red"} for each in guess.getFeatures() if each["number"] % 3 == 0}
    guess.dataProvider().changeAttributeValues(changes)
    report, scores = tmp_path / "report.html", tmp_path / "scores.json"
    ran = run(
        "evaluate", PREDICTIONS=guess, PREDICTED_FIELD="kind", REFERENCE=sample.labels, CLASS_FIELD="kind",
        EXTENT=EXTENT, REPORT=str(report), JSON=str(scores),
    )  # fmt: skip
    own = tmp_path / "my_guess.gpkg"
    QgsVectorFileWriter.writeAsVectorFormatV3(
        guess, str(own), QgsProject.instance().transformContext(), QgsVectorFileWriter.SaveVectorOptions()
    )
    words = ["--class-field", "kind", "--predicted-field", "kind", "--area", "500000,5399744,500256,5399960"]
    said = library("evaluate-layer", own, sample.labels, *words)
    found = json.loads(ran.results["SCORES"])
    assert found["scores"] == said["scores"]
    assert json.loads(scores.read_text()) == found
    assert ran.results["MACRO"] == said["scores"]["f1"]["macro"]
    assert 0 < ran.results["MACRO"] < 1
    assert "my_guess" in report.read_text()


def test_detected_objects_are_scored_beside_those_of_the_twin(sample: Sample, tmp_path: Path) -> None:
    out = str(tmp_path / "found.gpkg")
    model = {"INPUT": sample.scene, "MODEL": sample.detector, "WEIGHTS": sample.weights, "MIN_SCORE": 0.05}
    run("detect", **model, OUTPUT=out)
    ran = run(
        "evaluate", PREDICTIONS=out, REFERENCE=sample.labels, CLASS_FIELD="kind", HOW="objects",
        REPORT=str(tmp_path / "r.html"),
    )  # fmt: skip
    said = library("evaluate-layer", out, sample.labels, "--class-field", "kind", "--how", "objects")
    found = json.loads(ran.results["SCORES"])
    assert found["scores"] == said["scores"]
    assert {name: ran.results.get(name) for name in ("MACRO", "HEAD", "TAIL")} == {
        name: said["scores"]["ap50"][name.lower()] for name in ("MACRO", "HEAD", "TAIL")
    }


def writing(names: list[str]) -> Any:
    """In place of the worker: writes the files that these options of a command name."""

    def run_command(command: Command, *rest: Any, **further: Any) -> dict[str, Any]:
        for name in names:
            Path(command.arguments[command.arguments.index(name) + 1]).write_text(name)
        return {}

    return run_command


def test_temporary_files_lie_where_the_results_say(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "run_command", writing(["--out", "--report"]))
    trained = run("train", **quick(sample, OUTPUT="TEMPORARY_OUTPUT", REPORT="TEMPORARY_OUTPUT")).results
    assert [Path(trained[name]).read_text() for name in ("OUTPUT", "REPORT")] == ["--out", "--report"]
    monkeypatch.setattr(jobs, "run_command", writing(["--report"]))
    scored = run(
        "evaluate", PREDICTIONS=sample.labels, REFERENCE=sample.labels, CLASS_FIELD="kind", PREDICTED_FIELD="kind",
        REPORT="TEMPORARY_OUTPUT", JSON="TEMPORARY_OUTPUT",
    ).results  # fmt: skip
    assert Path(scored["REPORT"]).read_text() == "--report"
    assert json.loads(Path(scored["JSON"]).read_text()) == {}
    status = run("environment_status", PROBE=False, JSON="TEMPORARY_OUTPUT").results
    assert json.loads(Path(status["JSON"]).read_text()) == json.loads(status["STATUS"])


def test_only_a_model_may_be_named_by_the_file_in_its_folder(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run_command(command: Command, *rest: Any, **further: Any) -> dict[str, Any]:
        said.extend(command.arguments)
        return {}

    monkeypatch.setattr(jobs, "run_command", run_command)
    config = tmp_path / "model.json"
    config.write_text("{}")
    run("train", **quick(sample, CONFIG=str(config), OUTPUT=str(tmp_path / "m.tgd")))
    assert said[said.index("--config") + 1] == str(config)


def test_an_extent_without_a_crs_is_in_that_of_the_reference(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run_command(command: Command, *rest: Any, **further: Any) -> dict[str, Any]:
        said.extend(command.arguments)
        return {}

    monkeypatch.setattr(jobs, "run_command", run_command)
    run(
        "evaluate", PREDICTIONS=sample.labels, REFERENCE=sample.labels, CLASS_FIELD="kind", PREDICTED_FIELD="kind",
        EXTENT="500000,500256,5399744,5399960", REPORT=str(tmp_path / "r.html"),
    )  # fmt: skip
    assert said[said.index("--area") + 1] == "500000.0,5399744.0,500256.0,5399960.0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"CLASS_FIELD": "colour"}, "The layer labels has no field colour"),
        ({"PREDICTED_FIELD": "kind", "IOU": 0.5}, "--iou has no meaning with --how features"),
        ({"PREDICTED_FIELD": "class"}, "The layer labels has no field class"),
    ],
)
def test_evaluations_that_cannot_be_end_with_a_sentence(
    sample: Sample, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    usual = {
        "PREDICTIONS": sample.labels, "REFERENCE": sample.labels, "CLASS_FIELD": "kind", "PREDICTED_FIELD": "kind",
        "REPORT": str(tmp_path / "r.html"),
    }  # fmt: skip
    with pytest.raises(QgsProcessingException, match=sentence):
        run("evaluate", **{**usual, **change})
    assert not list(tmp_path.iterdir())

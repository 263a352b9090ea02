"""Every algorithm from the command line of QGIS, with a profile of its own: results are those of the library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import PLUGINS, PYTHON, Sample, library, opened, pixels, plain_environment, rows
from qgis.core import QgsRasterLayer

PROGRAM = "/usr/bin/qgis_process"
PATIENCE = 240
HELLO = '{"type":"hello","protocol":1,"library":"0","python":"3","pid":1,"verbs":["detect"]}'


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)["results"]
        return found


@dataclass(frozen=True)
class Process:
    """``qgis_process`` with a profile."""

    profile: Path

    def environment(self, python: str | None = PYTHON) -> dict[str, str]:
        environment = {
            **plain_environment(), "PATH": "/usr/bin:/bin", "QT_QPA_PLATFORM": "offscreen",
            "QGIS_PLUGINPATH": str(PLUGINS), "QGIS_CUSTOM_CONFIG_PATH": str(self.profile),
            "XDG_DATA_HOME": str(self.profile / "data"),
        }  # fmt: skip
        environment.pop("TORCHGEO_DEBIAS_PYTHON", None)
        return environment if python is None else {**environment, "TORCHGEO_DEBIAS_PYTHON": python}

    def command(self, *words: str, python: str | None = PYTHON) -> Done:
        done = subprocess.run(
            [PROGRAM, *words], check=False, capture_output=True, text=True, timeout=PATIENCE,
            env=self.environment(python),
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, name: str, python: str | None = PYTHON, **parameters: Any) -> Done:
        return self.command("--json", "run", f"debias:{name}", "--", *flags(parameters), python=python)


def flags(parameters: dict[str, Any]) -> list[str]:
    many = {name: value if isinstance(value, list) else [value] for name, value in parameters.items()}
    return [f"{name}={value}" for name, values in many.items() for value in values]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Process:
    made = Process(tmp_path_factory.mktemp("profile"))
    done = made.command("plugins", "enable", "debias_mapper")
    assert done.code == 0, done.err
    return made


@pytest.fixture(scope="module")
def runs(process: Process, sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """All algorithms, two at a time."""
    folder = tmp_path_factory.mktemp("results")
    raster = {"INPUT": sample.scene, "WEIGHTS": sample.weights}
    classifier, detector = {**raster, "MODEL": sample.classifier}, {**raster, "MODEL": sample.detector}
    labels = {"LABELS": sample.labels, "CLASS_FIELD": "kind", "BACKBONE": "timm:test_vit", "EPOCHS": 1}
    config = folder / "config.json"
    config.write_text(json.dumps({"detector": {"channels": 32, "convs": 1, "levels": 2, "up": 2}}))
    jobs: dict[str, dict[str, Any]] = {
        "train": {**raster, **labels, "METHOD": "probe", "CHIP_SIZE": 32, "OUTPUT": folder / "train.tgd"},
        "train_detector": {
            **raster, **labels, "METHOD": "lora", "TILE_SIZE": 64, "CONFIG": config, "OUTPUT": folder / "detector.tgd",
        },
        "classify_tiles": {
            **classifier, "BANDS": [1, 2, 3], "EXTENT": "500060,500190,5399800,5399930 [EPSG:32633]",
            "OUTPUT": folder / "tiles.gpkg",
        },
        "classify_pixels": {**classifier, "OUTPUT": folder / "classes.tif"},
        "classify_features": {**classifier, "FEATURES": sample.labels, "OUTPUT": folder / "features.gpkg"},
        "detect": {**detector, "MIN_SCORE": 0.05, "AREA": sample.labels, "OUTPUT": folder / "objects.gpkg"},
        "segment": {
            "INPUT": sample.scene, "SAM_CHECKPOINT": sample.sam, "TILE_SIZE": 64, "BOXES": sample.labels,
            "OUTPUT": folder / "outlines.gpkg",
        },
        "evaluate": {
            "PREDICTIONS": sample.labels, "PREDICTED_FIELD": "kind", "REFERENCE": sample.labels, "CLASS_FIELD": "kind",
            "REPORT": folder / "report.html",
        },
        "environment_status": {"PROBE": "false"},
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(jobs, pool.map(lambda name: process.run(name, **jobs[name]), jobs), strict=True))
    for name, done in found.items():
        assert done.code == 0, f"{name}: {done.out} {done.err}"
    return found


def test_the_provider_is_listed_with_all_algorithms(process: Process, runs: dict[str, Done]) -> None:
    listed = json.loads(process.command("--json", "list").out)["providers"]["debias"]
    assert {name.partition(":")[2] for name in listed["algorithms"]} == set(runs)


def test_help_tells_parameters_and_an_example(process: Process) -> None:
    out = process.command("help", "debias:detect").out
    assert "MIN_SCORE" in out
    assert "qgis_process run debias:detect" in out


def test_tiles_are_those_of_the_library(runs: dict[str, Done], sample: Sample, tmp_path: Path) -> None:
    words = ["--model", sample.classifier, "--weights", sample.weights, "--area", "500060,5399800,500190,5399930"]
    said = library("classify", sample.scene, *words, "--out", tmp_path / "own.gpkg")
    results = runs["classify_tiles"].results
    assert rows(opened(results["OUTPUT"])) == rows(opened(tmp_path / "own.gpkg"))
    assert json.loads(results["COUNTS"]) == said["counts"]


def test_class_rasters_are_those_of_the_library(runs: dict[str, Done], sample: Sample, tmp_path: Path) -> None:
    words = ["--model", sample.classifier, "--weights", sample.weights, "--overlap", 0.5]
    library("classify", sample.scene, *words, "--map", tmp_path / "own.tif")
    out = runs["classify_pixels"].results["OUTPUT"]
    assert pixels(out) == pixels(tmp_path / "own.tif")
    layer = QgsRasterLayer(out)
    assert [entry.label for entry in layer.renderer().classes()][:3] == ["blue", "green", "red"]


def test_named_features_are_those_of_the_library(runs: dict[str, Done], sample: Sample, tmp_path: Path) -> None:
    words = ["--model", sample.classifier, "--weights", sample.weights, "--out", tmp_path / "own.gpkg"]
    library("classify-features", sample.scene, sample.labels, *words)
    assert rows(opened(runs["classify_features"].results["OUTPUT"])) == rows(opened(tmp_path / "own.gpkg"))


def test_objects_are_those_of_the_library(runs: dict[str, Done], sample: Sample, tmp_path: Path) -> None:
    words = ["--model", sample.detector, "--weights", sample.weights, "--min-score", 0.05, "--area", sample.labels]
    library("detect", sample.scene, *words, "--out", tmp_path / "own.gpkg")
    out = runs["detect"].results["OUTPUT"]
    assert rows(opened(out)) == rows(opened(tmp_path / "own.gpkg"))
    layer = opened(f"{out}|layername=objects")
    assert layer.metadata().keywords("debias:model_digest")
    assert layer.renderer().type() == "categorizedSymbol"


def test_outlines_are_those_of_the_library(runs: dict[str, Done], sample: Sample, tmp_path: Path) -> None:
    words = ["--sam-checkpoint", sample.sam, "--tile-size", 64, "--boxes", sample.labels]
    library("segment", sample.scene, *words, "--out", tmp_path / "own.gpkg")
    assert rows(opened(runs["segment"].results["OUTPUT"])) == rows(opened(tmp_path / "own.gpkg"))


def test_models_are_whole_and_told_of(runs: dict[str, Done]) -> None:
    for name, task in (("train", "classification"), ("train_detector", "detection")):
        results = runs[name].results
        info = library("info", results["OUTPUT"])
        assert info["task"] == task
        assert json.loads(results["TABLE"]) == info["classes"]


def test_a_layer_scores_full_marks_against_itself(runs: dict[str, Done]) -> None:
    results = runs["evaluate"].results
    assert results["MACRO"] == 1
    assert "<html" in Path(results["REPORT"]).read_text()


def test_the_status_is_told(runs: dict[str, Done], process: Process) -> None:
    assert runs["environment_status"].results["READY"] is True
    done = process.run("environment_status", python=None)
    assert done.results["READY"] is False
    assert "set one up" in done.results["SENTENCE"]


def test_without_an_environment_the_exit_code_and_a_sentence_say_so(process: Process, sample: Sample) -> None:
    done = process.run("detect", python=None, INPUT=sample.scene, MODEL=sample.detector, OUTPUT="TEMPORARY_OUTPUT")
    assert done.code != 0
    assert "There is no Python environment for the worker yet" in done.out + done.err


def test_a_worker_that_crashes_ends_with_an_exit_code_and_a_sentence(
    process: Process, sample: Sample, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{HELLO}'; read line; kill -11 $$\n")
    python.chmod(0o755)
    out = tmp_path / "out.gpkg"
    done = process.run("detect", python=str(python), INPUT=sample.scene, MODEL=sample.detector, OUTPUT=out)
    assert done.code != 0
    assert "crashed in native code" in done.out + done.err
    assert not out.exists()


def test_a_refused_input_ends_with_an_exit_code_and_the_library_s_sentence(process: Process, sample: Sample) -> None:
    done = process.run("detect", INPUT=sample.scene, MODEL=sample.classifier, OUTPUT="TEMPORARY_OUTPUT")
    assert done.code != 0
    assert "is for classification, not for detection" in done.out + done.err


def test_an_interrupt_cancels_and_leaves_nothing(process: Process, sample: Sample, tmp_path: Path) -> None:
    parameters = {
        "INPUT": sample.scene, "LABELS": sample.labels, "CLASS_FIELD": "kind", "BACKBONE": "timm:test_vit",
        "WEIGHTS": sample.weights, "EPOCHS": 5000, "CHIP_SIZE": 32, "OUTPUT": tmp_path / "model.tgd",
    }  # fmt: skip
    command = ["stdbuf", "-o0", PROGRAM, "run", "debias:train", "--", *flags(parameters)]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**process.environment(), "TMPDIR": str(temporary)}
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "Adapt" in line:
            break
    workers = _workers(str(temporary))
    running.send_signal(signal.SIGINT)
    began = time.monotonic()
    running.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < 30
    assert len(workers) == 1
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)
    assert not (tmp_path / "model.tgd").exists()
    assert not list(temporary.rglob("debias_*"))


def _workers(marker: str) -> list[str]:
    """Numbers of the worker processes whose environment names a folder."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            if b"torchgeo_debias.worker" in command and marker.encode() in environment:
                found.append(folder.name)
    return found

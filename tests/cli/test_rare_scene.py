"""Rare objects from end to end: eight classes with a long tail, learnt in the west of a scene, mapped in its east."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import rasterio

from tests.cli.verbs import Run
from torchgeo_debias.data.synthetic import COUNTS, write_scene

MOST, LEAST = 44, 14


def test_a_long_tail_of_eight_classes_is_learnt_and_mapped(run: Run, tmp_path: Path) -> None:
    names = list(COUNTS)[:8]
    counts = {name: round(MOST * (LEAST / MOST) ** (rank / 7)) for rank, name in enumerate(names)}
    scene = write_scene(tmp_path, size=2048, counts=counts, test_count=12)
    with rasterio.open(scene.raster) as raster:
        left, bottom, right, top = raster.bounds
    west, east = (
        ",".join(map(str, bounds))
        for bounds in ((left, bottom, (left + right) / 2, top), ((left + right) / 2, bottom, right, top))
    )
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"method": "lora", "epochs": 28, "batch_size": 1, "weights": "wheel"}))
    model, found = tmp_path / "model", tmp_path / "found.gpkg"

    taught = ["--raster", scene.raster, "--labels", scene.labels, "--class-field", "class", "--area", west]
    assert run("train-detector", *taught, "--tile-size", 336, "--config", config, "--out", model, "--quiet").code == 0
    sought = ["--area", east, "--min-score", 0.1, "--out", found, "--quiet"]
    assert run("detect", scene.raster, "--model", model, *sought).code == 0
    scored = run("evaluate-layer", found, scene.truth, "--class-field", "class", "--how", "objects", "--json")
    assert scored.code == 0
    scores = json.loads(scored.out)["scores"]

    truth = gpd.read_file(scene.truth)
    assert truth["class"].value_counts().to_dict() == dict.fromkeys(names, 12)
    by_class = {name: scores["per_class"][name]["ap50"] for name in names}
    assert scores["ap50"]["macro"] >= 0.8, by_class
    assert min(by_class.values()) > 0.1, by_class

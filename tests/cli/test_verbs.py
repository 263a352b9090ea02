"""Every verb from end to end, as people and as scripts call it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from tests import tiny
from tests.cli.verbs import Run, map_options, train_options
from torchgeo_debias.backbones import AdapterSettings
from torchgeo_debias.data.synthetic import Scene
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.training import METHODS

VERBS = ("train", "evaluate", "classify", "classify-features", "info", "demo")
FIELDS = ["class", "class_id", "score", "group", "class_raw", "score_raw"]


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_the_first_help_names_every_verb(run: Run, args: list[str]) -> None:
    result = run(*args)
    assert result.code == 0
    assert result.err == ""
    assert set(VERBS) <= set(re.findall(r"^  ([a-z-]+) ", result.out, re.MULTILINE))


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.code == 0
    assert result.err == ""
    assert f"Usage: torchgeo-debias {verb}" in result.out
    options = re.findall(
        r"^  (?:--[a-z-]+|[a-z]+:?)(?: <[^>]+>+)?(?:\.\.\.)?(.*(?:\n {20}.*)?)", result.out, re.MULTILINE
    )
    assert len(options) >= 3
    assert all(re.search(r"\w{2}", text) for text in options), options


def test_python_m_is_the_command() -> None:
    runs = [
        subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
        for command in (
            [sys.executable, "-m", "torchgeo_debias"],
            [str(Path(sys.executable).with_name("torchgeo-debias"))],
        )
    ]
    assert [r.returncode for r in runs] == [2, 2]
    assert runs[0].stderr == runs[1].stderr
    assert runs[0].stderr.startswith("Error: No such command 'trian'.")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_evaluates_and_maps(
    run: Run, tiny_images: Path, tiny_weights: Path, tiny_scene: Scene, tmp_path: Path, method: str
) -> None:
    model = tmp_path / "model.tgd"
    trained = run(
        "train", "--data", tiny_images, "--method", method, "--out", model, *train_options(tiny_weights), "--json"
    ).json
    assert trained["model"] == str(model)
    assert {c["name"]: c["count"] for c in trained["classes"]} == tiny.TRAIN_COUNTS
    assert ModelPackage.load(model).method["method"] == method

    scores = run("evaluate", "--data", tiny_images, *map_options(model, tiny_weights), "--json").json
    assert scores["method"] == method
    assert (scores["raw"] is not None) == (method == "deblora")

    out = tmp_path / "tiles.gpkg"
    assert run("classify", tiny_scene.raster, "--out", out, *map_options(model, tiny_weights)).code == 0
    assert len(gpd.read_file(out, layer="tiles")) == 256


def test_evaluate_prints_one_json_object_that_scripts_rely_on(
    run: Run, tiny_images: Path, tiny_model: Path, tiny_weights: Path
) -> None:
    found = run("evaluate", "--data", tiny_images, *map_options(tiny_model, tiny_weights), "--json").json
    assert set(found["f1"]) == {"head", "middle", "tail", "macro"}
    assert all(0 <= value <= 1 for value in found["f1"].values())
    assert set(found["per_class"]) == set(tiny.COUNTS)
    assert {name: row["support"] for name, row in found["per_class"].items()} == {"bare": 3, "field": 2, "water": 1}
    assert found["counts"] == tiny.TRAIN_COUNTS
    assert found["seed"] == 0
    assert {"torchgeo-debias", "torch", "python"} <= set(found["versions"])


def test_evaluate_for_people(run: Run, tiny_images: Path, tiny_model: Path, tiny_weights: Path, tmp_path: Path) -> None:
    result = run(
        "evaluate", "--data", tiny_images, *map_options(tiny_model, tiny_weights), "--split", "all",
        "--report", tmp_path / "report.html",
    )  # fmt: skip
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["F1", "head", "middle", "tail", "macro"]
    assert result.out.splitlines()[0].split() == ["F1", "LoRA", "model"]
    assert "water" in (tmp_path / "report.html").read_text()
    assert tiny.listing(tmp_path) == ["report.html"]


def test_split_folders_are_taken_as_they_are(run: Run, tiny_weights: Path, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "data" / "train", {"bare": 6, "field": 4, "water": 3})
    tiny.write_images(tmp_path / "data" / "test", {"bare": 2, "field": 3, "water": 4}, seed=1)
    model = tmp_path / "model"
    run("train", "--data", tmp_path / "data", "--method", "probe", "--out", model, *train_options(tiny_weights))
    assert ModelPackage.load(model).table.counts == (6, 4, 3)
    found = run("evaluate", "--data", tmp_path / "data", *map_options(model, tiny_weights), "--json").json
    assert [row["support"] for row in found["per_class"].values()] == [2, 3, 4]


def test_the_seed_splits_and_no_test_image_is_trained_on(
    run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """A probe that has seen every test image under labels of their own would know them all."""
    seen = []
    for seed in ("1", "2"):
        model = tmp_path / seed
        run(
            "train", "--data", tiny_images, "--method", "probe", "--seed", seed, "--out", model,
            *train_options(tiny_weights),
        )  # fmt: skip
        package = ModelPackage.load(model)
        assert package.provenance["seed"] == int(seed)
        assert package.provenance["training_chips"] == 24
        seen.append(package.model.head.weight)
    assert not np.allclose(seen[0], seen[1])


def test_the_same_seed_gives_the_same_model(run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    packages = []
    for name in ("a", "b"):
        run("train", "--data", tiny_images, "--out", tmp_path / name, *train_options(tiny_weights))
        packages.append(ModelPackage.load(tmp_path / name).to_json()["files"])
    assert packages[0] == packages[1]


def test_imbalance_thins_the_classes_out(run: Run, tiny_weights: Path, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "data", {"bare": 20, "field": 20, "water": 20})
    found = run(
        "train", "--data", tmp_path / "data", "--imbalance", "4", "--method", "probe", "--out", tmp_path / "model",
        *train_options(tiny_weights), "--json",
    ).json  # fmt: skip
    assert sorted(c["count"] for c in found["classes"]) == [4, 8, 16]
    assert {c["group"]: c["count"] for c in found["classes"]} == {"head": 16, "middle": 8, "tail": 4}


def test_objects_outside_an_area_do_not_teach(run: Run, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path) -> None:
    labels = gpd.read_file(tiny_scene.labels)
    left, bottom, right, top = labels.total_bounds
    middle = (left + right) / 2
    found = run(
        "train", "--raster", tiny_scene.raster, "--labels", tiny_scene.labels, "--class-field", "class",
        "--area", f"{left},{bottom},{middle},{top}", "--method", "probe", "--out", tmp_path / "model",
        *train_options(tiny_weights), "--json",
    ).json  # fmt: skip
    x0, _, x1, _ = labels.bounds.to_numpy().T
    assert 0 < sum(entry["count"] for entry in found["classes"]) == ((x0 + x1) / 2 <= middle).sum() < len(labels)


def test_train_on_a_raster_with_labels(run: Run, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    result = run(
        "train", "--raster", tiny_scene.raster, "--labels", tiny_scene.labels, "--class-field", "class",
        "--window", "64", "--background", "6", "--method", "lora", "--out", model, *train_options(tiny_weights),
    )  # fmt: skip
    assert result.code == 0
    assert result.err == ""
    assert f"Model written to {model}" in result.out
    package = ModelPackage.load(model)
    assert package.table.names == ("house", "storage_tank", "vehicle", "background")
    assert package.table.counts == (12, 6, 3, 6)
    assert package.spec.window == 64
    assert package.spec.gsd == pytest.approx(0.3)
    assert package.provenance["labels"] == "labels.gpkg"

    out = tmp_path / "objects.geojson"
    options = map_options(model, tiny_weights)
    found = run("classify-features", tiny_scene.raster, tiny_scene.footprints, "--out", out, *options, "--json").json
    assert sum(found["counts"].values()) == 12
    assert found["counts"]["background"] == 0
    frame = gpd.read_file(out)
    assert set(frame["class"]) <= {"house", "storage_tank", "vehicle"}


@pytest.mark.parametrize("bands", ["blue, red", "3,Red"])
def test_train_on_bands_of_a_raster_by_name(
    run: Run, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path, bands: str
) -> None:
    labelled = ("--raster", tiny_scene.raster, "--labels", tiny_scene.labels, "--class-field", "class")
    options = ("--window", "64", "--method", "probe", "--bands", bands, "--out", tmp_path / "model")
    assert run("train", *labelled, *options, *train_options(tiny_weights)).code == 0
    assert ModelPackage.load(tmp_path / "model").bands == ("blue", "red")


def test_a_chip_window_in_metres_follows_the_resolution(
    run: Run, tiny_scene: Scene, tiny_weights: Path, tmp_path: Path
) -> None:
    labelled = ("--raster", tiny_scene.raster, "--labels", tiny_scene.labels, "--class-field", "class")
    heads = []
    for name, window, unit in (("px", "64", "px"), ("m", "19.2", "m")):
        run(
            "train", *labelled, "--window", window, "--window-unit", unit, "--method", "probe",
            "--out", tmp_path / name, *train_options(tiny_weights),
        )  # fmt: skip
        heads.append(ModelPackage.load(tmp_path / name).model.head.weight)
    assert np.array_equal(heads[0], heads[1])


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson"])
def test_classify_a_raster(
    run: Run, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path, suffix: str
) -> None:
    out, class_map = tmp_path / f"tiles{suffix}", tmp_path / "map.tif"
    options = map_options(tiny_model, tiny_weights)
    found = run("classify", tiny_scene.raster, "--out", out, "--map", class_map, *options, "--json").json
    assert found["tiles"] == 256
    assert found["skipped"] == 0
    assert sum(found["counts"].values()) == 256
    assert found["files"] == [str(out), str(class_map)]
    assert tiny.listing(tmp_path) == ["map.tif", "map.tif.aux.xml", out.name]

    frame = gpd.read_parquet(out) if suffix == ".parquet" else gpd.read_file(out, layer="tiles")
    assert [c for c in frame.columns if c != "geometry"] == FIELDS
    assert frame["class"].value_counts().to_dict() == {n: c for n, c in found["counts"].items() if c}
    with rasterio.open(tiny_scene.raster) as source, rasterio.open(class_map) as made:
        assert (made.crs, made.transform, made.shape) == (source.crs, source.transform, source.shape)
        assert json.loads(made.tags()["CLASS_NAMES"]) == list(tiny.COUNTS)
        # The map and the polygons are the same answer.
        points = frame.to_crs(source.crs).geometry.centroid
        ids = [int(value[0]) for value in made.sample(zip(points.x, points.y, strict=True))]
        assert ids == frame["class_id"].tolist()
        assert frame.to_crs(source.crs).total_bounds == pytest.approx(list(source.bounds), abs=0.01)
    assert frame.crs == ("EPSG:4326" if suffix == ".geojson" else "EPSG:32633")


def test_classify_for_people(run: Run, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiles.gpkg"
    result = run("classify", tiny_scene.raster, "--out", out, *map_options(tiny_model, tiny_weights))
    assert result.code == 0
    assert result.err == ""
    assert [line.split()[0] for line in result.out.splitlines()] == [*tiny.COUNTS, "256"]
    assert str(out) in result.out


def test_classify_many_rasters_in_an_area_by_points(
    run: Run, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(tiny_scene.raster, folder / name)
    options = (*map_options(tiny_model, tiny_weights), "--bands", "red,green,blue", "--shape", "points")
    with rasterio.open(tiny_scene.raster) as source:
        left, bottom, right, top = source.bounds
    area = f"{left},{(bottom + top) / 2},{right},{top}"
    means = ("--area", area, "--write", "layer,scores", "--format", "fgb", "--workers", "1", "--threads", "1")
    found = run("classify", folder, "--out-dir", out, *options, *means, "--batch-size", "8", "--json").json
    names = ["a.fgb", "a_scores.tif", "b.fgb", "b_scores.tif"]
    assert found["files"] == [str(out / name) for name in names]
    assert tiny.listing(out) == names
    assert found["tiles"] == 256
    made = gpd.read_file(out / "b.fgb")
    assert len(made) == 128
    assert set(made.geom_type) == {"Point"}


def test_export_and_classify_without_torch(
    run: Run, tiny_scene: Scene, tiny_model: Path, tiny_images: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    model = tmp_path / "exported.tgd"
    means = ("--model", tiny_model, "--weights", tiny_weights, "--out", model, "--quiet")
    agreement = run("export", *means, "--json").json["agreement"]
    assert agreement["of"]["onnx 32"]["same_class"] == 1
    maps = {}
    for backend in ("torch", "onnx", "openvino"):
        out = tmp_path / f"{backend}.tif"
        options = ("--weights", tiny_weights, "--precision", "32", "--backend", backend, "--quiet")
        maps[backend] = run("classify", tiny_scene.raster, "--map", out, "--model", model, *options, "--json").json
    # Rounding may turn a tile that is on the border of two classes.
    for counts in (maps["onnx"]["counts"], maps["openvino"]["counts"]):
        assert sum(abs(counts[name] - count) for name, count in maps["torch"]["counts"].items()) <= 4


@pytest.mark.parametrize("kind", ["polygons", "points"])
def test_classify_features_keeps_the_layer(
    run: Run, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path, kind: str
) -> None:
    frame = gpd.read_file(tiny_scene.footprints)
    if kind == "points":
        frame.geometry = frame.geometry.centroid
    frame["name"] = [f"object {i}" for i in range(len(frame))]
    layer = tmp_path / "in.gpkg"
    frame.to_file(layer)
    out = tmp_path / "out.gpkg"
    options = map_options(tiny_model, tiny_weights)
    found = run("classify-features", tiny_scene.raster, layer, "--out", out, *options, "--json").json
    assert (found["tiles"], found["skipped"], found["files"]) == (12, 0, [str(out)])
    made = gpd.read_file(out, layer="out")
    assert [c for c in made.columns if c != "geometry"] == ["name", *FIELDS]
    assert made["name"].tolist() == frame["name"].tolist()
    assert made.crs == frame.crs
    assert made.geometry.geom_equals_exact(frame.geometry, 1e-6).all()
    assert set(made["class"]) <= set(tiny.COUNTS)
    assert made["score"].between(1 / 3, 1).all()


def test_info_for_people_and_for_machines(run: Run, tiny_model: Path, tiny_package: ModelPackage) -> None:
    result = run("info", tiny_model)
    assert result.code == 0
    assert result.err == ""
    for text in ("deblora", "timm:test_vit", tiny_package.backbone.digest[:12], "red, green, blue", "water", "tail"):
        assert text in result.out
    assert run("info", tiny_model, "--json").json == json.loads((tiny_model / "model.json").read_text())


def test_bars_are_drawn_on_stderr_only(run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    options = [option for option in train_options(tiny_weights) if option != "--quiet"]
    result = run("train", "--data", tiny_images, "--out", tmp_path / "model", *options, "--json")
    assert result.json["model"] == str(tmp_path / "model")
    for stage in ("read images", "adapt", "align"):
        assert f"{stage}: 100%" in result.err
    quiet = run("train", "--data", tiny_images, "--out", tmp_path / "model", *options, "--quiet", "--json")
    assert quiet.err == ""


def test_a_run_goes_on_from_its_checkpoints(run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        run(
            "train", "--data", tiny_images, "--method", "lora", "--out", tmp_path / name, "--checkpoints",
            tmp_path / "checkpoints", *train_options(tiny_weights),
        )  # fmt: skip
        made.append(ModelPackage.load(tmp_path / name).to_json()["files"])
    assert made[0] == made[1]
    assert list((tmp_path / "checkpoints").rglob("*.ckpt"))


def test_a_config_file_sets_every_field_and_options_go_before_it(
    run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    fields = {"method": "lora", "seed": 5, "epochs": 1, "weights": str(tiny_weights), "adapter": {"rank": 2}, "lr": 1}
    config.write_text(json.dumps({**fields, "backbone": tiny.BACKBONE, "precision": "32"}))
    base = ("train", "--data", tiny_images, "--chip-size", "32", "--config", config, "--quiet", "--out")
    assert run(*base, tmp_path / "a").code == 0
    method = ModelPackage.load(tmp_path / "a").method
    assert {name: method[name] for name in ("method", "seed", "epochs", "lr")} == {
        name: fields[name] for name in ("method", "seed", "epochs", "lr")
    }
    assert method["adapter"] == AdapterSettings(rank=2).to_json()
    assert run(*base, tmp_path / "b", "--seed", "6", "--method", "probe", "--rank", "3").code == 0
    method = ModelPackage.load(tmp_path / "b").method
    assert (method["seed"], method["method"], method["adapter"]["rank"]) == (6, "probe", 3)


def test_nothing_else_speaks(tiny_weights: Path, tiny_scene: Scene, tmp_path: Path) -> None:
    """Warnings of the libraries below would reach people here, and not in the process of the other tests."""
    command = [sys.executable, "-m", "torchgeo_debias"]
    labelled = ["--raster", str(tiny_scene.raster), "--labels", str(tiny_scene.labels), "--class-field", "class"]
    run = subprocess.run(
        [*command, "train", *labelled, "--window", "64", "--out", tmp_path / "model", *train_options(tiny_weights)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")

"""The demo on a small scene: its files are there, fit each other, and say the same."""

from __future__ import annotations

import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from tests import tiny
from torchgeo_debias import ModelPackage, PackagePredictor, TrainConfig, run_demo
from torchgeo_debias.demo import DemoResult
from torchgeo_debias.errors import ConfigError, DataError, OutputError
from torchgeo_debias.evaluation import Scores, score
from torchgeo_debias.progress import Progress

FILES = {"scene", "model", "objects", "tiles", "map", "report"}


def check(result: DemoResult, truth: gpd.GeoDataFrame) -> ModelPackage:
    """What holds of every demo, whatever its data."""
    assert set(result.files) == FILES
    package = ModelPackage.load(result.files["model"])
    assert package.raw is not None
    assert package.metrics["demo"] == {"raw": result.before.to_json(), "model": result.after.to_json()}
    names = list(package.table.names)

    objects = gpd.read_file(result.files["objects"], layer="objects")
    assert [c for c in objects.columns if c != "geometry"] == [
        "class", "class_id", "score", "group", "class_raw", "score_raw",
    ]  # fmt: skip
    assert objects.geometry.geom_equals_exact(truth.geometry, 1e-6).all()
    known = truth["class"].map(names.index).to_numpy()
    for field, scores in (("class", result.after), ("class_raw", result.before)):
        ids = objects[field].map(names.index).to_numpy()
        assert score(known, None, package.table, y_pred=ids).to_json() == scores.to_json()
    groups = dict(zip(names, package.table.groups, strict=True))
    assert objects["group"].tolist() == [groups[name] for name in objects["class"]]
    for field in ("score", "score_raw"):
        assert objects[field].between(1 / len(names), 1).all()

    with rasterio.open(result.files["scene"]) as scene, rasterio.open(result.files["map"]) as made:
        assert (made.crs, made.bounds, made.shape) == (scene.crs, scene.bounds, scene.shape)
        tiles = gpd.read_file(result.files["tiles"], layer="tiles")
        assert tiles.crs == scene.crs
        centres = tiles.geometry.representative_point()
        found = [int(value[0]) for value in made.sample(zip(centres.x, centres.y, strict=True))]
        assert found == tiles["class_id"].tolist()

    page = result.files["report"].read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page)
    assert "http-equiv" not in page
    assert "@import" not in page
    assert page.count("<svg") >= 4
    assert all(name in page for name in names if name != "background")
    assert package.backbone.digest[:12] in page
    return package


def test_the_demo_on_a_small_scene(tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(step: Progress) -> None:
        assert 0 <= step.done <= step.total
        if step.stage not in seen:
            seen.append(step.stage)

    out = tmp_path / "deep" / "demo"
    result = run_demo(out, size=1536, epochs=1, progress=progress)
    truth = gpd.read_file(out / "scene" / "truth.gpkg")
    package = check(result, truth)
    assert len(package.table.names) == 11  # ten kinds of objects and the background
    assert package.table.names[-1] == "background"
    assert package.provenance["data"] == "the synthetic scene"
    assert {"adapt", "align", "classify"} <= set(seen)
    with rasterio.open(out / "scene" / "scene.tif") as scene, rasterio.open(result.files["map"]) as made:
        left, bottom, right, top = scene.bounds
        assert tuple(made.bounds) == pytest.approx(((left + right) / 2, bottom, right, top))
        pixels = scene.read(window=((0, 1536), (768, 1536)))
    with rasterio.open(result.files["scene"]) as east:
        assert np.array_equal(east.read(), pixels)
    labels = gpd.read_file(out / "scene" / "labels.gpkg")
    assert labels.total_bounds[2] <= (left + right) / 2 <= truth.total_bounds[0]
    assert sum(package.table.counts[:-1]) == len(labels)
    assert not [path for path in tiny.listing(tmp_path) if Path(path).name.startswith(".")]


@pytest.fixture
def small_steps(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo use a backbone that costs nothing."""

    def small(seed: int, epochs: int) -> TrainConfig:
        return TrainConfig(seed=seed, epochs=epochs, backbone=tiny.BACKBONE, weights=str(tiny_weights))

    def load(package: ModelPackage) -> PackagePredictor:
        return PackagePredictor(package, weights=str(tiny_weights))

    monkeypatch.setattr("torchgeo_debias.demo.TrainConfig", small)
    monkeypatch.setattr("torchgeo_debias.demo.PackagePredictor", load)


@pytest.mark.usefixtures("small_steps")
def test_the_demo_on_a_scene_folder_twice(tmp_path: Path) -> None:
    data = tiny.write_images(tmp_path / "land", {"bare": 30, "field": 30, "water": 30})
    results = []
    for _ in range(2):
        result = run_demo(tmp_path / "out", data=data, imbalance=4, epochs=1, seed=3)
        truth = gpd.read_file(tmp_path / "out" / "scene" / "test_mosaic.gpkg")
        package = check(result, truth)
        results.append((result.to_json(), package.to_json()["files"]))
    assert sorted(package.table.counts) == [6, 12, 24]
    assert package.provenance["data"] == "land"
    assert package.provenance["seed"] == 3
    assert len(truth) == 18
    assert results[0] == results[1]
    assert not [path for path in tiny.listing(tmp_path) if Path(path).name.startswith(".")]


@pytest.mark.usefixtures("small_steps")
def test_objects_and_tiles_of_a_mosaic_say_the_same(tmp_path: Path) -> None:
    """The cells of the mosaic are tiles and footprints at once."""
    result = run_demo(tmp_path / "out", data=tiny.write_images(tmp_path / "land"), epochs=1)
    objects = gpd.read_file(result.files["objects"], layer="objects")
    tiles = gpd.read_file(result.files["tiles"], layer="tiles")
    objects.geometry = objects.geometry.centroid
    both = objects.sjoin(tiles, how="left", predicate="within")
    assert both["class_left"].tolist() == both["class_right"].tolist()
    assert both["score_left"].to_numpy() == pytest.approx(both["score_right"].to_numpy(), abs=0.02)


def test_what_the_demo_cannot_use_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    grey = tmp_path / "grey"
    for name in ("a", "b"):
        (grey / name).mkdir(parents=True)
        for i in range(5):
            with rasterio.open(
                grey / name / f"{i}.tif", "w", driver="GTiff", width=32, height=32, count=4, dtype="uint16"
            ) as file:
                file.write(np.ones((4, 32, 32), dtype=np.uint16))
    with pytest.raises(DataError, match="4 bands of uint16; use 'train' and 'classify'"):
        run_demo(out, data=grey)
    with pytest.raises(ConfigError, match="only with a scene folder"):
        run_demo(out, imbalance=40)
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        run_demo(out, epochs=0)
    assert tiny.listing(tmp_path)[:2] == ["grey", "grey/a"]
    (tmp_path / "taken" / "model").mkdir(parents=True)
    (tmp_path / "taken" / "model" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no model package"):
        run_demo(tmp_path / "taken")
    assert [path for path in tiny.listing(tmp_path) if not path.startswith("grey")] == [
        "taken", "taken/model", "taken/model/mine.txt",
    ]  # fmt: skip


def test_a_result_is_plain_json(tmp_path: Path) -> None:
    import json

    table = {"head": 1.0, "middle": float("nan"), "tail": 0.5, "macro": 0.75}
    scores = Scores(table, {}, 1.0, 1.0, 1.0, None, {}, [], [])
    values = DemoResult(scores, scores, {"map": tmp_path / "map.tif"}).to_json()
    assert json.loads(json.dumps(values, allow_nan=False))["after"]["f1"]["middle"] is None

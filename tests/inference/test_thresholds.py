"""Wherever scores become classes, the thresholds of a model decide."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from tests import tiny
from tests.inference.fake_detector import TABLE as FOUND_TABLE
from tests.inference.fake_detector import ByPatch, Scene, write_scene
from tests.inference.fakes import TABLE, ByColour, classify, mosaic
from tests.inference.masks.fakes import SPEC, ByPaint, Patches, segment
from tests.inference.masks.fakes import read as read_masks
from tests.inference.masks.test_prompts import boxes, scene
from tests.inference.test_features import FITTED, IDS, footprints
from tests.tiling.rasters import write_raster
from tests.tiny_objects import scenes
from torchgeo_debias import PackagePredictor, evaluate_chips, load_predictor, read_folder
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.evaluation import score
from torchgeo_debias.evaluation.thresholds import Abstain, ClassThreshold, Thresholds, tempered
from torchgeo_debias.inference.calibration import calibrate_objects
from torchgeo_debias.inference.detection_evaluation import evaluate_package, find_objects
from torchgeo_debias.inference.detections import DetectOptions, detect_raster
from torchgeo_debias.inference.detector import DetectorPredictor
from torchgeo_debias.inference.evaluation import predict_chips, write_evaluation
from torchgeo_debias.inference.features import classify_features
from torchgeo_debias.inference.layer_evaluation import NO_PREDICTION
from torchgeo_debias.inference.mapping import Outputs, Resources
from torchgeo_debias.inference.masks.prompts import segment_boxes
from torchgeo_debias.package import DetectorPackage, ModelPackage

ONE = Resources(batch_size=3, workers=1, threads=1)
OFF = ClassThreshold(0.9, 50, True)
"""Out of reach for models that are not that sure."""


def thresholds(*values: float, names: tuple[str, ...] = TABLE.names, **options: Any) -> Thresholds:
    return Thresholds(names, tuple(ClassThreshold(value, 50, True) for value in values), 0.9, **options)


GREEN_FOR_RED = thresholds(0.9, 0.1, 0.3, 0.3)
"""Of red chips, with scores of 0.4 and else 0.2, only green is possible."""

UNLIKE = {kind: thresholds(0.9, 0.3, 0.3, 0.3, abstain=kind) for kind in ("omit", "unknown")}
"""And here nothing is."""


@dataclass
class Limited(ByColour):
    """With score limits, and not too sure."""

    sure: float = 0.4
    thresholds: Thresholds | None = None

    @property
    def identity(self) -> str:
        return f"{super().identity}, {self.thresholds}"


class LimitedPaint(ByPaint):
    thresholds: Thresholds | None = None


def painter(limits: Thresholds) -> LimitedPaint:
    model = LimitedPaint(SPEC, sure=0.4)
    model.thresholds = limits
    return model


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """Three by three tiles of eight pixels: red, green, blue; blue, green, red; green, red, blue."""
    return write_raster(tmp_path / "m.tif", mosaic(IDS, 8))


def read(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer=path.stem)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiles_cells_and_pixels_get_the_class_that_thresholds_decide(
    tmp_path: Path, raster: Path, overlap: float
) -> None:
    plain = ByColour(sure=0.4)
    classify(raster, plain, tmp_path / "p.parquet", map_path=tmp_path / "p.tif", overlap=overlap)
    limited = Limited(thresholds=GREEN_FOR_RED)
    out, ids = tmp_path / "a.parquet", tmp_path / "a.tif"
    summary = classify(raster, limited, out, map_path=ids, scores=tmp_path / "s.tif", overlap=overlap)
    found = read(out)
    assert set(found["class"]) == {"green", "blue"}
    assert summary.counts["red"] == 0
    assert overlap or summary.counts["green"] + summary.counts["blue"] == summary.tiles
    with rasterio.open(ids) as file, rasterio.open(tmp_path / "p.tif") as before:
        assert 0 not in file.read(1)
        if not overlap:
            assert np.array_equal(file.read(1), np.where(before.read(1) == 0, 1, before.read(1)))
    if not overlap:
        assert set(zip(found["class"], found["score"], strict=True)) == {("green", 0.2), ("green", 0.4), ("blue", 0.4)}


def test_regions_are_those_of_the_map(tmp_path: Path, raster: Path) -> None:
    classify(raster, Limited(thresholds=GREEN_FOR_RED), tmp_path / "r.parquet", shape="regions")
    found = read(tmp_path / "r.parquet")
    assert found.area[found["class"] == "green"].sum() == pytest.approx(6 * 16**2)
    assert found.area.sum() == pytest.approx(9 * 16**2)


@pytest.mark.parametrize(("abstain", "features"), [("omit", 6), ("unknown", 9)])
def test_tiles_like_no_class_are_left_out_or_called_unknown(
    tmp_path: Path, raster: Path, abstain: Abstain, features: int
) -> None:
    out, ids = tmp_path / "a.gpkg", tmp_path / "a.tif"
    summary = classify(raster, Limited(thresholds=UNLIKE[abstain], twin=True), out, map_path=ids)
    found = read(out)
    assert len(found) == features
    assert sum(summary.counts.values()) == 6
    unknown = found[found["class"] == "unknown"]
    assert len(unknown) == features - 6
    assert unknown["class_id"].isna().all()
    assert unknown["group"].isna().all()
    assert unknown["score"].eq(0.4).all()
    assert unknown["class_raw"].eq("red").all()  # the twin has no thresholds
    with rasterio.open(ids) as file:
        assert np.array_equal(file.read(1)[4::8, 4::8], np.where(IDS == 0, 255, IDS))


@pytest.mark.parametrize(("abstain", "name"), [("omit", None), ("unknown", "unknown")])
def test_features_of_a_layer_stay_whatever_they_are(
    tmp_path: Path, raster: Path, abstain: Abstain, name: str | None
) -> None:
    raster = write_raster(tmp_path / "wide.tif", mosaic(IDS, 10))
    footprints().to_parquet(tmp_path / "houses.parquet")
    out = tmp_path / "out.parquet"
    summary = classify_features(raster, tmp_path / "houses.parquet", Limited(FITTED, thresholds=UNLIKE[abstain]), out)
    found = read(out)["class"].astype(object).where(read(out)["class"].notna(), None).tolist()
    assert found == [name if i == 0 else TABLE.names[i] for i in IDS.ravel()]
    assert (summary.counts["red"], summary.skipped) == (0, 0)
    classify_features(raster, tmp_path / "houses.parquet", Limited(FITTED, thresholds=GREEN_FOR_RED), out)
    # Without background the scores are 0.5 and 0.25 each.
    assert read(out)["class"].tolist() == [("green", "green", "blue")[i] for i in IDS.ravel()]


def test_a_layer_of_which_no_feature_is_like_a_class_is_no_layer_off_the_raster(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "wide.tif", mosaic(np.zeros((3, 3), int), 10))
    footprints().to_parquet(tmp_path / "houses.parquet")
    summary = classify_features(
        raster, tmp_path / "houses.parquet", Limited(FITTED, thresholds=UNLIKE["omit"]), tmp_path / "o.parquet"
    )
    assert (summary.skipped, sum(summary.counts.values())) == (0, 0)


def test_outlines_get_the_class_that_thresholds_decide(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", scene())
    out = tmp_path / "a.parquet"
    segment(raster, out, chips=painter(GREEN_FOR_RED))
    assert sorted(read_masks(out)["class"]) == ["blue", "green", "green", "green"]
    segment(raster, out, chips=painter(UNLIKE["omit"]))
    assert sorted(read_masks(out)["class"]) == ["blue", "green"]
    segment(raster, out, chips=painter(UNLIKE["unknown"]))
    assert sorted(read_masks(out)["class"]) == ["blue", "green", "unknown", "unknown"]


def test_outlines_in_boxes_do_too(tmp_path: Path) -> None:
    raster, out = write_raster(tmp_path / "r.tif", scene()), tmp_path / "a.parquet"
    summary = segment_boxes(raster, boxes(), Patches(), out, painter(GREEN_FOR_RED))
    assert read_masks(out)["class"].tolist() == ["green", "green", "blue", "green"]
    assert summary.counts == {"red": 0, "green": 3, "blue": 1, "none": 0}
    segment_boxes(raster, boxes(), Patches(), out, painter(UNLIKE["unknown"]))
    assert read_masks(out)["class"].tolist() == ["unknown", "green", "blue", "unknown"]


def test_objects_are_found_from_the_threshold_of_their_class_on(tmp_path: Path) -> None:
    """Patches of 4 to 150 pixels of each class; the model is the surer the smaller they are."""
    places = [[20.0 + 40 * i, 20.0 + 40 * value, 2.0 + 2 * i, 2.0 + 2 * i, 0.0] for value in range(3) for i in range(6)]
    values = np.repeat([3, 1, 2], 6)  # modulo 3: classes 0, 1, 2
    path = write_scene(tmp_path / "r.tif", Scene(np.array(places), values), 250, 140)
    model = ByPatch(twice=False)
    out = tmp_path / "a.parquet"

    def found(limits: Thresholds | None, min_score: float) -> gpd.GeoDataFrame:
        model.thresholds = limits  # type: ignore[attr-defined]
        detect_raster(path, model, Outputs(out), DetectOptions(min_score=min_score), resources=ONE)
        return read(out)

    every = found(None, 0.0)
    assert every["class"].value_counts().to_dict() == dict.fromkeys(FOUND_TABLE.names, 6)
    names = FOUND_TABLE.names
    limits = Thresholds(
        names, (ClassThreshold(0.35, 50, True), ClassThreshold(0.05, 50, True), ClassThreshold(0.0, 2, False)), 0.9
    )
    wanted = every[every["score"] >= every["class"].map(dict(zip(names, (0.35, 0.05, 0.32), strict=True)))]
    some = found(limits, 0.32)
    key = ["class_id", "score"]
    assert sorted(map(tuple, some[key].to_numpy().tolist())) == sorted(map(tuple, wanted[key].to_numpy().tolist()))
    counts = some["class"].value_counts()
    assert counts["ship"] < counts["pad"] < counts["plane"] == 6


def with_thresholds(package: ModelPackage, *values: float, **options: Any) -> ModelPackage:
    return replace(package, thresholds=thresholds(*values, names=package.table.names, **options))


def test_a_package_says_its_scores_after_the_temperature_and_its_twin_without(
    tiny_package: ModelPackage, tiny_weights: Path, tiny_images: Path
) -> None:
    chips = read_folder(tiny_images, tiny.CHIP)
    options: Any = {"weights": str(tiny_weights), "precision": "32"}
    plain = predict_chips(PackagePredictor(tiny_package, **options), chips)
    cooled = with_thresholds(tiny_package, 0.5, 0.5, 0.5, temperature=2.5)
    found = predict_chips(PackagePredictor(cooled, **options), chips)
    assert np.allclose(found.probabilities, tempered(plain.probabilities, 2.5), atol=1e-6)
    assert not np.allclose(found.probabilities, plain.probabilities, atol=1e-2)
    assert plain.raw is not None
    assert found.raw is not None
    assert np.array_equal(found.raw, plain.raw)


def test_evaluation_scores_what_thresholds_decide(
    tiny_package: ModelPackage, tiny_weights: Path, tiny_images: Path, tmp_path: Path
) -> None:
    chips = read_folder(tiny_images, tiny.CHIP)
    # Always possible, hardly ever, never.
    package = with_thresholds(tiny_package, 0.0, 0.999, 1.0)
    predictor = PackagePredictor(package, weights=str(tiny_weights), precision="32")
    result = evaluate_chips(predictor, chips)
    assert result.raw is not None
    assert result.decisions is not None
    said = np.sum(result.scores.confusion, axis=0)
    nearest = (predict_chips(predictor, chips).probabilities / (1 / 3, 0.999, 1.0)).argmax(axis=1)
    assert said.tolist() == np.bincount(nearest, minlength=3).tolist()
    assert result.decisions.per_class["bare"]["coverage"] == 1
    assert result.decisions.per_class["water"]["coverage"] == 0
    assert result.scores.per_class["bare"]["recall"] == result.decisions.per_class["bare"]["recall"]
    assert "thresholds of the model decide" in result.scores.definition
    json = result.to_json(package)
    assert json["decisions"]["abstained"] == 0
    write_evaluation(tmp_path / "r.html", result, package, source="land", split="all")
    page = (tmp_path / "r.html").read_text()
    assert "recall of the answer" in page
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("The thresholds of the classes")[2], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    stand = {row[0]: row[1:] for row in cells if row}
    for name, threshold in zip(package.table.names, ("0.000", "0.999", "1.000"), strict=True):
        one = result.decisions.per_class[name]
        ratios = [one["coverage"], one["recall"], one["precision"]]
        expected = ["n/a" if ratio is None else f"{100 * ratio:.1f}" for ratio in ratios]
        assert stand[name] == [threshold, "yes", str(one["support"]), *expected]


@pytest.mark.parametrize("abstain", ["omit", "unknown"])
@pytest.mark.parametrize("twin", [True, False])
def test_chips_without_an_answer_cost_recall(
    tiny_package: ModelPackage, tiny_weights: Path, tiny_images: Path, tmp_path: Path, abstain: Abstain, twin: bool
) -> None:
    chips = read_folder(tiny_images, tiny.CHIP)
    package = with_thresholds(tiny_package, 1.0, 1.0, 1.0, abstain=abstain)
    package = package if twin else replace(package, raw=None)
    result = evaluate_chips(PackagePredictor(package, weights=str(tiny_weights), precision="32"), chips)
    assert result.decisions is not None
    assert result.decisions.abstained == 1
    assert result.scores.accuracy == 0
    assert NO_PREDICTION in result.scores.per_class
    assert np.sum(result.scores.confusion, axis=0).tolist() == [0, 0, 0, len(chips)]
    assert result.scores.absent == []
    assert result.scores.ece is not None
    if result.raw is not None:
        raw = predict_chips(PackagePredictor(tiny_package, weights=str(tiny_weights), precision="32"), chips).raw
        assert result.raw.f1 == score(chips.labels, raw, tiny_package.table).f1
    write_evaluation(tmp_path / "r.html", result, package, source="land", split="all")


def test_thresholds_change_the_identity_of_a_model_but_no_export_and_can_be_left_out(
    tiny_package: ModelPackage, tiny_weights: Path, tmp_path: Path
) -> None:
    limited = with_thresholds(tiny_package, 0.5, 0.4, 0.3, facts={"data": "land"})
    limited.save(tmp_path / "m.tgd")
    assert limited.digest == tiny_package.digest
    options: Any = {"weights": str(tiny_weights), "precision": "32"}
    obeyed = load_predictor(tmp_path / "m.tgd", **options)
    free = load_predictor(tmp_path / "m.tgd", thresholds=False, **options)
    assert free.identity == PackagePredictor(tiny_package, **options).identity != obeyed.identity
    assert limited.thresholds is not None
    other = replace(limited, thresholds=replace(limited.thresholds, facts={"data": "sea"}))
    assert PackagePredictor(other, **options).identity == obeyed.identity
    for predictor in (obeyed, free):
        sent = pickle.loads(pickle.dumps(predictor))
        assert sent.identity == predictor.identity
        assert sent.thresholds == predictor.thresholds  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_backends_obey_them_too(
    tiny_export: ModelPackage, tiny_images: Path, tiny_weights: Path, tmp_path: Path, backend: Any
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    with_thresholds(tiny_export, 0.5, 0.4, 0.3, temperature=2.0).save(tmp_path / "m")
    chips = read_folder(tiny_images, tiny.CHIP)
    obeyed = load_predictor(tmp_path / "m", backend=backend, precision="32")
    wanted = predict_chips(load_predictor(tmp_path / "m", weights=str(tiny_weights), precision="32"), chips)
    assert np.allclose(predict_chips(obeyed, chips).probabilities, wanted.probabilities, atol=1e-4)
    assert obeyed.thresholds is not None  # type: ignore[attr-defined]
    free = load_predictor(tmp_path / "m", backend=backend, precision="32", thresholds=False)
    assert free.thresholds is None  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(free)).thresholds is None


def test_a_detector_keeps_its_thresholds_and_its_twin_has_none(
    tiny_detector: DetectorPackage, tiny_weights: Path, tmp_path: Path
) -> None:
    options: Any = {"weights": str(tiny_weights), "precision": "32"}
    objects = scenes(4, oriented=True, first=40)
    bare = DetectorPredictor(tiny_detector, **options)
    found = calibrate_objects(bare, objects, recall=0.5)
    package = replace(tiny_detector, thresholds=found.thresholds)
    package.save(tmp_path / "d")
    obeyed = DetectorPredictor.load(tmp_path / "d", **options)
    assert obeyed.thresholds == found.thresholds
    assert DetectorPredictor.load(tmp_path / "d", raw=True, **options).thresholds is None
    free = DetectorPredictor.load(tmp_path / "d", thresholds=False, **options)
    assert free.identity == bare.identity != obeyed.identity
    assert pickle.loads(pickle.dumps(free)).thresholds is None
    assert pickle.loads(pickle.dumps(obeyed)).thresholds == found.thresholds
    # What is measured is what is found, from low scores on.
    wanted = find_objects(bare, objects)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(find_objects(obeyed, objects), wanted, strict=True))
    result = evaluate_package(package, objects, **options)
    assert result.found == found.scores
    assert evaluate_package(tiny_detector, objects, **options).found is None
    limits = found.thresholds.limits(DetectOptions.min_score)
    kept = sum(int((np.asarray(g.scores) >= limits[np.asarray(g.classes)]).sum()) for g in wanted)
    rows = found.scores.per_class.values()
    assert sum(row["found"] + row["false_alarms"] for row in rows) == kept


def test_a_chip_of_another_kind_of_model_needs_no_thresholds(tmp_path: Path, raster: Path) -> None:
    model = ByColour(ChipSpec(size=8, window=8))
    assert not hasattr(model, "thresholds")
    assert sum(classify(raster, model, tmp_path / "a.parquet").counts.values()) == 9

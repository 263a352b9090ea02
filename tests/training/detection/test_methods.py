"""What every method of training a detector promises, whatever it does inside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import tiny
from tests.tiny_objects import TILES, scenes, settings
from torchgeo_debias.backbones import create_backbone, state_digest
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.objects import ObjectSet
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.detection import class_loss
from torchgeo_debias.detection.class_losses import FocalLoss
from torchgeo_debias.errors import ConfigError, DataError, WeightsError
from torchgeo_debias.inference.detection_evaluation import evaluate_objects
from torchgeo_debias.inference.detector import DetectorPredictor
from torchgeo_debias.package import DetectorPackage
from torchgeo_debias.progress import Progress
from torchgeo_debias.training.detection import DETECT_METHODS, DetectConfig, module, train_detector

Configure = Callable[..., DetectConfig]
_TRAINED: dict[str, DetectorPackage] = {}


@pytest.fixture
def configure(tiny_weights: Path) -> Configure:
    return lambda **options: settings(tiny_weights, **options)


@pytest.fixture(params=DETECT_METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def trained(method: str, configure: Configure) -> DetectorPackage:
    if method not in _TRAINED:
        _TRAINED[method] = train_detector(scenes(), TILES, configure(method=method)).package
    return _TRAINED[method]


def predicts(package: DetectorPackage, weights: str, **options: Any) -> list[Tensor]:
    predictor = DetectorPredictor(package, weights=weights, precision="32", **options)
    tile = scenes(1, first=50).images[0].picture.read(0, 0, 64, 64)
    (found,) = predictor.predict(tile[0][None], tile[1][None])
    return [torch.from_numpy(part) for part in found]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_seed_repeats_it_and_another_does_not(method: str, configure: Configure) -> None:
    package = trained(method, configure)
    config = configure(method=method)
    assert train_detector(scenes(), TILES, config).package.digest == package.digest
    other = train_detector(scenes(), TILES, replace(config, seed=1)).package
    assert not torch.equal(other.model.tensors["head.classes.weight"], package.model.tensors["head.classes.weight"])


def test_the_saved_package_predicts_the_same(method: str, configure: Configure, tmp_path: Path) -> None:
    package, weights = trained(method, configure), configure().weights
    package.save(tmp_path / "model.tgd")
    back = DetectorPackage.load(tmp_path / "model.tgd")
    assert same(predicts(back, weights), predicts(package, weights))
    assert back.digest == package.digest
    assert DetectConfig.from_json(back.method) == configure(method=method)


def test_the_package_carries_what_was_trained_and_no_more(method: str, configure: Configure) -> None:
    package = trained(method, configure)
    start = create_backbone(tiny.BACKBONE, size=64, weights=configure().weights)
    assert (package.raw is not None) == (method == "deblora")
    assert (package.finetuned is not None) == (method == "finetune")
    assert package.backbone.digest == start.digest
    for part in (package.model, package.raw):
        if part is not None and method not in ("probe", "finetune"):
            assert part.adapter is not None
            learned = [value for name, value in part.adapter.tensors.items() if "lora_B" in name]
            assert learned, "no LoRA"
            assert all(value.any() for value in learned), "no gradient reached the LoRA"
    if method in ("probe", "finetune"):
        assert package.model.adapter is None
    if package.finetuned is not None:
        moved = {n for n, v in start.model.state_dict().items() if not torch.equal(v, package.finetuned[n])}
        assert moved == {name for name, _ in start.model.named_parameters()}
    assert package.provenance["training_tiles"] == 6
    assert package.provenance["training_objects"] == 24 == sum(package.table.counts)


def test_methods_begin_alike_and_differ_in_the_end(configure: Configure) -> None:
    weights = [trained(name, configure).model.tensors["head.classes.weight"] for name in DETECT_METHODS]
    for i, one in enumerate(weights):
        for two in weights[:i]:
            assert not torch.equal(one, two)


def test_the_twin_of_deblora_is_the_plain_lora(configure: Configure) -> None:
    package, plain, weights = trained("deblora", configure), trained("lora", configure), configure().weights
    assert package.raw is not None
    assert all(torch.equal(value, plain.model.tensors[name]) for name, value in package.raw.tensors.items())
    assert same(predicts(package, weights, raw=True), predicts(plain, weights))
    assert not same(predicts(package, weights), predicts(plain, weights))


def test_the_equal_twin_differs_from_the_model_in_the_aim_alone(configure: Configure) -> None:
    config = configure(method="deblora", twin="equal", epochs=1, debias=DebiasSettings(n_clusters=4, pull=0.5))
    seen: list[Progress] = []
    package = train_detector(scenes(), TILES, config, progress=seen.append).package
    last = {progress.stage: (progress.done, progress.total) for progress in seen}
    assert last["twin-align"] == last["align"] == (2, 2)
    assert last["twin-refit"] == last["refit"] == (2, 2)
    assert package.raw is not None
    assert not torch.equal(package.raw.tensors["head.classes.weight"], package.model.tensors["head.classes.weight"])
    assert package.twin_name == "control"
    # Without a weight the aim is none, and model and twin come out equal.
    package = train_detector(scenes(), TILES, replace(config, align_weight=0.0)).package
    assert package.raw is not None
    assert package.model.adapter is not None
    assert package.raw.adapter is not None
    for one, two in (
        (package.model.tensors, package.raw.tensors),
        (package.model.adapter.tensors, package.raw.adapter.tensors),
    ):
        assert set(one) == set(two)
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-6)


def test_the_controls_of_deblora_aim_elsewhere(configure: Configure) -> None:
    digests = {trained("deblora", configure).digest}
    for debias in (
        DebiasSettings(n_clusters=4, pull=0.0),
        DebiasSettings(n_clusters=4, gamma0=2.0, centre="global"),
        DebiasSettings(n_clusters=4, pull=0.9),
    ):
        digests.add(train_detector(scenes(), TILES, configure(method="deblora", debias=debias)).package.digest)
    assert len(digests) == 4


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("oriented", [False, True])
def test_both_forms_of_boxes_on_both_kinds_of_backbones(
    backbone: str, oriented: bool, configure: Configure, tmp_path: Path
) -> None:
    weights = str(tmp_path / "weights.safetensors")
    save_file(timm.create_model(backbone, num_classes=0).state_dict(), weights)
    config = configure(backbone=f"timm:{backbone}", weights=weights, oriented=oriented, epochs=1)
    for method in ("lora", "finetune"):
        package = train_detector(scenes(2, oriented=oriented), TILES, replace(config, method=method)).package
        assert package.detector.oriented == oriented
        package.save(tmp_path / "model")
        # A package that brings all weights needs no others.
        found = predicts(DetectorPackage.load(tmp_path / "model"), "random" if method == "finetune" else weights)
        assert found[0].shape[1] == (5 if oriented else 4)


def test_full_finetuning_leaves_the_statistics_of_batches_alone(configure: Configure) -> None:
    config = configure(backbone="timm:test_resnet", weights="random", method="finetune", epochs=1)
    package = train_detector(scenes(2), TILES, config).package
    assert package.finetuned is not None
    torch.manual_seed(config.seed)
    start = create_backbone(config.backbone, size=64, weights="random").model.state_dict()
    assert package.backbone.digest == state_digest(start)
    moved = {name for name, value in start.items() if not torch.equal(value, package.finetuned[name])}
    assert moved
    assert not [name for name in moved if "bn" in name or "running" in name]


def test_it_finds_what_it_was_taught(configure: Configure) -> None:
    objects = scenes(6)
    config = configure(epochs=40)
    package = train_detector(objects, TILES, config).package
    scores = evaluate_objects(DetectorPredictor(package, weights=config.weights, precision="32"), objects)
    assert scores.ap50["macro"] > 0.8


def test_oriented_boxes_train_a_horizontal_detector(configure: Configure) -> None:
    package = train_detector(scenes(2, oriented=True), TILES, configure(epochs=1)).package
    assert not package.detector.oriented


def test_horizontal_boxes_train_no_oriented_detector(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="are horizontal and tell no angle"):
        train_detector(scenes(2), TILES, configure(oriented=True))


def only(objects: ObjectSet, label: int, count: int) -> ObjectSet:
    """The set with no more than ``count`` objects of a class; the rest is ignored."""
    left, images = count, []
    for image in objects.images:
        mine = np.flatnonzero(image.labels == label)
        ignored = image.ignored.copy()
        ignored[mine[left:]] = True
        left = max(left - len(mine), 0)
        images.append(replace(image, ignored=ignored))
    return ObjectSet.of(images, objects.table.names, oriented=objects.oriented)


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_with_an_object_or_none_is_trained_with_a_warning(
    count: int, method: str, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    rare = only(scenes(), 2, count)
    assert rare.table.counts[2] == count
    with caplog.at_level(logging.WARNING):
        package = train_detector(rare, TILES, configure(method=method, epochs=1)).package
    assert package.table.counts[2] == count
    assert f"one training object or none: blue ({count})" in caplog.text
    assert all(tensor.isfinite().all() for tensor in package.model.tensors.values())


def test_without_any_object_there_is_nothing_to_teach(configure: Configure) -> None:
    objects = scenes(2)
    for label in range(3):
        objects = only(objects, label, 0)
    with pytest.raises(DataError, match="no object to teach") as caught:
        train_detector(objects, TILES, configure())
    assert "\n" not in str(caught.value)


def enlarged(objects: ObjectSet, labels: set[int], images: int | None = None) -> ObjectSet:
    """The set with the objects of some classes far larger than their images, in all images or the first few."""
    changed = []
    for image in objects.images[:images]:
        boxes = image.boxes.copy()
        boxes[np.isin(image.labels, list(labels))] += [-900, -900, 900, 900]
        changed.append(replace(image, boxes=boxes))
    return replace(objects, images=(*changed, *objects.images[len(changed) :]))


def test_objects_larger_than_tiles_are_told(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_detector(enlarged(scenes(4), {1}), TILES, configure(epochs=1))
        train_detector(enlarged(scenes(4), {0}, images=1), TILES, configure(epochs=1))
    green = scenes(4).table.counts[1]
    told = (
        "Objects that are taught nowhere: %s; no tile of 64 pixels shows a share of 0.5 or more of one of them: choose"
    )
    assert told % f"green ({green} of {green})" in caplog.text
    assert told % "red (2 of 8)" in caplog.text
    with pytest.raises(DataError, match="nothing to teach: of all objects, no tile of 64 pixels"):
        train_detector(enlarged(scenes(4), {0, 1, 2}), TILES, configure(epochs=1))


def test_class_losses_weigh_by_the_objects_that_are_taught(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ClassTable] = []

    def told(name: str, table: ClassTable) -> FocalLoss:
        seen.append(table)
        return class_loss(name, table)

    monkeypatch.setattr(module, "class_loss", told)
    objects = enlarged(scenes(4), {0}, images=1)
    package = train_detector(objects, TILES, configure(method="class-balanced", epochs=1)).package
    assert [table.counts[0] for table in seen] == [6]
    assert seen[0].counts[1:] == objects.table.counts[1:]
    assert package.table.counts == seen[0].counts
    assert package.provenance["training_objects"] == sum(objects.table.counts) - 2


def test_weights_are_looked_for_before_tiles_are_read(configure: Configure) -> None:
    read: list[str] = []
    for options, kind in (({"weights": "nowhere.safetensors"}, WeightsError), ({"backbone": "nothing"}, ConfigError)):
        with pytest.raises(kind):
            train_detector(
                scenes(2), TILES, configure(**options), progress=lambda progress: read.append(progress.stage)
            )
    assert not read


def test_half_precision_trains_all_stages(configure: Configure) -> None:
    config = configure(method="deblora", oriented=True, precision="bf16")
    tensors = train_detector(scenes(3, oriented=True), TILES, config).package.model.tensors
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in tensors.values())


def test_a_single_class_is_enough(configure: Configure) -> None:
    objects = scenes(2)
    ships = [replace(image, labels=np.zeros_like(image.labels)) for image in objects.images]
    package = train_detector(ObjectSet.of(ships, ["ship"], oriented=False), TILES, configure(method="deblora")).package
    assert package.table.names == ("ship",)


def test_images_of_other_bands_are_refused() -> None:
    both = [*scenes(1).images, *scenes(1, first=9, bands=("a", "b", "c", "d")).images]
    with pytest.raises(DataError, match="All images must be alike, but scene9 has the bands"):
        ObjectSet.of(both, ("a", "b", "c"), oriented=False)


def test_more_bands_than_three_have_statistics_of_their_own(configure: Configure) -> None:
    objects = scenes(2, bands=("red", "green", "blue", "nir"))
    package = train_detector(objects, TILES, configure(epochs=1)).package
    assert package.bands == ("red", "green", "blue", "nir")
    pixels = np.stack([image.picture.read(0, 0, 64, 64)[0] for image in objects.images]).astype(np.float64)
    np.testing.assert_allclose(package.normalisation.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"method": "magic"}, "Unknown method"),
        ({"class_loss": "ce"}, "Unknown class_loss"),
        ({"twin": "raw"}, "Unknown twin"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"repeat_threshold": -1.0}, "repeat_threshold must be positive"),
        ({"warmup": 1.5}, "warmup must lie between 0 and 1"),
        ({"val_share": 1.0}, "val_share must lie between 0 and 1"),
        ({"empty": -0.1}, "empty must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        DetectConfig(**change)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"epoch": 3}, "Unknown field epoch"),
        ({"epochs": "3"}, "epochs must be a whole number"),
        ({"detector": {"channel": 3}}, "Unknown field detector.channel"),
        ({"adapter": {"rank": 1.5}}, "adapter.rank must be a whole number"),
    ],
)
def test_json_that_is_no_configuration_is_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        DetectConfig.from_json(change)


def test_a_configuration_comes_back_from_json(configure: Configure) -> None:
    config = configure(oriented=True, method="efl", debias=DebiasSettings(pull=0.3), cache_mb=1)
    assert DetectConfig.from_json(config.to_json()) == config
    assert DetectConfig.from_json({"epochs": 3}) == DetectConfig(epochs=3)

"""Epochs, checkpoints, early stopping, divergence, alignment: how the stages of a detector run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_objects import TILES, scenes, settings
from torchgeo_debias.backbones import AdapterSettings, Backbone
from torchgeo_debias.data.objects import ArrayPicture, ObjectTiles, TileSpec
from torchgeo_debias.debias import Calibration, DebiasSettings, calibrate
from torchgeo_debias.errors import Cancelled, ConfigError, DataError
from torchgeo_debias.progress import Progress, silent
from torchgeo_debias.training import checkpoints
from torchgeo_debias.training.detection import DetectConfig, module, stages, train_detector
from torchgeo_debias.training.detection.batches import TrainTiles
from torchgeo_debias.training.detection.frozen import FrozenMaps
from torchgeo_debias.training.detection.module import DetectorStage
from torchgeo_debias.training.detection.stages import DetectorRun, adapt, align, debias, features_of, probe, refit
from torchgeo_debias.training.detection.trainer import _normalisation

Configure = Callable[..., DetectConfig]
Steps = list[Progress]


@pytest.fixture
def configure(tiny_weights: Path) -> Configure:
    return lambda **options: settings(tiny_weights, **options)


def run_of(config: DetectConfig, n: int = 4, oriented: bool = False) -> DetectorRun:
    tiles = TrainTiles(ObjectTiles(scenes(n, oriented=oriented), TILES), 10)
    return DetectorRun(tiles, None, _normalisation(tiles, config), config, silent, None)


def stop_at(stage: str, done: int) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, done):
            raise Cancelled("stopped")

    return callback


def steps(seen: Steps, stage: str) -> list[int]:
    return [progress.done for progress in seen if progress.stage == stage]


@pytest.mark.parametrize("cache_mb", [2048, 0])
def test_a_frozen_backbone_sees_each_tile_once_where_memory_allows(
    cache_mb: int, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    maps = Backbone.maps

    def watched(self: Backbone, images: torch.Tensor) -> list[torch.Tensor]:
        seen.extend(images.detach().clone())
        return maps(self, images)

    monkeypatch.setattr(Backbone, "maps", watched)
    train_detector(scenes(), TILES, configure(method="probe", epochs=3, cache_mb=cache_mb, augment=False))
    times = [sum(torch.equal(one, other) for other in seen) for one in seen]
    assert times == ([1] * 6 if cache_mb else [3] * 18)


def test_what_is_kept_of_a_frozen_backbone_changes_nothing(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a turned tile, and not with dropout, which is not for what is not trained."""
    config = configure(method="deblora", epochs=3, refit_share=2.0, adapter=AdapterSettings(rank=2, dropout=0.5))
    kept = train_detector(scenes(), TILES, config).package
    monkeypatch.setattr(module, "FrozenMaps", lambda backbone, unit, cache_mb: FrozenMaps(backbone, unit, 0))
    anew = train_detector(scenes(), TILES, config).package
    for name, value in kept.model.tensors.items():
        torch.testing.assert_close(value, anew.model.tensors[name], rtol=0, atol=0)


def test_a_probe_trains_neck_and_head_alone_and_goes_on_where_it_stopped(configure: Configure, tmp_path: Path) -> None:
    config = configure(method="probe")
    run = run_of(config)
    start = {name: value.clone() for name, value in run.detector(adapted=False).state_dict().items()}
    assert parts(moved(start, probe(run).state_dict())) == {"neck", "head"}
    whole = train_detector(scenes(), TILES, config).package
    with pytest.raises(Cancelled):
        train_detector(scenes(), TILES, config, progress=stop_at("probe", 3), checkpoints=tmp_path)
    assert train_detector(scenes(), TILES, config, checkpoints=tmp_path).package.digest == whole.digest


@pytest.mark.parametrize("stage", ["adapt", "align", "refit"])
def test_a_cancelled_run_goes_on_where_it_stopped_and_ends_equal(
    stage: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(method="deblora", epochs=2, refit_share=1.0, adapter=AdapterSettings(rank=2, dropout=0.1))
    whole = train_detector(scenes(), TILES, config).package
    with pytest.raises(Cancelled):
        train_detector(scenes(), TILES, config, progress=stop_at(stage, 3), checkpoints=tmp_path)  # in the 2nd epoch
    seen: Steps = []
    again = train_detector(scenes(), TILES, config, progress=seen.append, checkpoints=tmp_path).package
    assert steps(seen, stage) == [3, 4]
    assert again.digest == whole.digest
    seen = []
    assert (
        train_detector(scenes(), TILES, config, progress=seen.append, checkpoints=tmp_path).package.digest
        == whole.digest
    )
    assert not steps(seen, "adapt") + steps(seen, "align") + steps(seen, "refit")


def test_early_stopping_goes_on_after_an_interruption_too(configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=8, val_share=0.3, patience=20)
    whole = train_detector(scenes(8), TILES, config).package
    with pytest.raises(Cancelled):
        train_detector(scenes(8), TILES, config, progress=stop_at("adapt", 9), checkpoints=tmp_path)
    assert train_detector(scenes(8), TILES, config, checkpoints=tmp_path).package.digest == whole.digest


def test_what_a_class_loss_remembers_is_resumed(configure: Configure, tmp_path: Path) -> None:
    config = configure(method="efl", epochs=3)
    whole = train_detector(scenes(), TILES, config).package
    with pytest.raises(Cancelled):
        train_detector(scenes(), TILES, config, progress=stop_at("adapt", 5), checkpoints=tmp_path)
    assert train_detector(scenes(), TILES, config, checkpoints=tmp_path).package.digest == whole.digest


def test_checkpoints_of_anything_else_are_not_used(configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=1)
    train_detector(scenes(), TILES, config, checkpoints=tmp_path)
    for objects, tiles, other in (
        (scenes(), TILES, replace(config, seed=1)),
        (scenes(first=1), TILES, config),
        (scenes(), replace(TILES, min_visible=0.4), config),
    ):
        seen: Steps = []
        train_detector(objects, tiles, other, progress=seen.append, checkpoints=tmp_path)
        assert steps(seen, "adapt") == [1, 2]


@pytest.mark.parametrize(("name", "other"), [("versions", {"torch": "9.9"}), ("pick_dtype", torch.float16)])
def test_checkpoints_of_other_libraries_or_another_precision_are_not_used(
    name: str, other: object, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(epochs=1)
    train_detector(scenes(2), TILES, config, checkpoints=tmp_path)
    monkeypatch.setattr(checkpoints, name, lambda *args: other)
    seen: Steps = []
    train_detector(scenes(2), TILES, config, progress=seen.append, checkpoints=tmp_path)
    assert steps(seen, "adapt")[0] == 1
    seen.clear()
    train_detector(scenes(2), TILES, config, progress=seen.append, checkpoints=tmp_path)
    assert not steps(seen, "adapt")


def test_a_damaged_checkpoint_is_named(configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=1)
    train_detector(scenes(2), TILES, config, checkpoints=tmp_path)
    (file,) = tmp_path.rglob("last.ckpt")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="is damaged: delete it to start the stage again"):
        train_detector(scenes(2), TILES, config, checkpoints=tmp_path)


def test_early_stopping_ends_with_the_best_weights(configure: Configure) -> None:
    config = configure(epochs=12, val_share=0.3, patience=1, lr=1e-7)  # too slow to ever find anything
    seen: Steps = []
    package = train_detector(scenes(8), TILES, config, progress=seen.append).package
    assert steps(seen, "adapt")[-1] < seen[-1].total
    assert package.provenance["training_images"] < 8


def test_a_diverging_run_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="diverged in epoch 1 of 2: choose a lower learning rate than"):
        train_detector(scenes(), TILES, configure(lr=1e30))


def test_a_run_in_half_precision_trains_with_bounded_gradients(configure: Configure) -> None:
    package = train_detector(scenes(2), TILES, configure(precision="bf16", epochs=1)).package
    assert all(bool(value.isfinite().all()) for value in package.model.tensors.values())


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def parts(names: set[str]) -> set[str]:
    """Whether a LoRA, the backbone itself, the neck or the head."""
    return {"lora" if ".lora_" in name else name.partition(".")[0] for name in names}


def test_each_stage_moves_what_it_should(configure: Configure) -> None:
    run = run_of(configure(method="deblora", epochs=1))
    start = {name: value.clone() for name, value in run.detector(adapted=True).state_dict().items()}
    detector = adapt(run)
    biased = {name: value.clone() for name, value in detector.state_dict().items()}
    assert parts(moved(start, biased)) == {"lora", "neck", "head"}
    aligned = align(run, detector, debias(run, detector))
    assert parts(moved(biased, aligned.state_dict())) == {"lora", "neck", "head"}
    assert not moved(biased, detector.state_dict()), "the twin is left alone"
    before = {name: value.clone() for name, value in aligned.state_dict().items()}
    assert parts(moved(before, refit(run, aligned).state_dict())) == {"head"}


@pytest.mark.parametrize("lora", [False, True])
def test_only_pretrained_weights_take_smaller_steps(lora: bool, configure: Configure) -> None:
    run = run_of(configure(backbone_lr=0.05))
    detector = run.detector(adapted=lora)
    module = DetectorStage(detector, run.objects.table, run.normalisation, "focal", run.config)
    shares: dict[str, set[float]] = {
        part: set() for part in ("lora", "detector.backbone", "detector.neck", "detector.head")
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = "lora" if ".lora_" in name else ".".join(name.split(".")[:2])
            shares[part].add(module.share_of_rate(name))
    own = {"lora": {1.0}, "detector.backbone": set()} if lora else {"lora": set(), "detector.backbone": {0.05}}
    assert shares == {**own, "detector.neck": {1.0}, "detector.head": {1.0}}


def test_without_a_share_the_head_is_not_fitted_anew(configure: Configure) -> None:
    seen: Steps = []
    config = configure(method="deblora", epochs=1, refit_share=0.0)
    assert set(train_detector(scenes(2), TILES, config, progress=seen.append).seconds) == {"adapt", "debias", "align"}


@pytest.mark.parametrize("oriented", [False, True])
def test_targets_are_those_of_the_classifiers_calibration(oriented: bool, configure: Configure) -> None:
    run = run_of(configure(oriented=oriented, epochs=1, align_on="all"), oriented=oriented)
    detector = run.detector(adapted=True)
    features, labels, counted = features_of(run, detector)
    assert [len(own) for own in features] == [4, 4, 4, 4]
    assert counted.all()
    np.testing.assert_array_equal(labels, np.concatenate([image.labels for image in run.objects.images]))
    aim = debias(run, detector)
    together = np.concatenate(features)
    expected = calibrate(together, labels, run.objects.table, run.config.debias, run.config.seed).targets
    np.testing.assert_allclose(np.concatenate(list(aim.targets)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aim.scale, together.std(axis=0), rtol=1e-4, atol=1e-5)
    rare = run.objects.table.groups.index("tail")
    shifted = np.abs(expected - together).max(axis=1) > 1e-6
    assert set(labels[shifted]) == {rare}


def test_an_object_in_several_tiles_counts_once_where_most_of_it_lies(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = scenes(3, side=96)
    hidden = np.ones((96, 96), bool)
    x0, y0, x1, y1 = objects.images[0].boxes[0].astype(int)
    hidden[y0:y1, x0:x1] = False  # the first object lies on nodata, so that no tile teaches it
    pixels = objects.images[0].picture.read(0, 0, 96, 96)[0]
    first = replace(objects.images[0], picture=ArrayPicture(pixels, hidden, objects.bands))
    objects = replace(objects, images=(first, *objects.images[1:]))
    run = run_of(configure(debias=DebiasSettings(n_clusters=4, gamma0=1.0, pull=0.5), align_on="all"))
    run.tiles = TrainTiles(ObjectTiles(objects, TileSpec(64, overlap=0.5)), 10)
    detector = run.detector(adapted=True)
    features, labels, counted = features_of(run, detector)

    # Where each object is seen whole, or else most, worked out from the windows of the tiles.
    seen: dict[tuple[int, int], list[tuple[float, int]]] = {}
    row = 0
    for index in range(len(run.tiles)):
        tile = run.tiles[index]
        column, line, side = tile.window
        for box in tile.boxes[~tile.ignored] + [column, line, column, line]:
            number = int(np.flatnonzero((objects.images[tile.image_index].boxes == box).all(axis=1))[0])
            inside = np.clip(box, [column, line] * 2, [column + side, line + side] * 2)
            share = np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
            seen.setdefault((tile.image_index, number), []).append((-round(float(share), 6), row))
            row += 1
    assert set(np.flatnonzero(counted).tolist()) == {min(places)[1] for places in seen.values()}
    assert counted.sum() == 26 < len(labels) == row

    tables = []

    def told(*args: Any) -> Calibration:
        tables.append(args[2])
        return calibrate(*args)

    monkeypatch.setattr(stages, "calibrate", told)
    aim = debias(run, detector)
    assert tables[0].counts == tuple(np.bincount(labels[counted], minlength=3).tolist())
    assert sum(tables[0].counts) == 26
    together = np.concatenate(features)
    expected = calibrate(together[counted], labels[counted], tables[0], run.config.debias, run.config.seed)
    targets = np.concatenate(list(aim.targets))
    np.testing.assert_allclose(targets[counted], expected.targets, rtol=1e-4, atol=1e-5)
    rare = labels == objects.table.groups.index("tail")
    half = (together[rare] + expected.centres[labels[rare]]) / 2
    np.testing.assert_allclose(targets[rare], half, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(targets[~rare], together[~rare])
    np.testing.assert_allclose(aim.scale, together[counted].std(axis=0), rtol=1e-4, atol=1e-5)


def test_only_the_objects_of_moved_classes_have_an_aim_unless_all_do(configure: Configure) -> None:
    run = run_of(configure(debias=DebiasSettings(n_clusters=4, pull=0.5)))
    detector = run.detector(adapted=True)
    labels = features_of(run, detector)[1]
    drawn = ~np.isnan(np.concatenate(list(debias(run, detector).targets))).any(axis=1)
    rare = np.array([group == "tail" for group in run.objects.table.groups])
    assert 0 < drawn.sum() < len(drawn)
    np.testing.assert_array_equal(drawn, rare[labels])
    run.config = replace(run.config, align_on="all")
    assert np.isfinite(np.concatenate(list(debias(run, detector).targets))).all()


@pytest.mark.parametrize("start", ["adapted", "fresh"])
def test_the_third_stage_goes_on_from_the_first_or_begins_anew(start: str, configure: Configure) -> None:
    run = run_of(configure(epochs=1, align_start=start, lr=1e-12))  # hardly a step
    detector = run.detector(adapted=True)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.5)
    aligned = dict(align(run, detector, None).named_parameters())
    ups = [value for name, value in aligned.items() if ".lora_B" in name]
    torch.testing.assert_close(
        torch.stack([up.mean() for up in ups]), torch.full((len(ups),), 0.5 * (start == "adapted"))
    )


def test_alignment_brings_features_to_their_targets(configure: Configure) -> None:
    run = run_of(configure(epochs=15, augment=False, align_on="all", align_weight=20.0, refit_share=0.0, lr=5e-3))
    detector = adapt(replace(run, config=replace(run.config, epochs=1)))
    aim = debias(run, detector)
    rng = np.random.default_rng(0)
    aim = replace(aim, targets=[own + rng.normal(0, aim.scale).astype(np.float32) for own in aim.targets])

    def gap(features: list[np.ndarray]) -> float:
        pairs = zip(features, aim.targets, strict=True)
        return float(np.concatenate([((own - target) / aim.scale) ** 2 for own, target in pairs]).mean())

    before = gap(features_of(run, detector)[0])
    after = gap(features_of(run, align(run, detector, aim))[0])
    assert after < 0.6 * before


@pytest.mark.parametrize(("cache_mb", "read"), [(10, 6), (0, 1)])
def test_tiles_are_read_in_their_order_first_as_far_as_memory_allows(
    cache_mb: int, read: int, configure: Configure
) -> None:
    seen: Steps = []
    train_detector(scenes(), TILES, configure(epochs=1, cache_mb=cache_mb), progress=seen.append)
    assert max(steps(seen, "read tiles")) == read
    assert seen[0] == Progress("read tiles", 0, 6)


def test_ignored_objects_have_no_feature(configure: Configure) -> None:
    run = run_of(configure(), n=2)
    first, second = run.objects.images
    ignored = np.array([False, True, False, False])
    objects = replace(run.objects, images=(replace(first, ignored=ignored), second))
    run.tiles = TrainTiles(ObjectTiles(objects, TILES), 1)
    features, labels, _ = features_of(run, run.detector(adapted=True))
    assert [len(own) for own in features] == [3, 4]
    np.testing.assert_array_equal(labels, np.concatenate([first.labels[~ignored], second.labels]))

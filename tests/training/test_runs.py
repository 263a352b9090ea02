"""Epochs, checkpoints, early stopping, divergence: how a stage runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.conftest import toy_chips
from tests.training.test_methods import balanced_accuracy, predict, same
from torchgeo_debias.backbones import AdapterSettings, add_adapter, create_backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias.losses import build_loss
from torchgeo_debias.errors import Cancelled, ConfigError, DataError, OutputError
from torchgeo_debias.progress import Progress
from torchgeo_debias.training import TrainConfig, checkpoints, extract_features, stages, train
from torchgeo_debias.training.module import Objective, StageModule, random_symmetry, run_stage

Configure = Callable[..., TrainConfig]
Steps = list[Progress]


def stop_at(stage: str, done: int) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, done):
            raise Cancelled("stopped")

    return callback


def steps(seen: Steps, stage: str) -> list[int]:
    return [progress.done for progress in seen if progress.stage == stage]


def test_progress_counts_every_step(toy: Chips, configure: Configure) -> None:
    seen: Steps = []
    train(toy, configure(method="lora", epochs=2), progress=seen.append)
    assert steps(seen, "adapt") == list(range(1, 13))  # 45 chips in batches of 8, twice
    assert {progress.total for progress in seen} == {12}


def test_stage_3_may_have_fewer_epochs(toy: Chips, configure: Configure) -> None:
    seen: Steps = []
    train(toy, configure(epochs=3, align_epochs=1, align_start="adapted"), progress=seen.append)
    assert steps(seen, "adapt") == list(range(1, 19))
    assert steps(seen, "align") == list(range(1, 7))


def test_a_last_batch_of_one_chip_is_left_out(toy: Chips, configure: Configure) -> None:
    seen: Steps = []
    train(toy, configure(method="lora", epochs=1, batch_size=11), progress=seen.append)
    assert steps(seen, "adapt") == [1, 2, 3, 4]


@pytest.mark.parametrize("stage", ["adapt", "align"])
def test_a_cancelled_run_goes_on_where_it_stopped(
    stage: str, toy: Chips, held_out: Chips, configure: Configure, tmp_path: Path
) -> None:
    config = configure(method="deblora", epochs=4, adapter=AdapterSettings(rank=4, dropout=0.1))
    with pytest.raises(Cancelled):
        train(toy, config, progress=stop_at(stage, 14), checkpoints=tmp_path)  # in the third epoch
    seen: Steps = []
    again = train(toy, config, progress=seen.append, checkpoints=tmp_path).package
    assert steps(seen, stage) == list(range(13, 25))
    assert steps(seen, "adapt" if stage == "align" else "align") == ([] if stage == "align" else list(range(1, 25)))
    assert balanced_accuracy(predict(again, config, held_out), held_out.labels) > 0.7
    assert same(again, train(toy, config).package)


def test_a_finished_run_is_not_trained_again(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=2)
    first = train(toy, config, checkpoints=tmp_path).package
    assert same(first, train(toy, config).package)
    seen: Steps = []
    assert same(first, train(toy, config, progress=seen.append, checkpoints=tmp_path).package)
    assert steps(seen, "adapt") == steps(seen, "align") == []


@pytest.mark.parametrize(
    "options", [{"align_start": "adapted"}, {"align_start": "adapted", "rounds": 2}, {"rounds": 2}]
)
def test_stage_3_that_is_trained_again_on_what_was_kept_comes_out_the_same(
    options: dict[str, Any], toy: Chips, configure: Configure, tmp_path: Path
) -> None:
    config = configure(epochs=1, head="own", adapter=AdapterSettings(rank=2, dropout=0.2), **options)
    first = train(toy, config, checkpoints=tmp_path).package
    for folder in tmp_path.glob("align*"):
        shutil.rmtree(folder)
    seen: Steps = []
    assert same(first, train(toy, config, progress=seen.append, checkpoints=tmp_path).package)
    assert steps(seen, "align")
    assert not steps(seen, "adapt")


@pytest.mark.parametrize(
    "options", [{"align_start": "adapted"}, {"adapter": AdapterSettings("plora", rank=2, dropout=0.2, experts=2)}]
)
def test_every_stage_trains_with_dropout(
    options: dict[str, Any], toy: Chips, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: dict[str, bool] = {}

    def seen_by(module: StageModule, chips: Chips, validation: Chips | None, stage: str, *others: Any) -> None:
        modes[stage] = all(part.training for part in module.backbone.modules())

    monkeypatch.setattr(stages, "run_stage", seen_by)
    train(toy, configure(**options))
    assert modes == {"adapt": True, "align": True}


def test_checkpoints_of_anything_else_are_not_used(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", epochs=1)
    train(toy, config, checkpoints=tmp_path)
    dim = toy.images.copy()
    dim[0, 0, 0, 0] ^= 1
    for chips, other in (
        (toy, replace(config, lr=1e-3)),
        (toy, replace(config, epochs=2)),
        (toy, replace(config, seed=1)),
        (replace(toy, images=dim), config),
        (replace(toy, labels=toy.labels[::-1].copy()), config),
        (toy.subset(list(range(44))), config),
    ):
        seen: Steps = []
        train(chips, other, progress=seen.append, checkpoints=tmp_path)
        assert steps(seen, "adapt")[0] == 1
    # And its own is still there.
    seen = []
    train(toy, config, progress=seen.append, checkpoints=tmp_path)
    assert steps(seen, "adapt") == []


@pytest.mark.parametrize(("name", "other"), [("versions", {"torch": "9.9"}), ("pick_dtype", torch.float16)])
def test_checkpoints_of_other_libraries_or_another_precision_are_not_used(
    name: str, other: object, toy: Chips, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(method="lora", epochs=1)
    train(toy, config, checkpoints=tmp_path)
    monkeypatch.setattr(checkpoints, name, lambda *args: other)
    seen: Steps = []
    train(toy, config, progress=seen.append, checkpoints=tmp_path)
    assert steps(seen, "adapt")[0] == 1
    seen.clear()
    train(toy, config, progress=seen.append, checkpoints=tmp_path)
    assert not steps(seen, "adapt")


@pytest.mark.parametrize("keep", [0, 5, 5000, -1])
def test_a_damaged_checkpoint_is_named(keep: int, toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", epochs=1)
    train(toy, config, checkpoints=tmp_path)
    (file,) = tmp_path.rglob("last.ckpt")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"last\.ckpt is damaged: delete it to start the stage again") as error:
        train(toy, config, checkpoints=tmp_path)
    assert "\n" not in str(error.value)
    file.unlink()
    train(toy, config, checkpoints=tmp_path)
    assert file.exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_a_folder_that_nobody_can_write_to_is_refused_before_any_work(toy: Chips, configure: Configure) -> None:
    # Not even the weights are looked for.
    with pytest.raises(OutputError, match="The folder /proc/self cannot be written to"):
        train(toy, replace(configure(), weights="nowhere.safetensors"), checkpoints=Path("/proc/self"))


def test_early_stopping_ends_with_the_best_weights(configure: Configure, tmp_path: Path) -> None:
    chips = toy_chips((24, 12, 8, 6))
    config = configure(method="lora", epochs=40, val_share=0.25, patience=2, lr=1e-2)
    seen: Steps = []
    stopped = train(chips, config, progress=seen.append).package
    assert steps(seen, "adapt")[-1] < seen[0].total
    assert stopped.provenance["training_chips"] < len(chips)
    # Checkpoints change nothing, and neither does an interruption after the end.
    assert same(stopped, train(chips, config, checkpoints=tmp_path).package)
    seen = []
    assert same(stopped, train(chips, config, progress=seen.append, checkpoints=tmp_path).package)
    assert seen == []


def test_validation_without_a_source_to_spare_trains_on(configure: Configure) -> None:
    chips = toy_chips((2, 2))
    seen: Steps = []
    package = train(chips, configure(method="lora", epochs=2, val_share=0.5), progress=seen.append).package
    assert steps(seen, "adapt") == [1, 2]
    assert package.provenance["training_chips"] == 4


def test_accumulated_batches_step_like_one(toy: Chips, configure: Configure) -> None:
    def weights(batch_size: int, accumulate: int) -> torch.Tensor:
        config = configure(
            method="lora", epochs=1, batch_size=batch_size, accumulate=accumulate, augment=False, lr=1e-3
        )
        package = train(chips, config).package
        return torch.from_numpy(package.model.head.weight)

    chips = toy.subset(list(range(20, 40)))
    chips = replace(chips, labels=chips.labels % 2, table=chips.table.from_counts({"a": 10, "b": 10}))
    torch.testing.assert_close(weights(4, 5), weights(20, 1), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(weights(4, 1), weights(20, 1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "finetune"])
def test_a_diverging_run_is_refused(method: str, toy: Chips, configure: Configure) -> None:
    with pytest.raises(ConfigError, match="diverged in epoch 1 of 6: choose a lower learning rate than") as error:
        train(toy, configure(method=method, lr=1e38))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_only_the_lora_and_the_head_move(name: str, toy: Chips, configure: Configure) -> None:
    config = configure(backbone=name, epochs=1)
    backbone = add_adapter(create_backbone(config.backbone, size=32, weights=config.weights), AdapterSettings(rank=2))
    module = StageModule(
        backbone, nn.Linear(backbone.dim, 4), statistics(), Objective(build_loss("ce", toy.table)), config
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run_stage(module, toy, None, "adapt", lambda progress: None)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("head.")}


def test_alignment_brings_features_to_their_targets(toy: Chips, configure: Configure) -> None:
    config = configure(epochs=15, lr=1e-2, augment=False)
    torch.manual_seed(0)
    backbone = add_adapter(create_backbone(config.backbone, size=32, weights=config.weights), AdapterSettings(rank=4))
    start = extract_features(backbone, toy, statistics(), precision="32")
    rng = np.random.default_rng(0)
    centres = (start.mean(axis=0) + rng.normal(0, start.std(axis=0), (4, backbone.dim))).astype(np.float32)
    targets = centres[toy.labels]
    scale = torch.from_numpy(start.std(axis=0) + 1e-6)
    objective = Objective(None, torch.from_numpy(targets), scale)
    module = StageModule(backbone.train(), nn.Linear(backbone.dim, 4), statistics(), objective, config)
    head = module.head.weight.detach().clone()
    run_stage(module, toy, None, "align", lambda progress: None)
    after = extract_features(module.backbone, toy, statistics(), precision="32")

    def gap(z: np.ndarray) -> float:
        return float((((z - targets) / scale.numpy()) ** 2).mean())

    assert gap(after) < 0.7 * gap(start)
    assert torch.equal(module.head.weight.detach(), head), "a head without a loss is left as it was"


def test_random_symmetry_draws_all_eight_and_keeps_every_pixel() -> None:
    torch.manual_seed(0)
    image = torch.arange(2 * 5 * 5, dtype=torch.float32).view(1, 2, 5, 5)
    turned = random_symmetry(image.expand(400, -1, -1, -1))
    distinct, counts = torch.unique(turned.flatten(1), dim=0, return_counts=True)
    assert len(distinct) == 8
    assert counts.min() > 25
    assert torch.equal(distinct.sort(dim=1).values, image.flatten(1).expand(8, -1))
    # Bands move together: the second is always the first plus 25.
    assert (turned[:, 1] - turned[:, 0] == 25).all()


def test_features_keep_the_order_and_shape_of_chips(toy: Chips, configure: Configure) -> None:
    backbone = create_backbone("timm:test_vit", size=32, weights=configure().weights)
    everything = extract_features(backbone, toy, statistics(), batch_size=7, precision="32")
    assert everything.shape == (45, backbone.dim)
    assert everything.dtype == np.float32
    one = extract_features(backbone, toy.subset([17]), statistics(), precision="32")
    np.testing.assert_allclose(everything[17], one[0], rtol=1e-4, atol=1e-5)


def statistics() -> Normalisation:
    return Normalisation((120.0,) * 3, (60.0,) * 3)

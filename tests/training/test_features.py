"""Features are extracted once for the same weights and chips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from torchgeo_debias.backbones import AdapterSettings, add_adapter, create_backbone
from torchgeo_debias.backbones.adapters import Kind
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.progress import Progress
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.features import cached_features
from torchgeo_debias.training.trainer import normalisation_for


def test_features_are_kept_and_found_again(
    toy: Chips, held_out: Chips, configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = configure()
    backbone = create_backbone(config.backbone, size=32, weights=config.weights)
    normalisation = normalisation_for(toy, config)
    steps: list[Progress] = []

    def features(chips: Chips) -> np.ndarray:
        return cached_features(backbone, chips, normalisation, tmp_path, precision="32", progress=steps.append)

    first = features(toy)
    assert steps
    steps.clear()
    np.testing.assert_array_equal(features(toy), first)
    assert not steps, "computed again"
    features(held_out)
    assert steps, "other chips, other features"
    steps.clear()
    next(backbone.parameters()).data += 0.1
    assert np.abs(features(toy) - first).max() > 0
    assert steps


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_the_same_tensors_in_another_backbone_or_adapter_give_other_features(
    kind: Kind, toy: Chips, configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = configure()

    def kept(alpha: float, arch: str = "test_vit") -> int:
        backbone = create_backbone(config.backbone, size=32, weights=config.weights)
        torch.manual_seed(0)
        add_adapter(backbone, AdapterSettings(kind, rank=2, alpha=alpha))
        backbone.spec = replace(backbone.spec, arch=arch)
        cached_features(backbone, toy, normalisation_for(toy, config), tmp_path, precision="32")
        return len(list(tmp_path.iterdir()))

    assert [kept(4), kept(4), kept(8), kept(8), kept(8, "other"), kept(4)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_damaged_features_are_extracted_again(
    keep: int, toy: Chips, configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = configure()
    backbone = create_backbone(config.backbone, size=32, weights=config.weights)

    def features() -> np.ndarray:
        return cached_features(backbone, toy, normalisation_for(toy, config), tmp_path, precision="32")

    first = features()
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:keep])
    np.testing.assert_array_equal(features(), first)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [whole]


def test_without_a_folder_nothing_is_kept(
    toy: Chips, configure: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configure()
    backbone = create_backbone(config.backbone, size=32, weights=config.weights)
    cached_features(backbone, toy, normalisation_for(toy, config), None)
    assert not list(tmp_path.iterdir())

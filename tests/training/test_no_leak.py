"""Features are made of pixels alone: no label and no name of a class takes part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones.conftest import SMALL_DIFFUSION
from torchgeo_debias.backbones import AdapterSettings, Backbone, add_adapter, create_backbone
from torchgeo_debias.backbones.diffusion import ARCHITECTURES
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.training import TrainConfig, extract_features, train
from torchgeo_debias.training.features import cached_features
from torchgeo_debias.training.trainer import normalisation_for


@pytest.fixture
def renamed(toy: Chips) -> Chips:
    """The same pixels with shuffled labels, and classes with each other's names."""
    labels = np.random.default_rng(5).permutation(toy.labels)
    table = ClassTable.from_labels(labels, toy.table.names[::-1])
    other = replace(toy, labels=labels, table=table)
    assert (other.labels != toy.labels).any()
    assert other.table.names != toy.table.names
    return other


def larger(chips: Chips) -> Chips:
    """Four times the side."""
    return replace(chips, images=chips.images.repeat(4, 2).repeat(4, 3), valid=chips.valid.repeat(4, 1).repeat(4, 2))


def backbones(monkeypatch: pytest.MonkeyPatch) -> list[Backbone]:
    monkeypatch.setitem(ARCHITECTURES, "stable-diffusion-1", SMALL_DIFFUSION)
    torch.manual_seed(0)
    found = [
        create_backbone("timm:test_vit", size=32, weights="random"),
        create_backbone("clip_vitb32", size=32, weights="random"),
        create_backbone("sd15_unet", size=128, weights="random"),
    ]
    for backbone in found:
        add_adapter(backbone, AdapterSettings(rank=2))
    return found


def test_features_do_not_change_with_labels_and_names(
    toy: Chips, renamed: Chips, configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = np.arange(0, len(toy), 6)
    normalisation = normalisation_for(toy, configure())
    assert normalisation_for(renamed, configure()) == normalisation
    for backbone in backbones(monkeypatch):
        one, other = toy.subset(few), renamed.subset(few)
        if backbone.spec.name == "sd15_unet":
            one, other = (larger(c) for c in (one, other))
        first = extract_features(backbone, one, normalisation, precision="32")
        again = extract_features(backbone, other, normalisation, precision="32")
        kept = cached_features(backbone, other, normalisation, tmp_path, precision="32")
        np.testing.assert_array_equal(again, first)
        np.testing.assert_array_equal(kept, first)


def test_a_prediction_takes_pixels_alone(
    toy: Chips, renamed: Chips, configure: Callable[..., TrainConfig], tiny_weights: Path
) -> None:
    """The heads of two trainings differ, the features under them do not: swapping the heads swaps the answers."""
    config = configure(method="probe")
    one, other = train(toy, config).package, train(renamed, config).package
    assert not np.allclose(one.model.head.weight, other.model.head.weight)
    swapped = replace(one, model=replace(one.model, head=other.model.head))
    answers = [
        PackagePredictor(package, weights=str(tiny_weights), precision="32").predict(toy.images, toy.valid)
        for package in (other, swapped)
    ]
    np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)

"""Chips that a model with random weights can tell apart, and the cheapest configuration that trains on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchgeo_debias.backbones import AdapterSettings
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.training import TrainConfig

COLOURS = np.array([[200, 60, 60], [60, 190, 70], [60, 80, 200], [190, 190, 60]])
COUNTS = (24, 12, 6, 3)


def toy_chips(counts: tuple[int, ...] = COUNTS, seed: int = 0, size: int = 32) -> Chips:
    """Noisy squares in the colour of their class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = COLOURS[labels][:, :, None, None] + rng.normal(0, 40, (len(labels), 3, size, size))
    return Chips(
        images=images.clip(0, 255).astype(np.uint8),
        valid=np.ones((len(labels), size, size), dtype=bool),
        labels=labels.astype(np.int64),
        sources=np.array([f"image{i}" for i in range(len(labels))]),
        table=ClassTable.from_counts({f"class{c}": n for c, n in enumerate(counts)}),
        spec=ChipSpec(size=size),
        bands=("red", "green", "blue"),
    )


@pytest.fixture(scope="session")
def toy() -> Chips:
    return toy_chips()


@pytest.fixture(scope="session")
def held_out() -> Chips:
    return toy_chips((8, 8, 8, 8), seed=1)


@pytest.fixture(scope="session")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainConfig]:
    """Makes a :class:`TrainConfig` of a tiny backbone; options go before."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder: Path = tmp_path_factory.mktemp("toy-weights")
    for name in ("test_vit", "test_resnet"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=0)
        for key, parameter in model.named_parameters():
            if "bn" in key and not parameter.any() and key.endswith("weight"):
                torch.nn.init.ones_(parameter)  # pretrained residual blocks are not switched off
        save_file(model.state_dict(), folder / f"timm:{name}.safetensors".replace(":", "_"))

    def make(**options: Any) -> TrainConfig:
        backbone = options.pop("backbone", "timm:test_vit")
        settings: dict[str, Any] = {
            "backbone": backbone,
            "weights": str(folder / f"{backbone.replace(':', '_')}.safetensors"),
            "adapter": AdapterSettings(rank=4),
            "debias": DebiasSettings(n_clusters=4, gamma0=2.0),
            "epochs": 6,
            "batch_size": 8,
            "lr": 3e-3,
            "precision": "32",
        }
        return TrainConfig(**{**settings, **options})

    return make

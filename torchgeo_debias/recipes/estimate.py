"""What a training will take: steps, images through the network, memory; counted, not measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchgeo_debias.backbones import add_adapter, empty_backbone
from torchgeo_debias.training import TrainConfig

_ADAM = 12
"""Bytes that a trained parameter needs beside itself: its gradient and the two moments of Adam, each in 32 bits."""


@dataclass(frozen=True)
class Size:
    """A backbone in numbers.

    Attributes:
        parameters: All of them.
        trained: Those of the adapter, or all with ``finetune``; 0 with ``probe``.
        features: Length of a feature.
        activations: Bytes that one chip leaves for the backward pass, in 32 bits.
    """

    parameters: int
    trained: int
    features: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """What a training will take.

    Attributes:
        size: Of the backbone.
        chips_bytes: Of all chips in main memory, masks included; None where their number is not known.
        model_bytes: Of weights, gradients and moments of the optimiser, in 32 bits.
        step_bytes: Of what a step keeps for its backward pass beside, in 32 bits; with bf16 about half. An upper bound:
            fused attention keeps less, and gradient checkpointing much less.
        steps: Of the optimiser in all stages; None where the number of chips is not known.
        trained_images: Images that go forth and back.
        passed_images: Images that go through once, for features and scores, each of their views counted; without the
            repeated draws of a diffusion model.
    """

    size: Size
    chips_bytes: int | None
    model_bytes: int
    step_bytes: int
    steps: int | None
    trained_images: int | None
    passed_images: int | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def estimate(
    config: TrainConfig, chip_size: int, bands: tuple[str, ...], dtype: str, train: int | None, scored: int | None
) -> Estimate:
    """Count what a training will take.

    Args:
        config: Of the training.
        chip_size: Side of a chip, pixels.
        bands: Names of the bands.
        dtype: Of the pixels.
        train: Chips to train on, None if unknown.
        scored: Chips that the model is scored on afterwards, None if unknown.

    Raises:
        ConfigError: If the backbone does not take such chips.
        WeightsError: If the library that builds it is not installed.
    """
    size = measure(config, chip_size, bands)
    align = [config.align_epochs or config.epochs] * config.rounds
    stages = {"probe": [], "deblora": [config.epochs, *align]}.get(config.method, [config.epochs])
    chip = chip_size**2 * (len(bands) * np.dtype(dtype).itemsize + 1)
    trains = config.method != "probe"
    steps = trained = passed = None
    if train is not None:
        batches = math.ceil(train / (config.batch_size * config.devices))
        steps = sum(math.ceil(batches / config.accumulate) * epochs for epochs in stages)
        trained = sum(train * epochs for epochs in stages)
        extractions = {"probe": 1, "deblora": config.rounds}.get(config.method, 0)
        extractions += trains and config.head_name != "own"
        passed = train * extractions + (scored or 0) * (2 if config.method == "deblora" else 1)
        passed *= config.view_count
    return Estimate(
        size,
        None if train is None or scored is None else (train + scored) * chip,
        4 * size.parameters + _ADAM * size.trained,
        size.activations * config.batch_size if trains else 0,
        steps,
        trained,
        passed,
    )


def measure(config: TrainConfig, chip_size: int, bands: tuple[str, ...]) -> Size:
    """A backbone in numbers, from shapes alone: no weights are made.

    A mixture of LoRAs counts as one of them.
    """
    backbone = empty_backbone(config.backbone, size=chip_size, bands=bands, pool=config.pool)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    backbone.train()
    if config.method in ("lora", "deblora") and not config.adapter.mixture:
        with torch.device("meta"):
            add_adapter(backbone, config.adapter)
    trains = config.method != "probe"
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad) if trains else 0
    return Size(parameters, trained, backbone.dim, _kept(backbone, chip_size, len(bands)) if trains else 0)


def _kept(backbone: torch.nn.Module, chip_size: int, bands: int) -> int:
    """Bytes that autograd keeps of one chip beside the parameters, each piece of memory counted once."""
    own = {parameter.untyped_storage()._cdata for parameter in backbone.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    images = torch.empty(2, bands, chip_size, chip_size, device="meta")  # two: batch normalisation refuses one
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(images)
    return sum(storage.nbytes() for storage in kept.values()) // 2

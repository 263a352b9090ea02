"""Features of all chips, extracted once and kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from torchgeo_debias.backbones import Backbone, Precision, pick_device, pick_dtype
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.progress import ProgressCallback, silent, track

Array = npt.NDArray[np.float32]


def extract_features(
    backbone: Backbone,
    chips: Chips,
    normalisation: Normalisation,
    *,
    batch_size: int = 64,
    precision: Precision = "auto",
    stage: str = "features",
    progress: ProgressCallback = silent,
) -> Array:
    """Features (N, dim) float32 of all chips, without augmentation and in their order."""
    device = pick_device()
    dtype = pick_dtype(precision, device)
    backbone.to(device).eval()
    backbone.prefer(device, dtype)
    features = np.empty((len(chips), backbone.dim), dtype=np.float32)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for take in track(list(_batches(len(chips), batch_size)), stage, progress):
            batch = chips.batch(take)
            images = normalisation(batch["image"].to(device), batch["valid"].to(device))
            features[take] = backbone(images).float().cpu().numpy()
    return features


def _batches(n: int, size: int) -> Iterator[npt.NDArray[np.intp]]:
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))

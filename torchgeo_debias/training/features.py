"""Features of all chips, extracted once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from torchgeo_debias.backbones import Backbone, Precision, adapter_state, pick_device, pick_dtype, state_digest
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.files import atomic, make_folder
from torchgeo_debias.progress import ProgressCallback, silent, track
from torchgeo_debias.training.checkpoints import fingerprint, pieces_of, resolved

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
    at_once = max(1, batch_size // backbone.views)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for take in track(list(_batches(len(chips), at_once)), stage, progress):
            batch = chips.batch(take)
            images = normalisation(batch["image"].to(device), batch["valid"].to(device))
            features[take] = backbone(images).float().cpu().numpy()
    return features


def cached_features(
    backbone: Backbone,
    chips: Chips,
    normalisation: Normalisation,
    folder: Path | None,
    *,
    precision: Precision = "auto",
    stage: str = "features",
    progress: ProgressCallback = silent,
) -> Array:
    """As :func:`extract_features`, but only once for the same weights and chips, where there is a folder to keep them.

    Args:
        backbone: With or without a LoRA.
        chips: What to extract from.
        normalisation: Of the pixels.
        folder: Where features are kept, as safetensors named by a digest of all that they depend on; made if need be;
            None for nowhere.
        precision: Of the computation.
        stage: Name shown to people.
        progress: Told after each batch.

    Raises:
        OutputError: If they cannot be kept.
    """

    def extract() -> Array:
        return extract_features(backbone, chips, normalisation, precision=precision, stage=stage, progress=progress)

    if folder is None:
        return extract()
    adapter = adapter_state(backbone)
    setting = {
        "backbone": [backbone.spec.name, backbone.spec.arch],
        # The same tensors may be used in other ways: scaled by another alpha, which an AdaLoRA has in those it gives.
        "adapter": None if adapter is None else [adapter.config, state_digest(adapter.tensors)],
        "pool": backbone.pool,
        "views": backbone.views,
        "precision": resolved(precision),
        "normalisation": normalisation.to_json(),
    }
    weights = state_digest(backbone.model.state_dict())
    file = folder / f"features-{fingerprint([setting, weights, *pieces_of(chips)])}.safetensors"
    with suppress(OSError, SafetensorError):  # not there yet, or damaged: extracted again
        return load_file(file)["features"]
    features = extract()
    make_folder(folder)
    with atomic(file) as part:
        part.write_bytes(save({"features": features}))
    return features


def _batches(n: int, size: int) -> Iterator[npt.NDArray[np.intp]]:
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))

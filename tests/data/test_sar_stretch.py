from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.data.normalise import Normalisation, Stretch


def speckle_with_bright_targets() -> np.ndarray:
    amplitude = np.random.default_rng(0).rayleigh(8, (20, 1, 32, 32))
    amplitude[:, :, 14:18, 14:18] *= 20
    return amplitude.astype(np.uint16)


def tailedness(images: np.ndarray, stretch: Stretch) -> float:
    """Fourth moment of the normalised values: how far a few bright pixels lie from the rest."""
    normalisation = Normalisation.fit(images, np.ones((len(images), *images.shape[2:]), dtype=bool), stretch)
    x = normalisation(torch.from_numpy(images.astype(np.float32)))
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-2
    return float((x**4).mean())


def test_stretches_draw_bright_targets_in() -> None:
    images = speckle_with_bright_targets()
    found = {stretch: tailedness(images, stretch) for stretch in get_args(Stretch)}
    assert found["log"] < found["sqrt"] < found["none"]
    assert found["percentile"] < found["none"]


@pytest.mark.real_data
def test_stretch_on_mstar(real_data: Path, tmp_path: Path) -> None:
    for name in ("BTR70", "ZIL131"):
        (tmp_path / name).symlink_to(real_data / "mstar_soc10" / "test" / name)
    images = read_folder(tmp_path, 88, crop=88).images
    assert tailedness(images, "sqrt") < tailedness(images, "none")

"""What mapping a raster costs beside the model.

1. The engine with a model that answers at once, against a plain loop of rasterio that reads the same windows and does
   nothing with them. Both must see the same pixels, by their sum, before anything is timed.
2. The engine with DINOv2 ViT-S/14 against the same model on chips that are already in memory: the share of the time
   that goes into all but the model.

Run::

    python -m benchmarks.mapping

The raster is drawn from a seed: RGB, 8 bit, smooth noise, deflated in blocks of 512 pixels. Windows are 256 pixels
wide, as the images of UC Merced are, and become chips of 112 pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from benchmarks.measure import ForeignLoad, Times, in_turn, save, timed
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.windows import cut_square
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.mapping import Outputs, Resources
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction
from torchgeo_debias.inference.rasters import classify_raster
from torchgeo_debias.tiling.source import RasterSource
from torchgeo_debias.training import TrainConfig, train

WINDOW, CHIP, CLASSES = 256, 112, 8


class Instant:
    """A model that answers at once."""

    bands = ("red", "green", "blue")
    dtype = "uint8"
    table = ClassTable.from_counts({f"class {c}": 100 - 10 * c for c in range(CLASSES)})

    def __init__(self, chip: int) -> None:
        self.spec = ChipSpec(chip, WINDOW)
        self._answers = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 4096).astype(np.float32)

    twin = False
    identity = "instant"

    def use_threads(self, n: int) -> None:
        pass

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        return Prediction(self._answers[: len(images)])


class Summing(Instant):
    """Adds up the pixels it is given."""

    total = 0

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        self.total += int(images.sum(dtype=np.int64))
        return super().predict(images, valid)


def draw(path: Path, side: int) -> Path:
    """One strip of blocks after another, noise of 8 pixels stretched to the grid."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32632",
        "transform": from_origin(500_000, 5_400_000, 0.3, 0.3), "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate", "predictor": 2,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for top in range(0, side, 512):
            coarse = rng.integers(20, 230, (3, 64, side // 8), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
            target.write(coarse + rng.integers(0, 20, coarse.shape, dtype=np.uint8), window=Window(0, top, side, 512))
    return path


def windows(path: Path) -> Iterator[npt.NDArray[Any]]:
    """The plain loop."""
    with rasterio.open(path) as dataset:
        for top in range(0, dataset.height, WINDOW):
            for left in range(0, dataset.width, WINDOW):
                yield dataset.read(window=Window(left, top, WINDOW, WINDOW))


def engine(path: Path, folder: Path, repeats: int) -> dict[str, Any]:
    seen = Summing(WINDOW)
    classify_raster(path, seen, Outputs(folder / "sum.gpkg"), resources=Resources(64, 1, 1))
    assert seen.total == sum(int(pixels.sum(dtype=np.int64)) for pixels in windows(path))

    def mapped(model: ChipPredictor) -> Times:
        outputs = Outputs(folder / "engine.gpkg", folder / "engine.tif")
        return timed(lambda: classify_raster(path, model, outputs, resources=Resources(64, 1, 1)))

    def plain() -> Times:
        return timed(lambda: sum(1 for _ in windows(path)))

    return {
        "whole windows": in_turn(lambda: mapped(Instant(WINDOW)), plain, repeats),
        "windows to chips": in_turn(lambda: mapped(Instant(CHIP)), plain, repeats),
    }


def with_model(path: Path, folder: Path, repeats: int, tiles: int) -> dict[str, Any]:
    predictor = _dinov2()
    with RasterSource(path) as source:
        across = source.width // WINDOW
        cut = [
            cut_square(source.read, np.array([i % across * WINDOW, i // across * WINDOW, WINDOW]), CHIP)
            for i in range(tiles)
        ]
    images, valid = np.stack([pixels for pixels, _ in cut]), np.stack([mask for _, mask in cut])

    def mapped() -> Times:
        outputs = Outputs(folder / "m.gpkg", folder / "m.tif")
        resources = Resources(64, 1, torch.get_num_threads())
        return timed(lambda: classify_raster(path, predictor, outputs, resources=resources))

    def alone() -> Times:
        return timed(lambda: [predictor.predict(images[i : i + 64], valid[i : i + 64]) for i in range(0, tiles, 64)])

    alone()  # the first call warms up
    times = in_turn(mapped, alone, repeats)
    return {
        **times,
        "tiles_per_s": round(tiles / times["ours_s"]["median"], 1),
        "model_tiles_per_s": round(tiles / times["theirs_s"]["median"], 1),
        "share_outside_model": {
            kind: round(1 - 1 / times[f"ratio_{kind}"]["median"], 3) for kind in ("wall", "cpu")
        },
    }  # fmt: skip


def _dinov2() -> PackagePredictor:
    """A probe fitted to noise: its answers mean nothing, its cost is that of any package without a twin."""
    rng = np.random.default_rng(0)
    labels = np.arange(2 * CLASSES) % CLASSES
    count = len(labels)
    chips = Chips(
        images=rng.integers(0, 256, (count, 3, CHIP, CHIP), dtype=np.uint8),
        valid=np.ones((count, CHIP, CHIP), dtype=bool),
        labels=labels,
        sources=np.arange(count).astype(str),
        table=ClassTable.from_counts({f"class {c}": 2 for c in range(CLASSES)}),
        spec=ChipSpec(CHIP, WINDOW),
        bands=("red", "green", "blue"),
    )
    return PackagePredictor(train(chips, TrainConfig(method="probe", views=1)).package)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="of the raster for the engine, pixels")
    parser.add_argument("--model-side", type=int, default=4096, help="of the raster for DINOv2, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    load = ForeignLoad()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, small = draw(folder / "large.tif", options.side), draw(folder / "small.tif", options.model_side)
        tiles = {key: (side // WINDOW) ** 2 for key, side in (("engine", options.side), ("model", options.model_side))}
        figures = {
            "tiles": tiles,
            "engine": engine(large, folder, options.repeats),
            "model": with_model(small, folder, options.repeats, tiles["model"]),
        }
    save("mapping", load, figures)


if __name__ == "__main__":
    main()

"""Two segmentation nets with fixed weights, as torch modules and as ONNX files that every contender runs.

Run::

    python -m benchmarks.tiling.models --data-dir DIR

The convolutions keep their seeded random weights; only the last layer is fitted, by least squares to the two kinds of
regions that :mod:`benchmarks.tiling.rasters` draws, so that the class map consists of regions as a real one does.
Every length in the nets is a multiple of 4 pixels, as are the tile and the stride: what a net says of a pixel depends
on nothing but the pixels within 40 of it, whichever grid of tiles a contender lays. Hence all class maps
must be equal away from seams.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from benchmarks.tiling.grids import TILE
from benchmarks.tiling.predictor import FULL_SCALE
from benchmarks.tiling.rasters import RECIPES, Field, Recipe, strips

CLASSES = 2
NETS = {"light": (32, 1), "heavy": (64, 6)}
"""Channels of the trunk, and its convolutions."""
VERSION = 2


class Segmenter(nn.Module):
    """Scores (N, 2, S, S), summing to 1, of images (N, C, S, S) whose pixels lie in 0 to 1."""

    def __init__(self, bands: int, channels: int, depth: int) -> None:
        super().__init__()
        widths = (bands, channels // 2, channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, CLASSES, 1)
        self.grow = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.grow(self.head(self.trunk(images))).softmax(dim=1)
        return scores


def build(name: str, bands: int) -> Segmenter:
    """A net of :data:`NETS`, the same at every call."""
    torch.manual_seed(0)
    net = Segmenter(bands, *NETS[name]).eval()
    recipe = Recipe(2 * TILE, bands=bands)
    image, inside = _sample(recipe)
    with torch.inference_mode():
        for layer in net.trunk:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        features = net.trunk(image)[0].flatten(1).double()
        wanted = nn.functional.avg_pool2d(inside, 4).flatten().double() - 0.5
        rows = torch.cat([features, torch.ones_like(features[:1])]).T
        ridge = 1e-6 * torch.eye(rows.shape[1], dtype=torch.float64) * rows.square().mean()
        fitted = 10 * torch.linalg.solve(rows.T @ rows / len(rows) + ridge, rows.T @ wanted / len(rows))
        fitted = torch.stack([-fitted, fitted])
        head = {"weight": fitted[:, :-1, None, None], "bias": fitted[:, -1]}
        net.head.load_state_dict(head)
    return net


def _sample(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.concatenate([image for _, image in strips(recipe)], axis=1)
    regions = Field(recipe, 0, 192).at(np.arange(recipe.side)) > 0
    scale = np.float32(FULL_SCALE[pixels.dtype.name])
    return torch.from_numpy(pixels / scale)[None], torch.from_numpy(regions[None, None].astype(np.float32))


def flops(net: Segmenter) -> int:
    """Floating-point operations of one tile, two to a multiplication with its addition."""
    total, side = 0, TILE
    for layer in (*net.trunk, net.head):
        if isinstance(layer, nn.Conv2d):
            side //= layer.stride[0]
            total += 2 * layer.weight.numel() * side * side
    return total


def make(name: str, bands: int, folder: Path) -> Path:
    """Write ``<name>_<bands>.onnx`` and, beside it, the weights for torch; kept if both are there.

    Raises:
        RuntimeError: If the two differ by more than 1e-4 on a tile.
    """
    path = folder / f"{name}_{bands}_v{VERSION}.onnx"
    weights = path.with_suffix(".pt")
    if path.exists() and weights.exists():
        return path
    net = build(name, bands)
    folder.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part.onnx")
    tile = torch.rand(2, bands, TILE, TILE, generator=torch.Generator().manual_seed(1))
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        net, (tile,), staged, input_names=["images"], output_names=["scores"], dynamic_shapes=(batch,),
        external_data=False, verbose=False,
    )  # fmt: skip
    _describe(staged)
    session = onnxruntime.InferenceSession(staged, providers=["CPUExecutionProvider"])
    for images in (tile, _sample(Recipe(TILE, bands=bands))[0]):
        with torch.inference_mode():
            expected = net(images).numpy()
        if (difference := float(np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max())) > 1e-4:
            raise RuntimeError(f"The ONNX file of the {name} net is {difference:.1e} off torch.")
    torch.save(net.state_dict(), weights)
    staged.replace(path)
    return path


def load(path: Path) -> Segmenter:
    """The torch module behind an ONNX file that :func:`make` wrote."""
    name, bands, _ = path.stem.split("_")
    net = Segmenter(int(bands), *NETS[name]).eval()
    net.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
    return net


def _describe(path: Path) -> None:
    # What GeoDeep asks of a file. Its threshold of 0 lets the larger score win, as everywhere else here.
    model = onnx.load(path)
    facts = {
        "model_type": "Segmentor",
        "class_names": {"0": "field", "1": "wood"},
        "resolution": 30,
        "seg_thresh": 0,
        "seg_small_segment": 0,
        "tiles_overlap": 10.16,  # per cent, rounded down: 52 pixels
    }
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    for bands in sorted({recipe.bands for recipe in RECIPES.values()}):
        for name in NETS:
            path = make(name, bands, options.data_dir)
            print(path, f"{flops(load(path)) / 1e9:.2f} GFLOP a tile")


if __name__ == "__main__":
    main()

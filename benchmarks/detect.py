"""Objects of a whole raster against the loop that one writes first, with the same model and the same tiles.

The loop reads a window with rasterio, asks the model, keeps the boxes in the middle of the window, and in the end
suppresses all of them at once, with torchvision's NMS or, oriented ones, with shapely's polygons and a tree, and writes
them with geopandas. It may use all cores for each call of the model. Both sides must find the same boxes before
anything is timed.

Run::

    python -m benchmarks.detect [--side 8192] [--loop-batch 1] [--space 100 30]

The model is a small convolutional net with seeded weights, whose strongest peaks are its objects: with one in 100 x 100
pixels some 7,000 in a raster of 8192 pixels, as ships in a harbour; with one in 30 x 30 some 75,000, as cars in a town.
What it says of a place depends on the pixels within 40 of it, so tiles that overlap by 128 pixels agree on all that
lies in their middle.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
import torch
from rasterio.windows import Window
from scipy.spatial import cKDTree
from torch import nn
from torchvision.ops import batched_nms

from benchmarks.mapping import draw
from benchmarks.measure import ForeignLoad, in_turn, save, timed
from torchgeo_debias.boxes.convert import to_polygons
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.inference.detections import DetectOptions, detect_raster
from torchgeo_debias.inference.mapping import Outputs, Resources
from torchgeo_debias.inference.predictor import Found

TILE, OVERLAP, STRIDE, THRESHOLD = 512, 128, 4, 0.5
Array = npt.NDArray[Any]


class Peaks(nn.Module):
    """Peaks of a map of scores, with sides, angle and class of an object at each."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((3, 16, 32, 32, 32))):
            layers += [nn.Conv2d(before, after, 3, stride=2 if number < 2 else 1, padding=1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(32, 4 + classes, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (N, S / 4, S / 4), 0 where there is no peak, and the rest (N, S / 4, S / 4, 3 + classes)."""
        answers = self.head(self.trunk(images / 255 - 0.5))
        scores = answers[:, :1].sigmoid()
        peaks = scores * (scores == nn.functional.max_pool2d(scores, 3, stride=1, padding=1))
        return peaks[:, 0], answers[:, 1:].movedim(1, -1)


class PeakFinder:
    """The net as the library takes it, and as the loop does."""

    bands = ("band_1", "band_2", "band_3")
    dtype, size, gsd, scale = "uint8", TILE, None, 1.0
    table = ClassTable.from_counts({"common": 900, "rare": 9})

    def __init__(self, oriented: bool, sample: Array, space: int) -> None:
        torch.manual_seed(0)
        self.oriented = oriented
        self.identity = f"peaks, {oriented}"
        self._net = Peaks(len(self.table.names)).eval()
        with torch.inference_mode():
            for layer in self._net.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            peaks = self._net(torch.from_numpy(sample).float())[0]
        wanted = sample[:, 0].size / space**2
        self._least = float(peaks.flatten().sort(descending=True).values[math.ceil(wanted)])

    def use_threads(self, n: int) -> None:
        torch.set_num_threads(n)

    def predict(self, images: Array, valid: Array) -> list[Found]:
        with torch.inference_mode():
            peaks, rest = self._net(torch.from_numpy(images).float())
            tile, row, column = (peaks > self._least).nonzero(as_tuple=True)
            scores, values = peaks[tile, row, column].numpy(), rest[tile, row, column].double()
            middle = (torch.stack([column, row], dim=1) + 0.5) * STRIDE
            sides = 8 + 32 * values[:, :2].sigmoid()
            if self.oriented:
                boxes = torch.cat([middle, sides, 180 * values[:, 2:3].sigmoid()], dim=1)
            else:
                boxes = torch.cat([middle - sides / 2, middle + sides / 2], dim=1)
            classes = values[:, 3:].argmax(dim=1).numpy()
        cuts = np.searchsorted(tile.numpy(), np.arange(1, len(images)))
        parts = (np.split(array, cuts) for array in (boxes.numpy(), scores, classes))
        return [Found(*found) for found in zip(*parts, strict=True)]


class Everything(NamedTuple):
    """Boxes of the whole raster before suppression, pixel frame."""

    boxes: Array
    scores: Array
    classes: Array


def loop(path: Path, model: PeakFinder, batch: int, out: Path) -> None:
    """The plain way."""
    model.use_threads(os.cpu_count() or 1)
    found: list[Everything] = []
    with rasterio.open(path) as dataset:
        places = list(product(*(starts(length) for length in dataset.shape)))
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            windows = [dataset.read(window=Window(left, top, TILE, TILE)) for top, left in some]
            images = np.stack([padded(pixels) for pixels in windows])
            for (top, left), one in zip(
                some, model.predict(images, np.ones((len(some), TILE, TILE), bool)), strict=True
            ):
                found.append(kept(one, top, left, dataset.shape))
        transform, crs = dataset.transform, dataset.crs
    every = Everything(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
    keep = (nms_of_polygons if model.oriented else nms)(every)
    polygons = shapely.transform(to_polygons(every.boxes[keep]), lambda points: np.transpose(transform * points.T))
    columns = {
        "class": np.array(model.table.names)[every.classes[keep]],
        "class_id": every.classes[keep],
        "score": every.scores[keep],
    }
    gpd.GeoDataFrame(columns, geometry=polygons, crs=crs).to_file(out)


def starts(length: int) -> range:
    step = TILE - OVERLAP
    return range(0, max(math.ceil((length - TILE) / step), 0) * step + 1, step)


def padded(pixels: Array) -> Array:
    return np.pad(pixels, ((0, 0), (0, TILE - pixels.shape[1]), (0, TILE - pixels.shape[2])))


def kept(found: Found, top: int, left: int, shape: tuple[int, int]) -> Everything:
    """What lies in the middle of the window, which neighbours share without a gap."""
    shift, middle = np.array([left, top]), found.boxes[:, :2]
    if found.boxes.shape[1] == 4:
        middle = (middle + found.boxes[:, 2:]) / 2
    low = np.array([0 if start == 0 else OVERLAP / 2 for start in shift])
    last = np.array([starts(length)[-1] for length in shape[::-1]])
    high = np.where(shift == last, np.array(shape[::-1]) - shift, TILE - OVERLAP / 2)
    inside = ((middle >= low) & (middle < high)).all(axis=1)
    boxes = found.boxes[inside]
    boxes[:, :2] += shift
    if boxes.shape[1] == 4:
        boxes[:, 2:] += shift
    return Everything(boxes, found.scores[inside], found.classes[inside])


def nms(every: Everything) -> Array:
    boxes, scores, classes = (torch.from_numpy(array) for array in every)
    return np.asarray(batched_nms(boxes, scores.double(), classes, THRESHOLD))


def nms_of_polygons(every: Everything) -> Array:
    """Every overlapping pair of polygons of one class, then one pass by falling score."""
    polygons = to_polygons(every.boxes)
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    pairs = (every.scores[one] > every.scores[other]) & (every.classes[one] == every.classes[other])
    one, other = one[pairs], other[pairs]
    shared, areas = shapely.area(shapely.intersection(polygons[one], polygons[other])), shapely.area(polygons)
    over = shared / (areas[one] + areas[other] - shared) > THRESHOLD
    one, other = one[over], other[over]
    keep = np.ones(len(polygons), bool)
    for index in np.argsort(-every.scores[one], kind="stable"):
        if keep[one[index]]:
            keep[other[index]] = False
    return np.flatnonzero(keep)


def check(ours: Path, theirs: Path) -> int:
    """The number of objects.

    Raises:
        RuntimeError: If the two layers differ by more than a millimetre in a corner or 1e-4 in a score.
    """
    one, two = (gpd.read_file(path, layer=path.stem) for path in (ours, theirs))
    middles = [shapely.get_coordinates(frame.geometry.centroid) for frame in (one, two)]
    _, partner = cKDTree(middles[1]).query(middles[0])
    two = two.iloc[partner].reset_index(drop=True)
    same = len(one) == len(middles[1]) == len(set(partner.tolist()))
    if not (
        same
        and (one["class_id"] == two["class_id"]).all()
        and np.abs(one["score"] - two["score"]).max() < 1e-4
        and shapely.hausdorff_distance(one.geometry.to_numpy(), two.geometry.to_numpy()).max() < 1e-3
    ):
        raise RuntimeError(f"The two sides do not find the same objects ({len(one)} and {len(two)}).")
    return len(one)


def compare(path: Path, oriented: bool, space: int, batch: int, repeats: int) -> dict[str, Any]:
    with rasterio.open(path) as dataset:
        model = PeakFinder(oriented, dataset.read(window=Window(0, 0, 2 * TILE, 2 * TILE))[None], space)
    options = DetectOptions(overlap=OVERLAP / TILE, min_score=0, suppression=THRESHOLD)
    ours, theirs = path.with_name("ours.gpkg"), path.with_name("theirs.gpkg")

    def detected() -> None:
        detect_raster(path, model, Outputs(ours), options, resources=Resources())

    def looped() -> None:
        theirs.unlink(missing_ok=True)
        loop(path, model, batch, theirs)

    for work in (detected, looped):
        work()
    objects = check(ours, theirs)

    def timed_from_scratch(work: Callable[[], None], out: Path) -> Any:  # noqa: ANN401
        out.unlink(missing_ok=True)
        return timed(work)

    times = in_turn(lambda: timed_from_scratch(detected, ours), lambda: timed_from_scratch(looped, theirs), repeats)
    return {"objects": objects, **times, "times_as_fast": round(1 / times["ratio_wall"]["median"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Objects of a raster against a plain loop over the same model.")
    parser.add_argument("--side", type=int, default=8192, help="of the raster, a multiple of 512 pixels")
    parser.add_argument("--loop-batch", type=int, default=1, help="tiles in one call of the model, in the loop")
    parser.add_argument(
        "--space", type=int, nargs="+", default=[100, 30], help="pixels from object to object, on average"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    load = ForeignLoad()
    with tempfile.TemporaryDirectory() as folder:
        path = draw(Path(folder) / "raster.tif", options.side)
        figures = {
            f"{name}, one in {space} x {space}": compare(path, oriented, space, options.loop_batch, options.repeats)
            for space in options.space
            for name, oriented in (("upright", False), ("oriented", True))
        }
    libraries = {name: version(name) for name in ("torchvision", "shapely", "geopandas", "pyogrio")}
    facts = {"side": options.side, "tile": TILE, "overlap": OVERLAP, "loop_batch": options.loop_batch}
    save("detect", load, {**facts, "target_times_as_fast": 1.5, "libraries": libraries, **figures})


if __name__ == "__main__":
    main()

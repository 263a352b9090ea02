"""Make the picture of the README from what the demo left: ``python docs/make_pictures.py demo_out``.

The crop is chosen by the true classes alone, as the square with the most rare objects, never by what a model said.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas as gpd
import matplotlib.patheffects as effects
import numpy as np
import numpy.typing as npt
import rasterio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rasterio.windows import Window
from rasterio.windows import bounds as window_bounds

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.tiling.palette import palette

SIDE = 1200
"""Side of the crop, pixels of the raster."""
STEP = 50
"""The crops tried lie on a grid of so many pixels."""
INK = "#1f2937"
IMAGES = Path(__file__).with_name("images")


def read_objects(demo: Path) -> gpd.GeoDataFrame:
    """The classified footprints with their true class as ``truth``; both layers have the same order."""
    objects = gpd.read_file(demo / "objects.gpkg", layer="objects")
    objects["truth"] = gpd.read_file(demo / "scene" / "truth.gpkg")["class"]
    return objects


def choose_crop(raster: rasterio.DatasetReader, objects: gpd.GeoDataFrame, rare: list[str]) -> Window:
    """The square that wholly holds the most objects of the classes ``rare``; the upper left one of equals."""
    boxes = objects.bounds[objects["truth"].isin(rare)]
    t = raster.transform  # north-up, as the demo writes it
    left, right = ((boxes[side].to_numpy() - t.c) / t.a for side in ("minx", "maxx"))
    top, bottom = ((boxes[side].to_numpy() - t.f) / t.e for side in ("maxy", "miny"))
    best, most = Window(0, 0, SIDE, SIDE), -1
    for row in range(0, max(raster.height - SIDE, 0) + 1, STEP):
        for column in range(0, max(raster.width - SIDE, 0) + 1, STEP):
            held = (left >= column) & (right <= column + SIDE) & (top >= row) & (bottom <= row + SIDE)
            if held.sum() > most:
                best, most = Window(column, row, SIDE, SIDE), int(held.sum())
    return best


def colours(table: ClassTable) -> dict[str, tuple[float, ...]]:
    """Colour of each class in 0..1, the same as on the maps."""
    shades = palette(len(table.names), table.background)
    return {name: tuple(value / 255 for value in shade) for name, shade in zip(table.names, shades, strict=True)}


def draw(
    axes: Axes,
    rgb: npt.NDArray[np.uint8],
    extent: tuple[float, float, float, float],
    objects: gpd.GeoDataFrame,
    field: str,
    shades: dict[str, tuple[float, ...]],
) -> None:
    """The footprints over a faded image, in the colour of the class in ``field``, with a cross on wrong ones."""
    axes.imshow(rgb, extent=extent, alpha=0.6)
    for outline, name in zip(objects.geometry, objects[field], strict=True):
        x, y = outline.exterior.xy
        axes.fill(x, y, facecolor=(*shades[name], 0.85), edgecolor="white", linewidth=1.2)
    wrong = objects.geometry.centroid[objects[field] != objects["truth"]]
    halo = [effects.withStroke(linewidth=4.5, foreground="white")]
    axes.plot(wrong.x, wrong.y, "x", color="#b91c1c", markersize=11, markeredgewidth=2.6, path_effects=halo)


def comparison(demo: Path) -> Figure:
    """Crop of the unseen half, the same under the classes of plain LoRA, and under those of debLoRA."""
    table = ModelPackage.load(demo / "model").table
    objects = read_objects(demo)
    rare = [table.names[i] for i in table.of_group("tail")]
    with rasterio.open(demo / "scene" / "east.tif") as raster:
        window = choose_crop(raster, objects, rare)
        rgb = raster.read([1, 2, 3], window=window).transpose(1, 2, 0)
        left, bottom, right, top = window_bounds(window, raster.transform)
    inside = objects.cx[left:right, bottom:top]
    shades = colours(table)
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.06)  # titles would touch the edge
    figure = Figure(figsize=(15, 6.2), dpi=120, facecolor="white", layout=layout)
    image, before, after = figure.subplots(1, 3)
    image.imshow(rgb, extent=(left, right, bottom, top))
    image.set_title("the unseen half (a crop)", fontsize=16, color=INK)
    for axes, field, name in ((before, "class_raw", "LoRA"), (after, "class", "debLoRA")):
        draw(axes, rgb, (left, right, bottom, top), inside, field, shades)
        tail = objects[objects["truth"].isin(rare)]
        right_ones = int((tail[field] == tail["truth"]).sum())
        axes.set_title(f"{name}: {right_ones} of {len(tail)} rare objects right", fontsize=16, color=INK)
    for axes in (image, before, after):
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    by_count = sorted(range(len(table.names)), key=lambda i: -table.counts[i])
    handles: list[Patch | Line2D] = [
        Patch(color=shades[table.names[i]], label=f"{table.names[i].replace('_', ' ')} ({table.counts[i]})")
        for i in by_count
        if i != table.background
    ]
    handles.append(
        Line2D([], [], marker="x", linestyle="", color="#b91c1c", markersize=10, markeredgewidth=2.5, label="wrong")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=14, frameon=False, labelcolor=INK)
    return figure


def main(demo: Path, folder: Path = IMAGES) -> None:
    """Write the pictures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    comparison(demo).savefig(folder / "lora_and_deblora.webp", pil_kwargs={"quality": 80, "method": 6})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

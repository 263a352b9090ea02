"""Make the pictures of the documentation.

``python docs/make_pictures.py`` draws how a large raster is mapped, with the library's own plan and weights.
``python docs/make_pictures.py demo_out`` also makes the picture of the README from what the demo left; its crop is
chosen by the true classes alone, as the square with the most rare objects, never by what a model said.
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
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from rasterio.windows import Window
from rasterio.windows import bounds as window_bounds

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.tiling.blend import blend_weights
from torchgeo_debias.tiling.palette import palette
from torchgeo_debias.tiling.plan import TilePlan

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


def engine() -> Figure:
    """Blocks, tiles and bands of a raster; the weights of blended tiles; the way from the file to the results."""
    figure = Figure(figsize=(18, 6.2), layout=ConstrainedLayoutEngine(w_pad=0.25, h_pad=0.1))
    plan, weights, flow = figure.subplots(1, 3, width_ratios=[1.15, 1, 1.05])
    draw_plan(plan)
    draw_weights(weights)
    draw_flow(flow)
    for axes, title in ((plan, "Bands of tiles"), (weights, "Weights of overlapping tiles"), (flow, "One band")):
        axes.set_title(title, fontsize=16, color=INK)
        axes.spines[:].set_visible(False)
    return figure


DONE, NOW, LATER = "#15803d", "#c2410c", "#64748b"


def draw_plan(axes: Axes) -> None:
    """A raster of 2048 x 2048 pixels in blocks of 512, with tiles of 224 pixels; its right lower corner is empty."""
    side, block = 2048, 512
    plan = TilePlan.of(side, side, 224)
    bands = plan.bands(block, batch_size=8)
    states = [(DONE, "finished, in the journal"), (NOW, "being computed"), (LATER, "to do"), (LATER, None)]
    for band, (colour, _) in zip(bands, states, strict=True):
        for row in band.rows:
            for tile in plan.row(row):
                left, top, width, height = tile.own
                if left + top > 2.6 * side / 2 and left > side / 2:
                    continue  # as if it were nodata
                axes.add_patch(Rectangle((left, top), width, height, fc=colour, alpha=0.28, ec=colour, lw=1.6))
        axes.text(-40, (band.top + band.bottom) / 2, f"band {band.number}", ha="right", va="center", fontsize=14)
    for edge in range(0, side + 1, block):
        axes.plot([0, side], [edge, edge], color=INK, linewidth=1.1, linestyle=(0, (2, 3)))
        axes.plot([edge, edge], [0, side], color=INK, linewidth=1.1, linestyle=(0, (2, 3)))
    axes.text(0.8 * side, 0.8 * side, "no data", ha="center", va="center", fontsize=14, color=LATER)
    handles: list[Patch | Line2D] = [Patch(fc=c, alpha=0.4, ec=c, label=name) for c, name in states if name]
    handles.append(Line2D([], [], color=INK, linestyle=(0, (2, 3)), label="blocks of the file"))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, 0), ncols=2, fontsize=13, frameon=False)
    axes.set(xlim=(-340, side + 20), ylim=(side + 20, -20), xticks=[], yticks=[], aspect="equal")


def draw_weights(axes: Axes) -> None:
    """The first three of the tiles along an axis, of 512 pixels with an overlap of a quarter."""
    axis = TilePlan.of(512 + 2 * 384, 512, 512, overlap=0.25).columns
    total = np.zeros(axis.length)
    for tile, colour in zip(range(axis.tiles), ("#1d4ed8", "#c2410c", "#15803d"), strict=True):
        start = axis.own(tile)[0]
        weight = blend_weights(axis, tile)
        total[start : start + axis.window] += weight
        places = np.arange(start, start + axis.window)
        axes.fill_between(places, weight, color=colour, alpha=0.22, linewidth=0)
        axes.plot(places, weight, color=colour, linewidth=2.4)
        axes.text(start + axis.window / 2, 0.45, f"tile {tile}", ha="center", fontsize=14, color=colour)
    axes.plot(total, color=INK, linewidth=1.6, linestyle="--")
    axes.text(axis.length / 2, 1.03, "sum: 1, up to the rim of the raster", ha="center", fontsize=14, color=INK)
    axes.set(xlim=(-10, axis.length + 10), ylim=(0, 1.14), xlabel="pixel", ylabel="weight")
    axes.xaxis.label.set_size(13)
    axes.yaxis.label.set_size(13)
    axes.tick_params(labelsize=12)


def draw_flow(axes: Axes) -> None:
    """Boxes and arrows."""
    steps = [
        ("threads that read", "one handle each; windows of the band"),
        ("threads that ask the model", "batches; tiles without data left out"),
        ("merging", "keeps only what the next tiles reach"),
        ("a part in out.gpkg.partial/", "then one line in the journal"),
        ("all parts, in order", "layer, class map, scores: under their names"),
    ]
    for i, (head, text) in enumerate(steps):
        y = 1 - i / len(steps)
        last = i == len(steps) - 1
        box = FancyBboxPatch(
            (0.04, y - 0.145), 0.92, 0.115, boxstyle="round,pad=0.012", fc="#f1f5f9", ec=DONE if last else INK, lw=1.6
        )
        axes.add_patch(box)
        axes.text(0.5, y - 0.068, head, ha="center", va="center", fontsize=14.5, color=INK)
        axes.text(0.5, y - 0.113, text, ha="center", va="center", fontsize=12.5, color="#475569")
        if not last:
            axes.annotate("", (0.5, y - 0.213), (0.5, y - 0.16), arrowprops={"arrowstyle": "-|>", "color": INK})
    axes.set(xlim=(0, 1), ylim=(-0.02, 1), xticks=[], yticks=[])


def main(demo: Path | None = None, folder: Path = IMAGES) -> None:
    """Write the pictures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"large_rasters": engine()} | ({} if demo is None else {"lora_and_deblora": comparison(demo)})
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.webp", pil_kwargs={"quality": 80, "method": 6})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))

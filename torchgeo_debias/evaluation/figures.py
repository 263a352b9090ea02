"""Figures of an evaluation, for reports and notebooks.

Every function returns a free-standing :class:`matplotlib.figure.Figure`: nothing touches pyplot, a display or global
settings, and matplotlib is loaded on the first call.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable, Group
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation._drawing import (
    AFTER,
    GROUND,
    GROUND_INK,
    INK,
    MUTED,
    bars_of_classes,
    bars_of_groups,
    blank,
    framed,
    ground_legend,
    hex_colours,
    literal,
    scatter_classes,
    style,
)
from torchgeo_debias.evaluation.metrics import Scores
from torchgeo_debias.tiling.palette import palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEXT_MATRIX_CLASSES = 12
_PICTURE_SIDE = 2048


def group_bars(before: Scores, after: Scores | None = None, names: tuple[str, str] = ("LoRA", "debLoRA")) -> Figure:
    """Bars of head, middle, tail and macro F1, one or two models side by side.

    Args:
        before: Scores of the first model.
        after: Scores of the second model on the same test set, if there is one.
        names: What to call the two in the legend; a single model needs no legend.
    """
    models = [before] if after is None else [before, after]
    return bars_of_groups([scores.f1 for scores in models], names, _table(before), "F1")


def class_bars(before: Scores, after: Scores | None = None, names: tuple[str, str] = ("LoRA", "debLoRA")) -> Figure:
    """Bars of each class's F1, from the most to the least frequent class in training, with its training count.

    Args:
        before: Scores of the first model.
        after: Scores of the second model on the same test set, if there is one.
        names: What to call the two in the legend.
    """
    models = [before] if after is None else [before, after]
    values = [[row["f1"] for row in scores.per_class.values()] for scores in models]
    return bars_of_classes(values, names, _table(before), "F1", "sample")


def confusion_matrix(scores: Scores, title: str = "") -> Figure:
    """The confusion matrix, each row (true class) normalised to 1, from the most to the least frequent class.

    Rows of classes without test samples stay empty.

    Args:
        scores: Scores of one model.
        title: Heading of the figure, such as the model's name.
    """
    from matplotlib.colors import LinearSegmentedColormap

    order = sorted(range(len(scores.per_class)), key=lambda i: -list(scores.per_class.values())[i]["train_count"])
    counts = np.asarray(scores.confusion, dtype=np.float64)[np.ix_(order, order)]
    n = len(counts)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = max(3.4, 1.3 + (0.3 if n <= _TEXT_MATRIX_CLASSES else 0.17) * n)
    figure, axes = framed(side, side)
    shades = LinearSegmentedColormap.from_list("share", [GROUND, AFTER, "#083344"])
    mesh = axes.pcolormesh(share, cmap=shades, vmin=0, vmax=1, edgecolors="white", linewidth=0.6 if n <= 40 else 0)
    mesh.set_rasterized(n > 40)
    if n <= _TEXT_MATRIX_CLASSES:
        for row, column in np.argwhere(share > 0.005):
            value = share[row, column]
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="#ffffff" if value > 0.35 else GROUND_INK,
            )
    names = list(scores.per_class)
    labels = [literal(names[i]) for i in order]
    size = 9 if n <= _TEXT_MATRIX_CLASSES else 7
    axes.set_xticks(np.arange(n) + 0.5, labels, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(n) + 0.5, labels, fontsize=size)
    axes.set_ylim(n, 0)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if title:
        axes.set_title(literal(title), color=INK, fontsize=11, fontweight="bold")
    return figure


def feature_plot(
    before: npt.NDArray[np.floating[Any]],
    after: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    table: ClassTable,
    names: tuple[str, str] = ("LoRA", "debLoRA"),
) -> Figure:
    """Features of the same samples from two models on the two leading principal components, rare classes on top.

    One projection serves both panels, so that they can be compared: it is fitted on both sets together, each centred
    on its own mean, because a shift of the whole cloud says nothing about classes.

    Args:
        before: Features (N, D) of the first model.
        after: Features (N, D) of the second model, same samples in the same order.
        labels: True class ids (N,).
        table: The classes; those of the tail are drawn in their colours, the others in grey.
        names: Titles of the two panels.

    Raises:
        DataError: If the shapes do not fit or there are fewer than two samples or dimensions.
    """
    from sklearn.decomposition import PCA

    before, after, labels = np.asarray(before), np.asarray(after), np.asarray(labels)
    if before.shape != after.shape or before.ndim != 2 or labels.shape != before.shape[:1] or min(before.shape) < 2:
        raise DataError(
            "A feature plot needs two equal sets of at least 2 features and one label each; "
            f"got {before.shape}, {after.shape} and {labels.shape}."
        )
    sets = [before - before.mean(axis=0), after - after.mean(axis=0)]
    pca = PCA(2, random_state=0).fit(np.concatenate(sets))
    figure = blank(9.6, 4.4)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, points, name in zip(panels, (pca.transform(s) for s in sets), names, strict=True):
        scatter_classes(axes, points, labels, table)
        style(axes)
        axes.set_facecolor(GROUND)
        axes.set_title(literal(name), color=INK, fontsize=11, fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"component 1 ({100 * pca.explained_variance_ratio_[0]:.0f} % of the variance)")
    panels[0].set_ylabel(f"component 2 ({100 * pca.explained_variance_ratio_[1]:.0f} %)")
    ground_legend(figure, panels[0])
    return figure


def map_picture(
    rgb: npt.NDArray[np.uint8],
    class_map: npt.NDArray[np.integer[Any]],
    table: ClassTable,
    extent: tuple[float, float, float, float] | None = None,
) -> Figure:
    """An image beside the same image under its classes, with a legend of the classes found.

    Args:
        rgb: Image (H, W, 3).
        class_map: Class ids (h, w) of the same ground at any resolution; ids that are no class, such as a nodata
            value, and the background stay clear.
        table: The classes.
        extent: (left, bottom, right, top) in map units, the order of rasterio's bounds; pixels of the image where
            left out.

    Raises:
        DataError: If an array has another shape or type, or the extent is empty.
    """
    from matplotlib.patches import Patch

    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or class_map.ndim != 2:
        raise DataError(
            "A map picture needs an image (H, W, 3) of bytes and a class map (h, w); "
            f"got {rgb.shape} {rgb.dtype} and {class_map.shape}."
        )
    left, bottom, right, top = extent or (0.0, 0.0, float(rgb.shape[1]), float(rgb.shape[0]))
    if not (left < right and bottom < top):
        raise DataError(f"The extent of a map picture is left, bottom, right, top; {extent} has no area.")

    place = (left, right, bottom, top)
    overlay, found = _overlay(_thinned(class_map), table)
    colours = hex_colours(table)
    handles = [
        Patch(color=colours[i], label=f"{literal(table.names[i])} ({100 * share:.1f} %)") for i, share in found.items()
    ]
    width, panel = 10.4, 4.7
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, int(width / (0.6 + 0.06 * longest)))
    legend_height = 0.17 * math.ceil(len(handles) / columns)
    figure = blank(width, panel * min(1.6, max(0.3, (top - bottom) / (right - left))) + 0.65 + legend_height)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, title in zip(panels, ("image", "classes"), strict=True):
        axes.imshow(_thinned(rgb), extent=place)
        axes.set_title(title, color=INK, fontsize=11, fontweight="bold")
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.locator_params(nbins=4)
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[:].set_visible(False)
    panels[1].imshow(overlay, extent=place, interpolation="nearest")
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK
        )
    return figure


def _overlay(
    class_map: npt.NDArray[np.integer[Any]], table: ClassTable
) -> tuple[npt.NDArray[np.uint8], dict[int, float]]:
    """RGBA picture of the objects' classes, and the share of the mapped ground of each class found."""
    overlay = np.zeros((*class_map.shape, 4), dtype=np.uint8)
    mapped = int(((class_map >= 0) & (class_map < len(table.names))).sum())
    found = {}
    for i, colour in enumerate(palette(len(table.names), table.background)):
        here = class_map == i
        if i != table.background and here.any():
            overlay[here] = (*colour, 165)
            found[i] = int(here.sum()) / mapped
    return overlay, found


def _thinned(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    step = math.ceil(max(picture.shape[:2]) / _PICTURE_SIDE)
    return picture[::step, ::step]


def _table(scores: Scores) -> ClassTable:
    rows = scores.per_class.values()
    groups = tuple(cast(Group, row["group"]) for row in rows)
    return ClassTable(tuple(scores.per_class), tuple(row["train_count"] for row in rows), groups)

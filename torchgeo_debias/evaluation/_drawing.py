"""What figures have in common: colours, frames, and bars of groups and of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.tiling.palette import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The report maps these two to the page's own text colours, so that figures follow a light or a dark page.
INK = "#1f2937"
MUTED = "#6b7280"

# Grounds that stay light on a dark page, because the colours on them need it, and the text on such grounds.
GROUND = "#f4f6f8"
GROUND_INK = "#0b2239"

BEFORE = "#a3b1c2"
AFTER = "#0d9488"
PERCENT = ([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
_SHADE = {"head": 0.0, "middle": 0.05, "tail": 0.12, "background": 0.0}


def bars_of_groups(
    models: Sequence[Mapping[str, float]], names: Sequence[str], table: ClassTable, measure: str
) -> Figure:
    """Bars of head, middle, tail and macro values, one or two models side by side.

    Args:
        models: Values in 0..1 under ``head``, ``middle``, ``tail`` and ``macro`` of one model or of two; nan for none.
        names: What to call them in the legend; a single model needs no legend.
        table: The classes.
        measure: What the values are, such as ``F1``.
    """
    figure, axes = framed(7.2, 3.4)
    keys = (*GROUPS, "macro")
    width = 0.76 / len(models)
    for i, (values, name, colour) in enumerate(zip(models, names, _colours(models), strict=False)):
        at = np.arange(len(keys)) + (i - (len(models) - 1) / 2) * width
        heights = [values[key] for key in keys]
        axes.bar(at, np.nan_to_num(heights), width * 0.94, color=colour, label=literal(name))
        for x, height in zip(at, heights, strict=True):
            text = "n/a" if math.isnan(height) else f"{100 * height:.1f}"
            axes.text(x, np.nan_to_num(height) + 0.015, text, ha="center", va="bottom", color=INK, fontsize=9)
    sizes = {group: len(table.of_group(group)) for group in GROUPS}
    labels = [f"{group}\n{sizes[group]} class{'' if sizes[group] == 1 else 'es'}" for group in GROUPS]
    axes.set_xticks(range(len(keys)), [*labels, "macro\nall classes"], fontsize=10)
    axes.axvline(len(GROUPS) - 0.5, color=MUTED, linewidth=0.8, alpha=0.5)
    axes.set_ylim(0, 1.1)
    axes.set_yticks(*PERCENT)
    axes.set_ylabel(f"{measure} in %")
    rule(axes, "y")
    if len(models) > 1:
        legend(figure, axes, ncols=2)
    return figure


def bars_of_classes(
    models: Sequence[Sequence[float | None]],
    names: Sequence[str],
    table: ClassTable,
    measure: str,
    sample: str,
    counted: str = "training",
) -> Figure:
    """Bars of each class's value, from the class with the highest count to that with the lowest, with the count.

    Args:
        models: A value in 0..1 for each class, in the order of the table, of one model or of two; None for none.
        names: What to call them in the legend.
        table: The classes.
        measure: What the values are, such as ``F1``.
        sample: What is counted, in the singular, such as ``sample``.
        counted: Where the counts of the table are from.
    """
    order = sorted(range(len(table.names)), key=lambda i: -table.counts[i])
    figure, axes = framed(7.2, 1.1 + (0.36 if len(models) > 1 else 0.26) * len(order))
    width = 0.78 / len(models)
    for i, (values, name, colour) in enumerate(zip(models, names, _colours(models), strict=False)):
        at = np.arange(len(order)) + (i - (len(models) - 1) / 2) * width
        lengths = [values[k] for k in order]
        shown = [length or 0.0 for length in lengths]
        axes.barh(at, shown, width * 0.92, color=colour, label=literal(name), zorder=2)
        for y, length in zip(at, lengths, strict=True):
            text = f"no test {sample}" if length is None else f"{100 * length:.0f}"
            axes.text((length or 0.0) + 0.008, y, text, va="center", color=INK, fontsize=7, zorder=3)
    _shade_groups(axes, [table.groups[i] for i in order])
    axes.set_yticks(range(len(order)), [f"{literal(table.names[i])}  ({table.counts[i]:,})" for i in order], fontsize=9)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(0, 1.14)
    axes.set_xticks(*PERCENT)
    axes.set_xlabel(f"{measure} in %; in brackets: {counted} {sample}s")
    rule(axes, "x")
    if len(models) > 1:
        legend(figure, axes, ncols=2)
    return figure


def hex_colours(table: ClassTable) -> list[str]:
    """The colour of each class, such as ``#0d9488``."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(len(table.names), table.background)]


def literal(text: str) -> str:
    """A user's text, kept from being read as mathematics."""
    return text.replace("$", r"\$")


def blank(width: float, height: float) -> Figure:
    """A figure without axes, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def framed(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, sizes in inches."""
    figure = blank(width, height)
    axes = figure.subplots()
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """Give axes the look of the report."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)


def rule(axes: Axes, axis: Literal["x", "y", "both"]) -> None:
    """Draw faint lines behind what is drawn."""
    axes.grid(axis=axis, color=MUTED, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)


def legend(figure: Figure, axes: Axes, ncols: int) -> None:
    """Name what the axes hold, above them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=ncols, frameon=False, fontsize=10, labelcolor=INK)


def ground_legend(figure: Figure, axes: Axes) -> None:
    """Name what the axes hold, on their right, on a ground that stays light: for colours of classes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        fontsize=8,
        facecolor=GROUND,
        edgecolor=GROUND,
        framealpha=1,
        labelcolor=GROUND_INK,
    )


def scatter_classes(
    axes: Axes, points: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]], table: ClassTable
) -> None:
    """Draw samples at ``points`` (N, 2): those of rare classes in their colours and on top, the others in grey.

    Args:
        axes: What to draw on, with a ground that stays light.
        points: Places of the samples.
        labels: Class ids (N,).
        table: The classes.
    """
    for group, colour, size in (("background", "#dfe3e8", 5), ("head", "#c9d0d9", 7), ("middle", "#9aa5b1", 7)):
        chosen = np.isin(labels, [i for i, g in enumerate(table.groups) if g == group])
        if chosen.any():
            x, y = points[chosen].T
            axes.scatter(x, y, s=size, color=colour, linewidths=0, label=group, rasterized=True)
    colours = hex_colours(table)
    for rank, i in enumerate(table.of_group("tail")):
        x, y = points[labels == i].T
        axes.scatter(
            x,
            y,
            s=26,
            color=colours[i],
            marker="o^sDvPX<>ph*"[rank % 12],
            edgecolors="#8a94a0",
            linewidths=0.5,
            label=f"{literal(table.names[i])} ({table.counts[i]})",
            rasterized=True,
        )


def _colours(models: Sequence[object]) -> tuple[str, ...]:
    return (AFTER,) if len(models) == 1 else (BEFORE, AFTER)


def _shade_groups(axes: Axes, groups: Sequence[str]) -> None:
    start = 0
    for group, members in groupby(groups):
        end = start + len(list(members))
        axes.axhspan(start - 0.5, end - 0.5, color=MUTED, alpha=_SHADE[group], linewidth=0, zorder=0)
        axes.text(1.13, start - 0.35, group, ha="right", va="top", color=MUTED, fontsize=9, fontweight="bold")
        start = end

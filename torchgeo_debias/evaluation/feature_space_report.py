"""What debLoRA did to the features, as a picture and a page of HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation._drawing import (
    GROUND,
    GROUND_INK,
    INK,
    blank,
    ground_legend,
    hex_colours,
    literal,
    scatter_classes,
    style,
)
from torchgeo_debias.evaluation.distances import ClassDistances
from torchgeo_debias.evaluation.feature_space import STATES, FeatureSpace
from torchgeo_debias.evaluation.report import Card, Section, distance, write_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = npt.NDArray[np.float32]

PERPLEXITY = 30.0
PAPER_MEANS = ("between head-tail", "between tail-tail", "within tail")
"""The means of groups in the paper's analysis of features."""

_MOST_SHOWN = 4000  # chips, of which t-SNE takes about a minute on one core
_COMPONENTS = 50
_DEFINITION = (
    "Distances are cosine distances, 1 - cos, from 0 (same direction) to 2. Within a group: of each sample to the mean "
    "of its class, averaged over the samples of a class and then over the classes; a class of one sample has 0. "
    "Between groups: of the means of two different classes, averaged over all pairs of classes. The paper's formula "
    "has not been published with its code; these definitions are ours. Before: the features that were calibrated. "
    "Calibrated: the targets that stage 3 aimed at. After: the features of the finished network. All three are of "
    "training chips.\n\n"
    "The picture is t-SNE (van der Maaten and Hinton 2008) of the first {components} principal components. It keeps "
    "neighbours together, but neither distances between far groups nor their sizes mean anything. The left panel is "
    "one embedding of the features before, of the targets, and of both kinds of centres; the right panel is another, "
    "which starts from the places of the left one and is turned and mirrored to lie as it does."
)


@dataclass(frozen=True)
class Embedding:
    """Places in the plane of n chips, m of which are moved, and of the centres.

    Attributes:
        chips: (n,) which chips are shown, ascending.
        moved: (m,) which of these are moved, ascending.
        before: (n, 2), and of one embedding with it ``targets`` (m, 2) of the moved, ``centres`` (K, 2) of the clusters
            and ``debiased`` (C, 2), NaN for classes that stay.
        targets: See ``before``.
        centres: See ``before``.
        debiased: See ``before``.
        after: (n, 2), an embedding of its own that starts from ``before`` and is turned and mirrored to lie as it does.
        perplexity: Of both.
    """

    chips: npt.NDArray[np.intp]
    moved: npt.NDArray[np.intp]
    before: Points
    targets: Points
    centres: Points
    debiased: Points
    after: Points
    perplexity: float


def embed(space: FeatureSpace, perplexity: float | None = None, seed: int = 0) -> Embedding:
    """Lay features out in the plane by t-SNE (van der Maaten and Hinton 2008) of their first 50 principal components.

    It starts from the first two components, scaled down (Kobak and Berens 2019). Of more than 4000 chips all of the
    moved classes are shown, as far as there is room, and others are drawn.

    Args:
        space: The features.
        perplexity: About how many neighbours a chip has, 1 or more and fewer than chips are shown; None for 30 or,
            where that is less, a third of the chips.
        seed: Of the draw and of t-SNE.

    Raises:
        ConfigError: If the perplexity cannot be.
        DataError: If there are fewer than 4 chips.
    """
    chips = _shown(space, seed)
    n = len(chips)
    if n < 4:
        raise DataError(f"A picture of features needs at least 4 chips; there are {n}.")
    if perplexity is None:
        perplexity = min(PERPLEXITY, (n - 1) / 3)
    if not 1 <= perplexity < n:
        raise ConfigError(
            f"The perplexity must be at least 1 and below the number of chips, {n}; received {perplexity:g}: choose a "
            "smaller one."
        )
    moved = np.flatnonzero(space.moved[space.labels[chips]])
    parts = [space.before[chips], space.calibrated[chips[moved]], space.centres, space.debiased[space.moved]]
    placed = _tsne(np.concatenate(parts), perplexity, seed)
    before, targets, centres, pulled = np.split(placed, np.cumsum([len(part) for part in parts])[:-1])
    debiased = np.full((len(space.pull), 2), np.nan, dtype=np.float32)
    debiased[space.moved] = pulled
    after = _turned(_tsne(space.after[chips], perplexity, seed, before), before)
    return Embedding(chips, moved, before, targets, centres, debiased, after, perplexity)


def feature_space_figure(space: FeatureSpace, places: Embedding) -> Figure:
    """Features before, with the centres and where the moved ones are aimed at, beside those after.

    Args:
        space: The features; tail classes are drawn in their colours, the others in grey.
        places: See :func:`embed`.
    """
    figure = blank(11.0, 4.9)
    panels: list[Axes] = list(figure.subplots(1, 2))
    labels = space.labels[places.chips]
    for axes, points, name in zip(panels, (places.before, places.after), ("before", "after"), strict=True):
        scatter_classes(axes, points, labels, space.table)
        style(axes)
        axes.set_facecolor(GROUND)
        axes.set_title(name, color=INK, fontsize=11, fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
    _aims(panels[0], space, places)
    ground_legend(figure, panels[0])
    return figure


def _aims(axes: Axes, space: FeatureSpace, places: Embedding) -> None:
    """Centres of clusters, de-biased centres, and an arrow from each moved sample to its target."""
    cross, star = places.centres.T, places.debiased.T
    axes.scatter(cross[0], cross[1], 24, GROUND_INK, marker="+", linewidths=0.9, label="cluster centre", zorder=3)
    start = places.before[places.moved]
    axes.quiver(
        *start.T, *(places.targets - start).T, angles="xy", scale_units="xy", scale=1, color=GROUND_INK, alpha=0.55,
        width=0.0022, headwidth=5, zorder=4,
    )  # fmt: skip
    colours = hex_colours(space.table)
    for i in np.flatnonzero(space.moved):
        name = f"{literal(space.table.names[i])}: de-biased centre"
        axes.scatter(
            star[0, i], star[1, i], 120, colours[i], marker="*", edgecolors=GROUND_INK, linewidths=0.9, label=name,
            zorder=5,
        )  # fmt: skip


def feature_space_report(
    path: Path, space: FeatureSpace, places: Embedding, *, title: str = "Feature space", seed: int = 0
) -> None:
    """Write the distances, the picture and the pulls as one page of HTML.

    Args:
        path: File to write; its folder must exist.
        space: The features.
        places: See :func:`embed`.
        title: Of the page.
        seed: That of :func:`embed`, to be told.

    Raises:
        OutputError: If it cannot be written.
    """
    found = space.distances()
    sections = [
        Section("", _verdict(space), cards=[_card(key, found) for key in PAPER_MEANS]),
        Section(
            "Distances",
            "Mean cosine distances. Rare classes are easier to tell apart where those within are small and those "
            "between are large.",
            table=(("Cosine distance", *STATES), distance_rows(found)),
        ),
        Section(
            "Where the features lie",
            "Arrows lead from the features of rare chips to the targets that stage 3 aims at, on the way to the "
            "de-biased centre of their class (star). Crosses are the centres of the clusters, which know no classes.",
            [(feature_space_figure(space, places), f"t-SNE of {len(places.chips):,} training chips.")],
        ),
        Section(
            "Every class",
            "From the most frequent class in training to the rarest: the share of the way that it was moved, the "
            "distance of its mean to its de-biased centre, and its spread.",
            table=(
                ("Class", "Group", "Training", "Pull in %", "To the centre", *(f"Within, {s}" for s in STATES)),
                _class_rows(space, found),
            ),
        ),
        Section("How this is measured", _DEFINITION.format(components=min(_COMPONENTS, *space.before.shape))),
    ]
    write_report(path, title, sections, _facts(space, places, seed))


def distance_rows(found: dict[str, ClassDistances]) -> list[list[str]]:
    """The means of groups as rows of a table, those of the paper first: their name, then a cell for each state."""
    means = {state: distances.means for state, distances in found.items()}
    keys = [*PAPER_MEANS, *(key for key in means["before"] if key not in PAPER_MEANS)]
    return [[key, *(distance(means[state][key]) for state in STATES)] for key in keys]


def _verdict(space: FeatureSpace) -> str:
    count = int(space.moved.sum())
    chips = int(space.moved[space.labels].sum())
    return (
        f"Stage 2 moved {chips:,} of {len(space.labels):,} training chips, those of {count} of "
        f"{len(space.table.names)} classes. Each number below is that of the finished network, beside the one before."
    )


def _card(key: str, found: dict[str, ClassDistances]) -> Card:
    before, after = (found[state].means[key] for state in ("before", "after"))
    change = after - before
    if math.isnan(change):
        return Card(key, "n/a")
    good = None if abs(change) < 0.0005 else (change < 0) == key.startswith("within")
    return Card(key, distance(after), distance(before), f"{change:+.3f}", good)


def _class_rows(space: FeatureSpace, found: dict[str, ClassDistances]) -> list[list[str]]:
    table = space.table
    rows = []
    for i in sorted(range(len(table.names)), key=lambda i: -table.counts[i]):
        mean = space.before[space.labels == i].mean(axis=0, dtype=np.float64) if (space.labels == i).any() else None
        moved = space.moved[i] and mean is not None
        rows.append(
            [
                table.names[i], table.groups[i], f"{table.counts[i]:,}", f"{100 * space.pull[i]:.0f}",
                distance(_cosine(mean, space.debiased[i]) if moved else math.nan),
                *(distance(found[state].intra[i]) for state in STATES),
            ]
        )  # fmt: skip
    return rows


def _cosine(one: Any, other: Any) -> float:  # noqa: ANN401 (two vectors)
    return float(1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _facts(space: FeatureSpace, places: Embedding, seed: int) -> dict[str, str]:
    from sklearn import __version__

    return {
        "Backbone": f"{space.backbone}, weights {space.digest[:12]}",
        "Seed of the training": str(space.seed),
        "Seed of the picture": str(seed),
        "Perplexity": f"{places.perplexity:g}",
        **{f"{name} (training)": str(value) for name, value in space.versions.items()},
        "scikit-learn (picture)": __version__,
    }


def _shown(space: FeatureSpace, seed: int) -> npt.NDArray[np.intp]:
    """All chips or, of too many, those of moved classes first and a draw of the others."""
    if len(space.labels) <= _MOST_SHOWN:
        return np.arange(len(space.labels))
    order = np.random.default_rng(seed).permutation(len(space.labels))
    rare_first = order[np.argsort(~space.moved[space.labels[order]], kind="stable")]
    return np.sort(rare_first[:_MOST_SHOWN])


def _tsne(features: npt.NDArray[np.float32], perplexity: float, seed: int, start: Points | None = None) -> Points:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    with np.errstate(invalid="ignore"):  # of features that are all alike, the shares of their variance are undefined
        parts = PCA(min(_COMPONENTS, *features.shape), random_state=seed).fit_transform(features)
    begin = parts[:, :2] if start is None else start
    # Small, since t-SNE hardly undoes what it begins with; features that are all alike have no spread to scale by.
    begin = (begin / max(float(begin[:, 0].std()), 1e-12) * 1e-4).astype(np.float32)
    placed: Points = TSNE(2, perplexity=perplexity, init=begin, random_state=seed).fit_transform(parts)
    return placed


def _turned(points: Points, like: Points) -> Points:
    """``points`` (n, 2) turned and mirrored about their mean to lie as near to ``like`` as may be; no scale changes."""
    from scipy.linalg import orthogonal_procrustes

    centred = points - points.mean(axis=0)
    turn, _ = orthogonal_procrustes(centred, like - like.mean(axis=0))
    turned: Points = (centred @ turn).astype(np.float32)
    return turned

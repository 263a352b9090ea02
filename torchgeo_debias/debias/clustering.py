"""K-means over all features, whatever their label, with a lower bound on the size of a cluster."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances

from torchgeo_debias.errors import ConfigError

Array = npt.NDArray[np.float32]


class Clustering(NamedTuple):
    """Result of :func:`cluster`.

    Attributes:
        centres: (K, D) float32, the mean of each cluster's members (up to scikit-learn's tolerance).
        assignment: (N,) int64, the cluster of each feature.
    """

    centres: Array
    assignment: npt.NDArray[np.int64]


def cluster(features: Array, n_clusters: int, rho: float | None = 2.0, seed: int = 0, max_iter: int = 20) -> Clustering:
    """Cluster features by K-means subject to ``|C_k| >= N / (K * rho)``, rounded down.

    The labels play no part: that is what lets a cluster hold an attribute that several classes share. The bound is
    our reconstruction of the paper's balance factor; without it (``rho=None``) this is scikit-learn's K-means. With
    it, Lloyd's iterations go on from there with the constrained assignment of :func:`assign_at_least`
    (constrained K-means, Bradley, Bennett and Demiriz 2000).

    Args:
        features: (N, D).
        n_clusters: K; at most N, fewer are used where there are fewer features.
        rho: Balance factor, at least 1 (1 asks for equal sizes); None for no bound.
        seed: Of the K-means++ start.
        max_iter: Most constrained iterations.

    Raises:
        ConfigError: If ``n_clusters`` or ``rho`` is below 1.
    """
    check_clustering(n_clusters, rho)
    k = min(n_clusters, len(features))
    start = KMeans(k, n_init=4, random_state=seed).fit(features)
    centres, assignment = start.cluster_centers_, start.labels_.astype(np.int64)
    least = 0 if rho is None else int(len(features) / (k * rho))
    if np.bincount(assignment, minlength=k).min() >= least:
        return Clustering(centres.astype(np.float32), assignment)
    exact = features.astype(np.float64)  # squares of large float32 values overflow
    for _ in range(max_iter):
        new = assign_at_least(pairwise_distances(exact, centres, squared=True, metric="euclidean"), least)
        centres = np.stack([features[new == j].mean(axis=0) for j in range(k)])
        if np.array_equal(new, assignment):
            break
        assignment = new
    return Clustering(centres.astype(np.float32), new)


def check_clustering(n_clusters: int, rho: float | None) -> None:
    """Refuse what :func:`cluster` cannot do, before the work that leads to it."""
    if n_clusters < 1:
        raise ConfigError(f"The number of clusters must be at least 1; received {n_clusters}.")
    if rho is not None and rho < 1:
        raise ConfigError(f"The balance factor rho must be at least 1 (equal sizes); received {rho}.")


def assign_at_least(cost: npt.NDArray[np.floating], least: int) -> npt.NDArray[np.int64]:
    """Assign rows to columns at least cost so that every column receives at least ``least`` rows.

    Every row starts in its cheapest column; then each column that is short receives, one row at a time, what comes
    cheapest from a column with rows to spare, directly or handed on through others (successive shortest paths in
    the graph of columns; Ahuja, Magnanti and Orlin 1993, section 9.7). The cost is optimal up to rounding, and the
    number of steps is the number of missing rows whatever the costs are: equal features make no difference.

    Args:
        cost: (N, K), ``N >= K * least``.
        least: Rows that each column must receive.

    Returns:
        (N,) column of each row.

    Raises:
        ConfigError: If there are too few rows.
    """
    rows, columns = cost.shape
    if rows < columns * least:
        raise ConfigError(f"{rows} features cannot fill {columns} clusters with at least {least} each.")
    price = np.asarray(cost, dtype=np.float64)
    choice: npt.NDArray[np.int64] = price.argmin(axis=1)
    size = np.bincount(choice, minlength=columns)
    gap = np.full((columns, columns), np.inf)  # what moving the best row from one column to another costs
    best = np.zeros((columns, columns), dtype=np.int64)  # that row

    def look(column: int) -> None:
        members = np.flatnonzero(choice == column)
        gap[column] = np.inf
        if len(members):
            extra = price[members] - price[members, column][:, None]
            first = extra.argmin(axis=0)
            gap[column], best[column] = extra[first, np.arange(columns)], members[first]

    for column in range(columns):
        look(column)
    while (short := np.flatnonzero(size < least)).size:
        path = _cheapest_path(gap, size > least, int(short[0]), tolerance=1e-12 * float(np.ptp(price)))
        moved = [best[giver, taker] for giver, taker in itertools.pairwise(path)]
        choice[moved] = path[1:]
        size[path[0]] -= 1
        size[path[-1]] += 1
        for column in path:
            look(column)
    return choice


def _cheapest_path(
    gap: npt.NDArray[np.float64], spare: npt.NDArray[np.bool_], target: int, tolerance: float
) -> list[int]:
    """Columns from one with rows to spare to ``target``, by Bellman and Ford: handing on may also lower the cost."""
    far = np.where(spare, 0.0, np.inf)
    source = np.full(len(far), -1)
    while True:
        through = far[:, None] + gap
        nearest = through.argmin(axis=0)
        reach = through.min(axis=0)
        # Rounding must not make a circle look like a gain.
        closer = (reach < far - tolerance) | (np.isinf(far) & np.isfinite(reach))
        if not closer.any():
            break
        far[closer], source[closer] = reach[closer], nearest[closer]
    path = [target]
    while source[path[-1]] >= 0:
        path.append(int(source[path[-1]]))
    return path[::-1]

"""K-means over all features, whatever their label, with a lower bound on the size of a cluster."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances

from torchgeo_debias.errors import ConfigError

Array = npt.NDArray[np.float32]

#: Relative step of the auction: the constrained assignment is within this share of the optimal cost.
AUCTION_STEP = 1e-3


class Clustering(NamedTuple):
    """Result of :func:`cluster`.

    Attributes:
        centres: (K, D) float32, the mean of each cluster's members.
        assignment: (N,) int64, the cluster of each feature.
    """

    centres: Array
    assignment: npt.NDArray[np.int64]


def cluster(features: Array, n_clusters: int, rho: float | None = 2.0, seed: int = 0, max_iter: int = 20) -> Clustering:
    """Cluster features by K-means subject to ``|C_k| >= N / (K * rho)``.

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
    if n_clusters < 1:
        raise ConfigError(f"The number of clusters must be at least 1; received {n_clusters}.")
    if rho is not None and rho < 1:
        raise ConfigError(f"The balance factor rho must be at least 1 (equal sizes); received {rho}.")
    k = min(n_clusters, len(features))
    start = KMeans(k, n_init=4, random_state=seed).fit(features)
    centres, assignment = start.cluster_centers_, start.labels_.astype(np.int64)
    least = 0 if rho is None else int(len(features) / (k * rho))
    if np.bincount(assignment, minlength=k).min() >= least:
        return Clustering(centres.astype(np.float32), assignment)
    for _ in range(max_iter):
        new = assign_at_least(pairwise_distances(features, centres, squared=True, metric="euclidean"), least)
        centres = np.stack([features[new == j].mean(axis=0) for j in range(k)])
        if np.array_equal(new, assignment):
            break
        assignment = new
    return Clustering(centres.astype(np.float32), new)


def assign_at_least(cost: npt.NDArray[np.floating], least: int) -> npt.NDArray[np.int64]:
    """Assign rows to columns at least cost so that every column receives at least ``least`` rows.

    An ascending auction on the dual (Bertsekas 1988): a column with too few rows raises the subsidy it pays until
    ``least`` rows prefer it. Subsidies only rise and a column that pays one holds exactly ``least`` rows, so that at
    the end complementary slackness holds and the cost is optimal up to the step of the auction.

    Args:
        cost: (N, K), ``N >= K * least``.
        least: Rows that each column must receive.

    Returns:
        (N,) column of each row.
    """
    rows, columns = cost.shape
    if rows < columns * least:
        raise ConfigError(f"{rows} features cannot fill {columns} clusters with at least {least} each.")
    step = AUCTION_STEP * float(cost.min(axis=1).mean() or 1.0)
    price = np.asarray(cost, dtype=np.float64).copy()  # cost minus subsidy
    choice = price.argmin(axis=1)
    while True:
        size = np.bincount(choice, minlength=columns)
        short = np.flatnonzero(size < least)
        if len(short) == 0:
            return np.asarray(choice, dtype=np.int64)
        for j in short:
            # What column j must pay each outside row to win it from its present choice.
            regret = price[:, j] - price[np.arange(rows), choice]
            regret[choice == j] = 0.0
            needed = np.partition(regret, least - 1)[least - 1]
            price[:, j] -= needed + step
            choice = price.argmin(axis=1)

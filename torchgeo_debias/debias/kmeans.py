"""K-means by torch in chunks, for many features: on a GPU where there is one, at about the cost of its products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from torch import Tensor

Array = npt.NDArray[np.float32]
CHUNK = 2**19  # values: what a processor's cache holds while distances and sums are taken
GPU_CHUNK = 2**26
SAMPLE = 256  # features a cluster from which the start is found


class KMeansFit(NamedTuple):
    """Result of :func:`kmeans`.

    Attributes:
        centres: (K, D) float32, the mean of each cluster's members up to ``tolerance``.
        assignment: (N,) int64, the cluster nearest to each feature.
        passes: How often all features were read.
    """

    centres: Array
    assignment: npt.NDArray[np.int64]
    passes: int


def kmeans(
    features: Array,
    n_clusters: int,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    max_iter: int = 100,
    tolerance: float = 1e-4,
) -> KMeansFit:
    """Lloyd's K-means (1982) with distances as matrix products in float32 and sums kept in float64.

    The start is scikit-learn's K-means (K-means++, ten iterations, the best of four) on a sample of 256 features a
    cluster, which is what Faiss samples for the whole of it (Johnson, Douze and Jégou 2019). A cluster that loses its
    last member goes on from the feature farthest from its centre, as in scikit-learn. Equal seeds give equal results.

    Args:
        features: (N, D), ``N >= n_clusters``.
        n_clusters: K.
        seed: Of the sample and of the start.
        device: Where the products are computed; features that do not fit beside them are sent chunk by chunk.
        max_iter: Most passes that move the centres.
        tolerance: Stop where the centres move, in squares summed, by less than this share of the mean variance.
    """
    rng = np.random.default_rng(seed)
    count = min(len(features), SAMPLE * n_clusters)
    sample = features[np.sort(rng.choice(len(features), count, replace=False))]
    start = KMeans(n_clusters, n_init=4, max_iter=10, random_state=seed).fit(sample).cluster_centers_
    enough = tolerance * float(sample.var(axis=0, dtype=np.float64).mean())
    data = _Data(features, torch.device(device))
    centres = torch.from_numpy(start.astype(np.float64)).to(data.device)
    nearest, sums, sizes = data.assign(centres)
    passes = 1
    for _ in range(max_iter):
        empty = sizes == 0
        new = torch.where(empty[:, None], centres, sums / sizes.clamp(min=1)[:, None])
        if empty.any():
            new = data.mended(new, nearest, empty)
        moved = float((new - centres).square().sum())
        centres, before = new, nearest
        nearest, sums, sizes = data.assign(centres)
        passes += 1
        if moved <= enough or torch.equal(nearest, before):
            break
    return KMeansFit(centres.float().cpu().numpy(), nearest.cpu().numpy(), passes)


class _Data:
    """Features (N, D) in chunks, kept on the device if they take less than half of its free memory."""

    def __init__(self, features: Array, device: torch.device) -> None:
        self.device = device
        self._rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
        values = CHUNK
        if device.type == "cuda":
            values = GPU_CHUNK
            if self._rows.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
                self._rows = self._rows.to(device)
        self._step = max(1, values // self._rows.shape[1])

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(self._rows), self._step):
            part = slice(first, first + self._step)
            yield part, self._rows[part].to(self.device)

    def assign(self, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest centre of each feature (N,); sum (K, D) and number (K,) of each centre's features.

        Of ``|z - c|² = |z|² - 2 (z c - |c|² / 2)`` only the bracket differs between centres.
        """
        # Relative to the mean of the centres, which changes no order, the bracket loses fewer digits.
        middle = centres.mean(dim=0)
        towards = (centres - middle).T.float().contiguous()
        offset = (-(centres - middle) * (centres + middle)).sum(dim=1).div(2).float()
        nearest = torch.empty(len(self._rows), dtype=torch.int64, device=self.device)
        sums, sizes = torch.zeros_like(centres), torch.zeros_like(centres[:, 0])
        for part, rows in self._chunks():
            own = torch.addmm(offset, rows, towards).argmax(dim=1)
            nearest[part] = own
            sums += _sums(rows, own, len(centres))
            sizes += own.bincount(minlength=len(centres))
        return nearest, sums, sizes

    def mended(self, centres: Tensor, nearest: Tensor, empty: Tensor) -> Tensor:
        """The centres, those of empty clusters replaced by the features farthest from their own centre."""
        single = centres.float()
        far = torch.cat([(rows - single[nearest[part]]).square().sum(dim=1) for part, rows in self._chunks()])
        farthest = far.topk(int(empty.sum())).indices.to(self._rows.device)
        mended = centres.clone()
        mended[empty] = self._rows[farthest].to(centres)
        return mended


def _sums(rows: Tensor, own: Tensor, count: int) -> Tensor:
    """Sum (count, D) of the rows (M, D) of each cluster, always in the same order."""
    if rows.device.type == "cpu":
        return rows.new_zeros(count, rows.shape[1]).index_add_(0, own, rows)
    # Additions by index come in any order on a GPU.
    return torch.nn.functional.one_hot(own, count).to(rows.dtype).T @ rows

"""K-means by torch over many features against its own matrix products, and against scikit-learn's.

The yardstick holds two products a pass, nothing else: features (N, D) times centres (D, K), for the distances, and
members (K, N) times features (N, D), for the sums, where members holds ones and zeros and stands ready. Both are
float32, on the same device, each over all features at once and as often as K-means passed over them; K-means is timed
as a whole, its start included. The time of the first product alone is reported as well, since a processor takes the
sums without a product; that is the harder yardstick. Run::

    python -m benchmarks.kmeans [--features 100000 1000000] [--dimensions 768] [--most-passes 20] [--bound]

The features are the seeded mixtures of ``benchmarks.debias_stage``, whose parts are as unequal as a long tail. Before
anything is timed, the sum of squared distances must be at most 1.03 times that of scikit-learn's K-means from one
start, or of its mini-batches where there are more than 2^27 values. ``--bound`` also times the clusters of a least
size (rho 2), which go on on the processor whatever the device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans

from benchmarks.debias_stage import mixture
from benchmarks.measure import ForeignLoad, Times, in_turn, save
from torchgeo_debias.backbones import pick_device
from torchgeo_debias.debias import cluster
from torchgeo_debias.debias.clustering import LARGE
from torchgeo_debias.debias.kmeans import KMeansFit, kmeans

Array = npt.NDArray[np.float32]


def timed(work: Callable[[], object], device: torch.device) -> Times:
    """As ``benchmarks.measure.timed``, but waits for the device."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def inertia(features: Array, centres: Array, assignment: npt.NDArray[np.int64], step: int = 2**16) -> float:
    parts = range(0, len(features), step)
    return sum(
        float(np.square(features[i : i + step] - centres[assignment[i : i + step]]).sum(dtype=np.float64))
        for i in parts
    )


def compare(count: int, dimensions: int, k: int, repeats: int, most: int, bound: bool) -> dict[str, Any]:
    device = pick_device()
    features = mixture(count, dimensions)

    def fit() -> KMeansFit:
        return kmeans(features, k, device=device, max_iter=most)

    found = fit()
    kind = MiniBatchKMeans if features.size > LARGE else KMeans
    start = time.perf_counter()
    peer = kind(k, n_init=1, random_state=0).fit(features)
    peer_s = time.perf_counter() - start
    ratio = inertia(features, found.centres, found.assignment) / inertia(features, peer.cluster_centers_, peer.labels_)
    assert ratio < 1.03, f"{count} features: {ratio:.3f} times the squared distances of scikit-learn"

    rows = torch.from_numpy(features).to(device)
    towards = torch.from_numpy(found.centres).to(device).T.contiguous()
    members = torch.nn.functional.one_hot(torch.from_numpy(found.assignment), k).float().T.contiguous().to(device)

    def distances() -> None:
        for _ in range(found.passes):
            rows @ towards

    def products() -> None:
        for _ in range(found.passes):
            rows @ towards
            members @ rows

    def ours() -> Times:
        return timed(fit, device)

    beside = in_turn(ours, lambda: timed(products, device), repeats)
    alone = timed(distances, device)
    result: dict[str, Any] = {
        "features": count,
        "dimensions": dimensions,
        "clusters": k,
        "device": device.type,
        "passes": found.passes,
        "inertia_against_scikit_learn": round(ratio, 4),
        f"{kind.__name__}_s": round(peer_s, 2),
        "beside_both_products": beside,
        "products_of_distances_alone_s": {"wall": round(alone.wall, 2), "cpu": round(alone.cpu, 2)},
        "target": {"ratio_wall": 1.3},
    }
    if bound:
        start = time.perf_counter()
        bounded = cluster(features, k, 2.0, backend="torch")
        result["with_bound_s"] = round(time.perf_counter() - start, 2)
        sizes = np.bincount(bounded.assignment, minlength=k)
        assert sizes.min() >= int(count / (2 * k))
        result["smallest_without_and_with_bound"] = [
            int(np.bincount(found.assignment, minlength=k).min()),
            int(sizes.min()),
        ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-passes", type=int, default=100, help="that move the centres; K-means may stop before")
    parser.add_argument("--bound", action="store_true", help="time the clusters of a least size as well")
    options = parser.parse_args()
    load = ForeignLoad()
    runs = [
        compare(count, options.dimensions, options.clusters, options.repeats, options.most_passes, options.bound)
        for count in options.features
    ]
    save("kmeans", load, {"runs": runs})


if __name__ == "__main__":
    main()

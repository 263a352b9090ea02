"""What stage 2 of debLoRA costs: as a share of the adapt stage, and its clusters against scikit-learn's K-means alone.

Run::

    python -m benchmarks.debias_stage [--data DIR/ucmerced]

The chips are UC Merced at imbalance 40 (112 px), or those of a synthetic scene without ``--data``. Stage 2 is the
features of all chips under the adapted LoRA, K-means with the size bound, and the calibration.

The clusters are measured on seeded mixtures of 768 dimensions whose parts are as unequal as a long tail, so that the
bound binds. Each result must meet the bound before it is timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from benchmarks.measure import ForeignLoad, in_turn, save, timed
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.data.layers import chips_from_layer
from torchgeo_debias.data.longtail import long_tail
from torchgeo_debias.data.synthetic import write_scene
from torchgeo_debias.debias import DebiasSettings, cluster
from torchgeo_debias.progress import silent
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.stages import Run, adapt, debias
from torchgeo_debias.training.trainer import normalisation_for

Array = npt.NDArray[np.float32]
SIZE, DIMENSIONS = 112, 768


def chips_of(data: Path | None) -> tuple[str, Chips]:
    if data is not None:
        return "UC Merced, imbalance 40", long_tail(read_folder(data, SIZE, split="train"), 40, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(Path(folder), size=3072, test_count=2, counts={"house": 160, "vehicle": 80, "helipad": 4})
        return "synthetic scene", chips_from_layer([scene.raster], scene.labels, "class", ChipSpec(SIZE, 64))


def share_of_adapt(chips: Chips, config: TrainConfig, repeats: int) -> dict[str, Any]:
    run = Run(chips, None, normalisation_for(chips, config), config, silent, None)
    backbone, _ = adapt(run)
    features = run.features(backbone, "features")
    calibration = debias(run, features)
    assert np.bincount(calibration.clusters.assignment).min() >= _least(len(features), config.debias)
    extract = statistics.median(timed(lambda: run.features(backbone, "features")).wall for _ in range(repeats))
    calibrate = statistics.median(timed(lambda: debias(run, features)).wall for _ in range(repeats))
    return {
        "chips": len(chips),
        "epochs": config.epochs,
        "adapt_s": round(run.seconds["adapt"], 2),
        "features_s": round(extract, 2),
        "clusters_and_calibration_s": round(calibrate, 2),
        "ratio": round((extract + calibrate) / run.seconds["adapt"], 4),
        "target": 0.10,
    }


def mixture(count: int, dimensions: int = DIMENSIONS, parts: int = 48) -> Array:
    """(count, dimensions) float32: parts whose sizes fall exponentially, the first 100 times the last."""
    rng = np.random.default_rng(count)
    weights = 100.0 ** -np.linspace(0, 1, parts)
    centres = rng.normal(size=(parts, dimensions))
    part = rng.choice(parts, count, p=weights / weights.sum())
    features = np.empty((count, dimensions), dtype=np.float32)
    for first in range(0, count, 2**14):  # a million in float64 would not fit
        own = part[first : first + 2**14]
        features[first : first + 2**14] = centres[own] + rng.normal(size=(len(own), dimensions))
    return features


def clusters(count: int, repeats: int) -> dict[str, Any]:
    features, settings = mixture(count), DebiasSettings()
    k, least = settings.n_clusters, _least(count, settings)
    assert isinstance(k, int)
    plain = KMeans(k, n_init=4, random_state=0).fit(features)
    bound = cluster(features, k, settings.rho)
    assert np.bincount(bound.assignment, minlength=k).min() >= least
    inertia = float(np.square(features - bound.centres[bound.assignment]).sum(dtype=np.float64))
    speed = in_turn(
        lambda: timed(lambda: cluster(features, k, settings.rho)),
        lambda: timed(lambda: KMeans(k, n_init=4, random_state=0).fit(features)),
        repeats,
    )
    smallest = int(np.bincount(plain.labels_, minlength=k).min())
    return {
        "features": count,
        "at_least": least,
        "smallest_without_bound": smallest,
        "inertia_ratio": round(inertia / plain.inertia_, 4),
        **speed,
    }


def _least(count: int, settings: DebiasSettings) -> int:
    assert settings.rho is not None
    assert isinstance(settings.n_clusters, int)
    return int(count / (settings.n_clusters * settings.rho))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of UC Merced")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=int, nargs="*", default=[500, 5000, 20000])
    options = parser.parse_args()
    load = ForeignLoad()
    name, chips = chips_of(options.data)
    stage = share_of_adapt(chips, TrainConfig(epochs=options.epochs), options.repeats)
    kmeans = [clusters(count, options.repeats) for count in options.features]
    save("debias_stage", load, {"data": name, "stage": stage, "clusters": kmeans})


if __name__ == "__main__":
    main()

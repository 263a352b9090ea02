"""Made-up feature spaces."""

from __future__ import annotations

import numpy as np

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import DebiasSettings, calibrate
from torchgeo_debias.evaluation.feature_space import FeatureSpace

COUNTS = {"ship": 30, "<b>quay</b>": 12, "a $x_1$ & $y": 6, "pad": 3, "dredger": 2, "buoy": 1}


def make_space(counts: dict[str, int] | None = None, dim: int = 8, seed: int = 0) -> FeatureSpace:
    """Classes around means of their own, calibrated by the library; the smallest ones are tail and are moved."""
    rng = np.random.default_rng(seed)
    table = ClassTable.from_counts(counts or COUNTS)
    labels = np.repeat(np.arange(len(table.names)), table.counts).astype(np.int64)
    means = 3 * rng.normal(size=(len(table.names), dim)) + 2
    before = (means[labels] + rng.normal(size=(len(labels), dim))).astype(np.float32)
    calibration = calibrate(before, labels, table, DebiasSettings(n_clusters=5, gamma0=2.0), seed)
    return FeatureSpace(
        table,
        before,
        calibration.targets,
        (calibration.targets + 0.1 * rng.normal(size=before.shape)).astype(np.float32),
        labels,
        calibration.clusters.assignment,
        calibration.clusters.centres,
        calibration.centres,
        calibration.pull,
        sources=tuple(f"image {i}.tif" for i in range(len(labels))),
        seed=seed,
        backbone="timm:test_vit",
        digest="0123456789abcdef" * 4,
        settings={"method": "deblora", "debias": {"gamma0": 2.0, "pull": "ratio", "n_clusters": 5}},
        versions={"numpy": "2"},
    )

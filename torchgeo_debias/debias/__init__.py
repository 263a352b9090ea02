"""The method on plain arrays: clusters of all features, de-biased centres, calibration; logit adjustment beside it."""

from __future__ import annotations

from torchgeo_debias.debias.calibration import Calibration, DebiasSettings, calibrate
from torchgeo_debias.debias.clustering import Clustering, cluster
from torchgeo_debias.debias.generate import generate
from torchgeo_debias.debias.head import LinearHead, fit_head
from torchgeo_debias.debias.logits import logit_adjustment

__all__ = [
    "Calibration",
    "Clustering",
    "DebiasSettings",
    "LinearHead",
    "calibrate",
    "cluster",
    "fit_head",
    "generate",
    "logit_adjustment",
]

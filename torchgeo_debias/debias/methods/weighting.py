"""Plain cross-entropy, and cross-entropy whose samples weigh more the rarer they are."""

from __future__ import annotations

from torchgeo_debias.debias.head import LinearHead, fit_head
from torchgeo_debias.debias.methods.registry import Method, NoSettings
from torchgeo_debias.debias.samples import Samples


def _ce(samples: Samples, settings: NoSettings, seed: int) -> LinearHead:
    return fit_head(samples.features, samples.labels, len(samples.table.names))


METHODS = (
    Method(
        "ce",
        "cross-entropy",
        "Multinomial logistic regression (Cox, J. R. Stat. Soc. B 1958)",
        "as published",
        NoSettings,
        _ce,
    ),
)

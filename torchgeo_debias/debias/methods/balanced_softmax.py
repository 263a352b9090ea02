"""Balanced softmax: cross-entropy on logits to which the log prior is added in training."""

from __future__ import annotations

from torchgeo_debias.debias.head import LinearHead, fit_head
from torchgeo_debias.debias.logits import logit_adjustment
from torchgeo_debias.debias.methods.registry import Method, NoSettings
from torchgeo_debias.debias.samples import Samples


def _fit(samples: Samples, settings: NoSettings, seed: int) -> LinearHead:
    """The minimiser of ``CE(W f + b + log pi) + |W|^2 / 2``, which takes no solver of its own.

    Nothing holds the bias back, so ``b + log pi`` can be what the bias of plain cross-entropy is, and the weights are
    the same: on stored features balanced softmax *is* the adjustment afterwards with ``tau = 1``. Only where the
    network learns under it, the two differ.
    """
    head = fit_head(samples.features, samples.labels, len(samples.table.names))
    return head.shifted(-logit_adjustment(samples.table, 1.0))


METHODS = (
    Method(
        "balanced-softmax",
        "balanced softmax (on stored features the same as logit adjustment with tau 1)",
        "Ren et al., Balanced meta-softmax for long-tailed visual recognition, NeurIPS 2020",
        "as published",
        NoSettings,
        _fit,
    ),
)

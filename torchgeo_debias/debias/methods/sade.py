"""SADE: three experts, for the training priors, for even ones and for inverted ones, and how much each is trusted.

:func:`fit_experts` gives the experts; the method ``sade`` averages them. Where unlabelled features of the very chips
that shall be classified are at hand, each in two augmented views, :func:`aggregation_weights` weighs the experts by
them. That is transductive: the result holds for those chips alone, and it must not be compared with methods that have
not seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.head import Array, LinearHead
from torchgeo_debias.debias.logits import logit_adjustment
from torchgeo_debias.debias.methods.cosine import cosine_head
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.methods.solver import fit_cosine, targets
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError, DataError


@dataclass(frozen=True)
class SadeSettings:
    """Of the experts.

    Attributes:
        tau: How strongly the third expert prefers rare classes (paper: 2 on CIFAR and ImageNet-LT, 1 on Places and
            iNaturalist).
        scale: Of the experts' logits, which are this times a cosine (authors' code: 30).
    """

    tau: float = 2.0
    scale: float = 30.0

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ConfigError(f"The tau of SADE must be at least 0; received {self.tau}.")
        if self.scale <= 0:
            raise ConfigError(f"The scale of a cosine head must be positive; received {self.scale}.")


def inverse_adjustment(table: ClassTable, tau: float) -> npt.NDArray[np.float32]:
    """What is added to the logits of the third expert in its loss, ``log pi - tau log pi_inv``, shape (C,).

    ``pi_inv`` are the priors in reversed order: the rarest class has that of the most common one. Classes with equal
    counts share the mean of the logarithms that fall to them, so that their order means nothing. As in
    :func:`~torchgeo_debias.debias.logits.logit_adjustment`, a background class keeps its share.
    """
    objects = table.objects
    log = np.log(table.priors)
    rising = np.sort(log[objects])
    falling = rising[::-1]
    first, last = np.searchsorted(rising, log[objects], "left"), np.searchsorted(rising, log[objects], "right")
    inverse = tau * np.array([falling[i:j].mean() for i, j in zip(first, last, strict=True)])
    aim = log.copy()
    aim[objects] = inverse - np.logaddexp.reduce(inverse) + np.log(table.priors[objects].sum())
    return (log - aim).astype(np.float32)


def fit_experts(samples: Samples, settings: SadeSettings) -> tuple[LinearHead, LinearHead, LinearHead]:
    """The experts for the training priors, for even ones and for inverted ones.

    They are cosine heads as in the authors' code, and that matters: linear heads with a free bias would have equal
    weights and differ by their bias alone, since the bias takes up what is added to the logits.
    """
    labels = targets(samples)

    def expert(adjustment: npt.NDArray[np.float32]) -> LinearHead:
        shift = torch.tensor(adjustment, dtype=torch.float64)
        return cosine_head(
            fit_cosine(samples, lambda z: F.cross_entropy(z + shift, labels, reduction="sum"), settings.scale)
        )

    table = samples.table
    return (
        expert(np.zeros(len(table.names), np.float32)),
        expert(logit_adjustment(table, 1.0)),
        expert(inverse_adjustment(table, settings.tau)),
    )


def aggregated(experts: Sequence[LinearHead], weights: Sequence[float] | npt.NDArray[np.floating]) -> LinearHead:
    """One head whose logits are the weighted sum of those of cosine experts."""
    parts = list(zip(experts, weights, strict=True))
    weight = sum((np.float32(share) * expert.weight for expert, share in parts), np.float32(0))
    return cosine_head(np.asarray(weight, np.float32))


def aggregation_weights(
    experts: Sequence[LinearHead],
    first: Array,
    second: Array,
    *,
    epochs: int = 5,
    rate: float = 0.025,
    batch_size: int = 128,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Weights of the experts under which two views of the same unlabelled chips are classified most alike.

    Gradient ascent on the mean cosine between the softmax of the aggregated logits of one view and of the other; the
    weights are the softmax of what is learnt. Agreement alone ends with a single expert, so the ascent is short and
    stops after an epoch in which a weight falls below 0.05. Few chips make for few steps, and weights that stay nearly
    even. Transductive: see the module.

    Args:
        experts: Heads for the same features and classes.
        first: (N, D) features of the chips to be classified.
        second: (N, D) of the same chips, augmented in another way.
        epochs: At most so many (authors' code: 5).
        rate: Step size, with a momentum of 0.9 (authors' code: 0.025).
        batch_size: Chips a step (authors' code: 128).
        seed: Of the order of the chips.

    Returns:
        (len(experts),) weights that sum to 1.

    Raises:
        DataError: If the views are not of the same chips.
    """
    if first.shape != second.shape or not len(first):
        raise DataError(
            f"Two views of the same chips have equal shapes with a row or more; received {first.shape} and "
            f"{second.shape}."
        )
    views = [torch.tensor(np.stack([e.logits(view) for e in experts]), dtype=torch.float64) for view in (first, second)]
    rng = np.random.default_rng(seed)
    learnt = torch.zeros(len(experts), dtype=torch.float64, requires_grad=True)
    speed = torch.zeros_like(learnt)
    for _ in range(epochs):
        for chips in np.array_split(rng.permutation(len(first)), -(-len(first) // batch_size)):
            with torch.enable_grad():
                share = learnt.softmax(dim=0)
                one, other = (torch.einsum("e,enc->nc", share, view[:, chips]).softmax(dim=1) for view in views)
                (gradient,) = torch.autograd.grad(F.cosine_similarity(one, other).mean(), learnt)
            speed = 0.9 * speed + gradient
            learnt = (learnt.detach() + rate * speed).requires_grad_()
        if learnt.detach().softmax(dim=0).min() < 0.05:
            break
    weights: npt.NDArray[np.float64] = learnt.detach().softmax(dim=0).numpy()
    return weights


def _fit(samples: Samples, settings: SadeSettings, seed: int) -> LinearHead:
    return aggregated(fit_experts(samples, settings), [1 / 3] * 3)


METHODS = (
    Method(
        "sade",
        "three experts for several test priors, averaged",
        "Zhang, Hooi, Hong and Feng, Self-supervised aggregation of diverse experts for test-agnostic long-tailed "
        "recognition, NeurIPS 2022",
        "adapted",
        SadeSettings,
        _fit,
    ),
)

"""ResLT: residual branches for all classes, for middle and tail, and for the tail, added up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from torchgeo_debias.debias.head import LinearHead, folded
from torchgeo_debias.debias.methods.registry import Method
from torchgeo_debias.debias.methods.solver import fit_linear, targets
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError

#: Groups whose samples a branch learns from; background, where there is one, is none of the rare.
_BRANCHES = (("head", "middle", "tail", "background"), ("middle", "tail"), ("tail",))


@dataclass(frozen=True)
class ResltSettings:
    """Of the residual branches.

    Attributes:
        beta: Share of the branches' own losses, against that of their sum (ours; the authors' script for ImageNet-LT
            has 0.99, but with linear branches common classes are lost so: only the first branch and the sum see
            their samples).
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"The beta of ResLT must lie between 0 and 1; received {self.beta}.")


def reslt_loss(logits: Tensor, labels: Tensor, members: Tensor, beta: float) -> Tensor:
    """``(1 - beta) mean CE(sum of branches) + beta (sum of each branch's CE over its own samples) / (their number)``.

    Args:
        logits: (N, 3, C), of the three branches.
        labels: (N,) int64.
        members: (N, 3), 1 where the sample is one of the branch's groups, else 0.
        beta: See :class:`ResltSettings`.
    """
    together = F.cross_entropy(logits.sum(dim=1), labels)
    each = torch.stack([F.cross_entropy(branch, labels, reduction="none") for branch in logits.unbind(dim=1)], dim=1)
    return (1 - beta) * together + beta * (members * each).sum() / members.sum()


def _fit(samples: Samples, settings: ResltSettings, seed: int) -> LinearHead:
    """Only the first branch has a bias: nothing would hold back that of a branch that sees a single class.

    (The authors' weight decay does; here biases are free, as in all methods.) A row shared out over three branches has
    a third of its squared length, so the ridge weighs three times as much: with a ``beta`` of 0 this is ``ce``.
    """
    classes = len(samples.table.names)
    labels = targets(samples)
    takes = torch.tensor([[group in branch for branch in _BRANCHES] for group in samples.table.groups])
    members = takes.double()[labels]

    def objective(logits: Tensor) -> Tensor:
        branches = logits.reshape(-1, len(_BRANCHES), classes)
        return len(labels) * reslt_loss(branches, labels, members, settings.beta) / len(_BRANCHES)

    scaler = StandardScaler().fit(samples.features)
    weight, bias = fit_linear(scaler.transform(samples.features), objective, len(_BRANCHES) * classes, classes)
    return folded(np.reshape(weight, (len(_BRANCHES), classes, -1)).sum(axis=0), bias[:classes], scaler)


METHODS = (
    Method(
        "reslt",
        "residual branches for all, middle and tail, tail",
        "Cui, Liu, Tian, Zhong and Jia, ResLT: residual learning for long-tailed recognition, TPAMI 2022",
        "adapted",
        ResltSettings,
        _fit,
    ),
)

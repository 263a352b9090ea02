"""BoDA: features of one class from several sensors or regions are brought together, however many each has.

Yang, Wang and Katabi, On multi-domain long-tailed recognition, imbalanced domain generalization and beyond, ECCV 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torchgeo_debias.debias.clustering import Array
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class DomainSettings:
    """Of the alignment of domains; all defaults are those of the authors' code.

    Attributes:
        nu: How much a domain-class pair with many samples is pushed away rather than one with few.
        temperature: T of the distances.
        weight: Of the distances to domain-class pairs, beside the cross-entropy.
        gap_weight: Of the gap between the domains' means and covariances.
        momentum: Share of the old centroids that stays when they are taken anew.
    """

    nu: float = 0.5
    temperature: float = 1.0
    weight: float = 0.1
    gap_weight: float = 1.0
    momentum: float = 0.2

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"The temperature must be positive; received {self.temperature}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"The momentum of centroids must lie in 0..1, below 1; received {self.momentum}.")
        if min(self.nu, self.weight, self.gap_weight) < 0:
            raise ConfigError(
                f"nu and the weights must be at least 0; received {self.nu}, {self.weight} and {self.gap_weight}."
            )


class DomainClasses(NamedTuple):
    """The pairs of domain and class that occur, P of them, sorted.

    Attributes:
        centroids: (P, D) mean feature.
        domains: (P,) int64.
        classes: (P,) int64.
        counts: (P,) samples.
    """

    centroids: Tensor
    domains: Tensor
    classes: Tensor
    counts: Tensor


def domain_classes(features: Array, labels: npt.NDArray[np.int64], domains: npt.NDArray[np.int64]) -> DomainClasses:
    """The pairs of domain and class among features (N, D), labels (N,) and domains (N,) of all training chips."""
    pairs, which, counts = np.unique(
        np.stack([domains, labels], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    centroids = np.stack([features[which == p].mean(axis=0, dtype=np.float64) for p in range(len(pairs))])
    return DomainClasses(
        torch.tensor(centroids, dtype=torch.float32),
        torch.tensor(pairs[:, 0]),
        torch.tensor(pairs[:, 1]),
        torch.tensor(counts),
    )


def domain_class_loss(
    features: Tensor, labels: Tensor, domains: Tensor, known: DomainClasses, settings: DomainSettings
) -> Tensor:
    """How much nearer samples are to other classes than to their class in other domains, a scalar.

    For a sample of the pair (d, c) and any pair (d', c') the logit is
    ``-(|f - mu_d'c'| / n_dc) (n_d'c' / n_dc)^nu / T``; the loss is the mean over samples and pairs of their class in
    another domain of ``-(logit - log sum over all pairs but (d, c) of exp(logit))``. It is 0 where no class occurs in
    two domains.

    Args:
        features: (B, D).
        labels: (B,) int64 class ids.
        domains: (B,) int64.
        known: Of all training chips.
        settings: See :class:`DomainSettings`.
    """
    same_class = labels[:, None] == known.classes
    same_domain = domains[:, None] == known.domains
    own = same_class & same_domain
    size = (own * known.counts).sum(dim=1, keepdim=True).clamp_min(1).float()
    away = torch.cdist(features.float(), known.centroids, compute_mode="donot_use_mm_for_euclid_dist")
    logits = -(away / size) * (known.counts / size) ** settings.nu / settings.temperature
    # A large number instead of infinity: the gradient of a sum over nothing stays zero.
    shares = logits - logits.masked_fill(own, -1e9).logsumexp(dim=1, keepdim=True)
    partners = same_class & ~same_domain
    return -shares.masked_fill(~partners, 0.0).sum() / partners.sum().clamp_min(1)


def domain_gap(features: Tensor, domains: Tensor) -> Tensor:
    """Mean over pairs of domains of the mean squared differences of their means and of their covariances, a scalar.

    Domains with fewer than two samples in the batch have no covariance and are left out; 0 where no pair is left.

    Args:
        features: (B, D).
        domains: (B,) int64.
    """
    parts = [part for d in torch.unique(domains) if len(part := features[domains == d].float()) > 1]
    gaps = [
        (one.mean(dim=0) - other.mean(dim=0)).square().mean() + (one.T.cov() - other.T.cov()).square().mean()
        for one, other in combinations(parts, 2)
    ]
    return torch.stack(gaps).mean() if gaps else features.float().sum() * 0.0


class DomainAlignment(nn.Module):
    """What is added to the loss of a batch: ``weight`` times the distances, ``gap_weight`` times the gap.

    Until :meth:`refresh` is called only the gap counts (the authors start the distances after some hundred steps).

    Args:
        settings: See :class:`DomainSettings`.
    """

    def __init__(self, settings: DomainSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or DomainSettings()
        self.known: DomainClasses | None = None

    def refresh(self, features: Array, labels: npt.NDArray[np.int64], domains: npt.NDArray[np.int64]) -> None:
        """Take the centroids anew from all training chips; a share ``momentum`` of the old ones stays."""
        new = domain_classes(features, labels, domains)
        if self.known is not None:
            old = self.known.centroids.to(new.centroids)
            new = new._replace(centroids=torch.lerp(new.centroids, old, self.settings.momentum))
        self.known = new

    def forward(self, features: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """The term of features (B, D), labels (B,) and domains (B,)."""
        total = self.settings.gap_weight * domain_gap(features, domains)
        if self.known is not None:
            self.known = DomainClasses(*(part.to(features.device) for part in self.known))
            distances = domain_class_loss(features, labels, domains, self.known, self.settings)
            total = total + self.settings.weight * distances
        return total

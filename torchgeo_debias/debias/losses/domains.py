"""BoDA: features of one class from several sensors or regions are brought together, however many each has.

Yang, Wang and Katabi, On multi-domain long-tailed recognition, imbalanced domain generalization and beyond, ECCV 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.clustering import Array
from torchgeo_debias.debias.losses.classification import BesideClassLoss, check_plain
from torchgeo_debias.debias.losses.registry import Loss
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError, DataError


@dataclass(frozen=True)
class DomainSettings:
    """Of the alignment of domains; all defaults but that of ``class_loss`` are those of the authors' code.

    Attributes:
        nu: How much a domain-class pair with many samples is pushed away rather than one with few.
        temperature: T of the distances.
        weight: Of the distances to domain-class pairs, beside the class loss.
        gap_weight: Of the gap between the domains' means and covariances.
        momentum: Share of the old centroids that stays when they are taken anew.
        class_loss: What the alignment goes beside, with its default settings (cross-entropy in the paper).
    """

    nu: float = 0.5
    temperature: float = 1.0
    weight: float = 0.1
    gap_weight: float = 1.0
    momentum: float = 0.2
    class_loss: str = "ce"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"The temperature must be positive; received {self.temperature}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"The momentum of centroids must lie in 0..1, below 1; received {self.momentum}.")
        if min(self.nu, self.weight, self.gap_weight) < 0:
            raise ConfigError(
                f"nu and the weights must be at least 0; received {self.nu}, {self.weight} and {self.gap_weight}."
            )
        check_plain(self.class_loss)


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


class DomainLoss(BesideClassLoss):
    """A class loss, ``weight`` times :func:`domain_class_loss` and ``gap_weight`` times :func:`domain_gap` beside it.

    Centroids are taken anew before each epoch, from the features as they are by then; a share ``momentum`` of the old
    ones stays. (The authors take them every 120 steps or more, and start the distances after 500, when a network that
    was not adapted before has learnt something.)
    """

    name = "boda"
    domains: Tensor

    def __init__(self, table: ClassTable, settings: DomainSettings) -> None:
        super().__init__(table, settings.class_loss)
        self.settings = settings
        self.known: DomainClasses | None = None
        self.centroids = torch.empty(0)
        self.register_buffer("domains", torch.empty(0, dtype=torch.int64), persistent=False)

    def get_extra_state(self) -> Tensor:
        """The centroids, which a run that goes on from a checkpoint mixes with its first ones."""
        return self.centroids

    def set_extra_state(self, state: Tensor) -> None:
        """Take what :meth:`get_extra_state` gave."""
        self.centroids = state

    def learn(self, samples: Samples, seed: int) -> None:
        """See :class:`LongTailLoss`.

        Raises:
            DataError: If they are of one domain.
        """
        if samples.domains is None or len(np.unique(samples.domains)) < 2:
            raise DataError("The loss 'boda' needs training chips of two domains or more; all are of one.")
        device = self.domains.device
        new = domain_classes(samples.features, samples.labels, samples.domains)
        if len(self.centroids):
            old = self.centroids.to(new.centroids)
            new = new._replace(centroids=torch.lerp(new.centroids, old, self.settings.momentum))
        self.known = DomainClasses(*(part.to(device) for part in new))
        self.centroids = self.known.centroids
        self.domains = torch.tensor(samples.domains, device=device)

    @property
    def told(self) -> bool:
        """Whether there are centroids."""
        return self.known is not None

    def terms(self, features: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """The distances to centroids, and the gap between domains."""
        domains = self.domains[index]
        distances = domain_class_loss(features, labels, domains, cast(DomainClasses, self.known), self.settings)
        return self.settings.weight * distances, self.settings.gap_weight * domain_gap(features, domains)


ENTRIES = (
    Loss(
        "boda",
        "a class loss beside the alignment of sensors or regions (BoDA)",
        "Yang, Wang and Katabi, On multi-domain long-tailed recognition, imbalanced domain generalization and beyond, "
        "ECCV 2022",
        "adapted",
        DomainSettings,
        DomainLoss,
        domains=True,
    ),
)

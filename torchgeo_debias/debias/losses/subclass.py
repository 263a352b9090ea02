"""SBCL: contrast between subclasses, so that a common class does not outweigh a rare one (Hou et al., ICCV 2023).

Zhengyu Hou et al., Subclass-balancing contrastive learning for long-tailed recognition, ICCV 2023. Common classes are
cut into subclasses about as large as the rarest class; a feature is drawn to its subclass first, and to its class
second, with a temperature that fits how spread out the class is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.preprocessing import normalize
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.clustering import Array, check_clustering, cluster
from torchgeo_debias.debias.losses.classification import BesideClassLoss, check_plain
from torchgeo_debias.debias.losses.registry import Loss
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


@dataclass(frozen=True)
class SubclassSettings:
    """Of the contrast between subclasses.

    Attributes:
        temperature: T of the contrast between subclasses (paper: 0.1, ImageNet 0.07).
        base_temperature: T0, by which that term is scaled with ``T / T0`` (authors' code: 0.07).
        beta: Weight of the contrast within a class (authors' code: 0.25).
        delta: Least size of a subclass (paper: 10 on CIFAR, 20 on ImageNet).
        rho: Balance of the clustering, see :func:`~torchgeo_debias.debias.clustering.cluster` (the library's).
        clip: Share of the classes at either end whose spread counts as that of the next one (authors' code: 0.1 and
            0.2).
        class_loss: What the contrast goes beside, with its default settings (ours: the paper trains the network under
            the contrast alone, and a classifier afterwards).
        weight: Of the contrast beside it (ours).
    """

    temperature: float = 0.1
    base_temperature: float = 0.07
    beta: float = 0.25
    delta: int = 10
    rho: float | None = 2.0
    clip: float = 0.2
    class_loss: str = "ce"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.base_temperature <= 0:
            raise ConfigError(
                f"The temperatures must be positive; received {self.temperature} and {self.base_temperature}."
            )
        if self.beta < 0 or self.weight < 0:
            raise ConfigError(
                f"beta and weight of the subclass contrast must be at least 0; received {self.beta} and {self.weight}."
            )
        if self.delta < 1:
            raise ConfigError(f"A subclass has at least one sample; received delta {self.delta}.")
        if not 0 <= self.clip < 0.5:
            raise ConfigError(f"The share cut off at either end must lie in 0..0.5; received {self.clip}.")
        check_clustering(1, self.rho)
        check_plain(self.class_loss)


def subclasses(
    features: Array, labels: npt.NDArray[np.int64], settings: SubclassSettings, seed: int = 0
) -> npt.NDArray[np.int64]:
    """The subclass of each feature, shape (N,): ids from 0, each of one class only.

    A class of n samples is cut into ``max(1, n // max(n_min, delta))`` subclasses by K-means on features of unit
    length, ``n_min`` being the size of the rarest class.

    Args:
        features: (N, D) of all training chips.
        labels: (N,) class ids.
        settings: See :class:`SubclassSettings`.
        seed: Of the clustering.
    """
    unit = normalize(features)
    present, counts = np.unique(labels, return_counts=True)
    size = max(int(counts.min()), settings.delta)
    ids = np.zeros(len(labels), dtype=np.int64)
    free = 0
    for c, count in zip(present, counts, strict=True):
        members = np.flatnonzero(labels == c)
        parts = max(1, int(count) // size)
        found = cluster(unit[members], parts, settings.rho, seed).assignment if parts > 1 else np.zeros(count, np.int64)
        ids[members] = free + found
        free += parts
    return ids


def class_temperatures(
    features: Array,
    labels: npt.NDArray[np.int64],
    subclass: npt.NDArray[np.int64],
    n_classes: int,
    settings: SubclassSettings,
) -> Array:
    """The temperature of the contrast within each class, shape (C,) float32: ``T d_c / mean(d)``.

    ``d_c = mean(|f - mu_c|) / log(n_c + 10)`` is the spread of the class's unit features around their mean; what is
    beyond the quantiles ``clip`` and ``1 - clip`` is moved there. A class of one subclass keeps T, and no temperature
    is below a tenth of T.
    """
    unit = normalize(features.astype(np.float64))
    present, counts = np.unique(labels, return_counts=True)
    away = [np.linalg.norm(unit[labels == c] - unit[labels == c].mean(axis=0), axis=1).mean() for c in present]
    spread = np.array(away) / np.log(counts + 10)
    spread = spread.clip(*np.quantile(spread, [settings.clip, 1 - settings.clip]))
    several = np.array([len(np.unique(subclass[labels == c])) > 1 for c in present])
    temperatures = np.full(n_classes, settings.temperature, dtype=np.float32)
    if spread.mean() > 0:
        own = settings.temperature * np.maximum(spread / spread.mean(), 0.1)
        temperatures[present] = np.where(several, own, settings.temperature)
    return temperatures


def subclass_contrast(
    features: Tensor, index: Tensor, labels: Tensor, subclass: Tensor, temperatures: Tensor, settings: SubclassSettings
) -> Tensor:
    """The contrast of a batch, a scalar, the mean over samples i of two terms.

    They are ``-(T / T0) mean_{j in S_i} (s_ij / T - log sum_{a != i} exp(s_ia / T))`` and
    ``-beta mean_{j in C_i} (s_ij / tau - log sum_{a not in S_i, or a view of i} exp(s_ia / tau))``

    with ``s`` the cosine, ``S_i`` the others of i's subclass, ``C_i`` those of its class outside its subclass together
    with the other views of its chip, and ``tau`` the temperature of its class. A mean over nothing is 0.

    Args:
        features: (B, D).
        index: (B,) int64, the chip that each sample is a view of; two views of one chip have equal numbers.
        labels: (B,) int64 class ids.
        subclass: (B,) int64.
        temperatures: (C,) of :func:`class_temperatures`.
        settings: See :class:`SubclassSettings`.
    """
    unit = F.normalize(features.float(), dim=1)
    cosine = unit @ unit.T
    same = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    kin = subclass[:, None] == subclass
    views = (index[:, None] == index) & ~same
    between = _contrast(cosine / settings.temperature, kin & ~same, ~same)
    own = ((labels[:, None] == labels) & ~kin) | views
    within = _contrast(cosine / temperatures[labels][:, None], own, ~kin | views)
    return settings.temperature / settings.base_temperature * between + settings.beta * within


def _contrast(similarity: Tensor, partners: Tensor, against: Tensor) -> Tensor:
    # A large number instead of infinity: the gradient of a sum over nothing stays zero.
    total = similarity.masked_fill(~against, -1e9).logsumexp(dim=1, keepdim=True)
    shares = (similarity - total).masked_fill(~partners, 0.0)
    return -(shares.sum(dim=1) / partners.sum(dim=1).clamp_min(1)).mean()


class SubclassLoss(BesideClassLoss):
    """A class loss, and ``weight`` times :func:`subclass_contrast` beside it.

    Subclasses and temperatures are found anew before each epoch, from the features as they are by then. (The authors
    start with classes, find subclasses after 10 epochs of a network that has learnt nothing yet, and again every 5 or
    10 of several hundred.)
    """

    name = "sbcl"
    subclass: Tensor
    temperatures: Tensor

    def __init__(self, table: ClassTable, settings: SubclassSettings) -> None:
        super().__init__(table, settings.class_loss)
        self.settings = settings
        self.register_buffer("subclass", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("temperatures", torch.empty(0), persistent=False)

    def learn(self, samples: Samples, seed: int) -> None:
        """See :class:`LongTailLoss`."""
        features, labels, device = samples.features, samples.labels, self.subclass.device
        found = subclasses(features, labels, self.settings, seed)
        temperatures = class_temperatures(features, labels, found, len(samples.table.names), self.settings)
        self.subclass = torch.tensor(found, device=device)
        self.temperatures = torch.tensor(temperatures, device=device)

    @property
    def told(self) -> bool:
        """Whether there are subclasses."""
        return len(self.subclass) > 0

    def terms(self, features: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """The contrast."""
        subclass = self.subclass[index]
        contrast = subclass_contrast(features, index, labels, subclass, self.temperatures, self.settings)
        return (self.settings.weight * contrast,)


ENTRIES = (
    Loss(
        "sbcl",
        "a class loss beside the contrast between subclasses (SBCL)",
        "Hou et al., Subclass-balancing contrastive learning for long-tailed recognition, ICCV 2023",
        "adapted",
        SubclassSettings,
        SubclassLoss,
    ),
)

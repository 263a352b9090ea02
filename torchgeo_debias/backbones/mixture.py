"""Mixtures of LoRAs: one for each cluster of images or for each class, mixed anew for each image.

Which LoRAs an image gets is told by its *frozen* features alone, in training as in use: by their distance to the
centres of the experts. The class of an image never chooses its LoRA. In the released code of debLoRA it does (one LoRA
for each class, that of the true class at test time as well), which leaks the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torchgeo_debias.backbones.bottleneck import Wrapped
from torchgeo_debias.debias import cluster
from torchgeo_debias.debias.centres import class_means
from torchgeo_debias.errors import ConfigError

SHARPNESS = 0.1
"""Distances count in units of this part of the mean distance to the nearest centre. Ours: the next expert, if a tenth
farther away than the nearest one, has about a third of its share."""

# Of the thread that computes, since several may use one model at once.
_shares: ContextVar[Tensor | None] = ContextVar("shares", default=None)


class Experts(NamedTuple):
    """Where the LoRAs of a mixture belong.

    Attributes:
        centres: (K, D) float32, in the space of frozen features.
        width: Unit of the distances to them, above 0.
    """

    centres: npt.NDArray[np.float32]
    width: float


def find_experts(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64] | None, experts: int, seed: int
) -> Experts:
    """The centres of a mixture.

    Args:
        features: (N, D) frozen features of the training images.
        labels: (N,) their classes, for a LoRA for each class: the centres are the means of the classes. None for
            the clusters of K-means, whatever the class, as in pLoRA (Tian et al., arXiv 2311.17486).
        experts: The number of clusters.
        seed: Of K-means.

    Raises:
        ConfigError: If there are fewer images than clusters.
    """
    if labels is not None:
        means = class_means(features, labels, int(labels.max()) + 1)
        found = means[np.isfinite(means).all(axis=1)]
    else:
        if experts > len(features):
            raise ConfigError(f"A mixture of {experts} LoRAs needs as many chips; there are {len(features)}.")
        found = cluster(features, experts, rho=None, seed=seed).centres
    centres = found.astype(np.float32)
    nearest = torch.cdist(torch.from_numpy(features), torch.from_numpy(centres)).amin(dim=1).mean().item()
    return Experts(centres, max(SHARPNESS * nearest, float(np.finfo(np.float32).tiny)))


class Router(nn.Module):
    """From frozen features to the share of each expert: the softmax of the negative distances to their centres."""

    centres: Tensor
    width: Tensor

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.register_buffer("centres", torch.from_numpy(experts.centres))
        self.register_buffer("width", torch.tensor([experts.width], dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Shares (N, K), rows of sum 1, of frozen features (N, D)."""
        distances = (features.float()[:, None] - self.centres).norm(dim=2)
        shares: Tensor = (-distances / self.width).softmax(dim=1)
        return shares


@contextmanager
def mixed(shares: Tensor) -> Iterator[None]:
    """Let every :class:`MixedLora` mix its experts by ``shares`` (B, K) of the images of a batch, in this thread."""
    token = _shares.set(shares)
    try:
        yield
    finally:
        _shares.reset(token)


class MixedLora(Wrapped):
    """A linear layer or convolution with K LoRAs: ``W x + alpha / rank * sum_k share_k * B_k A_k x``.

    Outside of :func:`mixed` it is the layer as it was.
    """

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, dropout: float, experts: int) -> None:
        """Around one layer; the B matrices begin with zeros."""
        super().__init__(base_layer)
        self.rank = rank
        self.scale = alpha / rank
        layer: Any = base_layer
        self.conv = isinstance(base_layer, nn.Conv2d)
        down: nn.Module
        up: nn.Linear | nn.Conv2d
        if self.conv:
            down = nn.Conv2d(
                layer.in_channels, experts * rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                bias=False, padding_mode=layer.padding_mode,
            )  # fmt: skip
            up = nn.Conv2d(experts * rank, layer.out_channels, 1, bias=False)
        else:
            down = nn.Linear(layer.in_features, experts * rank, bias=False)
            up = nn.Linear(experts * rank, layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.adapter = nn.ModuleList([nn.Dropout(dropout), down, up])

    def forward(self, x: Tensor) -> Tensor:
        """As of the layer within, for images (B * windows, ...) whose windows follow each other."""
        out: Tensor = self.base_layer(x)
        shares = _shares.get()
        if shares is None:
            return out
        dropout, down, up = self.adapter
        inner: Tensor = down(dropout(x))
        gates = shares.repeat_interleave(self.rank, dim=1).to(inner.dtype)
        if self.conv:
            inner = inner * gates[:, :, None, None]
        else:
            inner = (inner.reshape(shares.shape[0], -1, inner.shape[-1]) * gates[:, None]).reshape(inner.shape)
        update: Tensor = self.scale * up(inner)
        return out + update.to(out.dtype)


def add_mixture(
    model: nn.Module, targets: Sequence[str], rank: int, alpha: float, dropout: float, experts: Experts
) -> None:
    """Put a fresh mixture on layers of a model, in place, and its router as ``router`` beside them."""
    for name in targets:
        model.set_submodule(name, MixedLora(model.get_submodule(name), rank, alpha, dropout, len(experts.centres)))
    model.add_module("router", Router(experts))

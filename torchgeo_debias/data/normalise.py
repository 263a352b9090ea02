"""From raw pixel values to what a backbone expects; fitted once on training data, carried in the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Stretch = Literal["none", "sqrt", "log", "percentile"]


@dataclass(frozen=True)
class Normalisation:
    """Amplitude stretch, then ``(x - mean) / std`` for each band.

    Attributes:
        mean: Per band, in stretched units.
        std: Per band, in stretched units, positive.
        stretch: ``none``; ``sqrt`` or ``log`` (``log1p``) of the value above ``low``; ``percentile``: clipped to
            ``low..high`` and scaled to 0..1. SAR amplitudes need one of the latter three.
        low: Per band, raw units; only read by a stretch.
        high: Per band, raw units; only read by ``percentile``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    stretch: Stretch = "none"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise ConfigError("A normalisation needs one mean and one positive standard deviation a band.")
        if self.stretch != "none" and not len(self.low) == len(self.high) == len(self.mean):
            raise ConfigError(f"The stretch {self.stretch!r} needs one low and one high value a band.")

    @classmethod
    def fit(
        cls,
        images: npt.NDArray[Any],
        valid: npt.NDArray[np.bool_],
        stretch: Stretch = "none",
        percentiles: tuple[float, float] = (1.0, 99.0),
        max_chips: int = 2000,
    ) -> Normalisation:
        """Take statistics from training chips.

        Args:
            images: (N, C, S, S), raw units.
            valid: (N, S, S), False where a pixel is nodata.
            stretch: See the class.
            percentiles: Of the valid pixels, for ``low`` and ``high``.
            max_chips: At most so many chips, evenly spaced, are read.
        """
        take = np.linspace(0, len(images) - 1, min(len(images), max_chips)).astype(int)
        mask = valid[take]
        if not mask.any():
            raise ConfigError("Cannot take statistics: every pixel of the training chips is nodata.")
        mean, std, low, high = [], [], [], []
        for band in range(images.shape[1]):
            values = images[take, band][mask].astype(np.float64)
            lo, hi = np.percentile(values, percentiles)
            stretched = _stretch(torch.from_numpy(values), stretch, float(lo), float(hi)).numpy()
            mean.append(float(stretched.mean()))
            std.append(max(float(stretched.std()), 1e-6))
            low.append(float(lo))
            high.append(float(hi))
        if stretch == "none":
            low, high = [], []
        return cls(tuple(mean), tuple(std), stretch, tuple(low), tuple(high))

    @classmethod
    def from_unit_range(cls, mean: Sequence[float], std: Sequence[float], maximum: float = 255.0) -> Normalisation:
        """From statistics of values scaled to 0..1 (such as ImageNet's), for raw values in 0..``maximum``."""
        return cls(tuple(m * maximum for m in mean), tuple(s * maximum for s in std))

    @property
    def bands(self) -> int:
        """Number of input bands."""
        return len(self.mean)

    def __call__(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise a batch.

        Args:
            images: (N, C, S, S) of any real dtype, raw units.
            valid: (N, S, S) bool; pixels that are False become 0, the mean of the training data.

        Returns:
            (N, C, S, S) float32 on the device of ``images``.
        """
        x = images.to(torch.float32)
        shape = (1, -1, 1, 1)
        if self.stretch != "none":
            low = x.new_tensor(self.low).view(shape)
            high = x.new_tensor(self.high).view(shape)
            x = _stretch(x, self.stretch, low, high)
        x = (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)
        return x if valid is None else torch.where(valid.unsqueeze(1), x, torch.zeros_like(x))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Normalisation:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


def _stretch(x: Tensor, stretch: Stretch, low: Tensor | float, high: Tensor | float) -> Tensor:
    if stretch == "sqrt":
        return (x - low).clamp(min=0).sqrt()
    if stretch == "log":
        return (x - low).clamp(min=0).log1p()
    if stretch == "percentile":
        return ((x - low) / (torch.as_tensor(high - low).clamp(min=1e-12))).clamp(0, 1)
    return x

"""Chips: equally sized images cut around an object or a scene, the unit of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.fields import read_fields

LARGEST_SIZE = 4096
"""Side of a model's input, pixels: beyond it nothing of use is built, and a damaged package would fill the memory."""

LARGEST_WINDOW = 2**15
"""Side of a square of the source, pixels, that becomes one input of a model; beyond it, likewise."""

_LARGEST_MARGIN = 100


@dataclass(frozen=True)
class ChipSpec:
    """How a chip is cut and at what size the model sees it.

    Attributes:
        size: Side of the model's input, pixels.
        window: Side of the square cut from the source, in ``unit``; None fits the square to each object.
        unit: ``px`` (source pixels) or ``m`` (metres on the ground) of ``window``.
        margin: Context around a fitted object, as a share of its longest side, on each side.
        gsd: Metres per pixel of the training source, None where the source has no map coordinates.
    """

    size: int
    window: float | None = None
    unit: Literal["px", "m"] = "px"
    margin: float = 0.25
    gsd: float | None = None

    def __post_init__(self) -> None:
        if not 8 <= self.size <= LARGEST_SIZE:
            raise ConfigError(f"Chip size must lie between 8 and {LARGEST_SIZE} pixels; received {self.size}.")
        if self.window is not None and not 0 < self.window < math.inf:
            raise ConfigError(f"Chip window must be positive; received {self.window} {self.unit}.")
        if not 0 <= self.margin <= _LARGEST_MARGIN:
            raise ConfigError(f"Context margin must lie between 0 and {_LARGEST_MARGIN}; received {self.margin}.")

    def window_px(self, gsd: float | None) -> float | None:
        """Side of the window in pixels of a source with ``gsd`` metres per pixel; None for fitted chips.

        A window in pixels is rescaled by the ratio of the two resolutions where both are known, so that a model
        sees the same ground whatever the raster's resolution.

        Raises:
            ConfigError: If the window is in metres and ``gsd`` is unknown, or has more than 32768 pixels a side.
        """
        if self.window is None:
            return None
        if self.unit == "m":
            if gsd is None:
                raise ConfigError("A chip window in metres needs a raster with map coordinates; give it in pixels.")
            side = self.window / gsd
        else:
            side = self.window * (self.gsd / gsd) if self.gsd and gsd else self.window
        if side > LARGEST_WINDOW:
            raise ConfigError(
                f"A chip window of {side:.3g} pixels a side is too large, at most {LARGEST_WINDOW} can be read: choose "
                "a smaller window, or a raster of coarser pixels."
            )
        return side

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChipSpec:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


@dataclass(frozen=True)
class Chips:
    """A labelled set of chips.

    Attributes:
        images: (N, C, S, S), raw source units (uint8, uint16, int16 or float32).
        valid: (N, S, S) bool, False where a pixel is nodata, alpha 0 or outside the raster.
        labels: (N,) int64 class ids, indices into ``table``.
        sources: (N,) str, the source image or spatial block of each chip: the unit of splitting.
        table: The classes with the counts of exactly these chips.
        spec: How the chips were cut.
        bands: Name of each band.
        ground: (N, 4) left, bottom, right, top of the window of each chip, all in one CRS; None where chips were not
            cut from rasters.
        domains: (N,) int64, which sensor or region each chip is of, such as the raster it was cut from; None where
            nothing tells.
    """

    images: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    sources: npt.NDArray[np.str_]
    table: ClassTable
    spec: ChipSpec
    bands: tuple[str, ...]
    ground: npt.NDArray[np.float64] | None = None
    domains: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n, c, h, w = self.images.shape
        if self.valid.shape != (n, h, w) or self.labels.shape != (n,) or self.sources.shape != (n,):
            raise DataError(
                f"Chips do not belong together: images {self.images.shape}, valid {self.valid.shape}, "
                f"labels {self.labels.shape}, sources {self.sources.shape}."
            )
        if self.ground is not None and self.ground.shape != (n, 4):
            raise DataError(
                f"There are {n} chips and windows of the shape {self.ground.shape}; each needs four bounds."
            )
        if self.domains is not None and self.domains.shape != (n,):
            raise DataError(f"There are {n} chips and domains of the shape {self.domains.shape}; each needs one.")
        if len(self.bands) != c:
            raise DataError(f"Chips have {c} bands but {len(self.bands)} band names.")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.NDArray[np.intp] | list[int]) -> Chips:
        """The chips at ``indices``; the table keeps its classes and counts the subset."""
        take = np.asarray(indices, dtype=np.intp)
        labels = self.labels[take]
        return replace(
            self,
            images=self.images[take],
            valid=self.valid[take],
            labels=labels,
            sources=self.sources[take],
            ground=None if self.ground is None else self.ground[take],
            domains=None if self.domains is None else self.domains[take],
            table=self.table.with_counts(labels),
        )

    def batch(self, indices: npt.NDArray[np.intp] | list[int]) -> dict[str, Tensor]:
        """A batch in TorchGeo's form: ``image`` (n, C, S, S) raw units, ``valid`` (n, S, S), ``label`` (n,)."""
        take = np.asarray(indices, dtype=np.intp)
        images = self.images[take]
        if images.dtype == np.uint16:  # torch has few uint16 kernels
            images = images.astype(np.int32)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(images)),
            "valid": torch.from_numpy(np.ascontiguousarray(self.valid[take])),
            "label": torch.from_numpy(np.ascontiguousarray(self.labels[take])),
        }


def resize(
    image: npt.NDArray[Any], valid: npt.NDArray[np.bool_], size: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Resample one image to a square of ``size`` pixels, the one way that training and mapping share.

    Antialiased bilinear resampling in which invalid pixels have no weight, so that nodata never bleeds into its
    neighbours; the dtype is kept (integers are rounded).

    Args:
        image: (C, H, W).
        valid: (H, W) bool.
        size: Side of the result, pixels.

    Returns:
        The image (C, size, size) and its mask (size, size).
    """
    if image.shape[1:] == (size, size):
        return image, valid
    x = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    if valid.all():
        out = _interpolate(x, size)[0].numpy()
        mask = np.ones((size, size), dtype=bool)
    else:
        weight = torch.from_numpy(valid.astype(np.float32))[None, None]
        share = _interpolate(weight, size)
        total = _interpolate(torch.where(weight > 0, x, torch.zeros_like(x)), size)
        out = (total / share.clamp(min=1e-6))[0].numpy()
        mask = share[0, 0].numpy() >= 0.5
        out = np.where(mask, out, 0)
    if np.issubdtype(image.dtype, np.integer):
        info = np.iinfo(image.dtype)
        out = np.clip(np.rint(out), info.min, info.max)
    return out.astype(image.dtype), mask


def _interpolate(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)

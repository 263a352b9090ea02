"""The detector: backbone, pyramid and head in one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torchgeo_debias.backbones import Backbone
from torchgeo_debias.boxes.convert import Floats, canonical
from torchgeo_debias.boxes.suppress import suppress
from torchgeo_debias.detection.coding import decode
from torchgeo_debias.detection.head import FcosHead, Outputs
from torchgeo_debias.detection.neck import build_neck
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields


@dataclass(frozen=True)
class DetectorConfig:
    """The form of a detector.

    Attributes:
        oriented: Whether boxes have an angle.
        channels: Of the pyramid and the head; the length of an object's feature.
        convs: Convolutions in each tower of the head.
        levels: Of the pyramid; each has twice the stride of the one before.
        up: How many times the finest level doubles the map of a plain transformer; networks with several maps start at
            a stride of 8 pixels whatever it is.
    """

    oriented: bool
    channels: int = 128
    convs: int = 2
    levels: int = 4
    up: int = 1

    def __post_init__(self) -> None:
        # Beyond these nothing of use is built, and a damaged package would fill the memory.
        limits = {"channels": (1, 4096), "convs": (0, 16), "levels": (1, 8), "up": (0, 5)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} of a detector must lie between {least} and {most}; received {getattr(self, name)}."
                )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DetectorConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


class Found(NamedTuple):
    """What was found in one tile, by falling score.

    Attributes:
        boxes: (N, 4) or (N, 5) canonical, float64, pixel frame of the tile.
        scores: (N,) float32, 0 to 1.
        classes: (N,) class ids, int64.
    """

    boxes: Floats
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


class Detector(nn.Module):
    """A backbone, plain or with a LoRA on it, a feature pyramid and a head of FCOS.

    Attributes:
        backbone: Gives the maps.
        neck: Makes the pyramid of them.
        head: Says what is where.
        config: The form.
        strides: Pixels a step of each level of the pyramid, from fine to coarse.
        dim: Length of an object's feature, see `torchgeo_debias.detection.object_features`.
    """

    def __init__(self, backbone: Backbone, n_classes: int, config: DetectorConfig) -> None:
        """Put it together; neck and head are drawn under torch's current seed.

        Raises:
            ConfigError: If the backbone gives no feature maps.
        """
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.neck = build_neck(backbone, config.channels, config.up, config.levels)
        self.strides = self.neck.strides
        self.dim = config.channels
        self.head = FcosHead(config.channels, n_classes, self.strides, config.convs, config.oriented)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Levels (B, channels, S / stride, S / stride) of normalised images (B, C, S, S), from fine to coarse."""
        levels: list[Tensor] = self.neck(self.backbone.maps(images))
        return levels

    def forward(self, images: Tensor) -> Outputs:
        """What the head says of normalised images (B, C, S, S); ``head(pyramid(images))`` is the same in two steps."""
        outputs: Outputs = self.head(self.pyramid(images))
        return outputs

    @torch.no_grad()
    def predict(self, outputs: Outputs, min_score: float = 0.1, top: int = 1000, nms: float = 0.5) -> list[Found]:
        """The objects that the outputs of the head speak of.

        A score is the square root of the class's probability times the centre-ness, as in the later form of FCOS (Tian
        et al., IEEE TPAMI 2022). For being a root it is never very low: at 0.05, which suits a product, whole tiles of
        background would pass, whose points say about 0.01 of each class.

        Args:
            outputs: Of B tiles.
            min_score: Objects with a lower score are left out.
            top: So many of the strongest of each class are kept in each tile before suppression, so that a common
                class takes no place from a rare one, and memory is bounded.
            nms: Overlap above which the weaker of two objects of one class goes.
        """
        scores = (outputs.logits.sigmoid() * outputs.centres.sigmoid()[..., None]).sqrt()
        boxes = decode(outputs.codes, outputs.points, outputs.strides)
        return [_found(each, places, min_score, top, nms) for each, places in zip(scores, boxes, strict=True)]


def _found(scores: Tensor, boxes: Tensor, min_score: float, top: int, nms: float) -> Found:
    """The objects of one tile from scores (P, classes) and boxes (P, 4 or 5) at its points."""
    point, kind = (scores >= min_score).nonzero(as_tuple=True)
    strength, order = scores[point, kind].sort(descending=True, stable=True)
    first = _first(kind[order], top)
    strength, point, kind = strength[first], point[order][first], kind[order][first]
    rows = boxes[point].double().cpu().numpy()
    rows = canonical(rows) if rows.shape[1] == 5 else rows
    strengths, classes = strength.cpu().numpy(), kind.cpu().numpy()
    kept = suppress(rows, strengths, classes, nms)
    return Found(rows[kept], strengths[kept], classes[kept])


def _first(classes: Tensor, top: int) -> Tensor:
    """Which of N class ids are among the first ``top`` of their kind: (N,) bool."""
    together, order = classes.sort(stable=True)
    place = torch.arange(len(classes), device=classes.device)
    place -= torch.searchsorted(together, together)  # where the first of each class is
    return torch.empty_like(place, dtype=torch.bool).scatter_(0, order, place < top)

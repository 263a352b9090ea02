"""The Lightning module of the stages of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.detection import Detector, class_loss, detection_loss, object_features
from torchgeo_debias.evaluation.detection import Guess, Truth, average_precision
from torchgeo_debias.training.detection.batches import Batch
from torchgeo_debias.training.detection.config import ClassLossName, DetectConfig
from torchgeo_debias.training.detection.frozen import FrozenMaps
from torchgeo_debias.training.loop import Stage

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Aim:
    """What the features of objects are drawn to in stage 3: ``weight * mean(((z - target) / scale)^2)``.

    Attributes:
        targets: Of each tile (n, D), the calibrated features of its objects that are not ignored, in their order; NaN
            where an object is drawn to nothing.
        scale: (D,) standard deviation of the features, so that the term does not depend on their unit.
        weight: At least 0.
    """

    targets: Sequence[Array]
    scale: Array
    weight: float


class DetectorStage(Stage):
    """A detector under its loss, drawn to an :class:`Aim` where there is one."""

    config: DetectConfig
    monitor = "val_ap50"
    clip = 35.0
    """As in common trainings of FCOS, against single steps that would throw the weights off."""

    def __init__(
        self,
        detector: Detector,
        table: ClassTable,
        normalisation: Normalisation,
        loss: ClassLossName,
        config: DetectConfig,
        aim: Aim | None = None,
    ) -> None:
        """Set it up; what is to stay as it is must be frozen already.

        Args:
            detector: What is trained.
            table: Classes with the counts of the objects that are taught.
            normalisation: Of the pixels.
            loss: Name of the class loss.
            config: The run's configuration.
            aim: Of stage 3.
        """
        super().__init__(config)
        self.detector = detector
        self.table = table
        self.normalisation = normalisation
        self.class_loss = class_loss(loss, table)  # a module, since it may remember what it has seen
        self.aim = aim
        # What is frozen needs no graph of its computation, and a frozen backbone not even a second computation.
        self._maps = (
            None if _trained(detector.backbone) else FrozenMaps(detector.backbone, normalisation, config.cache_mb)
        )
        self._head_only = self._maps is not None and not _trained(detector.neck)
        self._seen: list[tuple[Truth, Guess]] = []

    def share_of_rate(self, name: str) -> float:
        """Pretrained weights that are trained themselves, not by an adapter, take smaller steps."""
        pretrained = name.startswith("detector.backbone.") and not self.detector.backbone.adapted
        return self.config.backbone_lr if pretrained else 1.0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; the loss is that of the detector, and of the aim."""
        with torch.set_grad_enabled(not self._head_only):
            pyramid = self._pyramid(batch)
        outputs = self.detector.head(pyramid)
        parts = detection_loss(self.detector, outputs, batch.objects, self.class_loss)
        if self.aim is not None:
            parts["aim"] = self.aim.weight * self._gap(pyramid, batch, self.aim)
        loss = torch.stack(list(parts.values())).sum()
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.tiles))
        return loss

    def _pyramid(self, batch: Batch) -> list[Tensor]:
        if self._maps is None:
            return self.detector.pyramid(self.normalisation(batch.images, batch.valid))
        levels: list[Tensor] = self.detector.neck(self._maps(batch))
        return levels

    def _gap(self, pyramid: list[Tensor], batch: Batch, aim: Aim) -> Tensor:
        found = taught_features(pyramid, batch, self.detector.strides)
        targets = torch.from_numpy(np.concatenate([aim.targets[index] for index in batch.tiles.tolist()]))
        gap = (found - targets.to(found.device)) / torch.from_numpy(aim.scale).to(found.device)
        aimed = gap[~gap.isnan().any(dim=1)]
        return aimed.square().sum() / max(aimed.numel(), 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Find objects in held-out tiles."""
        outputs = self.detector(self.normalisation(batch.images, batch.valid))
        for objects, found in zip(batch.objects, self.detector.predict(outputs), strict=True):
            truth = Truth(*(part.cpu().numpy() for part in objects))
            self._seen.append((truth, Guess(*found)))

    def on_validation_epoch_end(self) -> None:
        """Mean AP50 over the classes that the held-out tiles hold."""
        truths, guesses = zip(*self._seen, strict=True)
        self._seen = []
        score = average_precision(truths, guesses, self.table, thresholds=(0.5,)).ap50["macro"]
        self.log(self.monitor, float(np.nan_to_num(score)))


def _trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def taught_features(pyramid: Sequence[Tensor], batch: Batch, strides: Sequence[int]) -> Tensor:
    """Features (n, D) float32 of the objects of a batch that are not ignored, in their order."""
    boxes = [objects.boxes[~objects.ignored] for objects in batch.objects]
    return object_features([level.float() for level in pyramid], boxes, strides)

"""A detector's package made ready to find objects with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from torchgeo_debias.backbones import Backbone, Precision
from torchgeo_debias.data.objects import TileSpec
from torchgeo_debias.detection import Detector
from torchgeo_debias.errors import ConfigError, PackageError
from torchgeo_debias.evaluation.thresholds import Thresholds
from torchgeo_debias.inference.classifier import Face, decided, merge, pretrained, whole_path
from torchgeo_debias.inference.computing import Computing
from torchgeo_debias.inference.predictor import Found
from torchgeo_debias.package import DetectorPackage, DetectorParts

MIN_SCORE = 0.05
"""Objects with a lower score are never told, as is usual where average precision is measured."""

NEAR_DUPLICATE = 0.9
"""Overlap (intersection over union) above which the weaker of two boxes of one class and tile is never told."""


class DetectorPredictor(Face):
    """The :class:`~torchgeo_debias.inference.predictor.BoxPredictor` of a detector's package, computed by torch.

    A LoRA is merged into the weights and nothing changes while it predicts: several threads may call it at once.
    """

    package: DetectorPackage

    def __init__(
        self, package: DetectorPackage, *, weights: str = "auto", precision: Precision = "auto", raw: bool = False
    ) -> None:
        """Build the detector of the trained parts.

        Args:
            package: A loaded package.
            weights: Where the backbone's weights come from, as in training.
            precision: As in training; ``32`` gives the most repeatable scores across machines.
            raw: Take the biased twin that the package keeps for comparison.

        Raises:
            ConfigError: If there is no biased twin.
            PackageError: If the weights are not those the package was trained on, or a part does not fit.
            WeightsError: If the weights cannot be had.
        """
        self._computing = Computing(precision)
        super().__init__(package, "torch", self._computing.precision, self._computing.device.type)
        self._weights, self._raw = weights, raw
        self._detector = build_detector(package, weights, raw=raw).to(self._computing.device).eval()
        self._detector.backbone.prefer(self._computing.device, self._computing.dtype)
        # Neck and head are convolutions, as some backbones are, and faster so.
        cast(Any, self._detector).to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        weights: str = "auto",
        precision: Precision = "auto",
        raw: bool = False,
        thresholds: bool = True,
    ) -> Self:
        """Read a package and make it ready; see :meth:`DetectorPackage.load`, ``decided`` and the constructor."""
        package = decided(DetectorPackage.load(path), thresholds)
        predictor = cls(package, weights=weights, precision=precision, raw=raw)
        predictor.origin = Path(path).resolve()
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes load the package anew, with the precision that was found here."""
        limited = self.thresholds is not None
        return _reload, (type(self), self._home(), whole_path(self._weights), self.precision, self._raw, limited)

    @property
    def thresholds(self) -> Thresholds | None:
        """Score limits of the classes; the biased twin has none."""
        return None if self._raw else self.package.thresholds

    @property
    def spec(self) -> TileSpec:
        """How training tiles were cut."""
        return self.package.spec

    @property
    def size(self) -> int:
        """Side of the tiles it takes, pixels."""
        return self.package.size

    @property
    def gsd(self) -> float | None:
        """Metres per pixel it was made for; None where that is unknown."""
        return self.package.spec.gsd

    @property
    def scale(self) -> float:
        """Pixels of a tile for each pixel of an image, where ``gsd`` is unknown."""
        return self.package.spec.scale

    @property
    def oriented(self) -> bool:
        """Whether its boxes are oriented."""
        return self.package.detector.oriented

    @property
    def twin(self) -> bool:
        """A detector's answers come alone; the twin is a predictor of its own."""
        return False

    def use_threads(self, n: int) -> None:
        """Compute each call of :meth:`predict` on ``n`` cores (CPU only), in whatever thread it is made."""
        self._computing.use_threads(n)

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> list[Found]:
        """What is found in each of N tiles (N, C, S, S), by falling score.

        An object may come several times: within the tile only near duplicates are suppressed, those that overlap by
        more than :data:`NEAR_DUPLICATE`. The rest is left to the run, which has one rule for within tiles and across
        them. A tile gives at most 1000 boxes of each class.
        """
        with self._computing():
            normal = self._computing.normalised(images, valid, self.package.normalisation, channels_last=True)
            outputs = self._detector(normal)
            tiles = self._detector.predict(outputs, min_score=MIN_SCORE, nms=NEAR_DUPLICATE)
            return [Found(*found) for found in tiles]

    def _marks(self) -> list[str]:
        return [*super()._marks(), *(["raw"] if self._raw else [])]


def build_detector(package: DetectorPackage, weights: str, *, raw: bool = False) -> Detector:
    """The detector of a package in float32 with its LoRA merged in, or its biased twin.

    Raises:
        ConfigError: If there is no biased twin.
        PackageError: If the weights are not those the package was trained on, or a part does not fit.
        WeightsError: If the weights cannot be had.
    """
    part = package.raw if raw else package.model
    if part is None:
        raise ConfigError(
            "The model keeps no biased twin: only the method deblora makes one, and this is a model of "
            f"{package.method.get('method')}."
        )
    backbone = merge(pretrained(package, weights), part.adapter)
    _check_form(package, part, backbone)
    detector = Detector(backbone, len(package.table.names), package.detector)
    detector.load_state_dict(part.tensors, strict=False)
    return detector.requires_grad_(False)


def _check_form(package: DetectorPackage, part: DetectorParts, backbone: Backbone) -> None:
    """Whether neck and head have the shapes that the package says."""
    misfit = f"Neck and head in the model package do not fit the backbone {package.backbone.name}"
    try:
        with torch.device("meta"):  # so that not even a wrong form takes memory
            detector = Detector(backbone, len(package.table.names), package.detector)
    except ConfigError as error:
        raise PackageError(f"{misfit}: {error}") from error
    own = {name: tensor for name, tensor in detector.state_dict().items() if not name.startswith("backbone.")}
    if {name: tensor.shape for name, tensor in own.items()} != {n: t.shape for n, t in part.tensors.items()}:
        raise PackageError(f"{misfit}; train it again.")


def _reload(
    kind: type[DetectorPredictor], path: Path, weights: str, precision: Precision, raw: bool, thresholds: bool
) -> DetectorPredictor:
    return kind.load(path, weights=weights, precision=precision, raw=raw, thresholds=thresholds)

"""What classifying a raster or a layer asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.evaluation.thresholds import Thresholds


class Prediction(NamedTuple):
    """Class probabilities of N chips.

    Attributes:
        probabilities: (N, C) float32, rows sum to 1.
        raw: The same from the biased twin that a model keeps for comparison, None where it has none; a model gives
            it always or never.
    """

    probabilities: npt.NDArray[np.float32]
    raw: npt.NDArray[np.float32] | None = None

    def at(self, index: int | npt.NDArray[np.intp]) -> Prediction:
        """Of the chips at ``index``; one chip loses the first axis."""
        return Prediction(self.probabilities[index], None if self.raw is None else self.raw[index])


class Found(NamedTuple):
    """What a detector finds in one tile.

    Attributes:
        boxes: (n, 4) horizontal or (n, 5) oriented float64, pixel frame of the tile, see
            :mod:`torchgeo_debias.boxes`; they may stick out of it.
        scores: (n,) float32, 0..1.
        classes: (n,) int64 ids in the class table.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


class RasterPredictor(Protocol):
    """What every model that looks at rasters tells of itself.

    Attributes:
        table: The classes, in the order of what the model answers.
        bands: Names of the bands it takes, in order.
        dtype: numpy name of the pixel type it was trained on, such as ``uint8``.
        identity: Changes with everything that its answers hang on; a run that was begun with another is not gone
            on with.
    """

    @property
    def table(self) -> ClassTable: ...  # noqa: D102

    @property
    def bands(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> str: ...  # noqa: D102

    @property
    def identity(self) -> str: ...  # noqa: D102

    def use_threads(self, n: int) -> None:
        """Use ``n`` threads in each call of ``predict``."""
        ...


class ChipPredictor(RasterPredictor, Protocol):
    """A model of chips, whatever stands behind it.

    Attributes:
        spec: How its training chips were cut.
        twin: Whether predictions come with those of a biased twin.
    """

    @property
    def spec(self) -> ChipSpec: ...  # noqa: D102

    @property
    def twin(self) -> bool: ...  # noqa: D102

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        """Classify chips; may be called from several threads at once.

        Args:
            images: (N, C, S, S) of :attr:`dtype`, raw units, 0 where invalid.
            valid: (N, S, S), False where a pixel is nodata.
        """
        ...


class PixelPredictor(RasterPredictor, Protocol):
    """A model that gives every pixel of a tile scores, such as a semantic segmentation network.

    Attributes:
        size: Side of the tiles it takes, pixels.
        gsd: Metres per pixel it was made for; None takes rasters as they are.
    """

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def gsd(self) -> float | None: ...  # noqa: D102

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Probabilities (N, K, S, S) of the K classes; may be called from several threads at once.

        Args:
            images: (N, C, S, S) of :attr:`dtype`, raw units, 0 where invalid.
            valid: (N, S, S), False where a pixel is nodata.
        """
        ...


class BoxPredictor(RasterPredictor, Protocol):
    """A model that finds objects in a tile.

    Attributes:
        size: Side of the tiles it takes, pixels.
        gsd: Metres per pixel it was made for; None where that is unknown.
        scale: Pixels of a tile for each pixel of a raster, where ``gsd`` is unknown; 1 takes rasters as they are.
        oriented: Whether its boxes are (n, 5) oriented ones or all (n, 4) horizontal.
    """

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def gsd(self) -> float | None: ...  # noqa: D102

    @property
    def scale(self) -> float: ...  # noqa: D102

    @property
    def oriented(self) -> bool: ...  # noqa: D102

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Sequence[Found]:
        """What is found in each of N tiles; may be called from several threads at once.

        Args:
            images: (N, C, S, S) of :attr:`dtype`, raw units, 0 where invalid.
            valid: (N, S, S), False where a pixel is nodata.
        """
        ...


TilePredictor: TypeAlias = ChipPredictor | PixelPredictor | BoxPredictor
"""Whatever can be run over the tiles of a raster."""


def thresholds_of(predictor: RasterPredictor) -> Thresholds | None:
    """Score limits of the classes, as the attribute ``thresholds`` of a model of a package; other models need none."""
    found: Thresholds | None = getattr(predictor, "thresholds", None)
    return found

"""A model that knows classes by their colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.inference.mapping import MapOptions, Outputs, Resources, Shape
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction
from torchgeo_debias.inference.rasters import classify_raster
from torchgeo_debias.inference.results import ClassifySummary
from torchgeo_debias.progress import ProgressCallback, silent

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [120, 120, 120]], dtype=np.uint8)
TABLE = ClassTable.from_counts({"red": 90, "green": 30, "blue": 3, "none": 500}, background="none")


@dataclass
class ByColour:
    """Class of the colour nearest to the mean of a chip's valid pixels, with probability ``sure``.

    Attributes:
        seen: Chips that were sent, in order.
        fail_at: Fails once so many calls were made.
        twin: Gives raw predictions, which say ``red`` of everything.
    """

    spec: ChipSpec = field(default_factory=lambda: ChipSpec(size=8, window=8))
    table: ClassTable = TABLE
    bands: tuple[str, ...] = ("red", "green", "blue")
    dtype: str = "uint8"
    sure: float = 0.7
    fail_at: int | None = None
    twin: bool = False
    seen: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return f"by colour, {self.sure}, {self.twin}, {self.spec}"

    def use_threads(self, n: int) -> None:
        self.threads = n

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        if self.fail_at == len(self.calls):
            raise ZeroDivisionError
        assert images.dtype == np.dtype(self.dtype)
        assert images.shape[1:] == (len(self.bands), self.spec.size, self.spec.size)
        self.calls.append(len(images))
        self.seen.extend(valid)
        weights = valid[:, None].astype(np.float64)
        mean = (images * weights).sum(axis=(2, 3)) / weights.sum(axis=(2, 3))
        nearest = np.abs(mean[:, None, :3] - COLOURS).sum(axis=2).argmin(axis=1)
        others = (1 - self.sure) / (len(COLOURS) - 1)
        probabilities = np.full((len(images), len(COLOURS)), others, dtype=np.float32)
        probabilities[np.arange(len(images)), nearest] = self.sure
        raw = np.tile(np.array([0.4, 0.2, 0.2, 0.2], np.float32), (len(images), 1)) if self.twin else None
        return Prediction(probabilities, raw)


def classify(
    rasters: Path | Sequence[Path],
    model: ChipPredictor,
    out: Path | None,
    *,
    map_path: Path | None = None,
    scores: Path | None = None,
    shape: Shape = "tiles",
    batch_size: int = 64,
    workers: int = 1,
    progress: ProgressCallback = silent,
    **options: Any,
) -> ClassifySummary:
    """``classify_raster`` with everything in one call and without a probe."""
    return classify_raster(
        rasters, model, Outputs(out, map_path, scores, shape), MapOptions(**options),
        resources=Resources(batch_size, workers, threads=1), progress=progress,
    )  # fmt: skip


def mosaic(ids: npt.NDArray[np.int64], cell: int, rng: np.random.Generator | None = None) -> npt.NDArray[np.uint8]:
    """(3, H, W) with one square of ``cell`` pixels for each of ``ids`` (rows, columns), in its class's colour."""
    colours = COLOURS[ids].repeat(cell, axis=0).repeat(cell, axis=1).transpose(2, 0, 1)
    if rng is None:
        return colours
    return (colours + rng.integers(-20, 21, colours.shape)).clip(0, 255).astype(np.uint8)

"""The nets of :mod:`benchmarks.tiling.models` as the library's engine takes them, without torch."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tiling.child import session
from torchgeo_debias.classes import ClassTable

FULL_SCALE = {"uint8": 255, "uint16": 4095}
"""Raw values are divided by this; 12 bits, as of many sensors, in files of 16."""


class OnnxPixels:
    """An ONNX file that gives each pixel of a tile its class scores.

    Attributes:
        table: The two classes.
        bands: Names as the rasters have them.
        dtype: Pixel type of the tiles.
        size: Side of a tile, pixels.
        gsd: None: rasters are taken as they are.
        identity: Digest of the file.
    """

    table = ClassTable.from_counts({"field": 2, "wood": 1})
    size = 512
    gsd = None

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._path, self._threads = path, threads
        count = int(path.stem.split("_")[1])
        self.bands = ("red", "green", "blue") if count == 3 else tuple(f"band_{i}" for i in range(1, count + 1))
        self.dtype = "uint8" if count == 3 else "uint16"
        self.identity = hashlib.sha256(path.read_bytes()).hexdigest()

    @cached_property
    def _session(self) -> Any:  # noqa: ANN401
        return session(self._path, self._threads)

    def use_threads(self, threads: int) -> None:
        """Threads of each call of :meth:`predict`."""
        if threads != self._threads:
            self._threads = threads
            self.__dict__.pop("_session", None)

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Scores (N, 2, S, S) of tiles (N, C, S, S) in raw units; the net takes nodata as it is, 0."""
        scaled = np.multiply(images, np.float32(1 / FULL_SCALE[self.dtype]), dtype=np.float32)
        scores: npt.NDArray[np.float32] = self._session.run(None, {"images": scaled})[0]
        return scores

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxPixels, (self._path, self._threads)

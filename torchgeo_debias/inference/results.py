"""What rasters and layers have in common once they are classified: checks, attributes, the summary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, OutputError, RasterError
from torchgeo_debias.evaluation.thresholds import NOTHING, UNKNOWN_NAME, Thresholds
from torchgeo_debias.inference.predictor import Prediction, RasterPredictor
from torchgeo_debias.tiling.source import Source

FIELDS = {"class": "string", "class_id": "Int32", "score": "float64", "group": "string"}
"""pandas dtypes of the attributes of every classified feature."""

RAW_FIELDS = {"class_raw": "string", "score_raw": "float64"}
"""Those that come with the prediction of a biased twin."""


@dataclass(frozen=True)
class ClassifySummary:
    """What came out.

    Attributes:
        counts: Classified tiles (or cells, with overlap), pixels or features, or objects found, by class name, in the
            order of the class table; tiles, cells and pixels of the background are counted even where no feature is
            written for them.
        tiles: Tiles of the rasters, or features of the layer.
        skipped: How many of these the model never saw: tiles without data (those wholly outside the area or the
            footprints are no tiles of the run), and features without data or outside the raster.
        files: Files written.
        notes: Sentences about the run that a person should read.
    """

    counts: dict[str, int]
    tiles: int
    skipped: int
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def check_source(source: Source, predictor: RasterPredictor) -> None:
    """Refuse a raster that does not fit the model.

    Raises:
        RasterError: If the number of bands, the order of bands of the same names, or the type of the pixels differs.
    """
    if source.count != len(predictor.bands):
        raise RasterError(
            f"{source.name} gives {source.count} bands ({_some(source.band_names)}) but the model takes "
            f"{len(predictor.bands)} ({_some(predictor.bands)}); choose them in this order with --bands."
        )
    if (order := source.order_of(predictor.bands)) is not None:
        raise RasterError(
            f"{source.name} gives its bands in another order ({_some(source.band_names)}) than the model takes "
            f"({_some(predictor.bands)}); choose them with --bands {','.join(map(str, order))}."
        )
    if source.dtype != np.dtype(predictor.dtype):
        raise RasterError(
            f"{source.name} holds {source.dtype} values but the model was trained on {predictor.dtype}; give a raster "
            "of the same type and scaling."
        )


def check_job(inputs: Iterable[Path], outputs: Iterable[Path], batch_size: int | None = None) -> None:
    """Refuse a job before it begins.

    Raises:
        OutputError: If a result would take the place of an input.
        ConfigError: If the batch size is not positive.
    """
    check_overwrite(inputs, outputs)
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"The batch size must be at least 1; received {batch_size}.")


def check_overwrite(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse results that would take the place of an input, under whatever name.

    Args:
        inputs: Files that are read.
        outputs: Files that will be written; links and other spellings of an input's name count as the input.

    Raises:
        OutputError: If one of the outputs is one of the inputs.
    """
    taken = {key for path in inputs for key in _same(Path(path))}
    for path in outputs:
        if not taken.isdisjoint(_same(Path(path))):
            raise OutputError(f"Writing {path} would destroy the input of that name; choose another name.")


def prediction_columns(table: ClassTable, prediction: Prediction, thresholds: Thresholds | None = None) -> pd.DataFrame:
    """The attributes :data:`FIELDS`, and :data:`RAW_FIELDS` where there is a twin, of N features.

    Args:
        table: The classes.
        prediction: (N, C) each; a row of NaN means "not classified" and becomes nulls.
        thresholds: Of the model; the twin has none.
    """
    raw = None if prediction.raw is None else best(prediction.raw)
    return class_columns(table, *best(prediction.probabilities, thresholds), raw)


def class_columns(
    table: ClassTable,
    ids: npt.NDArray[np.int64],
    scores: npt.NDArray[np.floating[Any]],
    raw: tuple[npt.NDArray[np.int64], npt.NDArray[np.floating[Any]]] | None = None,
) -> pd.DataFrame:
    """The same from class ids (N,), below 0 without a class, and their scores (N,); ``raw`` is those of the twin."""
    columns = {
        "class": _pick((*table.names, UNKNOWN_NAME), ids),
        "class_id": pd.Series(ids).where(ids >= 0),
        "score": _readable(scores),
        "group": _pick((*table.groups, None), ids),
    }
    if raw is not None:
        columns |= {"class_raw": _pick((*table.names, UNKNOWN_NAME), raw[0]), "score_raw": _readable(raw[1])}
    dtypes = FIELDS if raw is None else FIELDS | RAW_FIELDS
    return pd.DataFrame({name: pd.Series(columns[name], dtype=dtype) for name, dtype in dtypes.items()})


def best(
    probabilities: npt.NDArray[np.float32], thresholds: Thresholds | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Which class (N, C) probabilities stand for, and its probability; each (N,).

    The highest, or what ``thresholds`` decide. The id is ``NOTHING`` in rows of NaN and where thresholds leave a row
    out, or ``UNKNOWN`` where they abstain; the probability is then the highest.
    """
    if thresholds is None:
        ids = np.where(np.isnan(probabilities[:, 0]), NOTHING, probabilities.argmax(axis=1))
        return ids, probabilities.max(axis=1)
    ids = thresholds.decide(probabilities)
    own = probabilities[np.arange(len(ids)), ids.clip(0)]
    return ids, np.where(ids < 0, probabilities.max(axis=1), own)


def count_classes(table: ClassTable, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each class id occurs, shape (C,); negative ids are left out."""
    return np.bincount(ids[ids >= 0], minlength=len(table.names))


def _same(path: Path) -> list[Path | tuple[int, int]]:
    """What two names of one file have in common."""
    # Hard links, and names on disks that take upper for lower case, resolve to different paths.
    try:
        stat = path.stat()
    except OSError:
        return [path.resolve()]
    return [path.resolve(), (stat.st_dev, stat.st_ino)]


def _pick(names: tuple[str | None, ...], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    picked: npt.NDArray[np.object_] = np.array([*names, None], dtype=object)[ids]
    return picked


def _readable(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Without the digits that float32 does not have, which attribute tables would show: 0.7, not 0.699999988."""
    return scores.astype(np.float64).round(6)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:11])}, ... {names[-1]}"

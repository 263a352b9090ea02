"""Which pixels hold data, by their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import RasterError

KEPT_DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types that are passed on as they are; every other real type becomes float32."""


class Nodata(NamedTuple):
    """The values that stand for "no data".

    Attributes:
        values: Of each band, None where it has none.
        nan: Whether NaN and the infinities stand for it as well, in float rasters.
    """

    values: tuple[float | None, ...]
    nan: bool

    @classmethod
    def of(cls, declared: Sequence[float | None], override: float | None) -> Self:
        """Join what the raster declares and what a person says.

        Args:
            declared: Of each band.
            override: Takes the place of every value; NaN is added to them instead.
        """
        nan = any(value is not None and math.isnan(value) for value in (*declared, override))
        if override is not None and not math.isnan(override):
            declared = [override] * len(declared)
        return cls(tuple(None if value is None or math.isnan(value) else float(value) for value in declared), nan)


def kept_dtype(name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
    """The type of :data:`KEPT_DTYPES` in which pixels are passed on.

    Args:
        name: Of the raster, for the sentence.
        stored: Their own type.

    Raises:
        RasterError: If they are no real numbers.
    """
    if stored.kind not in "uif":
        raise RasterError(f"{name} holds {stored} values; convert it to real numbers first.")
    return np.dtype(stored.name if stored.name in KEPT_DTYPES else np.float32)  # in this machine's byte order


def settle(
    name: str,
    stored: npt.NDArray[Any],
    nodata: Nodata,
    dtype: np.dtype[Any],
    valid: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Blank what is no data and convert the rest.

    In rasters of unsigned integers a pixel is nodata where **every** band has the nodata value, since 0 and 255 are
    ordinary values of a single band; in signed and float rasters, whose nodata lies outside the range of the data,
    where **any** band has it.

    Args:
        name: Of the raster, for the sentence.
        stored: (C, h, w), may be changed.
        nodata: One value for each band.
        dtype: Of the result.
        valid: (h, w), what is known already; may be changed.

    Returns:
        Pixels (C, h, w) of ``dtype``, 0 where invalid, and the mask (h, w), True where a pixel holds data.

    Raises:
        RasterError: If there is NaN or an infinity that is neither nodata nor masked.
    """
    bad = _nodata_pixels(stored, nodata.values)
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        broken = ~np.isfinite(stored).all(axis=0)
        excused = np.zeros_like(broken) if bad is None else bad
        if not nodata.nan and (broken & ~excused if valid is None else broken & ~excused & valid).any():
            raise RasterError(
                f"{name} holds NaN or infinite pixels that are not declared as nodata; add '--nodata nan' to leave "
                "them out."
            )
        bad = broken | excused
    if bad is not None:
        valid = ~bad if valid is None else np.logical_and(valid, ~bad, out=valid)
    if valid is None:
        valid = np.ones(stored.shape[1:], dtype=bool)
    elif stored.dtype.kind == "f":
        np.copyto(stored, 0, where=~valid)
    elif not valid.all():
        np.multiply(stored, valid, out=stored)  # ten times as fast, but NaN times 0 is NaN
    return stored.astype(dtype, copy=False), valid


def _nodata_pixels(stored: npt.NDArray[Any], values: Sequence[float | None]) -> npt.NDArray[np.bool_] | None:
    """Mask (h, w) of the nodata pixels, None where there are none."""
    every = stored.dtype.kind == "u"
    found: npt.NDArray[np.bool_] | None = None
    for band, value in zip(stored, values, strict=True):
        if value is None:
            if every:
                return None
            continue
        hit = band == _as_stored(value, stored.dtype)
        if found is None:
            found = hit
        elif every:
            found &= hit
        else:
            found |= hit
        if every and not found.any():
            return None
    return found if found is not None and found.any() else None


def _as_stored(value: float, dtype: np.dtype[Any]) -> Any:  # noqa: ANN401
    """A nodata value in the raster's own type, so that it equals what is stored; NaN where the type cannot hold it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # -3.4e38 is declared as a double but stored as a float
            return dtype.type(value)
    info = np.iinfo(dtype)
    return dtype.type(int(value)) if value.is_integer() and info.min <= value <= info.max else math.nan

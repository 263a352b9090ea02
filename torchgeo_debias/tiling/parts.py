"""What one band of a run came to, as named arrays, and the form in which it waits on the disk for the others."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Part = dict[str, npt.NDArray[Any]]
"""Arrays by name, each with one entry (a row of pixels, a cell) along its first axis."""

_PACKED = "packed:"
_LARGE = 4096
"""Bytes above which an array is worth compressing."""


def join(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Part:
    """One part of several with the same names, one after the other."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pack(part: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A part as the bytes of a ``.npz`` file without pickles; large arrays of ids are compressed, as maps shrink."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, array in part.items():
        if array.dtype.kind == "u" and array.nbytes > _LARGE:
            packed = _codec().compress(np.ascontiguousarray(array).reshape(-1).view(np.uint8), asbytes=True)
            arrays[f"{_PACKED}{array.dtype.str}:{','.join(map(str, array.shape))}:{name}"] = np.frombuffer(
                packed, np.uint8
            )
        else:
            arrays[name] = array
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def unpack(data: bytes, names: Sequence[str] | None = None) -> Part:
    """The part that :func:`pack` wrote, or only the arrays of ``names``."""
    part: Part = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for key in file.files:
            name = key
            if key.startswith(_PACKED):
                _, dtype, shape, name = key.split(":", 3)
            if names is not None and name not in names:
                continue
            array = file[key]
            if name != key:
                lengths = tuple(map(int, shape.split(",")))
                size = int(np.prod(lengths)) * np.dtype(dtype).itemsize
                plain = _codec().decompress(array.data, decompressed_size=size, asbytes=True)
                array = np.frombuffer(plain, dtype).reshape(lengths)
            part[name] = array
    return part


def _codec() -> Any:  # noqa: ANN401 - pyarrow has no types
    return pa.Codec("zstd", compression_level=1)

"""The files of a model package: read whole into memory and checked, written so that no half of one is ever seen."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from torchgeo_debias.errors import OutputError, PackageError

FORMAT = "torchgeo-debias model"
VERSION = 1
SUFFIX = ".tgd"
MODEL = "model.json"
ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER = "adapter/adapter_model.safetensors"
HEAD = "head.safetensors"
DETECTOR = "detector.safetensors"
BACKBONE = "backbone.safetensors"
RAW = "raw/"
ONNX = "onnx/model.onnx"
ONNX_INT8 = "onnx/model.int8.onnx"
_PARTS = (ADAPTER_CONFIG, ADAPTER, HEAD, DETECTOR)
_KNOWN = {MODEL, BACKBONE, ONNX, ONNX_INT8, *(prefix + part for prefix in ("", RAW) for part in _PARTS)}
_FOLDERS = {"adapter/", RAW, f"{RAW}adapter/", "onnx/"}
_MAX_RATIO = 20
"""An archive that claims to unpack to more times its size is no package: weights hardly shrink."""
_LARGEST_NUMBER = 2**64

Files = dict[str, bytes]
TensorDict = dict[str, Tensor]


def check_target(path: Path) -> None:
    """Refuse a place for a package before the training that would fill it.

    Raises:
        OutputError: If something other than a package is there, or its folder cannot be written to.
    """
    if os.path.exists(path) and (path.is_dir() == _is_archive_name(path) or not _holds_only_a_package(path)):
        raise OutputError(f"{path} exists and is no model package: choose another name for --out.")
    target = path.resolve()
    folder = target.parent
    while not os.path.exists(folder):
        folder = folder.parent
    try:
        # Tried rather than asked: permissions do not tell of read-only disks, and to root they tell nothing.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}-"):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write {path} in {folder} ({error.strerror or error}): choose another place for --out."
        ) from error


def write_package(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a package to a folder, or to a file ending in ``.tgd``, in place of an older package.

    Raises:
        OutputError: If the place is taken by something else, or cannot be written.
    """
    check_target(path)
    target = path.resolve()  # "." has no name, and a link should go on pointing at the package
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
            made = Path(temporary) / "made"
            if _is_archive_name(path):
                _write_archive(made, files)
                os.replace(made, target)
            else:
                _write_folder(made, files)
                _replace_folder(made, target, Path(temporary) / "replaced")
    except OSError as error:
        raise OutputError(f"Cannot write the model package {path}: {error.strerror or error}.") from error


def read_package(path: Path) -> tuple[dict[str, Any], Files]:
    """The content of ``model.json`` and all files of a package, whose version and digests are right.

    Raises:
        PackageError: If it is missing, damaged, foreign or of another version.
    """
    files = _read_folder(path) if os.path.isdir(path) else _read_archive(path)
    info = _model_json(path, files)
    _check_digests(path, info, files)
    return info, files


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of every file, by its name."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def parse_json(data: bytes) -> Any:  # noqa: ANN401 (any JSON value)
    """A JSON value; infinities and the like, which are none, are refused, and numbers that no computer takes.

    Raises:
        ValueError: If it is no JSON.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    def whole(text: str) -> int:
        if abs(value := int(text)) >= _LARGEST_NUMBER:
            raise ValueError(f"{text:.20}... is too large a number")
        return value

    def real(text: str) -> float:
        if math.isinf(value := float(text)):
            raise ValueError(f"{text:.20} is too large a number")
        return value

    return json.loads(data, parse_constant=refuse, parse_int=whole, parse_float=real)


def load_finite(name: str, files: Mapping[str, bytes]) -> TensorDict:
    """The tensors of one file.

    Raises:
        ValueError: If one of them holds infinities or NaN.
        SafetensorError: If it is no file of tensors.
    """
    tensors = load_tensors(files[name])
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{key} in {name} is not finite")
    return tensors


def _is_archive_name(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def _holds_only_a_package(path: Path) -> bool:
    """Whether replacing what is at ``path``, an empty folder or a package, loses nothing else."""
    if path.is_dir():
        known = all(item.relative_to(path).as_posix() in _KNOWN for item in path.rglob("*") if not item.is_dir())
        return known and ((path / MODEL).is_file() or not any(path.iterdir()))
    try:
        with zipfile.ZipFile(path) as archive:
            return MODEL in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _replace_folder(made: Path, target: Path, replaced: Path) -> None:
    """Move ``made`` to ``target``; what was there goes to ``replaced``, and comes back should that fail."""
    if not target.exists():
        os.replace(made, target)
        return
    os.replace(target, replaced)
    try:
        os.replace(made, target)
    except OSError:
        os.replace(replaced, target)
        raise


def _write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            # A fixed date, so that equal packages are equal files.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name])


def _read_folder(path: Path) -> Files:
    try:
        return {name: (path / name).read_bytes() for name in _KNOWN if (path / name).is_file()}
    except OSError as error:
        raise PackageError(f"Cannot read the model package {path}: {error.strerror or error}.") from error


def _read_archive(path: Path) -> Files:
    if not os.path.exists(path):
        raise PackageError(f"No model package at {path}: give the folder or .tgd file that 'train --out' wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename not in _FOLDERS]
            foreign = sorted({entry.filename for entry in entries} - _KNOWN)
            if foreign:
                raise PackageError(f"{path} is no model package: it holds the unknown file {foreign[0]!r}.")
            size = sum(entry.file_size for entry in entries)
            if size > _MAX_RATIO * path.stat().st_size:
                raise PackageError(f"{path} is no model package: so small a file holds no {size:,} bytes of weights.")
            return {entry.filename: archive.read(entry) for entry in entries}
    # zipfile reports encrypted files and unknown compressions as RuntimeError.
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError) as error:
        raise PackageError(f"{path} is no model package, or a damaged one: {error}.") from error


def _model_json(path: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    if MODEL not in files:
        raise PackageError(f"{path} is no model package: it has no {MODEL}.")
    try:
        info = parse_json(files[MODEL])
    except (ValueError, RecursionError) as error:
        raise PackageError(f"The model package {path} is damaged: {MODEL} is not JSON ({error}).") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise PackageError(f"{path} is no model package: {MODEL} does not name the format {FORMAT!r}.")
    if info.get("format_version") != VERSION:
        raise PackageError(
            f"The model package {path} has format version {info.get('format_version')}, this library reads {VERSION}: "
            "install the version of torchgeo-debias that wrote it."
        )
    return info


def _check_digests(path: Path, info: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    listed = info.get("files")
    if not isinstance(listed, dict) or set(listed) != set(files) - {MODEL}:
        raise PackageError(f"The model package {path} is damaged: its files are not those that {MODEL} lists.")
    for name, digest in listed.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise PackageError(f"The model package {path} is damaged: the digest of {name} differs; copy it again.")

"""The model package: a folder, or the same zipped as ``.tgd``, of JSON and safetensors; never a pickle.

::

    model.json                            what it is: classes, input, method, metrics, digests, licences
    adapter/adapter_config.json           the LoRA, which stock peft opens
    adapter/adapter_model.safetensors
    head.safetensors                      weight (C, D) and bias (C,)
    raw/adapter/..., raw/head.safetensors the plain LoRA kept for comparison, where there is one
    backbone.safetensors                  all weights, only where all were trained
    onnx/model.onnx, onnx/model.int8.onnx the whole model for other engines, where it was exported

Everything is read into memory and checked (version, digests, names, shapes) before any tensor is used; an archive is
never unpacked to disk.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.errors import ConfigError, DataError, OutputError, PackageError

FORMAT = "torchgeo-debias model"
VERSION = 1
TASK = "classification"
SUFFIX = ".tgd"
MODEL = "model.json"
ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER = "adapter/adapter_model.safetensors"
HEAD = "head.safetensors"
BACKBONE = "backbone.safetensors"
RAW = "raw/"
ONNX = "onnx/model.onnx"
ONNX_INT8 = "onnx/model.int8.onnx"
_KNOWN = {MODEL, BACKBONE, ONNX, ONNX_INT8, *(p + f for p in ("", RAW) for f in (ADAPTER_CONFIG, ADAPTER, HEAD))}
_FOLDERS = {"adapter/", RAW, f"{RAW}adapter/", "onnx/"}
_MAX_RATIO = 20
"""An archive that claims to unpack to more times its size is no package: weights hardly shrink."""

TensorDict = dict[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """A LoRA as peft stores it.

    Attributes:
        config: Content of ``adapter_config.json``.
        tensors: Content of ``adapter_model.safetensors``.
    """

    config: dict[str, Any]
    tensors: TensorDict


@dataclass(frozen=True)
class Classifier:
    """Trained parts: a LoRA (none for a frozen backbone) and a linear head."""

    adapter: Adapter | None
    head: LinearHead


@dataclass(frozen=True)
class BackboneInfo:
    """Which backbone a package belongs on.

    Attributes:
        name: Name in the registry.
        pool: How tokens become one feature.
        dim: Length of a feature.
        digest: SHA-256 of the pretrained tensors.
        licence: Of the weights.
    """

    name: str
    pool: str
    dim: int
    digest: str
    licence: str


@dataclass(frozen=True)
class ModelPackage:
    """Everything needed to run and to trust a trained model.

    Attributes:
        table: Classes with training counts and groups.
        spec: How chips are cut.
        bands: Names of the input bands, in order.
        dtype: numpy name of the pixel type of the training data.
        normalisation: Fixed at training.
        backbone: What the trained parts belong on.
        model: The trained parts.
        raw: The plain LoRA that the de-biased one is compared with, None where there is none.
        finetuned: All tensors of the backbone, None unless all were trained.
        method: Configuration of the training run as JSON.
        metrics: Scores measured so far, by the name of the data.
        provenance: Seed, versions, data and timings.
        thresholds: Score below which a class should not be reported, by class name; may be empty.
        onnx: Exported files by their name in the package, :data:`ONNX` and :data:`ONNX_INT8`; empty without export.
        exports: What is known of them: versions, and how well each engine agrees with torch.
    """

    table: ClassTable
    spec: ChipSpec
    bands: tuple[str, ...]
    dtype: str
    normalisation: Normalisation
    backbone: BackboneInfo
    model: Classifier
    raw: Classifier | None
    finetuned: TensorDict | None
    method: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    thresholds: dict[str, float]
    onnx: dict[str, bytes] = field(default_factory=dict)
    exports: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that predictions hang on: the trained parts and how chips become their input.

        Metrics, provenance and exports may be added without changing it.
        """
        info = self._describe(_digests({name: data for name, data in _files(self).items() if name not in self.onnx}))
        meaning = {key: info[key] for key in ("task", "backbone", "input", "classes", "files")}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Content of ``model.json``."""
        return self._describe(_digests(_files(self)))

    def _describe(self, digests: Mapping[str, str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "task": TASK,
            "backbone": vars(self.backbone),
            "input": {
                "bands": list(self.bands),
                "dtype": self.dtype,
                "chip": self.spec.to_json(),
                "normalisation": self.normalisation.to_json(),
            },
            "classes": self.table.to_json(),
            "priors": dict(zip(self.table.names, self.table.priors.tolist(), strict=True)),
            "thresholds": self.thresholds,
            "method": self.method,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "licences": {"backbone": self.backbone.licence},
            "files": dict(digests),
            **({"exports": self.exports} if self.exports else {}),
        }

    def save(self, path: Path | str) -> None:
        """Write the package; under its final name it is always complete.

        Args:
            path: A folder, or a file ending in ``.tgd``. An older package there is replaced; anything else is not.

        Raises:
            OutputError: If the place is taken by something else, or cannot be written.
        """
        path = Path(path)
        check_target(path)
        files = _files(self)
        files[MODEL] = json.dumps(self._describe(_digests(files)), indent=2, allow_nan=False).encode()
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

    @classmethod
    def load(cls, path: Path | str) -> ModelPackage:
        """Read and check a package.

        Raises:
            PackageError: If it is missing, damaged, foreign or of another version.
        """
        path = Path(path)
        files = _read_folder(path) if os.path.isdir(path) else _read_archive(path)
        info = _model_json(path, files)
        _check_digests(path, info, files)
        try:
            table = ClassTable.from_json(info["classes"])
            backbone = BackboneInfo(**info["backbone"])
            given = info["input"]
            package = cls(
                table=table,
                spec=ChipSpec.from_json(given["chip"]),
                bands=tuple(given["bands"]),
                dtype=str(given["dtype"]),
                normalisation=Normalisation.from_json(given["normalisation"]),
                backbone=backbone,
                model=_classifier(files, "", table, backbone),
                raw=_classifier(files, RAW, table, backbone) if RAW + HEAD in files else None,
                finetuned=_load_finite(BACKBONE, files) if BACKBONE in files else None,
                method=dict(info["method"]),
                metrics=dict(info["metrics"]),
                provenance=_provenance(info["provenance"]),
                thresholds=dict(info["thresholds"]),
                onnx={name: files[name] for name in (ONNX, ONNX_INT8) if name in files},
                exports=dict(info.get("exports", {})),
            )
            _check_input(package)
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError, DataError, SafetensorError) as error:
            raise PackageError(
                f"The model package {path} is damaged ({type(error).__name__}: {error}); train or copy it again."
            ) from error
        return package


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


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of every file, by its name."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def _files(package: ModelPackage) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for prefix, part in (("", package.model), (RAW, package.raw)):
        if part is None:
            continue
        head = {name: torch.from_numpy(array).contiguous() for name, array in part.head._asdict().items()}
        files[prefix + HEAD] = save_tensors(head)
        if part.adapter is not None:
            files[prefix + ADAPTER_CONFIG] = json.dumps(part.adapter.config, indent=2, sort_keys=True).encode()
            files[prefix + ADAPTER] = save_tensors(part.adapter.tensors, metadata={"format": "pt"})
    if package.finetuned is not None:
        files[BACKBONE] = save_tensors(package.finetuned)
    return {**files, **package.onnx}


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


def _read_folder(path: Path) -> dict[str, bytes]:
    try:
        return {name: (path / name).read_bytes() for name in _KNOWN if (path / name).is_file()}
    except OSError as error:
        raise PackageError(f"Cannot read the model package {path}: {error.strerror or error}.") from error


def _read_archive(path: Path) -> dict[str, bytes]:
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
        info = _parse(files[MODEL])
    except (ValueError, RecursionError) as error:
        raise PackageError(f"The model package {path} is damaged: {MODEL} is not JSON ({error}).") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise PackageError(f"{path} is no model package: {MODEL} does not name the format {FORMAT!r}.")
    if info.get("format_version") != VERSION:
        raise PackageError(
            f"The model package {path} has format version {info.get('format_version')}, this library reads {VERSION}: "
            "install the version of torchgeo-debias that wrote it."
        )
    if info.get("task") != TASK:
        raise PackageError(f"The model package {path} is for {info.get('task')}, this library only knows {TASK}.")
    return info


def _parse(data: bytes) -> Any:  # noqa: ANN401 (any JSON value)
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(data, parse_constant=refuse)


def _check_digests(path: Path, info: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    listed = info.get("files")
    if not isinstance(listed, dict) or set(listed) != set(files) - {MODEL}:
        raise PackageError(f"The model package {path} is damaged: its files are not those that {MODEL} lists.")
    for name, digest in listed.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise PackageError(f"The model package {path} is damaged: the digest of {name} differs; copy it again.")


def _classifier(files: Mapping[str, bytes], prefix: str, table: ClassTable, backbone: BackboneInfo) -> Classifier:
    tensors = _load_finite(prefix + HEAD, files)
    shape = (len(table.names), backbone.dim)
    if tuple(tensors["weight"].shape) != shape or tuple(tensors["bias"].shape) != shape[:1]:
        raise ValueError(f"the head has shape {tuple(tensors['weight'].shape)}, classes and features need {shape}")
    head = LinearHead(
        tensors["weight"].numpy().astype(np.float32, copy=False), tensors["bias"].numpy().astype(np.float32, copy=False)
    )
    adapter = None
    if prefix + ADAPTER in files:
        config = _parse(files[prefix + ADAPTER_CONFIG])
        if not isinstance(config, dict):
            raise TypeError(f"{prefix}{ADAPTER_CONFIG} is no JSON object")
        adapter = Adapter(config, _load_finite(prefix + ADAPTER, files))
        foreign = [name for name in adapter.tensors if "lora_" not in name]
        if foreign:
            raise ValueError(f"the adapter holds {foreign[0]!r}, which is no part of a LoRA")
    return Classifier(adapter, head)


def _load_finite(name: str, files: Mapping[str, bytes]) -> TensorDict:
    tensors = load_tensors(files[name])
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{key} in {name} is not finite")
    return tensors


def _provenance(values: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluation and reports rely on is there; the rest is as it may be."""
    kinds = {"seed": int, "training_chips": int, "versions": dict}
    return {**values, **{name: kind(values[name]) for name, kind in kinds.items()}}


def _check_input(package: ModelPackage) -> None:
    np.dtype(package.dtype)
    texts = {name: value for name, value in vars(package.backbone).items() if name != "dim"}
    if not all(isinstance(text, str) for text in [*texts.values(), *package.bands]):
        raise TypeError("the names of backbone and bands must be text")
    if len(package.bands) != package.normalisation.bands:
        raise ValueError("bands and normalisation differ in number")
    odd = sorted(set(package.table.groups) - {*GROUPS, "background"})
    if odd:
        raise ValueError(f"there is no group {odd[0]!r}")

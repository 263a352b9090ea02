"""The model package: a folder, or the same zipped as ``.tgd``, of JSON and safetensors; never a pickle.

::

    model.json                            what it is: classes, input, method, metrics, digests, licences
    adapter/adapter_config.json           the LoRA, which stock peft opens
    adapter/adapter_model.safetensors
    head.safetensors                      weight (C, D) and bias (C,)
    raw/adapter/..., raw/head.safetensors the plain LoRA kept for comparison, where there is one
    backbone.safetensors                  all weights, only where all were trained

Everything is read into memory and checked (version, digests, names, shapes) before any tensor is used; an archive is
never unpacked to disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.errors import ConfigError, DataError, OutputError, PackageError

FORMAT = "torchgeo-debias model"
VERSION = 1
SUFFIX = ".tgd"
MODEL = "model.json"
ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER = "adapter/adapter_model.safetensors"
HEAD = "head.safetensors"
BACKBONE = "backbone.safetensors"
RAW = "raw/"
_KNOWN = {MODEL, BACKBONE, *(p + f for p in ("", RAW) for f in (ADAPTER_CONFIG, ADAPTER, HEAD))}

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

    def to_json(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Content of ``model.json``.

        Args:
            digests: SHA-256 of every other file of the package, by its name.
        """
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "task": "classification",
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
        }

    def save(self, path: Path) -> None:
        """Write the package; under its final name it is always complete.

        Args:
            path: A folder, or a file ending in ``.tgd``. An older package there is replaced; anything else is not.

        Raises:
            OutputError: If the place is taken by something else, or cannot be written.
        """
        check_target(path)
        files = _files(self)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
        files[MODEL] = json.dumps(self.to_json(digests), indent=2, allow_nan=False).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
                made = Path(temporary) / path.name
                if path.suffix == SUFFIX:
                    _write_archive(made, files)
                else:
                    _write_folder(made, files)
                    if path.exists():
                        shutil.move(path, Path(temporary) / "replaced")
                os.replace(made, path)
        except OSError as error:
            raise OutputError(f"Cannot write the model package {path}: {error.strerror or error}.") from error

    @classmethod
    def load(cls, path: Path) -> ModelPackage:
        """Read and check a package.

        Raises:
            PackageError: If it is missing, damaged, foreign or of another version.
        """
        files = _read_folder(path) if path.is_dir() else _read_archive(path)
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
                finetuned=load_tensors(files[BACKBONE]) if BACKBONE in files else None,
                method=dict(info["method"]),
                metrics=dict(info["metrics"]),
                provenance=dict(info["provenance"]),
                thresholds=dict(info["thresholds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError, DataError, SafetensorError) as error:
            raise PackageError(
                f"The model package {path} is damaged ({type(error).__name__}: {error}); train or copy it again."
            ) from error
        if len(package.bands) != package.normalisation.bands:
            raise PackageError(f"The model package {path} is damaged: bands and normalisation differ in number.")
        return package


def check_target(path: Path) -> None:
    """Refuse a place for a package before the training that would fill it.

    Raises:
        OutputError: If something other than a package is there, or its folder cannot be written to.
    """
    if path.suffix == SUFFIX:
        taken = path.is_dir()
    else:
        taken = path.exists() and not (path / MODEL).is_file() and not (path.is_dir() and not any(path.iterdir()))
    if taken:
        raise OutputError(f"{path} exists and is no model package: choose another name for --out.")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"Cannot write to {folder}: choose another place for --out or change its permissions.")


def _files(package: ModelPackage) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for prefix, part in (("", package.model), (RAW, package.raw)):
        if part is None:
            continue
        head = {"weight": torch.from_numpy(part.head.weight), "bias": torch.from_numpy(part.head.bias)}
        files[prefix + HEAD] = save_tensors(head)
        if part.adapter is not None:
            files[prefix + ADAPTER_CONFIG] = json.dumps(part.adapter.config, indent=2, sort_keys=True).encode()
            files[prefix + ADAPTER] = save_tensors(part.adapter.tensors, metadata={"format": "pt"})
    if package.finetuned is not None:
        files[BACKBONE] = save_tensors(package.finetuned)
    return files


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


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
    if not path.exists():
        raise PackageError(f"No model package at {path}: give the folder or .tgd file that 'train --out' wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            foreign = sorted(set(archive.namelist()) - _KNOWN)
            if foreign:
                raise PackageError(f"{path} is no model package: it holds the unknown file {foreign[0]!r}.")
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise PackageError(f"{path} is no model package, or a damaged one: {error}.") from error


def _model_json(path: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    if MODEL not in files:
        raise PackageError(f"{path} is no model package: it has no {MODEL}.")
    try:
        info = json.loads(files[MODEL])
    except ValueError as error:
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


def _classifier(files: Mapping[str, bytes], prefix: str, table: ClassTable, backbone: BackboneInfo) -> Classifier:
    tensors = load_tensors(files[prefix + HEAD])
    shape = (len(table.names), backbone.dim)
    if tuple(tensors["weight"].shape) != shape or tuple(tensors["bias"].shape) != shape[:1]:
        raise ValueError(f"the head has shape {tuple(tensors['weight'].shape)}, classes and features need {shape}")
    head = LinearHead(
        tensors["weight"].numpy().astype(np.float32, copy=False), tensors["bias"].numpy().astype(np.float32, copy=False)
    )
    adapter = None
    if prefix + ADAPTER in files:
        adapter = Adapter(json.loads(files[prefix + ADAPTER_CONFIG]), load_tensors(files[prefix + ADAPTER]))
        foreign = [name for name in adapter.tensors if "lora_" not in name]
        if foreign:
            raise ValueError(f"the adapter holds {foreign[0]!r}, which is no part of a LoRA")
    return Classifier(adapter, head)

"""What the model packages of all tasks have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save as save_tensors

from torchgeo_debias._package_io import (
    ADAPTER,
    ADAPTER_CONFIG,
    BACKBONE,
    FORMAT,
    MODEL,
    VERSION,
    Files,
    TensorDict,
    check_target,
    digests,
    load_finite,
    parse_json,
    read_package,
    write_package,
)
from torchgeo_debias.backbones import check_adapter, check_views
from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.errors import ConfigError, DataError, PackageError
from torchgeo_debias.evaluation.thresholds import Thresholds
from torchgeo_debias.fields import read_fields

VERBS = {"classification": "classify", "detection": "detect"}
"""What runs the packages of each task."""

_MEANING = ("task", "backbone", "input", "classes", "files", "detector")
"""The entries of ``model.json`` that predictions hang on."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as peft stores it; see :class:`~torchgeo_debias.backbones.adapter_state.AdapterState`.

    Attributes:
        config: Content of ``adapter_config.json``.
        tensors: Content of ``adapter_model.safetensors``.
    """

    config: dict[str, Any]
    tensors: TensorDict


@dataclass(frozen=True)
class BackboneInfo:
    """Which backbone a package belongs on.

    Attributes:
        name: Name in the registry.
        pool: How tokens become one feature.
        dim: Length of a feature.
        digest: SHA-256 of the pretrained tensors.
        licence: Of the weights.
        views: How many symmetries of the image a feature is the mean of.
    """

    name: str
    pool: str
    dim: int
    digest: str
    licence: str
    views: int = 1

    def __post_init__(self) -> None:
        check_views(self.views)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; without ``views`` where it is 1, so that older models keep their digest and exports."""
        return {name: value for name, value in asdict(self).items() if name != "views" or value != 1}


@dataclass(frozen=True, kw_only=True)
class Package:
    """What the packages of all tasks have in common: everything needed to run and to trust a trained model.

    Attributes:
        task: What the model does.
        table: Classes with training counts and groups.
        bands: Names of the input bands, in order.
        dtype: numpy name of the pixel type of the training data.
        normalisation: Fixed at training.
        backbone: What the trained parts belong on.
        finetuned: All tensors of the backbone, None unless all were trained.
        method: Configuration of the training run as JSON.
        metrics: Scores measured so far, by the name of the data.
        provenance: Seed, versions, data and timings.
        thresholds: Score limits of the classes, None where none were found; see
            :mod:`torchgeo_debias.evaluation.decisions`.
    """

    task: ClassVar[str]
    table: ClassTable
    bands: tuple[str, ...]
    dtype: str
    normalisation: Normalisation
    backbone: BackboneInfo
    finetuned: TensorDict | None
    method: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    thresholds: Thresholds | None

    @property
    def size(self) -> int:
        """Side of the model's input, pixels."""
        raise NotImplementedError

    @property
    def twin_name(self) -> str:
        """What to call the model that is kept for comparison, where there is one."""
        return "LoRA"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that predictions hang on: the trained parts and how images become their input.

        Metrics, provenance, exports and thresholds may be added without changing it: the scores of the model stay what
        they are, and an export of it is still one.
        """
        info = self._describe(digests(self._trained_files()))
        meaning = {key: info[key] for key in _MEANING if key in info}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Content of ``model.json``."""
        return self._describe(digests(self._files()))

    def save(self, path: Path | str) -> None:
        """Write the package; under its final name it is always complete.

        Args:
            path: A folder, or a file ending in ``.tgd``. An older package there is replaced; anything else is not.

        Raises:
            OutputError: If the place is taken by something else, or cannot be written.
        """
        check_target(Path(path))
        files = self._files()
        files[MODEL] = json.dumps(self._describe(digests(files)), indent=2, allow_nan=False).encode()
        write_package(Path(path), files)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read and check a package of this task.

        Raises:
            PackageError: If it is missing, damaged, foreign, of another version or for another task.
        """
        info, files = read_package(Path(path))
        if info.get("task") != cls.task:
            check_task(path, info)
            raise PackageError(
                f"The model package {path} is for {info['task']}, not for {cls.task}: use it with "
                f"'{VERBS[info['task']]}', or give another model."
            )
        return cls.parse(path, info, files)

    @classmethod
    def parse(cls, path: Path | str, info: Mapping[str, Any], files: Files) -> Self:
        """Make a package of what was read.

        Args:
            path: Where it was read, for sentences.
            info: Content of ``model.json``.
            files: All of them.

        Raises:
            PackageError: If it is damaged.
        """
        try:
            package = cls(**_common(info, files), **cls._parts(info, files))
            _check_input(package)
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError, DataError, SafetensorError) as error:
            raise PackageError(
                f"The model package {path} is damaged ({type(error).__name__}: {error}); train or copy it again."
            ) from error
        return package

    @classmethod
    def _parts(cls, info: Mapping[str, Any], files: Files) -> dict[str, Any]:
        """The fields that belong to the task."""
        raise NotImplementedError

    def _trained_files(self) -> Files:
        return {} if self.finetuned is None else {BACKBONE: save_tensors(self.finetuned)}

    def _files(self) -> Files:
        return self._trained_files()

    def _describe(self, listed: Mapping[str, str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "task": self.task,
            "backbone": self.backbone.to_json(),
            "input": {"bands": list(self.bands), "dtype": self.dtype, "normalisation": self.normalisation.to_json()},
            "classes": self.table.to_json(),
            "priors": dict(zip(self.table.names, self.table.priors.tolist(), strict=True)),
            "thresholds": {} if self.thresholds is None else self.thresholds.to_json(),
            "method": self.method,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "licences": {"backbone": self.backbone.licence},
            "files": dict(listed),
        }


def check_task(path: Path | str, info: Mapping[str, Any]) -> None:
    """Refuse a task unknown here.

    Raises:
        PackageError: If the package is for one.
    """
    if info.get("task") not in tuple(VERBS):
        raise PackageError(
            f"The model package {path} is for {info.get('task')}, this library only knows {' and '.join(VERBS)}."
        )


def _common(info: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """The fields that packages of all tasks have."""
    given = info["input"]
    table = ClassTable.from_json(info["classes"])
    return {
        "table": table,
        "bands": tuple(given["bands"]),
        "dtype": str(given["dtype"]),
        "normalisation": Normalisation.from_json(given["normalisation"]),
        "backbone": read_fields(BackboneInfo, info["backbone"], "backbone."),
        "finetuned": load_finite(BACKBONE, files) if BACKBONE in files else None,
        "method": dict(info["method"]),
        "metrics": dict(info["metrics"]),
        "provenance": dict(info["provenance"]),
        "thresholds": Thresholds.from_json(info["thresholds"], table.names),
    }


def adapter_files(adapter: Adapter | None, prefix: str) -> Files:
    """The files of an adapter, under names that begin with ``prefix``."""
    if adapter is None:
        return {}
    return {
        prefix + ADAPTER_CONFIG: json.dumps(adapter.config, indent=2, sort_keys=True).encode(),
        prefix + ADAPTER: save_tensors(adapter.tensors, metadata={"format": "pt"}),
    }


def read_adapter(files: Files, prefix: str) -> Adapter | None:
    """The adapter whose names begin with ``prefix``, None where there is none.

    Raises:
        TypeError, ValueError: If it is none.
    """
    if prefix + ADAPTER not in files:
        return None
    config = parse_json(files[prefix + ADAPTER_CONFIG])
    if not isinstance(config, dict):
        raise TypeError(f"{prefix}{ADAPTER_CONFIG} is no JSON object")
    adapter = Adapter(config, load_finite(prefix + ADAPTER, files))
    check_adapter(config, adapter.tensors)
    return adapter


def check_provenance(values: Mapping[str, Any], *counts: str) -> None:
    """See to it that what evaluation and reports rely on is there; the rest is as it may be."""
    for name, kind in {"seed": int, "versions": dict, **dict.fromkeys(counts, int)}.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"the provenance names no {name}")


def _check_input(package: Package) -> None:
    np.dtype(package.dtype)
    if not all(isinstance(band, str) for band in package.bands):
        raise TypeError("the names of bands must be text")
    if min(package.table.counts) < 0:
        raise ValueError("the count of a class is negative")
    if len(package.bands) != package.normalisation.bands:
        raise ValueError("bands and normalisation differ in number")
    odd = sorted(set(package.table.groups) - {*GROUPS, "background"})
    if odd:
        raise ValueError(f"there is no group {odd[0]!r}")

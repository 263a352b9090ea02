"""The features of a debLoRA run, kept for inspection: before, as stage 2 calibrated them, and after.

A folder of two files::

    features.safetensors    the arrays of :class:`FeatureSpace`, by their names
    features.json           format and version, classes, sources, seed, backbone, settings, versions, and the SHA-256 of
                            the other file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from torchgeo_debias.classes import ClassTable, Group
from torchgeo_debias.errors import ConfigError, DataError, OutputError
from torchgeo_debias.evaluation.distances import ClassDistances, class_distances
from torchgeo_debias.fields import read_fields
from torchgeo_debias.files import atomic, make_folder

Array = npt.NDArray[np.float32]

FORMAT = "torchgeo-debias features"
VERSION = 1
TENSORS = "features.safetensors"
FACTS = "features.json"
STATES = ("before", "calibrated", "after")
"""The three sets of features, in the order of the run."""

_TYPES = {
    **dict.fromkeys((*STATES, "centres", "debiased"), np.dtype(np.float32)),
    **dict.fromkeys(("labels", "clusters"), np.dtype(np.int64)),
    "pull": np.dtype(np.float64),
}


@dataclass(frozen=True)
class FeatureSpace:
    """Features of the N training chips of C classes in D dimensions, and what stage 2 made of them.

    Attributes:
        table: The classes with their training counts.
        before: (N, D) float32, what stage 2 was given: features of stage 1 or, with several rounds, of the round before
            the last.
        calibrated: (N, D) float32, the targets of stage 3: ``before`` with the features of rare classes moved.
        after: (N, D) float32, features of the finished backbone.
        labels: (N,) int64, class ids.
        clusters: (N,) int64, the cluster of each of ``before``.
        centres: (K, D) float32, of the clusters.
        debiased: (C, D) float32, the de-biased centre of each class; NaN for classes that stay.
        pull: (C,) float64, the share of the way each class was moved; 0 for classes that stay.
        sources: Name of the image, or of the block of ground, of each chip; may be empty.
        seed: Of the run.
        backbone: Its name in the registry.
        digest: SHA-256 of its pretrained weights.
        settings: The configuration of the run.
        versions: Of the libraries.
    """

    table: ClassTable
    before: Array
    calibrated: Array
    after: Array
    labels: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64]
    centres: Array
    debiased: Array
    pull: npt.NDArray[np.float64]
    sources: tuple[str, ...] = ()
    seed: int = 0
    backbone: str = ""
    digest: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            DataError: If a type, a shape, an id or a value cannot be.
        """
        arrays = self._arrays()
        odd = [name for name, array in arrays.items() if array.dtype != _TYPES[name]]
        if odd:
            raise DataError(f"Kept features need {odd[0]} as {_TYPES[odd[0]]}; received {arrays[odd[0]].dtype}.")
        if self.before.ndim != 2 or self.centres.ndim != 2 or 0 in self.before.shape:
            raise DataError(
                f"Kept features must be (N, D) and have centres (K, D); received {self.before.shape} and "
                f"{self.centres.shape}."
            )
        (chips, dim), classes, k = self.before.shape, len(self.table.names), len(self.centres)
        shapes = {
            **dict.fromkeys(STATES, (chips, dim)),
            **dict.fromkeys(("labels", "clusters"), (chips,)),
            **{"centres": (k, dim), "debiased": (classes, dim), "pull": (classes,)},
        }
        for name, array in arrays.items():
            if array.shape != shapes[name]:
                raise DataError(f"Kept features need {name} of the shape {shapes[name]}; received {array.shape}.")
        for name, count in (("labels", classes), ("clusters", k)):
            if arrays[name].min() < 0 or arrays[name].max() >= count:
                raise DataError(f"Kept features have {name} beyond the {count} that there are.")
        finite = {name: arrays[name] for name in (*STATES, "centres", "pull")} | {"debiased": self.debiased[self.moved]}
        for name, array in finite.items():
            if not np.isfinite(array).all():
                raise DataError(f"Kept features have values in {name} that are not finite.")
        if self.sources and len(self.sources) != chips:
            raise DataError(f"Kept features have {chips} chips, but {len(self.sources)} sources.")

    @property
    def moved(self) -> npt.NDArray[np.bool_]:
        """Which classes were moved, shape (C,)."""
        return self.pull > 0

    def distances(self) -> dict[str, ClassDistances]:
        """Cosine distances within and between classes, by the names in :data:`STATES`.

        Those of the paper's analysis are the means ``between head-tail``, ``between tail-tail`` and ``within tail``;
        :class:`~torchgeo_debias.evaluation.distances.ClassDistances` defines them.
        """
        arrays = self._arrays()
        return {state: class_distances(arrays[state], self.labels, self.table) for state in STATES}

    def save(self, folder: Path) -> None:
        """Write both files, in place of older ones.

        A run that is killed in between leaves files that :meth:`load` refuses, never ones that it would misread.

        Args:
            folder: Made if need be; what else is in it stays.

        Raises:
            OutputError: If it cannot be written to.
        """
        data = save({name: np.ascontiguousarray(array) for name, array in self._arrays().items()})
        facts = _Facts(
            FORMAT, VERSION, hashlib.sha256(data).hexdigest(), tuple(self.table.to_json()), self.sources, self.seed,
            self.backbone, self.digest, dict(self.settings), dict(self.versions),
        )  # fmt: skip
        make_folder(folder)
        with atomic(folder / FACTS) as one, atomic(folder / TENSORS) as other:
            other.write_bytes(data)
            one.write_text(json.dumps(asdict(facts), indent=2, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> FeatureSpace:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: If it is missing, damaged, foreign or of another version.
        """
        facts = _read_facts(folder)
        try:
            data = (folder / TENSORS).read_bytes()
            if hashlib.sha256(data).hexdigest() != facts.tensors_sha256:
                raise DataError(f"its digest is not the one that {FACTS} names")
            rows = [read_fields(_Row, row) for row in facts.classes]
            table = ClassTable.from_json([asdict(row) for row in rows])
            arrays = load(data)
            if set(arrays) != set(_TYPES):
                raise DataError(f"it holds {', '.join(sorted(arrays))}")
            return cls(
                table, **arrays, sources=facts.sources, seed=facts.seed, backbone=facts.backbone,
                digest=facts.backbone_sha256, settings=facts.settings, versions=facts.versions,
            )  # fmt: skip
        except OSError as error:
            raise DataError(f"Cannot read {folder / TENSORS}: {error.strerror or error}.") from error
        except (SafetensorError, DataError, ConfigError) as error:
            reason = str(error).rstrip(".")
            raise DataError(
                f"The kept features {folder / TENSORS} are damaged ({reason}): train again with --keep-features."
            ) from error

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {name: getattr(self, name) for name in _TYPES}


def check_folder(folder: Path) -> None:
    """Refuse a place for kept features before the training that would fill it.

    Raises:
        OutputError: If something other than a folder is there, or files cannot be written into it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: features are kept in a folder, choose another name.")
    make_folder(folder)


@dataclass(frozen=True)
class _Row:
    name: str
    count: int
    group: Group


@dataclass(frozen=True)
class _Facts:
    """What ``features.json`` holds."""

    format: str
    format_version: int
    tensors_sha256: str
    classes: tuple[dict[str, Any], ...]
    sources: tuple[str, ...]
    seed: int
    backbone: str
    backbone_sha256: str
    settings: dict[str, Any]
    versions: dict[str, Any]


def _read_facts(folder: Path) -> _Facts:
    file = folder / FACTS
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no kept features, there is no {FACTS}: give the folder that 'train --keep-features' wrote."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"The kept features {file} are damaged, this is no JSON ({error}).") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{file} is none of kept features: it does not name the format {FORMAT!r}.")
    if values.get("format_version") != VERSION:
        raise DataError(
            f"The kept features {folder} have format version {values.get('format_version')}, this library reads "
            f"{VERSION}: use the version of torchgeo-debias that wrote them."
        )
    try:
        return read_fields(_Facts, values)
    except ConfigError as error:
        raise DataError(f"The kept features {file} are damaged: {error}") from error

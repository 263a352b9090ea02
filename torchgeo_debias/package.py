"""The model package: a folder, or the same zipped as ``.tgd``, of JSON and safetensors; never a pickle.

::

    model.json                            what it is: task, classes, input, method, metrics, digests, licences
    adapter/adapter_config.json           the LoRA, which stock peft opens
    adapter/adapter_model.safetensors
    head.safetensors                      a classifier's weight (C, D), of a cosine head named so, and bias (C,)
    detector.safetensors                  a detector's neck and head
    raw/adapter/..., raw/head.safetensors the plain LoRA kept for comparison, where there is one; of a detector,
                                          raw/detector.safetensors
    backbone.safetensors                  all weights, only where all were trained
    onnx/model.onnx, onnx/model.int8.onnx the whole model for other engines, where it was exported

Everything is read into memory and checked (version, digests, names, shapes) before any tensor is used; an archive is
never unpacked to disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from torchgeo_debias._package_base import (
    Adapter,
    BackboneInfo,
    Package,
    adapter_files,
    check_provenance,
    check_task,
    read_adapter,
)
from torchgeo_debias._package_io import (
    DETECTOR,
    HEAD,
    MODEL,
    ONNX,
    ONNX_INT8,
    RAW,
    Files,
    TensorDict,
    check_target,
    load_finite,
    read_package,
)
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.data.objects import TileSpec
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.detection import DetectorConfig

__all__ = [
    "MODEL",
    "ONNX",
    "ONNX_INT8",
    "Adapter",
    "BackboneInfo",
    "Classifier",
    "DetectorPackage",
    "DetectorParts",
    "ModelPackage",
    "Package",
    "TensorDict",
    "check_target",
    "load_package",
]


@dataclass(frozen=True)
class Classifier:
    """Trained parts: a LoRA (none for a frozen backbone) and a linear head."""

    adapter: Adapter | None
    head: LinearHead


@dataclass(frozen=True)
class DetectorParts:
    """Trained parts: a LoRA (none where all weights were trained), neck and head.

    Attributes:
        adapter: The LoRA of the backbone.
        tensors: Those of the neck, whose names begin with ``neck.``, and of the head, with ``head.``.
    """

    adapter: Adapter | None
    tensors: TensorDict


@dataclass(frozen=True, kw_only=True)
class ModelPackage(Package):
    """A classifier of chips.

    Attributes:
        spec: How chips are cut.
        model: The trained parts.
        raw: The plain LoRA that the de-biased one is compared with, None where there is none.
        onnx: Exported files by their name in the package, :data:`ONNX` and :data:`ONNX_INT8`; empty without export.
        exports: What is known of them: versions, and how well each engine agrees with torch.
    """

    task = "classification"
    spec: ChipSpec
    model: Classifier
    raw: Classifier | None
    onnx: dict[str, bytes] = field(default_factory=dict)
    exports: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side of a chip, pixels."""
        return self.spec.size

    @classmethod
    def _parts(cls, info: Mapping[str, Any], files: Files) -> dict[str, Any]:
        shape = (len(info["classes"]), info["backbone"]["dim"])
        check_provenance(info["provenance"], "training_chips")
        return {
            "spec": ChipSpec.from_json(info["input"]["chip"]),
            "model": _classifier(files, "", shape),
            "raw": _classifier(files, RAW, shape) if RAW + HEAD in files else None,
            "onnx": {name: files[name] for name in (ONNX, ONNX_INT8) if name in files},
            "exports": dict(info.get("exports", {})),
        }

    def _trained_files(self) -> Files:
        files = super()._trained_files()
        for prefix, part in (("", self.model), (RAW, self.raw)):
            if part is not None:
                head = {"cosine" if part.head.cosine else "weight": part.head.weight, "bias": part.head.bias}
                tensors = {name: torch.from_numpy(array).contiguous() for name, array in head.items()}
                files |= {prefix + HEAD: save_tensors(tensors), **adapter_files(part.adapter, prefix)}
        return files

    def _files(self) -> Files:
        return {**self._trained_files(), **self.onnx}

    def _describe(self, listed: Mapping[str, str]) -> dict[str, Any]:
        info = super()._describe(listed)
        info["input"]["chip"] = self.spec.to_json()
        return {**info, **({"exports": self.exports} if self.exports else {})}


@dataclass(frozen=True, kw_only=True)
class DetectorPackage(Package):
    """A detector of objects.

    Attributes:
        spec: How tiles are cut.
        detector: What neck and head are like, and whether boxes are oriented.
        model: The trained parts.
        raw: The twin that the de-biased detector is compared with, see :attr:`twin_name`; None where there is none.
    """

    task = "detection"
    spec: TileSpec
    detector: DetectorConfig
    model: DetectorParts
    raw: DetectorParts | None

    @property
    def size(self) -> int:
        """Side of a tile, model pixels."""
        return self.spec.size

    @property
    def twin_name(self) -> str:
        """What to call the twin: ``LoRA``, or ``control`` where it had all the steps of the model."""
        return "control" if self.method.get("twin") == "equal" else "LoRA"

    @classmethod
    def _parts(cls, info: Mapping[str, Any], files: Files) -> dict[str, Any]:
        check_provenance(info["provenance"], "training_objects", "training_tiles")
        return {
            "spec": TileSpec.from_json(info["input"]["tile"]),
            "detector": DetectorConfig.from_json(info["detector"]),
            "model": _detector(files, ""),
            "raw": _detector(files, RAW) if RAW + DETECTOR in files else None,
        }

    def _trained_files(self) -> Files:
        files = super()._trained_files()
        for prefix, part in (("", self.model), (RAW, self.raw)):
            if part is not None:
                files |= {prefix + DETECTOR: save_tensors(part.tensors), **adapter_files(part.adapter, prefix)}
        return files

    def _describe(self, listed: Mapping[str, str]) -> dict[str, Any]:
        info = super()._describe(listed)
        info["input"]["tile"] = self.spec.to_json()
        return {**info, "detector": self.detector.to_json()}


def load_package(path: Path | str) -> ModelPackage | DetectorPackage:
    """Read and check a package of whatever task.

    Raises:
        PackageError: If it is missing, damaged, foreign, of another version or for a task unknown here.
    """
    info, files = read_package(Path(path))
    check_task(path, info)
    kind: type[ModelPackage | DetectorPackage] = (
        DetectorPackage if info["task"] == DetectorPackage.task else ModelPackage
    )
    return kind.parse(path, info, files)


def _classifier(files: Files, prefix: str, shape: tuple[int, int]) -> Classifier:
    tensors = load_finite(prefix + HEAD, files)
    cosine = "cosine" in tensors  # another name, so that who knows no such heads does not take it for a plain one
    weight, bias = tensors["cosine" if cosine else "weight"], tensors["bias"]
    if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
        raise ValueError(f"the head has shape {tuple(weight.shape)}, classes and features need {shape}")
    arrays = [tensor.float().numpy() for tensor in (weight, bias)]
    if not all(np.isfinite(array).all() for array in arrays):  # larger ones than float32 holds
        raise ValueError(f"the head in {prefix}{HEAD} is not finite in float32")
    head = LinearHead(arrays[0], arrays[1], cosine)
    return Classifier(read_adapter(files, prefix), head)


def _detector(files: Files, prefix: str) -> DetectorParts:
    """Shapes are checked against the detector that is built for them, by who builds it."""
    tensors = load_finite(prefix + DETECTOR, files)
    foreign = [name for name in tensors if not name.startswith(("neck.", "head."))]
    if foreign:
        raise ValueError(f"{prefix}{DETECTOR} holds {foreign[0]!r}, which is part of neither neck nor head")
    return DetectorParts(read_adapter(files, prefix), tensors)

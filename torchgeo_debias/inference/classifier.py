"""A model package made ready to predict with torch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from torchgeo_debias.backbones import Backbone, Precision, attach_adapter, create_backbone, merge_adapter
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import ConfigError, PackageError
from torchgeo_debias.evaluation.thresholds import Thresholds, tempered
from torchgeo_debias.inference.computing import Computing
from torchgeo_debias.inference.predictor import Prediction
from torchgeo_debias.package import Adapter, ModelPackage, Package

_BATCH = 64

AnyPackage = TypeVar("AnyPackage", bound=Package)


class Face:
    """What every predictor of a package tells about it, whatever its task and whatever computes it.

    Attributes:
        package: What it was made from.
        backend: What computes: ``torch``, ``onnx`` or ``openvino``.
        precision: In which numbers: ``32``, ``bf16``, ``16`` or ``int8``; never ``auto``.
        place: Kind of device: ``cpu`` or ``cuda``.
        origin: File or folder of the package, absolute; None where it was handed over in memory.
    """

    package: Package

    def __init__(self, package: Package, backend: str, precision: str, place: str) -> None:
        self.package = package
        self.backend = backend
        self.precision = precision
        self.place = place
        self.origin: Path | None = None

    @property
    def table(self) -> ClassTable:
        """The classes."""
        return self.package.table

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the input bands."""
        return self.package.bands

    @property
    def dtype(self) -> str:
        """Pixel type of the training data."""
        return self.package.dtype

    @property
    def thresholds(self) -> Thresholds | None:
        """Score limits of the classes, None where the highest score decides."""
        return self.package.thresholds

    @cached_property
    def identity(self) -> str:
        """SHA-256 of all that predictions hang on: model, thresholds, backend, precision, kind of device.

        The same in every process and on every machine; scores and exports that are added to a package do not count.
        """
        return hashlib.sha256(json.dumps(self._marks()).encode()).hexdigest()

    def _marks(self) -> list[str]:
        limits = [] if self.thresholds is None else [json.dumps(self.thresholds.meaning(), sort_keys=True)]
        return [self.package.digest, self.backend, self.precision, self.place, *limits]

    def _home(self) -> Path:
        """Where another process finds the package."""
        if self.origin is None:
            raise ConfigError(
                "A model that stands in memory alone cannot be sent to other processes: save its package and load it "
                "from there."
            )
        return self.origin


class PackageFace(Face):
    """What every predictor of a classifier's package tells about it."""

    package: ModelPackage

    @property
    def spec(self) -> ChipSpec:
        """How chips are cut."""
        return self.package.spec

    @property
    def twin(self) -> bool:
        """Whether predictions come with those of a biased twin."""
        return self.package.raw is not None

    def _answer(self, found: Sequence[npt.NDArray[np.float32]]) -> Prediction:
        """Probabilities of the model, after its temperature, and as they are those of its twin."""
        temperature = 1.0 if self.thresholds is None else self.thresholds.temperature
        return Prediction(tempered(found[0], temperature), *found[1:])


class PackagePredictor(PackageFace):
    """The :class:`~torchgeo_debias.inference.predictor.ChipPredictor` of a model package, computed by torch.

    A LoRA is merged into the weights and the biased twin is a model of its own (weights that no LoRA touches are
    shared), so that nothing changes while it predicts: several threads may call it at once.
    """

    def __init__(self, package: ModelPackage, *, weights: str = "auto", precision: Precision = "auto") -> None:
        """Build the backbone and attach the trained parts.

        Args:
            package: A loaded package.
            weights: Where the backbone's weights come from, as in training.
            precision: As in training; ``32`` gives the most repeatable scores across machines.

        Raises:
            PackageError: If the weights are not those the package was trained on, or a part does not fit.
            WeightsError: If the weights cannot be had.
        """
        self._computing = Computing(precision)
        super().__init__(package, "torch", self._computing.precision, self._computing.device.type)
        self._weights = weights
        self._backbones = merged_backbones(package, weights)
        for backbone in self._backbones:
            backbone.to(self._computing.device).eval()
            backbone.prefer(self._computing.device, self._computing.dtype)
            if backbone.spec.family == "cnn":  # convolutions are 1.2 to 2 times as fast with channels last
                cast(Any, backbone.model).to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        weights: str = "auto",
        precision: Precision = "auto",
        thresholds: bool = True,
        views: int | None = None,
    ) -> Self:
        """Read a package and make it ready; see :meth:`ModelPackage.load`, ``decided``, ``seen`` and the constructor.

        Raises:
            ConfigError: If ``views`` is none of :data:`~torchgeo_debias.backbones.VIEWS`, or thresholds were found
                with another number.
        """
        package = seen(decided(ModelPackage.load(path), thresholds), views)
        predictor = cls(package, weights=weights, precision=precision)
        predictor.origin = Path(path).resolve()
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes load the package anew, with the precision that was found here."""
        limited = self.thresholds is not None
        views = self.package.backbone.views
        return _reload, (type(self), self._home(), whole_path(self._weights), self.precision, limited, views)

    def use_threads(self, n: int) -> None:
        """Compute each call of :meth:`predict` on ``n`` cores (CPU only), in whatever thread it is made."""
        self._computing.use_threads(n)

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        """Class probabilities of one batch of chips (N, C, S, S), and those of the biased twin where there is one."""
        parts = [part for part in (self.package.model, self.package.raw) if part is not None]
        found = []
        for backbone, part in zip(self._backbones, parts, strict=True):
            logits = torch.from_numpy(part.head.logits(self._features(images, valid, backbone)))
            found.append(cast(npt.NDArray[np.float32], logits.softmax(dim=1).numpy()))
        return self._answer(found)

    def features(
        self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_], raw: bool = False
    ) -> npt.NDArray[np.float32]:
        """Features (N, dim) of any number of chips under the de-biased LoRA, or under that of the biased twin."""
        backbone = self._backbones[1 if raw else 0]
        starts = range(0, max(len(images), 1), _BATCH)
        return np.concatenate([self._features(images[i : i + _BATCH], valid[i : i + _BATCH], backbone) for i in starts])

    def _features(
        self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_], backbone: Backbone
    ) -> npt.NDArray[np.float32]:
        with self._computing():
            features = backbone(
                self._computing.normalised(images, valid, self.package.normalisation, backbone.spec.family == "cnn")
            )
        return cast(npt.NDArray[np.float32], features.float().cpu().numpy())


def decided(package: AnyPackage, thresholds: bool) -> AnyPackage:
    """A package whose thresholds and temperature are left out unless they are wanted."""
    return package if thresholds or package.thresholds is None else replace(package, thresholds=None)


def seen(package: ModelPackage, views: int | None) -> ModelPackage:
    """A package whose features are the mean over another number of symmetries of a chip; None for its own number.

    Raises:
        ConfigError: If the number is none of :data:`~torchgeo_debias.backbones.VIEWS`, or the package has thresholds
            that were found with another.
    """
    if views is None or views == package.backbone.views:
        return package
    if package.thresholds is not None:
        raise ConfigError(
            f"The thresholds of the model were found with {package.backbone.views} views of a chip and promise nothing "
            f"with {views}: leave out --views, or give --no-thresholds as well."
        )
    return replace(package, backbone=replace(package.backbone, views=views))


def whole_path(weights: str) -> str:
    """Where weights come from, as another process finds it that may stand in another folder."""
    return str(Path(weights).resolve()) if Path(weights).exists() else weights


def merged_backbones(package: ModelPackage, weights: str) -> list[Backbone]:
    """The package's backbone in float32 with its LoRA merged in, and a second one where there is a biased twin.

    Raises:
        PackageError: If the weights are not those the package was trained on, or a part does not fit.
        WeightsError: If the weights cannot be had.
    """
    base = pretrained(package, weights)
    parts = [part for part in (package.model, package.raw) if part is not None]
    twins = [_twin(base) for _ in parts[1:]]
    return [merge(backbone, part.adapter) for backbone, part in zip([base, *twins], parts, strict=True)]


def pretrained(package: Package, weights: str) -> Backbone:
    """The frozen backbone of a package in float32, without its LoRA.

    Raises:
        PackageError: If the weights are not those the package was trained on.
        WeightsError: If the weights cannot be had.
    """
    info = package.backbone
    # Where all weights were trained, the package carries them and the pretrained ones are not needed.
    source = weights if package.finetuned is None else "random"
    backbone = create_backbone(
        info.name,
        size=package.size,
        bands=package.bands,
        pool=cast(Any, info.pool),
        weights=source,
        views=info.views,
    )
    if package.finetuned is not None:
        wanted = {name: tuple(t.shape) for name, t in backbone.model.state_dict().items()}
        if wanted != {name: tuple(t.shape) for name, t in package.finetuned.items()}:
            raise PackageError(f"The weights in the model package do not fit the backbone {info.name}; train it again.")
        backbone.model.load_state_dict(package.finetuned)
    elif backbone.digest != info.digest:
        raise PackageError(
            f"The weights of {info.name} on this machine are not those the model was trained on (digest "
            f"{backbone.digest[:12]} instead of {info.digest[:12]}): give the right ones with --weights."
        )
    return backbone.requires_grad_(False)


def _twin(backbone: Backbone) -> Backbone:
    """A second backbone on the same memory; merging a LoRA gives the weights it touches a memory of their own."""
    shared = {id(p): nn.Parameter(p.data, requires_grad=False) for p in backbone.parameters()}
    return copy.deepcopy(backbone, cast(Any, shared))


def merge(backbone: Backbone, adapter: Adapter | None) -> Backbone:
    """A backbone with an adapter on it, in place; merged into its weights where its kind can be.

    Raises:
        PackageError: If the adapter does not fit, or the weights it makes are not finite.
    """
    if adapter is None:
        return backbone
    try:
        attach_adapter(backbone, adapter.config, adapter.tensors)
        return merge_adapter(backbone)
    except ConfigError as error:
        raise PackageError(str(error)) from error
    except ValueError as error:  # the sums run over
        raise PackageError(f"The adapter in the model package makes weights that are not finite: {error}") from error


def _reload(
    kind: type[PackagePredictor], path: Path, weights: str, precision: Precision, thresholds: bool, views: int
) -> PackagePredictor:
    return kind.load(path, weights=weights, precision=precision, thresholds=thresholds, views=views)

"""What trained models of all tasks leave behind, and the statistics that they begin with."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchgeo_debias.backbones import Backbone, adapter_state, find_spec
from torchgeo_debias.data.normalise import Normalisation, Stretch
from torchgeo_debias.package import Adapter, BackboneInfo
from torchgeo_debias.training.settings import Settings

Array = npt.NDArray[np.float32]

_VERSIONS = (
    "torchgeo-debias", "torch", "torchvision", "torchgeo", "timm", "peft", "lightning", "scikit-learn", "scipy",
    "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}}


def statistics_of(backbone: str, dtype: npt.DTypeLike, bands: int, stretch: Stretch) -> Normalisation | None:
    """The statistics that the weights of a backbone were trained with, for plain 8-bit RGB; else None."""
    statistics = find_spec(backbone).statistics
    if statistics is None or np.dtype(dtype) != np.uint8 or bands != 3 or stretch != "none":
        return None
    return Normalisation.from_unit_range(*statistics)


def package_parts(
    backbone: Backbone,
    config: Settings,
    normalisation: Normalisation,
    seconds: Mapping[str, float],
    dtype: npt.DTypeLike,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """What goes into the :class:`~torchgeo_debias.package.Package` of any trained model.

    Args:
        backbone: As it was trained.
        config: Of the run.
        normalisation: Of the pixels.
        seconds: Wall time of each stage.
        dtype: Of the pixels.
        facts: About the data, kept beside seed and versions.
    """
    settings = config.to_json()
    name, whole = settings["backbone"], settings["method"] == "finetune"
    return {
        "dtype": str(dtype),
        "normalisation": normalisation,
        "backbone": BackboneInfo(
            name, backbone.pool, backbone.dim, backbone.digest, find_spec(name).licence, backbone.views
        ),
        "finetuned": on_cpu(backbone.model.state_dict()) if whole else None,
        "method": settings,
        "metrics": {},
        "provenance": {
            "seed": settings["seed"],
            "versions": versions(),
            "seconds": {stage: round(wall, 1) for stage, wall in seconds.items()},
            **facts,
        },
        "thresholds": None,
    }


def adapter_of(backbone: Backbone) -> Adapter | None:
    """The adapter of a backbone, None where it has none."""
    state = adapter_state(backbone)
    return None if state is None else Adapter(state.config, on_cpu(state.tensors))


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory with a model."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def feature_unit(features: Array) -> Array:
    """The unit in which stage 3 measures each feature: its standard deviation, but not much below those of the others.

    A feature that hardly varies would outweigh all others, had it a unit of its own.

    Args:
        features: (n, D) of n samples, n at least 1.

    Returns:
        (D,) at least a hundredth of the mean standard deviation; 1 where no feature varies, as with a single sample.
    """
    deviations = features.std(axis=0, dtype=np.float64)  # in float32 what is constant seems to vary a little
    least = 0.01 * deviations.mean()
    unit: Array = (np.maximum(deviations, least) if least > 0 else np.ones_like(deviations)).astype(np.float32)
    return unit


class Timed:
    """A run that knows how long its stages took.

    Attributes:
        seconds: Wall time of each stage so far.
    """

    seconds: dict[str, float]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to ``seconds``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

"""The long-tail methods that fit a head on stored features: one registry, one contract."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.debias.methods import (
    balanced_softmax,
    cosine,
    focal,
    gaussian,
    ldam,
    oversampling,
    posthoc,
    reslt,
    ridge,
    sade,
    weighting,
)
from torchgeo_debias.debias.methods.registry import Method, NoSettings, read_settings
from torchgeo_debias.debias.methods.ridge import StreamingRidge
from torchgeo_debias.debias.samples import Samples

__all__ = ["METHODS", "Method", "NoSettings", "StreamingRidge", "fit_method", "method_settings"]

# The order of tables and help.
_MODULES = (weighting, posthoc, focal, balanced_softmax, ldam, cosine, reslt, sade, oversampling, gaussian, ridge)
METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for module in _MODULES for method in module.METHODS}
)


def method_settings(name: str, values: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 (of the method's type)
    """The settings of a method, with defaults for what ``values`` leaves out.

    Raises:
        ConfigError: If there is no such method or setting, or a value cannot be.
    """
    return read_settings("method", name, {key: method.settings for key, method in METHODS.items()}, values)


def fit_method(name: str, samples: Samples, settings: Mapping[str, Any] | None = None, seed: int = 0) -> LinearHead:
    """Fit a head on stored features by the method of this name.

    Args:
        name: One of :data:`METHODS`.
        samples: Of all training chips.
        settings: By field name; what is left out keeps its default.
        seed: Of everything the method draws.

    Raises:
        ConfigError: If there is no such method or setting, or a value cannot be.
        DataError: If the samples do not fit together; see :meth:`Samples.check`.
    """
    chosen = method_settings(name, settings)
    samples.check()
    return METHODS[name].fit(samples, chosen, seed)

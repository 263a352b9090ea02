"""Settings refuse what they do not know, before any work."""

from __future__ import annotations

from typing import Any

import pytest

from torchgeo_debias.backbones import AdapterSettings
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.errors import ConfigError


@pytest.mark.parametrize(
    "values",
    [{"centre": "cluster"}, {"target": "tails"}, {"n_clusters": 0}, {"rho": 0.1}, {"pull": 1.5}, {"gamma0": 0.0}],
)
def test_debias_settings_refuse(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="received"):
        DebiasSettings(**values)


def test_adapter_settings_refuse() -> None:
    with pytest.raises(ConfigError, match="received 'al'"):
        AdapterSettings(where="al")  # type: ignore[arg-type]

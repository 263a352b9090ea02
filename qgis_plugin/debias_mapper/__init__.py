"""Debias Mapper: de-biased maps of rare classes, from within QGIS."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:  # noqa: ANN401 - QGIS calls it by this name and hands in its interface
    """Make the plugin, as QGIS asks for on loading; nothing of QGIS is imported before."""
    from .plugin import DebiasPlugin

    return DebiasPlugin(iface)

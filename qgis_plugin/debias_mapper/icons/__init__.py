"""The plugin's icons."""

from __future__ import annotations

import os

from qgis.PyQt.QtGui import QIcon


def icon(name: str) -> QIcon:
    """One of the SVG files of this folder, such as ``"debias"``."""
    return QIcon(os.path.join(os.path.dirname(__file__), f"{name}.svg"))

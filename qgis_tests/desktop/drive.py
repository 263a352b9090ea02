"""Runs in QGIS (``qgis --code drive.py``): the scenario in the JSON file that ``DEBIAS_DESKTOP`` names."""

import importlib
import json
import os
import sys
from pathlib import Path

plan = json.loads(Path(os.environ["DEBIAS_DESKTOP"]).read_text())
sys.path.insert(0, plan["scripts"])

from driver import Driver  # noqa: E402 (found through the line above)

module, _, name = plan["scenario"].partition(".")
driver = Driver(
    plan, getattr(importlib.import_module(module), name)
)  # QGIS keeps the names of this script, and so the driver

"""Runs in QGIS (``qgis --code drive.py``): the scenario in the JSON file that the variable ``DEBIAS_DESKTOP`` names."""

import json
import os
import sys
from pathlib import Path

plan = json.loads(Path(os.environ["DEBIAS_DESKTOP"]).read_text())
sys.path.insert(0, plan["scripts"])

import scenarios  # noqa: E402 (found through the line above)
from driver import Driver  # noqa: E402

driver = Driver(plan, getattr(scenarios, plan["scenario"]))  # QGIS keeps the names of this script, and so the driver

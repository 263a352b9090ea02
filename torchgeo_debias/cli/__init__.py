"""The command line: verbs for people and scripts, without logic of their own."""

from __future__ import annotations

from torchgeo_debias.cli import calibration as calibration  # its verb joins the app, as those of the others do
from torchgeo_debias.cli import detection as detection
from torchgeo_debias.cli import evaluation as evaluation
from torchgeo_debias.cli import feature_space as feature_space
from torchgeo_debias.cli import probing as probing
from torchgeo_debias.cli import recipes as recipes
from torchgeo_debias.cli.app import main

__all__ = ["main"]

"""The command line: verbs for people and scripts, without logic of their own."""

from __future__ import annotations

from torchgeo_debias.cli import detection as detection  # its verbs join the app
from torchgeo_debias.cli import evaluation as evaluation
from torchgeo_debias.cli import probing as probing
from torchgeo_debias.cli.app import main

__all__ = ["main"]

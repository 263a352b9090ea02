"""``python -m torchgeo_debias`` is the command ``torchgeo-debias``."""

from torchgeo_debias.cli import main

main()

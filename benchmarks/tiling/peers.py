"""The environment of the peers, outside the repository: pinned packages that the library itself must never need.

Run::

    python -m benchmarks.tiling.peers [--folder ../bench-venv]

All contenders run in this one environment, ours too (editable), so that none has a newer rasterio or ONNX Runtime.
GeoDeep is under the AGPL and geoai under the MIT licence: they are called here and never copied from.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bootstrap import uv_environment

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT.parent / "bench-venv"
PINS = (
    "geodeep==0.9.13",
    "geoai-py==0.40.1",
    "sahi==0.12.8",
    "supervision==0.31.2",
    "torch==2.14.1",
    "torchvision==0.29.1",
    "torchgeo==0.8.1",
    "onnxruntime==1.31.1",
)


def install(folder: Path) -> None:
    """Make the environment, or bring it up to the pins; a second call costs seconds."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    environment = uv_environment(listing.stdout) | os.environ
    uv = [sys.executable, "-m", "uv"]
    python = python_of(folder)
    if not python.exists():
        subprocess.run([*uv, "venv", "--python", "3.11", str(folder)], env=environment, check=True)
    command = [*uv, "pip", "install", "--python", str(python), "-c", "constraints.txt", "-e", ".[export]", *PINS]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the environment lies or is made")
    install(parser.parse_args().folder)


if __name__ == "__main__":
    main()

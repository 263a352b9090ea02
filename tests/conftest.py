"""Fixtures that all tests share, and the environment in which they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch and numpy are first imported, which read it once: pytest-xdist already fills the cores with processes,
# and more threads in each would make them wait for each other. Commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach the network; what asks a model hub anyway fails at once and not after many retries.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real imagery: ``TORCHGEO_DEBIAS_DATA``, else ``shared/data`` beside the clone; skips without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TORCHGEO_DEBIAS_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no real imagery in {folder}: set TORCHGEO_DEBIAS_DATA to the folder that holds ucmerced/")
    return folder

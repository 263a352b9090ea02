"""The verb ``probe``: what this installation has to compute with."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app
from torchgeo_debias.cli.options import Json
from torchgeo_debias.errors import ConfigError

_REQUIRED = ("torchgeo-debias", "torch", "torchvision", "torchgeo", "timm", "rasterio", "geopandas", "shapely")
_OPTIONAL = ("onnxruntime", "openvino", "open-clip-torch", "ray", "segment-anything", "segment-geospatial")


@app.command()
def probe(
    folder: Annotated[
        Path | None, typer.Option(help="Where there should be room on the disk; default: the temporary folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what this installation has to compute with.

    Versions, devices, memory and free disk; what the other verbs compute with is loaded.
    """
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}: give one that exists.")
    found = _probe(folder)
    if as_json:
        show.as_json(found)
    else:
        _show(found)


def _probe(folder: Path) -> dict[str, Any]:
    import rasterio

    from torchgeo_debias.backbones.device import pick_device

    memory = _memory()
    disk = shutil.disk_usage(folder)
    return {
        "versions": {
            **{name: _version(name) for name in (*_REQUIRED, *_OPTIONAL)},
            "python": platform.python_version(),
            "gdal": rasterio.__gdal_version__,
        },
        "platform": platform.platform(),
        "device": "cuda:0" if pick_device().type == "cuda" else "cpu",
        "devices": _devices(memory),
        "memory": memory,
        "disk": {"folder": str(folder), "total": disk.total, "free": disk.free},
    }


def _devices(memory: dict[str, int | None]) -> list[dict[str, Any]]:
    import torch

    processor = {"device": "cpu", "name": platform.machine(), "threads": torch.get_num_threads(), **memory}
    cards = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(i)
        # Asking opens a card, which costs some of its memory: only that of the one that is used.
        free = None if i else torch.cuda.mem_get_info(i)[0]
        cards.append({"device": f"cuda:{i}", "name": facts.name, "total": facts.total_memory, "free": free})
    return [processor, *cards]


def _memory() -> dict[str, int | None]:
    """Bytes of the machine's memory, and of these what a program can still get; None where the system hides it."""
    total = free = None
    if sys.platform != "win32":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = Path("/proc/meminfo")
    if facts.exists():  # Linux
        lines = (line.split() for line in facts.read_text().splitlines())
        free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
    return {"total": total, "free": free}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _show(found: dict[str, Any]) -> None:
    disk = found["disk"]
    facts = {name: known or "not installed" for name, known in found["versions"].items()}
    for entry in found["devices"]:
        threads = f", {entry['threads']} threads" if "threads" in entry else ""
        chosen = " (chosen)" if entry["device"] == found["device"] else ""
        facts[entry["device"]] = f"{entry['name']}{threads}, {_room(entry)}{chosen}"
    facts |= {"system": found["platform"], "disk": f"{_room(disk)} in {disk['folder']}"}
    for name, value in facts.items():
        show.line(f"{name:<20}{value}")


def _room(entry: dict[str, Any]) -> str:
    free, total = (_gib(entry[name]) for name in ("free", "total"))
    return f"{free} of {total} free"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"

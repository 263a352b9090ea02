"""Wheels small enough to install in a test, made by hand: a zip with metadata and a list of its files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

WORKER = """\
import json, os, sys
print(json.dumps(dict(type="hello", protocol=1, library="0", python="3", pid=os.getpid(), verbs=["info"])), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "run":
        print(json.dumps(dict(type="done", id=message["id"], result={"prefix": sys.prefix})), flush=True)
    if message["type"] == "quit":
        break
"""


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], requires: tuple[str, ...] = ()
) -> Path:
    """A pure wheel of the given files.

    Args:
        folder: Where it goes; made if needed.
        name: Of the distribution, with underscores.
        version: Of the distribution.
        files: Contents by path within the wheel.
        requires: What it depends on.
    """
    information = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    contents = {
        **files,
        f"{information}/METADATA": metadata + "".join(f"Requires-Dist: {each}\n" for each in requires),
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{information}/RECORD"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_, text in contents.items():
            archive.writestr(name_, text)
        archive.writestr(record, "".join(f"{each},,\n" for each in [*contents, record]))
    return path


def write_library(folder: Path, version: str, *, dependency: bool = True) -> Path:
    """A folder of wheels: a library of this name whose worker speaks the protocol, and a package that it needs."""
    worker = {"torchgeo_debias/__init__.py": "", "torchgeo_debias/worker/__main__.py": WORKER}
    write_wheel(folder, "torchgeo_debias", version, worker, ("small_thing>=1", 'other_thing ; extra == "more"'))
    if dependency:
        write_wheel(folder, "small_thing", "1.5", {"small_thing.py": ""})
    return folder

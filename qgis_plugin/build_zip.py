"""Build the zip that QGIS installs: ``python3 qgis_plugin/build_zip.py [OUT]``.

Two builds of the same commit are the same bytes: files in the order of their names, one date, one mode. What may go in
follows the rules of the QGIS plugin site: one folder, a LICENSE, no binaries, nothing hidden.
"""

from __future__ import annotations

import configparser
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "debias_mapper"
ADDED = {"LICENSE": HERE.parent / "LICENSE", "constraints.txt": HERE.parent / "constraints.txt"}
"""Files of the repository that the plugin takes along."""

SUFFIXES = {".py", ".txt", ".svg", ".png", ".qml", ".md", ".html", ".json"}
DATE = (2026, 1, 1, 0, 0, 0)


class BuildError(Exception):
    """The zip cannot be built; the text is one sentence."""


def version() -> str:
    """The plugin's version, from its metadata."""
    metadata = configparser.ConfigParser()
    metadata.read(PLUGIN / "metadata.txt", encoding="utf-8")
    return metadata["general"]["version"]


def members() -> Iterator[tuple[str, Path]]:
    """Names in the zip and the files that go there, in order.

    Raises:
        BuildError: If a file is of a kind that does not belong in a plugin.
    """
    found = dict(ADDED)
    for path in PLUGIN.rglob("*"):
        name = path.relative_to(PLUGIN)
        if path.is_dir() or "__pycache__" in name.parts:
            continue
        if any(part.startswith(".") for part in name.parts) or path.suffix not in SUFFIXES:
            raise BuildError(f"{path.relative_to(HERE)} does not belong in a plugin: take it away.")
        found[name.as_posix()] = path
    yield from sorted((f"{PLUGIN.name}/{name}", path) for name, path in found.items())


def build(out: Path) -> Path:
    """Write the zip.

    Args:
        out: A file ending in ``.zip``, or the folder for one named after plugin and version.

    Returns:
        The zip.

    Raises:
        BuildError: If a file is of a kind that does not belong in a plugin.
    """
    path = out if out.suffix == ".zip" else out / f"{PLUGIN.name}-{version()}.zip"
    entries = list(members())
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in entries:
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # the same on every system, with this mode
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, source.read_bytes())
    return path


def main(arguments: list[str]) -> int:
    """Build into the folder or file named, ``dist`` by default; returns the exit code."""
    try:
        path = build(Path(arguments[0]) if arguments else HERE.parent / "dist")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

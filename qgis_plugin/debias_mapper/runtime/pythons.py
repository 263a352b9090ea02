"""The real Pythons of this system, from which an environment can be made."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .process import Stopped, clean_environment, run_to_end

OLDEST, NEWEST = (3, 11), (3, 13)
PROBE_TIME = 30.0
NOT_REAL = {"shims", "windowsapps"}
"""Folders of version managers and of the Windows store, whose programs only start, or offer, another Python."""

_ABOUT = """
import json, struct, sys
from importlib.util import find_spec
print(json.dumps({
    "version": sys.version_info[:3], "implementation": sys.implementation.name, "bits": struct.calcsize("P") * 8,
    "virtual": sys.prefix != sys.base_prefix, "venv": find_spec("venv") is not None,
}))
"""


class SetupError(Exception):
    """An environment cannot be made, repaired or removed; the text is one sentence for a person."""


@dataclass(frozen=True)
class Python:
    """An interpreter that can be the base of an environment.

    Attributes:
        path: Its file.
        version: Such as ``(3, 11, 2)``.
    """

    path: str
    version: tuple[int, int, int]


def ask(python: str, code: str) -> dict[str, Any]:
    """Let an interpreter run a short program, apart from user settings, that prints one line of JSON.

    Raises:
        SetupError: It cannot be started, takes over 30 s, or answers with something else.
    """
    lines: list[str] = []
    try:
        status = run_to_end([python, "-I", "-c", code], clean_environment(), lines.append, timeout=PROBE_TIME)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SetupError(f"The Python {python} cannot be started ({why}): choose another one.") from error
    except Stopped:
        raise SetupError(f"The Python {python} did not answer within {PROBE_TIME:.0f} s: choose another one.") from None
    for line in reversed(lines):
        with suppress(ValueError):
            answer = json.loads(line)
            if status == 0 and isinstance(answer, dict):
                return answer
    raise SetupError(f"{python} does not answer as a Python does (exit status {status}): choose another file.")


def python_at(path: str) -> Python:
    """The interpreter in a file.

    Raises:
        SetupError: It is none that can be the base of an environment; the sentence says why.
    """
    about = ask(path, _ABOUT)
    try:
        major, minor, micro = (int(part) for part in about["version"])
    except (KeyError, TypeError, ValueError):
        raise SetupError(f"{path} does not answer as a Python does: choose another file.") from None
    if not OLDEST <= (major, minor) <= NEWEST:
        wanted = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
        raise SetupError(f"{path} is Python {major}.{minor}, but {wanted} is needed: choose or install another one.")
    if about.get("implementation") != "cpython" or about.get("bits") != 64:
        raise SetupError(f"{path} is not the usual 64-bit Python: choose or install another one.")
    if not about.get("venv"):
        raise SetupError(f"{path} cannot make environments: install its venv module, or choose another Python.")
    if about.get("virtual"):
        raise SetupError(f"{path} is itself in a virtual environment: choose the Python that it was made from.")
    return Python(path, (major, minor, micro))


def find_pythons() -> list[Python]:
    """The Pythons of this system that an environment can be made from, the best first.

    That is the oldest version that serves: it is the one that the library is tested on. ``sys.executable`` is never
    asked, as within QGIS it may be QGIS.
    """
    found: dict[str, Python] = {}
    for path in _candidates():
        real = os.path.realpath(path)
        if real not in found:
            with suppress(SetupError):
                found[real] = python_at(path)
    return sorted(found.values(), key=lambda python: python.version[:2])


def _candidates() -> Iterator[str]:
    names = [f"python{major}.{minor}" for major, minor in ((3, 11), (3, 12), (3, 13))] + ["python3"]
    if sys.platform == "win32":
        names = ["python.exe", "python3.exe"]
    for folder in dict.fromkeys([*_folders(), *os.environ.get("PATH", "").split(os.pathsep)]):
        if not os.path.isabs(folder) or NOT_REAL & {part.lower() for part in folder.replace("\\", "/").split("/")}:
            continue
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                yield path


def _folders() -> list[str]:
    """Where Pythons usually are, whatever the PATH of QGIS says."""
    if sys.platform == "win32":
        patterns = [os.path.join(os.environ.get("LOCALAPPDATA", ""), "Programs", "Python", "Python3*")]
        patterns += [os.path.join(os.environ.get("PROGRAMFILES", ""), "Python3*")]
        return [*(found for pattern in patterns for found in sorted(glob.glob(pattern))), sys.base_prefix]
    if sys.platform == "darwin":  # not /usr/bin, whose python3 may open the dialog that installs developer tools
        framework = sorted(glob.glob("/Library/Frameworks/Python.framework/Versions/3.*/bin"))
        return [*framework, "/opt/homebrew/bin", "/usr/local/bin", os.path.join(sys.base_prefix, "bin")]
    return ["/usr/bin", "/usr/local/bin"]

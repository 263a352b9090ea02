"""The worker's Python environment: found, made, checked, repaired and removed.

An environment that the plugin makes is a folder with ``venv``, the record ``environment.json`` of what was installed,
and ``setup.log``. While a set-up runs, and after one that was interrupted, it holds the mark ``unfinished`` as well and
is never taken for ready.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .client import OnLog, OnProgress
from .installing import GIGABYTE, Installer, Source, WheelFolder, venv_python
from .pythons import Python, SetupError, ask

DISTRIBUTION = "torchgeo-debias"
LIBRARY = "torchgeo_debias"
PLUGIN = Path(__file__).resolve().parents[1]
CONSTRAINTS = PLUGIN / "constraints.txt"
MAKER = "debias_mapper"
VENV, DISCARDED, RECORD, UNFINISHED, LOG = "venv", "discarded", "environment.json", "unfinished", "setup.log"

_FIND = f"""
import json, os, re, sys
from importlib import metadata, util

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

needed = metadata.requires("{DISTRIBUTION}") or [] if version("{DISTRIBUTION}") else []
names = [re.match(r"[\\w.-]+", each)[0] for each in needed if ";" not in each]
spec = util.find_spec("{LIBRARY}")
folders = list(spec.submodule_search_locations or []) if spec else []
print(json.dumps(dict(
    python="%d.%d.%d" % sys.version_info[:3], library=version("{DISTRIBUTION}"), own=sys.prefix != sys.base_prefix,
    worker=any(os.path.exists(os.path.join(folder, "worker", "__main__.py")) for folder in folders),
    versions={{name: version(name) for name in names}},
)))
"""


@dataclass(frozen=True)
class Status:
    """What an environment is worth.

    Attributes:
        ready: Whether a worker can start in it.
        sentence: What is there, or what is wrong and what to do.
        versions: Of Python and of the packages that the library needs.
        library: Version of the library; None where it is missing.
        repair: Whether :func:`repair` can make it good; only of environments that the plugin made.
    """

    ready: bool
    sentence: str
    versions: dict[str, str] = field(default_factory=dict)
    library: str | None = None
    repair: bool = False


@dataclass(frozen=True)
class Space:
    """Room on a disk, in bytes.

    Attributes:
        needed: What a set-up takes at its height.
        free: What there is, with that of an old environment that a set-up deletes first.
    """

    needed: int
    free: int


def plugin_version() -> str:
    """The version of the plugin, which is also that of the library it installs."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(PLUGIN / "metadata.txt", encoding="utf-8")
    return metadata["general"]["version"]


def requirement() -> str:
    """What is installed, as pip takes it: the library with its default backbone, and what ``segment`` needs."""
    return f"{DISTRIBUTION}[demo,sam]=={plugin_version()}"


def requirements_digest() -> str:
    """A name for all that this plugin installs: another one asks for a repair."""
    constraints = CONSTRAINTS.read_bytes() if CONSTRAINTS.is_file() else b""
    return hashlib.sha256(requirement().encode() + b"\0" + constraints).hexdigest()


def default_folder() -> Path:
    """Where an environment is made by default: the user's data folder, apart from QGIS's profiles."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / DISTRIBUTION
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / DISTRIBUTION
    data = os.environ.get("XDG_DATA_HOME", "")
    return Path(data if os.path.isabs(data) else home / ".local" / "share") / DISTRIBUTION


def log_path(folder: Path) -> Path:
    """The log of the last set-up in a folder."""
    return folder / LOG


def python_of(folder: Path) -> str | None:
    """The interpreter of an environment that was made in a folder; None where none was made to its end."""
    finished = read_record(folder) is not None and not (folder / UNFINISHED).exists()
    return str(venv_python(folder / VENV)) if finished else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was installed in a folder; None where the plugin installed nothing."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("made_by") == MAKER else None


def is_ours(folder: Path) -> bool:
    """Whether the plugin made the environment in a folder, or began to."""
    return read_record(folder) is not None or _marked(folder)


def check(python: str) -> Status:
    """Look at an environment without importing anything heavy; takes a fraction of a second, seconds on a cold disk.

    Args:
        python: Its interpreter, made by the plugin or by the user.
    """
    folder = _folder_of(python)
    if folder is not None and (folder / UNFINISHED).exists():
        return Status(False, f"The set-up of the environment in {folder} was not finished: repair it.", repair=True)
    if not os.path.isfile(python):
        return Status(
            False,
            f"There is no Python at {python}: set up an environment or choose another.",
            repair=folder is not None,
        )
    try:
        found = ask(python, _FIND)
    except SetupError as error:
        return Status(False, str(error), repair=folder is not None)
    return _judge(python, found, folder)


def _folder_of(python: str) -> Path | None:
    """The folder of an interpreter that the plugin made, or began to; None for any other."""
    path = Path(os.path.abspath(python))  # links are not followed: they lead to the base Python
    folder = path.parents[2] if len(path.parents) > 2 else path
    return folder if path == venv_python(folder / VENV) and is_ours(folder) else None


def _judge(python: str, found: Mapping[str, Any], folder: Path | None) -> Status:
    library = found["library"]
    versions = {name: version for name, version in found["versions"].items() if version is not None}
    missing = sorted(set(found["versions"]) - set(versions))
    versions = {"python": found["python"], **versions}
    remedy = "choose another environment" if folder is None else "repair it"

    def bad(text: str) -> Status:
        return Status(False, f"{text}: {remedy}.", versions, library, folder is not None)

    if folder is not None and not found["own"]:
        return bad(f"{python} has lost its environment and would use the system's packages")
    if library is None:
        return bad(f"The environment of {python} lacks the library {DISTRIBUTION}")
    if not found["worker"]:
        return bad(f"The library {library} in the environment of {python} is too old for this plugin")
    if missing:
        return bad(f"The environment of {python} lacks {', '.join(missing)}")
    labels = {versions[name].partition("+")[2] for name in ("torch", "torchvision") if name in versions}
    # Other labels, and none at all, are those of vendors and of builds from source, which may well fit together.
    builds = {label for label in labels if re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", label)}
    if len(builds) > 1:
        return bad(f"torch and torchvision in the environment of {python} are of different builds")
    record = read_record(folder) if folder is not None else None
    if record is not None and record.get("requirements") != requirements_digest():
        text = (
            f"The environment is ready, but was made for version {record.get('plugin')} of the plugin or other packages"
        )
        return Status(True, f"{text}: repair it to bring it up to date.", versions, library, repair=True)
    return Status(True, f"The environment is ready: {DISTRIBUTION} {library}.", versions, library)


def space(folder: Path, source: Source) -> Space:
    """The room that a set-up needs, and what the disk of a folder has; the folder need not be there yet."""
    existing = Path(os.path.abspath(folder))
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise SetupError(f"The disk of {folder} cannot be used ({error.strerror}): choose another folder.") from error
    old = sum(_size(folder / name) for name in (VENV, DISCARDED)) if is_ours(folder) else 0
    return Space(source.needed, free + old)


def create(
    folder: Path,
    base: Python,
    source: Source,
    *,
    proxies: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
    on_log: OnLog | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> str:
    """Make an environment, in place of one that the plugin made there before; for a background thread.

    No worker may run in it meanwhile.

    Args:
        folder: Where; it is made, empty, or of an environment that the plugin made.
        base: The Python to make it from.
        source: Where packages come from.
        proxies: Environment variables of a proxy.
        on_progress: Told what is being done, how much of it is done, and how much there is (0 = unknown).
        on_log: Told each line of the log.
        is_cancelled: Asked every 50 ms.

    Returns:
        The interpreter of the environment.

    Raises:
        SetupCancelled: The user cancelled; what was half-made is gone.
        SetupError: The folder, the disk or the source will not do, or a command failed.
    """
    if folder.exists() and not is_ours(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{folder} is not empty and holds no environment of this plugin: choose another folder.")
    room = space(folder, source)
    if room.free < room.needed:
        text = f"{room.needed / GIGABYTE:.1f} GB are needed in {folder}, but {room.free / GIGABYTE:.1f} GB are free"
        raise SetupError(f"{text}: free some space or choose another folder.")
    installer = _begin(folder, source, proxies, on_progress, on_log, is_cancelled, anew=True)
    try:
        installer.make_venv(base, folder / VENV)
        return _install(folder, base, source, installer)
    except BaseException:
        with suppress(SetupError):  # what cannot be deleted now stays marked as unfinished
            discard(folder)
        raise


def repair(
    folder: Path,
    base: Python,
    source: Source,
    *,
    proxies: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
    on_log: OnLog | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> str:
    """Bring an environment to what this plugin needs, keeping what fits; one that is past that is made anew.

    Arguments, result and exceptions are those of :func:`create`, but a failure leaves the environment unfinished, so
    that the next repair can go on.
    """
    if not is_ours(folder):
        raise SetupError(f"{folder} holds no environment that this plugin made: set one up, or choose another.")
    if not _is_sound(folder / VENV):
        return create(
            folder, base, source,
            proxies=proxies, on_progress=on_progress, on_log=on_log, is_cancelled=is_cancelled,
        )  # fmt: skip
    return _install(folder, base, source, _begin(folder, source, proxies, on_progress, on_log, is_cancelled))


def remove(folder: Path) -> None:
    """Delete an environment that the plugin made, and nothing else in its folder.

    Raises:
        SetupError: The plugin did not make it, or files are in use.
    """
    if not is_ours(folder):
        raise SetupError(f"{folder} holds no environment that this plugin made, so nothing was removed.")
    with _writing(folder), _unfinished(folder):
        discard(folder)
        for name in (RECORD, LOG, UNFINISHED):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def discard(folder: Path) -> None:
    """Delete the virtual environment in a folder that is marked as unfinished.

    Raises:
        SetupError: Files are in use.
    """
    venv, discarded = folder / VENV, folder / DISCARDED
    try:
        for path in (discarded, venv):
            if path.is_symlink():
                path.unlink()  # what it leads to is not ours
        if discarded.exists():
            shutil.rmtree(discarded)
        if venv.exists():
            venv.rename(discarded)  # at one stroke: Windows refuses it while a worker runs, and nothing is half gone
            shutil.rmtree(discarded)
    except OSError as error:
        text = f"The old environment in {folder} cannot be deleted ({error.strerror})"
        raise SetupError(f"{text}: end all QGIS that use it, then try again.") from error


def _begin(
    folder: Path,
    source: Source,
    proxies: Mapping[str, str] | None,
    on_progress: OnProgress | None,
    on_log: OnLog | None,
    is_cancelled: Callable[[], bool] | None,
    *,
    anew: bool = False,
) -> Installer:
    """Mark a folder as unfinished, delete its environment if a new one is to be made, and open its log."""
    if isinstance(source, WheelFolder) and not any(Path(source.path).glob(f"{LIBRARY}-*.whl")):
        raise SetupError(f"The folder {source.path} holds no wheel of {DISTRIBUTION}: choose the folder that does.")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _unfinished(folder):
            if anew:
                discard(folder)
            return Installer(folder / LOG, proxies, on_progress, on_log, is_cancelled)


def _install(folder: Path, base: Python, source: Source, installer: Installer) -> str:
    """Install into an environment, check it, and record it as finished."""
    constraints = CONSTRAINTS if CONSTRAINTS.is_file() else None
    installer.install(base, folder / VENV, source, requirement(), constraints)
    python = str(venv_python(folder / VENV))
    status = _judge(python, ask(python, _FIND), None)
    if not status.ready:
        raise SetupError(status.sentence)
    record = {
        "made_by": MAKER,
        "plugin": plugin_version(),
        "requirements": requirements_digest(),
        "source": source.name,
        "base": base.path,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {LIBRARY: status.library, **status.versions},
    }
    with _writing(folder):
        # Half a record needs no care: the mark goes away last.
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        (folder / UNFINISHED).unlink()
    return python


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"{folder} cannot be written to ({error.strerror})"
        raise SetupError(f"{text}: free some space there, or choose another folder.") from error


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; of a link, or of what is not there, 0."""
    size = 0
    if not folder.is_symlink():
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # gone meanwhile
                    size += os.lstat(os.path.join(parent, name)).st_size
    return size


def _is_sound(venv: Path) -> bool:
    """Whether an environment's Python starts and is its own: without pyvenv.cfg it would be the system's."""
    try:
        return ask(str(venv_python(venv)), _FIND)["own"] is True
    except SetupError:
        return False


@contextmanager
def _unfinished(folder: Path) -> Iterator[None]:
    """Mark a folder as unfinished; a failure that leaves its environment as it was takes the mark away again."""
    mark = folder / UNFINISHED
    before = mark.exists()
    mark.write_text(MAKER, encoding="utf-8")
    try:
        yield
    except (OSError, SetupError):
        # discard() moves an environment away at one stroke: one that is still in its place is whole.
        if not before and (folder / VENV).exists():
            mark.unlink()
        raise


def _marked(folder: Path) -> bool:
    try:
        return (folder / UNFINISHED).read_text(encoding="utf-8") == MAKER
    except OSError:
        return False

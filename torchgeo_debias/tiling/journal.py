"""The memory of a run: which bands are finished, so that a run that was killed goes on where it stopped.

A run that writes ``tiles.gpkg`` works in the folder ``tiles.gpkg.partial`` beside it::

    journal.jsonl    line 1: what the run hangs on; each further line: one finished band
    <band>.npz       what the band came to
    lock             held by the running process, let go of by the system when it dies

A band is entered after its file is safely on the disk, and only appending changes the journal, so at any moment it is
either true or ends in half a line, which is dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy.typing as npt
from filelock import FileLock, Timeout

from torchgeo_debias.errors import OutputError
from torchgeo_debias.tiling.parts import Part, pack, unpack

SUFFIX = ".partial"
FORMAT = "torchgeo-debias journal"
VERSION = 1

_JOURNAL, _LOCK = "journal.jsonl", "lock"
_OURS = re.compile(rf"{re.escape(_JOURNAL)}|{_LOCK}|\d+-\d{{6,}}\.npz")

_log = logging.getLogger(__name__)


class Key(NamedTuple):
    """One band of one raster of a run."""

    raster: int
    band: int


class Journal:
    """Bands that are finished, with what they came to; use it as a context manager.

    Leaving the context keeps the folder for the next attempt, unless :meth:`remove` was called or no band was
    finished.

    Attributes:
        folder: Where it lives.
        resumed: Bands of the rasters announced so far that an earlier attempt had finished.
    """

    def __init__(self, output: Path, run: Mapping[str, Any]) -> None:
        """Take possession of the folder and read what an earlier attempt left.

        Args:
            output: The file or folder that the run will write.
            run: Everything but the rasters that the results hang on, as plain JSON: model, options. An attempt with
                another content is of no use: it is dropped, and the log says which entries differ.

        Raises:
            OutputError: If another process writes the same output, the folder is something else, or it cannot be
                written to.
        """
        self._output = Path(output)
        self.folder = self._output.with_name(f"{self._output.name}{SUFFIX}")
        self._run = json.loads(json.dumps(run))
        self._done: dict[Key, dict[str, Any]] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self._settings: dict[str, Any] | None = None
        self._rasters: dict[str, tuple[int, str]] = {}
        self._begun = 0
        self._finished = False
        try:
            self._begin()
        except OSError as error:
            raise self._failed(error) from error
        self.resumed = 0

    def begin(self, name: str, identity: Mapping[str, Any]) -> int:
        """Announce a raster; what an earlier attempt did with another one of that name is dropped.

        Args:
            name: Of the raster within the run.
            identity: What its results hang on, as plain JSON.

        Returns:
            The number of the raster in :class:`Key`.
        """
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        known, before = self._rasters.get(name, (None, None))
        if known is not None and before == digest:
            self.resumed += sum(key.raster == known for key in self._done)
            return known
        number = self._begun
        self._append({"raster": number, "begin": name, "identity": digest})
        if known is not None:
            _log.warning("%s has changed: starting it afresh.", name)
            self.discard(known)
        self._rasters[name], self._begun = (number, digest), number + 1
        return number

    def settings(
        self, choose: Callable[[], Mapping[str, Any]], asked: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Settings that were found out at the first attempt, such as the batch size; ``choose`` is called only then.

        Rounding may depend on them, so later attempts keep them.

        Args:
            choose: Finds them out.
            asked: Those without which an earlier attempt is of no use; None is no wish.
        """
        known = self._settings or {}
        odd = [name for name, value in (asked or {}).items() if known and value not in (None, known.get(name))]
        if odd:
            self._afresh(odd)
        if self._settings is None:
            self._settings = dict(choose())
            self._append({"settings": self._settings})
        return dict(self._settings)

    def __contains__(self, key: Key) -> bool:
        return key in self._done

    def add(self, key: Key, part: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put a finished band down.

        Raises:
            OutputError: If the disk takes no more.
        """
        name = f"{key.raster}-{key.band:06d}.npz"
        data = pack(part)
        try:
            with open(self.folder / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        entry = {"raster": key.raster, "band": key.band, "file": name, "crc": zlib.crc32(data)}
        self._append(entry)
        self._done[key] = entry

    def count(self, raster: int) -> int:
        """Number of finished bands of one raster."""
        return sum(key.raster == raster for key in self._done)

    def parts(self, raster: int, names: Sequence[str] | None = None) -> Iterator[Part]:
        """What the finished bands of one raster came to, from the top; only the arrays of ``names`` where given."""
        for key in sorted(key for key in self._done if key.raster == raster):
            yield unpack((self.folder / self._done[key]["file"]).read_bytes(), names)

    def finish(self, raster: int, facts: Mapping[str, Any]) -> None:
        """Note that the results of one raster stand under their final names, and drop its bands.

        Args:
            raster: As :meth:`begin` said.
            facts: To be remembered of it, plain JSON.
        """
        self._append({"raster": raster, "finished": dict(facts)})
        self.discard(raster)
        self._facts[raster] = dict(facts)

    def finished(self, raster: int) -> dict[str, Any] | None:
        """The facts given to :meth:`finish`, perhaps by an earlier attempt; None where it was not called."""
        return self._facts.get(raster)

    def discard(self, raster: int) -> None:
        """Drop the bands of one raster."""
        for key in [key for key in self._done if key.raster == raster]:
            (self.folder / self._done.pop(key)["file"]).unlink(missing_ok=True)

    def remove(self) -> None:
        """Leave nothing behind when the context ends."""
        self._finished = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk takes the rest no better now, and that was said when it was written
            self._file.close()
        if self._finished or not (self._done or self._facts):
            with suppress(OSError):
                self._clear()
                # The lock goes last and while it is held, so that whoever comes next makes a new one. Where open files
                # cannot be removed, it removes its own on release.
                (self.folder / _LOCK).unlink()
        else:
            _log.warning("What is finished waits in %s: run the same again to go on.", self.folder)
        self._lock.release()
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def _begin(self) -> None:
        path = self.folder / _JOURNAL
        if self.folder.exists() and not self._is_ours():
            raise OutputError(
                f"{self.folder} is needed for unfinished work but is something else; move it away or choose another "
                "name for the result."
            )
        self.folder.mkdir(exist_ok=True)
        self._lock = FileLock(self.folder / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"Another run is writing {self._output} right now; wait for it or choose another name."
            ) from error
        try:
            length = self._read(path)
            self._open(length)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, length: int) -> None:
        if length == 0:
            self._clear()
        self._file = open(self.folder / _JOURNAL, "ab")
        self._file.truncate(length)
        if length == 0:
            self._append({"format": FORMAT, "version": VERSION, "run": self._run})

    def _afresh(self, odd: Sequence[str]) -> None:
        """Drop all but the rasters that are finished: their files stand."""
        self._say_afresh(odd)
        facts, rasters = self._facts, self._rasters
        self._file.close()
        try:
            self._open(0)
        except OSError as error:
            raise self._failed(error) from error
        for name, (number, digest) in rasters.items():
            if number in facts:
                self._append({"raster": self._begun, "begin": name, "identity": digest})
                self._rasters[name] = (self._begun, digest)
                self.finish(self._begun, facts[number])
                self._begun += 1

    def _say_afresh(self, odd: Sequence[str]) -> None:
        names = ", ".join(name.replace("_", "-") for name in odd)
        _log.warning("%s was begun with other settings (%s): starting afresh.", self._output, names)

    def _is_ours(self) -> bool:
        return self.folder.is_dir() and all(
            _OURS.fullmatch(item.name) and item.is_file()
            for item in self.folder.iterdir()
            if not item.name.startswith(".")  # file managers leave notes everywhere
        )

    def _read(self, path: Path) -> int:
        """Take over what is true in the journal; returns how many bytes of it are, 0 where none is of use."""
        if not path.exists():
            return 0
        length = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            entry = _entry(line)
            if entry is None:
                break
            if number == 0:
                if (entry.get("format"), entry.get("version")) != (FORMAT, VERSION):
                    return 0
                if entry["run"] != self._run:
                    self._say_afresh(_differences(entry["run"], self._run))
                    return 0
            else:
                self._take(entry)
            length += len(line)
        return length

    def _take(self, entry: dict[str, Any]) -> None:
        if "settings" in entry:
            self._settings = entry["settings"]
        elif "begin" in entry:
            known, _ = self._rasters.get(entry["begin"], (None, None))
            self._done = {key: value for key, value in self._done.items() if key.raster != known}
            self._rasters[entry["begin"]] = (entry["raster"], entry["identity"])
            self._begun = entry["raster"] + 1
        elif "finished" in entry:
            self._done = {key: value for key, value in self._done.items() if key.raster != entry["raster"]}
            self._facts[entry["raster"]] = entry["finished"]
        else:
            part = self.folder / entry["file"]
            # A file can be missing or short after a loss of power even where the journal is not.
            if part.exists() and zlib.crc32(part.read_bytes()) == entry["crc"]:
                self._done[Key(entry["raster"], entry["band"])] = entry

    def _clear(self) -> None:
        self._done, self._facts, self._settings, self._rasters, self._begun = {}, {}, None, {}, 0
        for item in self.folder.iterdir():
            if item.name != _LOCK and not item.name.startswith("."):
                item.unlink()

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"Writing {self._output} failed ({error.strerror or error}); what is finished is kept: make room or see to "
            "it that the folder can be written to, and run the same again to go on."
        )


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of the journal; None where the process died in the middle of it."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


@contextmanager
def locked(paths: Sequence[Path]) -> Iterator[None]:
    """Keep other runs from writing any of these files, or into these folders, as long as the block lasts.

    A folder's lock lies in it and knows nothing of its files.

    Raises:
        OutputError: If one of them is written right now, or its folder cannot be written to.
    """
    with ExitStack() as stack:
        for path in paths:
            lock = FileLock(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise OutputError(
                    f"Another run is writing {path} right now; wait for it or choose another name."
                ) from error
            except OSError as error:
                raise OutputError(
                    f"Cannot write {path}: {error.strerror or error}; choose an existing folder you may write to."
                ) from error
            stack.callback(_unlock, lock)
        yield


def _unlock(lock: FileLock) -> None:
    with suppress(OSError):  # removed while it is held, so that whoever comes next makes a new one
        Path(lock.lock_file).unlink()
    lock.release()


def require_space(folder: Path, needed: int, output: Path) -> None:
    """Refuse to begin what cannot be finished for want of disk space.

    Args:
        folder: Where the result and the unfinished work go.
        needed: Bytes.
        output: Named in the sentence.

    Raises:
        OutputError: If less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"Writing {output} needs about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; make room or "
            "choose another place."
        )

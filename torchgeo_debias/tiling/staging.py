"""Files that are written in a folder of their own beside the target and moved there once they are complete."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from torchgeo_debias.errors import OutputError

T = TypeVar("T")

_FURTHER = ".aux.xml"
"""As long as the longest ending that what stands beside a result has behind its name."""


def check_target(path: Path, formats: tuple[str, ...]) -> None:
    """Refuse a name under which nothing can be written, before any work is done for it.

    Args:
        path: Of the file to be.
        formats: Endings to choose from, in lower case.

    Raises:
        OutputError: If the ending is another one, the name is that of a folder or no file can have it, or its folder
            takes no files.
    """
    shown = str(path).encode(errors="backslashreplace").decode()
    if shown != str(path) or "\0" in shown:
        raise OutputError(f"Cannot write {shown!r}: the name must be text in UTF-8; choose another one.")
    if path.suffix.lower() not in formats:
        raise OutputError(f"Cannot write {path}: the name must end in {', '.join(formats)}.")
    try:
        if path.is_dir():
            raise OutputError(f"Cannot write {path}: it is a folder; give the name of a file.")
        target = destination(path)
        # Tried rather than asked: permissions do not tell of read-only disks, and to root they tell nothing.
        with tempfile.TemporaryDirectory(prefix=_prefix(target), dir=target.parent) as folder:
            Path(folder, f"{target.name}{_FURTHER}").touch()
    except OSError as error:
        raise _no_place(path, error) from error


def destination(path: Path) -> Path:
    """The file that ``path`` stands for; where links are followed, they stay."""
    return Path(os.path.realpath(path))


def clear_leftovers(path: Path) -> None:
    """Remove what a killed process left behind of its attempts to write ``path``.

    Only for one who knows that nobody else is writing that file now.
    """
    path = destination(path)
    prefix = _prefix(path)
    for entry in path.parent.iterdir():
        # Not by a glob: names may hold its special characters.
        if entry.name.startswith(prefix) and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


class Staging:
    """A hidden folder beside a file to be; use it as a context manager.

    When the block ends, ``file`` and what stands beside it under its name with a further ending move to their place.
    After an error nothing is left and a file that stood there before is untouched. A link stays one: the file that it
    leads to is written.

    Attributes:
        folder: The folder, removed at the end with all that is still in it.
        file: Where to write. Its name has only the ending in common with the final one, which may have characters that
            libraries take for something else.
        target: Where it moves to.
    """

    def __init__(self, path: Path, write_errors: tuple[type[Exception], ...]) -> None:
        """Make the folder.

        Args:
            path: Final name.
            write_errors: What the libraries that write raise; it becomes an ``OutputError``, as ``OSError`` does.

        Raises:
            OutputError: If the folder cannot be made.
        """
        self._path, self.target = path, destination(path)
        self._write_errors: tuple[type[Exception], ...] = (OSError, *write_errors)
        self._source_error: BaseException | None = None
        try:
            # In the same folder, since only within one file system does a move happen at once.
            self.folder = Path(tempfile.mkdtemp(prefix=_prefix(self.target), dir=self.target.parent))
        except OSError as error:
            raise _no_place(path, error) from error
        self.file = self.folder / f"result{path.suffix}"

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Pass on ``items`` and remember the error that making them raised.

        Libraries that pull the items from within would put another error in its place; at the end of the block it is
        the first one that is raised, and it is not mistaken for a failure to write.
        """
        iterator = iter(items)
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except BaseException as error:
                self._source_error = error
                raise
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._source_error is not None:
                if error is not self._source_error:
                    raise self._source_error from None
            elif error is None:
                self._publish()
            elif isinstance(error, self._write_errors):
                raise self._failed(error) from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _publish(self) -> None:
        companions = [file for file in self.folder.iterdir() if file.name.startswith(f"{self.file.name}.")]
        try:
            for file in [*companions, self.file]:
                os.replace(file, self.target.with_name(self.target.name + file.name.removeprefix(self.file.name)))
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> OutputError:
        reason = " ".join(str(error).split()).rstrip(".").replace(str(self.file), self._path.name)
        return OutputError(f"Writing {self._path} failed, is the disk full? Nothing was left behind ({reason}).")


def _prefix(target: Path) -> str:
    # Not the name itself, with which this could be longer than a name may be.
    return f".writing-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"


def _no_place(path: Path, error: OSError) -> OutputError:
    remedy = "a shorter name" if error.errno == errno.ENAMETOOLONG else "an existing folder you may write to"
    return OutputError(f"Cannot write {path}: {error.strerror or error}; choose {remedy}.")

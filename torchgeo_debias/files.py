"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torchgeo_debias.errors import OutputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file beside its place and move it there when the block ends; on any error nothing of it is left.

    Args:
        path: Where the file goes; its folder must exist. A file that is already there stays until the new one is
            complete.

    Yields:
        Path to write to, hidden, in the same folder and with the same suffix.

    Raises:
        OutputError: In place of any ``OSError`` of the block.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        with suppress(OSError):
            part.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there, and see to it that files can be written into it.

    Raises:
        OutputError: If it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Tried rather than asked: permissions do not tell of read-only disks, and to root they tell nothing.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"The folder {path} cannot be written to ({error.strerror or error}); choose another place."
        ) from error

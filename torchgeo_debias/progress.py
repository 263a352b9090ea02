"""One way to report progress, for terminal bars, notebooks and QGIS alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Progress(NamedTuple):
    """How far one stage of a run has come.

    Attributes:
        stage: Short name of the stage, shown to people (``"adapt"``, ``"read chips"``).
        done: Steps finished, ``0 <= done <= total``.
        total: Steps of the stage, 0 where unknown.
    """

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]
"""Called after each step. It may raise :class:`~torchgeo_debias.errors.Cancelled` to stop the run."""


def silent(progress: Progress) -> None:
    """Take the report and do nothing with it: the default callback."""


def track(items: Iterable[T], stage: str, callback: ProgressCallback, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` and report each one once the caller is done with it.

    Args:
        items: What to go through.
        stage: Name of the stage.
        callback: Who is told.
        total: Number of items; taken from ``len(items)`` where it is left out.

    Yields:
        The items, unchanged.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else 0
    callback(Progress(stage, 0, total))
    for done, item in enumerate(items, start=1):
        yield item
        callback(Progress(stage, done, total))

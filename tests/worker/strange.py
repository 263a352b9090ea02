"""A verb that does what verbs should not, and its kin; importing this adds it to the command line."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app
from torchgeo_debias.cli.options import Json
from torchgeo_debias.errors import DataError
from torchgeo_debias.progress import Progress, ProgressCallback


class OutOfMemoryError(RuntimeError):
    """What torch raises when a GPU is full, by name."""


@app.command()
def strange(
    deed: str, words: Annotated[list[str] | None, typer.Argument()] = None, as_json: Json = False, quiet: bool = False
) -> None:
    """Do one of the deeds below."""
    assert as_json
    with show.bar(quiet) as progress:
        result = DEEDS[deed](progress, words or [])
    show.as_json({"deed": deed, **(result or {})})


def _print(progress: ProgressCallback, words: list[str]) -> None:
    print("a stray line")  # noqa: T201
    typer.echo('{"type": "done", "id": 1, "result": {}}')
    sys.stdout.write("no end of line \udcff")


def _native(progress: ProgressCallback, words: list[str]) -> None:
    os.write(1, b"written to descriptor 1\n")
    ctypes.CDLL(None).puts(b"put by libc")
    ctypes.CDLL(None).fflush(None)
    os.system("echo from a shell")


def _read(progress: ProgressCallback, words: list[str]) -> dict[str, Any]:
    return {"stdin": sys.stdin.read(), "descriptor": os.read(0, 10).decode()}


def _crash(progress: ProgressCallback, words: list[str]) -> None:
    ctypes.string_at(0)


def _deep(progress: ProgressCallback, words: list[str]) -> None:
    _deep(progress, words)


def _steps(progress: ProgressCallback, words: list[str]) -> None:
    """So many steps of a hundredth of a second."""
    for i in range(int(words[0]) + 1):
        progress(Progress("step", i, int(words[0])))
        time.sleep(0.01)


def _sleep(progress: ProgressCallback, words: list[str]) -> None:
    """Be busy without a step of progress."""
    progress(Progress("sleep", 0, 1))
    time.sleep(600)


def _pause(progress: ProgressCallback, words: list[str]) -> None:
    progress(Progress("pause", 0, 1))
    time.sleep(1)


def _mutter(progress: ProgressCallback, words: list[str]) -> None:
    """Write to stderr without end, whether or not anybody reads it, as handlers of ``logging`` do."""
    progress(Progress("mutter", 0, 1))
    while True:
        with suppress(OSError):
            sys.stderr.write("again\n")
        time.sleep(0.01)


def _flood(progress: ProgressCallback, words: list[str]) -> None:
    """Log without end, deaf to being cancelled."""
    while True:
        logging.getLogger("torchgeo_debias.strange").warning("again")


def _log(progress: ProgressCallback, words: list[str]) -> None:
    log = logging.getLogger("torchgeo_debias.strange")
    log.info("hidden")
    log.warning("look at %s", words)
    log.error("two\nlines")
    logging.getLogger("elsewhere").error("not ours")
    warnings.warn("from below", UserWarning, stacklevel=1)


def _fork(progress: ProgressCallback, words: list[str]) -> dict[str, Any]:
    """A process that would speak for the worker, and is ended with the signal that ends the worker."""
    child = os.fork()
    if not child:
        _log(progress, ["child"])
        progress(Progress("child", 0, 1))
        time.sleep(600)
    time.sleep(0.5)
    os.kill(child, 15)
    return {"signal": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def _refuse(progress: ProgressCallback, words: list[str]) -> None:
    progress(Progress("look", 0, 2))
    raise DataError("There is\nnothing.")


def _raise(error: BaseException) -> Callable[[ProgressCallback, list[str]], None]:
    def deed(progress: ProgressCallback, words: list[str]) -> None:
        raise error

    return deed


DEEDS: dict[str, Callable[[ProgressCallback, list[str]], dict[str, Any] | None]] = {
    "print": _print,
    "native": _native,
    "read": _read,
    "crash": _crash,
    "deep": _deep,
    "steps": _steps,
    "sleep": _sleep,
    "pause": _pause,
    "mutter": _mutter,
    "flood": _flood,
    "log": _log,
    "fork": _fork,
    "refuse": _refuse,
    "echo": lambda progress, words: {"words": words},
    "name": lambda progress, words: {"name": os.fsdecode(b"\xff.tif"), "bytes": list(os.fsencode(words[0]))},
    "nan": lambda progress, words: {"score": math.nan},
    "set": lambda progress, words: {"score": {1}},
    "bug": _raise(ZeroDivisionError("division by zero")),
    "empty": _raise(AssertionError()),
    "exit": _raise(SystemExit(3)),
    "interrupt": _raise(KeyboardInterrupt()),
    "end": _raise(EOFError("no more data")),
    "pipe": _raise(BrokenPipeError(32, "Broken pipe")),
    "memory": _raise(MemoryError()),
    "errno": _raise(OSError(12, "Cannot allocate memory")),
    "torch": _raise(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")),
    "gpu": _raise(OutOfMemoryError("CUDA out of memory.")),
}

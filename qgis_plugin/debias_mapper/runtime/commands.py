"""A command of the library, as the worker runs it and as a shell takes it: one list of words for both."""

from __future__ import annotations

import os
import re
import shlex
import subprocess  # nosec B404 # only its function that quotes words for Windows is used
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A verb of the library and its arguments.

    Attributes:
        verb: Such as ``"detect"``.
        arguments: The words after it, as on the command line.
    """

    verb: str
    arguments: Sequence[str] = ()

    def shell(self, program: str = "torchgeo-debias") -> str:
        """The line that does the same in a terminal, quoted for the shell of this system."""
        words = [program, self.verb, *self.arguments]
        return " ".join(map(_for_windows, words)) if sys.platform == "win32" else shlex.join(words)


def _for_windows(word: str) -> str:
    """A word in quotes, unless no shell of Windows reads anything into it, such as a second command after ``&``."""
    if re.fullmatch(r"[\w.:\\/,=-]+", word):
        return word
    return '"' + subprocess.list2cmdline([" " + word])[2:]  # the space makes it quote; the quote replaces both


def option(name: str, value: object) -> list[str]:
    """Words of one option.

    Args:
        name: Such as ``"--model"``.
        value: None and False leave the option out, True makes it a flag, several values repeat it.

    Returns:
        No, one, two or, for several values, more words.
    """
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in option(name, item)]
    return [name, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]

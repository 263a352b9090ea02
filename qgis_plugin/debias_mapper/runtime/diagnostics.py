"""Text for a log or for a report of a problem, without credentials and without the user's name."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

LOG_LINES = 60

_LOGIN = re.compile(r"(?<=//)[^/\s'\"]*@")
_SECRET = re.compile(
    r"(?i)(?<![\w-])([\w-]*(?:token|key|password|passwd|pwd|secret|auth|credential|signature|sig)=)(?!=)"
    r"(?:'[^'\n]*'|\"[^\"\n]*\"|[^&\s'\"]+)"
)
_SPACED_HOME = re.compile(r"(?i)([a-z]:[/\\]+users[/\\]+)[^/\\:'\",;\r\n]*[^/\\\s:'\",;](?=[/\\'\"])")
"""A name on Windows may hold spaces; they are known to be part of it where the path goes on, or its quotes end."""
_HOME = re.compile(r"(?i)((?:[a-z]:|(?<![\w.]))[/\\]+(?:home|users)[/\\]+)[^/\\\s:'\",;]+")


def redact(text: str) -> str:
    """Take logins out of addresses, and secrets out of their queries."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("***@", text))


def anonymous(text: str) -> str:
    """Replace the user's home folder by ``~``, and other users' names in paths; also does what :func:`redact` does."""
    home = str(Path.home())
    if len(home) > 1:
        for written in {home, os.path.realpath(home), home.replace("\\", "\\\\"), home.replace("\\", "/")}:
            # Windows and macOS do not tell case, and elsewhere such a path is none to show either.
            text = re.sub(r"(?i)(?<![\w.-])" + re.escape(written) + r"(?![\w.-])", "~", text)
    return _HOME.sub(r"\1user", _SPACED_HOME.sub(r"\1user", redact(text)))


def diagnostics(facts: Mapping[str, object], log: Path | None = None) -> str:
    """What helps to understand a problem, ready to be copied into a report.

    Args:
        facts: Lines to begin with, by their names, such as the versions of plugin and QGIS.
        log: A log file whose last lines are added, where it is there.

    Returns:
        Text without credentials, home folder and user name.
    """
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines.append(f"system: {platform.system()} {platform.release()} {platform.machine()}")
    if log is not None and log.is_file():
        ending = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        lines += ["", f"last lines of {log}:", *ending]
    return anonymous("\n".join(lines)) + "\n"

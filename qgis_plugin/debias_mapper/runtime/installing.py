"""Making a virtual environment and installing into it, by commands whose every line goes into a log."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from .client import OnLog, OnProgress
from .diagnostics import redact
from .process import Stopped, clean_environment, run_to_end
from .pythons import Python, SetupError

ENSUREPIP = "ensurepip"
GIGABYTE = 10**9

FAILURES = (
    (r"407 Proxy|ProxyError|Tunnel connection failed", "the proxy refused: check QGIS's network settings"),
    (r"Missing dependencies for SOCKS", "pip cannot use a SOCKS proxy: choose an HTTP proxy in QGIS's settings"),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError", "a certificate was not trusted: ask who runs your network, or go offline"),
    (r"No space left|Errno 28|not enough space", "the disk is full: free some space or choose another folder"),
    (r"not a trusted or secure host", "the package index is not reached safely: give its address with https"),
    (r"40[134] (Client )?Error|HTTP error 40[134]", "the package index refused: check its address and login"),
    (
        r"Failed to establish|NewConnectionError|getaddrinfo|timed out|Connection(Reset|Refused)?Error",
        "the package index could not be reached: check the network, or install from a folder of wheels",
    ),
    (r"WinError (5|32)|Permission denied", "a file is in use or locked, perhaps by a virus scanner: try again"),
    (r"No matching distribution found for (?P<name>\S+)", "{name} is not on offer for this Python and system"),
    (r"ResolutionImpossible|conflicting dependencies", "the packages on offer do not fit together"),
    (r"(?i:do not match the hashes)|HashMismatch|is invalid|is corrupt", "a downloaded file is damaged: try again"),
)
"""What pip prints, and what it means to a person; the first that fits counts."""


class SetupCancelled(SetupError):
    """The user stopped a set-up."""


@dataclass(frozen=True)
class Registry:
    """Packages from the package index that the user's pip is set to, PyPI by default.

    Attributes:
        index_url: Address of another index, with a login if it needs one; it is not logged.
        torch_index_url: Address of an index of PyTorch's builds beside it: the ordinary builds for Linux bring
            gigabytes of CUDA along, and PyTorch's site names an index of those for processors alone.
    """

    index_url: str | None = None
    torch_index_url: str | None = None

    @property
    def name(self) -> str:
        """For the record of what was installed."""
        return "registry" if self.torch_index_url is None else "registry, and an index of PyTorch"

    @property
    def needed(self) -> int:
        """Bytes of disk while installing, downloads included: measured on Linux, and rounded up."""
        return 4 * GIGABYTE if self.torch_index_url or not sys.platform.startswith("linux") else 10 * GIGABYTE

    def options(self) -> tuple[list[str], dict[str, str]]:
        """Options and environment variables of pip."""
        # Both indexes together: pip takes the highest version, and 2.14.1+cpu is higher than 2.14.1. torchvision's +cpu
        # build comes from the same index by the same rule.
        indexes = {"PIP_INDEX_URL": self.index_url, "PIP_EXTRA_INDEX_URL": self.torch_index_url}
        return [], {name: address for name, address in indexes.items() if address}


@dataclass(frozen=True)
class WheelFolder:
    """Packages from a folder of wheels, without any network.

    Attributes:
        path: The folder; it holds the library and all that it needs, for this Python and system.
    """

    path: Path

    @property
    def name(self) -> str:
        """For the record of what was installed."""
        return "folder of wheels"

    @property
    def needed(self) -> int:
        """Bytes of disk while installing: about three times the wheels."""
        return 3 * sum(wheel.stat().st_size for wheel in Path(self.path).glob("*.whl"))

    def options(self) -> tuple[list[str], dict[str, str]]:
        """Options and environment variables of pip."""
        # No further folders that the user's pip may be set to: what is installed is what lies in this one.
        return ["--no-index", "--find-links", str(self.path)], {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}


Source = Union[Registry, WheelFolder]


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if sys.platform == "win32" else venv / "bin" / "python"


class Installer:
    """Runs the commands of one set-up.

    Args:
        log: File for their output; begun anew.
        proxies: Environment variables of a proxy; they are handed on and never logged.
        on_progress: Told of each step, while downloading in KiB.
        on_log: Told each line, as ``"info"``.
        is_cancelled: Asked every 50 ms.
    """

    def __init__(
        self,
        log: Path,
        proxies: Mapping[str, str] | None,
        on_progress: OnProgress | None,
        on_log: OnLog | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> None:
        self._log = log
        self._proxies = dict(proxies or {})
        self._on_progress = on_progress
        self._on_log = on_log
        self._is_cancelled = is_cancelled
        self._packages = 0
        log.write_text("", encoding="utf-8")

    def make_venv(self, base: Python, venv: Path) -> None:
        """Make an environment without pip, which bare Debian can do too.

        Raises:
            SetupError: It could not be made, or the user cancelled.
        """
        self._say("Making the environment")
        if self._run([base.path, "-I", "-m", "venv", "--without-pip", str(venv)])[0] != 0:
            raise SetupError(
                f"{base.path} cannot make an environment in {venv.parent}: see the log, or choose another."
            )

    def install(self, base: Python, venv: Path, source: Source, requirement: str, constraints: Path | None) -> None:
        """Install a package and what it needs, at the versions of the constraints.

        Raises:
            SetupError: pip is missing or failed, or the user cancelled; the sentence says why where pip's words tell.
        """
        pip, bar = self._pip(base, venv)
        options, variables = source.options()
        command = [*pip, "install", "--no-input", "--progress-bar", bar, *options]
        if constraints is not None and isinstance(
            source, Registry
        ):  # a folder of wheels is a choice of versions itself
            command += ["-c", str(constraints)]
        status, lines = self._run([*command, requirement], variables)
        if status != 0:
            raise SetupError(f"The packages could not be installed: {explain(lines)} (the log is {self._log}).")

    def _pip(self, base: Python, venv: Path) -> tuple[list[str], str]:
        """The pip that Python carries or, where Debian has split that off, the system's, and its kind of progress."""
        python = str(venv_python(venv))
        own = [python, "-I", "-m", "pip"]
        status, lines = self._run([*own, "--version"])
        if status != 0 and self._run([python, "-I", "-m", ENSUREPIP])[0] == 0:
            status, lines = self._run([*own, "--version"])
        pip = own
        if status != 0:
            pip = [base.path, "-I", "-m", "pip", "--python", python]
            status, lines = self._run([*pip, "--version"])
        if status != 0:
            raise SetupError(f"{base.path} has no pip: install python3-venv or python3-pip, or choose another Python.")
        version = re.search(r"^pip (\d+)\.(\d+)", "\n".join(lines), re.MULTILINE)
        raw = version is not None and (int(version[1]), int(version[2])) >= (24, 1)
        return pip, "raw" if raw else "off"

    def _run(self, command: Sequence[str], variables: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
        settings = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COLOR": "1"}
        settings |= {**self._proxies, **(variables or {})}
        lines: list[str] = []

        def hear(line: str) -> None:
            line = redact(line)
            if not self._is_progress(line):
                lines.append(line)
                self._write(line)
                if self._on_log is not None:
                    self._on_log("info", line)

        self._write(redact("$ " + " ".join(command)))
        try:
            status = run_to_end(command, clean_environment(settings), hear, is_cancelled=self._is_cancelled)
        except Stopped:
            raise SetupCancelled("The set-up was cancelled; start it again to make the environment.") from None
        except OSError as error:
            raise SetupError(f"{command[0]} cannot be started ({error.strerror}): choose another Python.") from error
        return status, lines

    def _write(self, line: str) -> None:
        # On a full disk, pip fails as well, and says more about it than a log that cannot be written.
        with suppress(OSError), self._log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _is_progress(self, line: str) -> bool:
        """Report what a line tells of progress; whether that is all it tells."""
        amount = re.match(r"Progress (\d+) of (\d+)$", line)
        if amount:
            self._say(self._stage, int(amount[1]) // 1024, int(amount[2]) // 1024)  # Qt's numbers end at 2 GB
            return True
        step = re.match(r"\s*(Collecting|Downloading|Processing|Using cached|Installing) (\S+)", line)
        if step:
            name = "packages" if step[1] == "Installing" else step[2].rsplit("/", 1)[-1]
            self._say(f"{step[1]} {name}")
        return False

    def _say(self, stage: str, done: int = 0, total: int = 0) -> None:
        self._stage = stage
        if self._on_progress is not None:
            self._on_progress(stage, done, total)


def explain(lines: Sequence[str]) -> str:
    """What pip's output means to a person: its errors count first, as a warning may have come to nothing."""
    errors = [line for line in lines if line.startswith("ERROR: ")]
    # Where pip found no version at all, it may be that it reached no index, and only the warnings before tell.
    telling = [] if any("from versions: none" in line for line in errors) else errors
    for text in ("\n".join(telling), "\n".join(lines)):
        for pattern, meaning in FAILURES:
            match = re.search(pattern, text)
            if match:
                return meaning.format(**match.groupdict())
    return f"pip says “{errors[-1][7:].rstrip('.')}”" if errors else "pip ended without a reason"

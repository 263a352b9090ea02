"""Put a QGIS that the plugin supports on a Debian or Ubuntu machine: ``python3 qgis_tests/install_qgis.py``, as root.

Where the machine's own package sources carry only an older QGIS, it comes from their backports suite: same address,
same signing key, other suite. The configuration of apt stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST = (3, 40)
PACKAGES = ("qgis", "python3-qgis")
DESKTOP = ("xvfb", "openbox", "x11-utils", "xdotool", "imagemagick", "fonts-open-sans")
SYSTEM_PYTHON = Path("/usr/bin/python3")
SYSTEM_PATH = "/usr/bin:/bin"
"""For every process that loads QGIS: a version manager's Python first on the path would become QGIS's, and crash it."""

_ETC = Path("/etc/apt")


class InstallError(Exception):
    """QGIS cannot be installed; the text is one sentence."""


def installed() -> tuple[int, int] | None:
    """The version of QGIS that the system's Python loads, None if it loads none."""
    if not SYSTEM_PYTHON.exists():
        return None
    code = "from qgis.core import Qgis; print(Qgis.QGIS_VERSION)"
    environment = {**os.environ, "PATH": SYSTEM_PATH, "QT_QPA_PLATFORM": "offscreen"}
    run = subprocess.run(
        [SYSTEM_PYTHON, "-I", "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    return _version(run.stdout)


def complete() -> bool:
    """Whether QGIS is new enough and all that a desktop without a screen needs is there."""
    version = installed()
    programs = ("qgis", "qgis_process", "Xvfb", "openbox", "xdotool", "import")
    return version is not None and version >= OLDEST and all(shutil.which(name, path=SYSTEM_PATH) for name in programs)


def can_install() -> bool:
    """Whether this is a machine with apt, and we may use it."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install() -> None:
    """Install QGIS and the desktop.

    Raises:
        InstallError: If apt fails, or carries no QGIS that is new enough.
    """
    with tempfile.TemporaryDirectory() as folder:
        _apt("update", sources=None)
        sources = None
        if _candidate() < OLDEST:
            sources = Path(folder)
            sources.chmod(0o755)  # apt reads as a user of its own
            _copy_sources(sources)
            (sources / "backports.sources").write_text(backports(_stanzas(), _codename()))
            _apt("update", sources=sources)
        target = () if sources is None else ("--target-release", f"{_codename()}-backports")
        _apt("install", *target, *PACKAGES, sources=sources)
        _apt("install", *DESKTOP, sources=sources)
    if (version := installed()) is None or version < OLDEST:
        raise InstallError(f"apt has installed QGIS {version}, but {'.'.join(map(str, OLDEST))} or newer is needed.")


def backports(stanzas: list[dict[str, str]], codename: str) -> str:
    """A source of the backports of a release, in the form of apt's ``.sources`` files.

    Args:
        stanzas: The machine's sources.
        codename: Of the release, for instance ``bookworm``.

    Raises:
        InstallError: If no source has this release.
    """
    for stanza in stanzas:
        if codename in stanza.get("Suites", "").split() and "deb" in stanza.get("Types", "deb").split():
            kept = {**stanza, "Types": "deb", "Suites": f"{codename}-backports"}
            return "".join(f"{name}: {value}\n" for name, value in kept.items())
    raise InstallError(f"None of apt's sources has the release {codename}, so its backports cannot be found.")


def read_sources(text: str) -> list[dict[str, str]]:
    """The sources in a ``.sources`` file, one dictionary each."""
    found: list[dict[str, str]] = []
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", plain):
        # A line that begins with a blank goes on with the value before it.
        fields = re.findall(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, flags=re.MULTILINE)
        if fields:
            found.append({name: value.strip() for name, value in fields})
    return found


def read_list(text: str) -> list[dict[str, str]]:
    """The sources in a ``sources.list`` file with a source a line, in the same form."""
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>[^#]+)", line)
        if match:
            stanza = {
                "Types": "deb",
                "URIs": match["uri"],
                "Suites": match["suite"],
                "Components": match["rest"].strip(),
            }
            for name, value in (option.split("=", 1) for option in (match["options"] or "").split()):
                stanza[{"signed-by": "Signed-By", "arch": "Architectures"}.get(name, name.title())] = value
            found.append(stanza)
    return found


def _stanzas() -> list[dict[str, str]]:
    """All sources of this machine."""
    folder = _ETC / "sources.list.d"
    found = [stanza for path in sorted(folder.glob("*.sources")) for stanza in read_sources(path.read_text())]
    for path in (_ETC / "sources.list", *sorted(folder.glob("*.list"))):
        if path.exists():
            found += read_list(path.read_text())
    return found


def _copy_sources(folder: Path) -> None:
    """Put all sources of this machine into a folder, for a run of apt with one source more."""
    if (_ETC / "sources.list").exists():
        shutil.copy(_ETC / "sources.list", folder / "main.list")
    for path in (_ETC / "sources.list.d").iterdir():
        shutil.copy(path, folder)


def _codename() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return release.get("VERSION_CODENAME", "").strip('"')


def _candidate() -> tuple[int, int]:
    """The version of QGIS that apt would install; zeros if none."""
    run = subprocess.run(["apt-cache", "policy", "qgis"], capture_output=True, text=True, check=False)
    match = re.search(r"Candidate: (?:\d+:)?(\S+)", run.stdout)
    return (_version(match[1]) if match else None) or (0, 0)


def _apt(command: str, *arguments: str, sources: Path | None) -> None:
    options = ["-y", "-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]
    if sources is not None:
        options += ["-o", f"Dir::Etc::SourceParts={sources}", "-o", "Dir::Etc::SourceList=/dev/null"]
    if command == "install":
        options.append("--no-install-recommends")
    run = subprocess.run(
        ["apt-get", *options, command, *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # An unreachable source of something else is no reason to stop; a missing QGIS shows in the next step.
    if run.returncode and command != "update":
        raise InstallError(f"apt-get {command} {' '.join(arguments)} failed: {run.stderr.strip().splitlines()[-1:]}")


def _version(text: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def main() -> int:
    """Install what is missing; returns the exit code."""
    try:
        if not complete():
            install()
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

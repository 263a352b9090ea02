"""A desktop without a screen, and sessions of QGIS on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = "1280x800"
SCRIPTS = Path(__file__).resolve().parent
SYSTEM_PATH = "/usr/bin:/bin"
MARK = "DEBIAS_DESKTOP_SESSION"
"""Variable that every process of a session inherits, by which those that were left are found."""

# Without QGIS's own look into the net for news (the first key is that of QGIS 3.40, the second of older ones). It opens
# the database of logins in a thread for tasks. If QGIS ends while that thread is there, it takes the database away
# before the thread, and crashes (QgsAuthConfigurationStorageDb::authDatabaseConnection in QGIS 3.40.6).
SETTINGS = """
[app]
firstRunVersionFlag=34000
check_updates_on_startup=false

[core]
httpsfeedqgisorg\\disabled=true
NewsFeed\\httpsfeedqgisorg\\disabled=true

[plugin_installer]
checkOnStart=false
"""


@contextmanager
def screen() -> Iterator[str]:
    """Start an X server with a window manager; gives its display."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{SIZE}x24", "-nolisten", "tcp", "-noreset"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, pass_fds=[write], env={"PATH": SYSTEM_PATH}, **quiet)
    os.close(write)
    manager: subprocess.Popen[bytes] | None = None
    try:
        with os.fdopen(read) as answer:
            display = f":{answer.readline().strip()}"
        environment = {"PATH": SYSTEM_PATH, "DISPLAY": display, "HOME": os.environ["HOME"]}
        manager = subprocess.Popen(["openbox"], env=environment, **quiet)
        yield display
    finally:
        for process in (manager, server):
            if process is not None:
                process.terminate()
                process.wait(20)


def environment(home: Path, display: str) -> dict[str, str]:
    """Of a QGIS with nothing of the user's."""
    runtime = home / "runtime"
    runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "PATH": SYSTEM_PATH, "HOME": str(home), "DISPLAY": display, "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(runtime),
        "QT_QPA_PLATFORM": "xcb", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


class Session:
    """One session of QGIS that plays a scenario.

    Attributes:
        status: Exit status.
        report: What the scenario found.
        left: Command lines of processes that it left behind.
        output: What QGIS printed.
        seconds: How long it took.
    """

    def __init__(self, scenario: str, home: Path, display: str, plan: dict[str, Any], limit: float = 240) -> None:
        """Play it to its end.

        Args:
            scenario: A module of this folder and a function in it, such as ``scenarios.first_map``.
            home: The user's folder, with the profile.
            display: Of the X server.
            plan: What the scenario needs; its ``out`` is made.
            limit: Seconds until QGIS is killed.
        """
        out = Path(plan["out"])
        out.mkdir(parents=True)
        file = out / "plan.json"
        file.write_text(json.dumps({**plan, "scenario": scenario, "scripts": str(SCRIPTS)}))
        settings = home / "profiles" / "profiles" / "default" / "QGIS" / "QGIS3.ini"
        if not settings.exists():
            settings.parent.mkdir(parents=True)
            settings.write_text(SETTINGS)
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        command = [
            "qgis", "--profiles-path", str(home / "profiles"), "--nologo", "--noversioncheck",
            "--code", str(SCRIPTS / "drive.py"),
        ]  # fmt: skip
        began = time.monotonic()
        variables = {**environment(home, display), "DEBIAS_DESKTOP": str(file), MARK: mark}
        with (out / "qgis.log").open("wb") as log:
            process = subprocess.Popen(command, env=variables, cwd=home, stdout=log, stderr=subprocess.STDOUT)
            try:
                self.status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                shoot(out / "hanging.png", display)
                process.kill()
                process.wait()
                self.status = None
        self.seconds = time.monotonic() - began
        self.output = (out / "qgis.log").read_text(errors="replace")
        report = out / "report.json"
        self.report: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
        self.left = left_behind(mark)
        self.out = out


def shoot(path: Path, display: str) -> None:
    """Take a picture of the screen from without."""
    program = shutil.which("import", path=SYSTEM_PATH) or "import"
    subprocess.run([program, "-window", "root", str(path)], env={"PATH": SYSTEM_PATH, "DISPLAY": display}, check=False)


def left_behind(mark: str) -> list[str]:
    """Command lines of the processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found

"""Run the plugin's tests in a real QGIS: ``python3 qgis_tests/run.py [ARGUMENTS OF PYTEST...]``, from any folder.

QGIS brings its own Python packages, so these tests run in the system's Python, in a ``.venv-qgis`` that sees its
packages and adds pytest. The worker runs in ``.venv``, which ``python3 bootstrap.py test`` has set up. QGIS itself is
installed first where it is missing, if there are apt and the rights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "qgis_tests")]

import install_qgis  # noqa: E402

import bootstrap  # noqa: E402 (found through the line above)

VENV = ROOT / ".venv-qgis"
PYTHON = VENV / "bin/python"
REQUIREMENTS = ("pytest", "pytest-qgis")


def make_venv() -> None:
    """Make ``.venv-qgis`` unless it is there and works."""
    probe = "import pytest, pytest_qgis, qgis.core"
    environment = {**os.environ, "PATH": install_qgis.SYSTEM_PATH}
    if PYTHON.exists() and not subprocess.run([PYTHON, "-c", probe], env=environment, check=False).returncode:
        return
    make = (install_qgis.SYSTEM_PYTHON, "-m", "venv", "--clear", "--system-site-packages", "--without-pip", VENV)
    if not bootstrap.succeeds(*make):
        raise bootstrap.SetupError("The system's Python cannot make a virtual environment: install python3-venv.")
    bootstrap.put_into(PYTHON, *REQUIREMENTS)


def main(arguments: list[str]) -> int:
    """Set up and run; returns the exit code."""
    try:
        if not install_qgis.complete():
            if not install_qgis.can_install():
                needed = ".".join(map(str, install_qgis.OLDEST))
                bootstrap.say(f"The tests of the QGIS plugin need QGIS {needed} or newer, which is not there: NOT RUN.")
                return int("CI" in os.environ or install_qgis.installed() is not None)
            bootstrap.say("Installing QGIS with apt, which takes some minutes.")
            install_qgis.install()
        make_venv()
    except (install_qgis.InstallError, bootstrap.SetupError) as error:
        print(error, file=sys.stderr)
        return 1
    environment = {
        **os.environ, "PATH": install_qgis.SYSTEM_PATH, "QT_QPA_PLATFORM": "offscreen",
        "TORCHGEO_DEBIAS_PYTHON": str(bootstrap.PYTHON),
    }  # fmt: skip
    command = [str(PYTHON), "-m", "pytest", "--durations=5", *arguments]
    return subprocess.run(command, cwd=ROOT / "qgis_tests", env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

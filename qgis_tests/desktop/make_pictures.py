"""Make the manual's pictures: ``python3 make_pictures.py DEMO PYTHON HOME OUT``, in the system's Python.

DEMO holds the demo's ``scene`` folder, a classifier as ``.tgd`` and a detector as ``detector``; PYTHON has the library;
HOME is the folder of a user without QGIS, whose paths the pictures show; they go to OUT.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from screen import SCRIPTS, Session, screen

ROOT = SCRIPTS.parents[1]


def main(demo: str, python: str, home: str, out: str) -> None:
    """Play the scenario and say how it went."""
    with tempfile.TemporaryDirectory() as folder, screen() as display:
        archive = Path(folder) / "plugin.zip"
        subprocess.run([sys.executable, ROOT / "qgis_plugin" / "build_zip.py", archive], check=True)
        plan = {"zip": str(archive), "sample": demo, "python": python, "out": out}
        session = Session("manual.pictures", Path(home), display, plan, limit=900)
        print(json.dumps(session.report, indent=1), session.status, session.left)


if __name__ == "__main__":
    main(*sys.argv[1:5])

"""The real desktop on an X server without a screen: from the zip to a map, and what may happen on the way.

Set ``DEBIAS_DESKTOP_OUT`` to a folder to keep the pictures and the measured numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT, Sample
from desktop.screen import Session, screen
from osgeo import gdal
from qgis.PyQt.QtGui import QImage

PICTURES = (
    "start", "environment", "train", "trained", "model", "classified", "plain", "detector", "detected",
    "detected_plain", "log", "running", "end",
)  # fmt: skip
LONGEST_GAP = 0.2
"""Seconds that the interface may be blocked at a time: gaps of the event loop without the time in which it was ready to
run and got no processor (see ``desktop/driver.py``). Both figures go into numbers.json. Left out is what QGIS itself
does in one go: the installation of the zip, adding layers, taking pictures, and taking a plugin out, which waits for
the worker and is measured apart."""
ON_PURPOSE = "on purpose"
"""End of the names of steps that block the interface to see that this is measured."""
UNCOUNTED = "this kernel does not tell how long a thread waits for a processor: /proc/self/schedstat"


@pytest.fixture(scope="module")
def sessions(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Session]]:
    """Two sessions of one user: a first map, and QGIS closed in the middle of a run."""
    assert Path("/proc/self/schedstat").exists(), UNCOUNTED
    root = tmp_path_factory.mktemp("desktop")
    archive, large = root / "plugin.zip", root / "large.tif"
    subprocess.run(["/usr/bin/python3", ROOT / "qgis_plugin/build_zip.py", archive], check=True)
    bounds = [500_000, 5_400_000, 504_096, 5_395_904]
    gdal.Translate(str(large), sample.scene, width=4096, height=4096, outputBounds=bounds)
    plan = {"zip": str(archive), "sample": str(sample.folder), "large": str(large), "python": PYTHON}
    found = {}
    with screen() as display:
        for name in ("first_map", "leave_in_a_run"):
            found[name] = Session(f"scenarios.{name}", root / "home", display, {**plan, "out": str(root / name)})
    yield found
    keep = os.environ.get("DEBIAS_DESKTOP_OUT")
    if keep:
        for name, session in found.items():
            shutil.copytree(session.out, Path(keep) / name, dirs_exist_ok=True)
        (Path(keep) / "numbers.json").write_text(json.dumps(numbers(found), indent=1))


def numbers(sessions: dict[str, Session]) -> dict[str, Any]:
    """What was measured."""
    gaps = {step: found for session in sessions.values() for step, found in session.report["gaps"].items()}
    gaps = {step: found for step, found in gaps.items() if not step.endswith(ON_PURPOSE)}
    first = sessions["first_map"].report
    return {
        "longest_gap_s": {kind: round(max(found[kind] for found in gaps.values()), 3) for kind in ("wall", "blocked")},
        "gaps_s": {step: {kind: round(gap, 3) for kind, gap in found.items()} for step, found in gaps.items()},
        "waited_for_a_processor_s": {name: round(session.report["waited"], 2) for name, session in sessions.items()},
        "start_to_first_result_with_a_warm_worker_s": round(first["seconds_to_result"], 2),
        "cancel_s": round(first["cancelled"]["seconds"], 2),
        "reload_in_a_run_s": round(first["reload"], 2),
        "enable_s": round(first["enable"], 2),
        "sessions_s": {name: round(session.seconds, 1) for name, session in sessions.items()},
    }


@pytest.fixture(scope="module")
def report(sessions: dict[str, Session]) -> dict[str, Any]:
    """What the session of the first map found."""
    found: dict[str, Any] = sessions["first_map"].report
    assert found.get("error") is None, found["error"]
    return found


@pytest.mark.parametrize("name", ["first_map", "leave_in_a_run"])
def test_qgis_ends_normally_and_leaves_no_process(sessions: dict[str, Session], name: str) -> None:
    session = sessions[name]
    assert session.report["error"] is None, session.report["error"]
    assert session.report["python"] == []
    assert session.status == 0, session.output[-2000:]
    assert session.left == []


def test_the_zip_is_installed_in_a_fresh_profile(sessions: dict[str, Session], report: dict[str, Any]) -> None:
    assert Path(report["installed_in"]).parts[-5:] == ("profiles", "default", "python", "plugins", "debias_mapper")
    assert "There is no environment yet" in report["without"]


def test_training_and_classifying_show_progress_and_a_result(report: dict[str, Any]) -> None:
    assert max(report["progress"]) == 100
    assert report["classified"]["features"] == 64
    assert "64 features" in report["classified"]["sentence"]


def test_the_threshold_filters_and_the_toggle_shows_the_plain_lora(report: dict[str, Any]) -> None:
    filtered = report["filtered"]
    assert filtered["shown"] == filtered["expected"]
    assert 0 < filtered["shown"] < filtered["total"]
    assert report["toggled"] == "class_raw"


def test_objects_are_found_with_and_without_debiasing(report: dict[str, Any]) -> None:
    assert report["detected"]["name"] == "Detected objects"
    assert report["detected"]["features"] > 0
    assert report["visible"] == [False, True]
    assert report["command"].startswith("torchgeo-debias detect ")
    assert "--raw" in report["command"].split()


def test_a_run_is_cancelled_and_another_outlives_its_image(report: dict[str, Any]) -> None:
    assert report["cancelled"]["sentence"] == "Cancelled; nothing was left half-written."
    assert report["cancelled"]["seconds"] < 10
    assert report["removed"].startswith("Done in ")


def test_the_plugin_is_reloaded_and_disabled_in_a_run(report: dict[str, Any]) -> None:
    assert report["reload"] < 10
    assert report["disable"] < 10
    assert report["again"].startswith("Done in ")


def test_qgis_asks_before_it_ends_a_run(sessions: dict[str, Session]) -> None:
    (question,) = sessions["leave_in_a_run"].report["questions"]
    assert "Detect objects" in question


def test_gaps_are_measured_and_told_apart_from_those_of_a_busy_machine(sessions: dict[str, Session]) -> None:
    gaps = sessions["leave_in_a_run"].report["gaps"]
    asleep, crowded = (gaps[f"{what} {ON_PURPOSE}"] for what in ("blocked", "crowded out"))
    assert asleep["blocked"] >= 0.3
    assert crowded["blocked"] > 0.29  # 0.1 s of sleep and 0.2 s of computing
    assert crowded["wall"] - crowded["blocked"] > 0.1  # two others have had their shares of the core meanwhile


def test_the_event_loop_runs_all_the_time(sessions: dict[str, Session]) -> None:
    measured = numbers(sessions)
    print(json.dumps(measured, indent=1))
    for session in sessions.values():  # a kernel that does not count says 0, whatever happens
        assert session.report["waited"] > 0, UNCOUNTED
    assert measured["longest_gap_s"]["blocked"] <= LONGEST_GAP


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_something(sessions: dict[str, Session], report: dict[str, Any], name: str) -> None:
    image = QImage(str(sessions["first_map"].out / f"{name}.png"))
    assert (image.width(), image.height()) == (1280, 800)
    colours = {image.pixel(x, y) for x in range(0, 1280, 4) for y in range(0, 800, 4)}
    assert len(colours) > 100
    window = [image.pixel(x, 400) for x in range(1280)]
    assert len(set(window)) > 10, "the window does not fill the screen"


@pytest.mark.parametrize("name", ["environment", "train", "trained"])
def test_pictures_of_a_dialog_show_the_dialog(sessions: dict[str, Session], report: dict[str, Any], name: str) -> None:
    left, top, width, height = report["regions"][name]
    image = QImage(str(sessions["first_map"].out / f"{name}.png")).copy(left, top, width, height)
    assert min(image.width(), image.height()) > 300
    rows = [len({image.pixel(x, y) for x in range(width)}) for y in range(height)]
    assert sum(number > 8 for number in rows) > height / 10, "it shows no text"
    start = QImage(str(sessions["first_map"].out / "start.png")).copy(left, top, width, height)
    places = [(x, y) for x in range(0, width, 4) for y in range(0, height, 4)]
    covered = sum(image.pixel(*place) != start.pixel(*place) for place in places) / len(places)
    assert covered > 0.5, "it shows what was there before the dialog"

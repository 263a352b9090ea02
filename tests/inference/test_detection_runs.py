"""Runs that find objects: refused, cancelled, killed, gone on with, sent to other processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest

from tests.inference.fake_detector import ByPatch, random_scene, write_scene
from tests.inference.test_detections import ONE, read, same
from tests.tiling.rasters import noise, write_raster
from torchgeo_debias.errors import Cancelled, OutputError
from torchgeo_debias.inference.detections import DetectOptions, detect_raster
from torchgeo_debias.inference.mapping import Outputs, Resources
from torchgeo_debias.inference.results import ClassifySummary
from torchgeo_debias.progress import Progress
from torchgeo_debias.tiling.source import RasterSource


def test_disk_space_is_looked_at_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "m.tif", noise((1, 16, 16)))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    model = ByPatch()
    with pytest.raises(OutputError, match=r"needs about .* GB, but 0\.0 GB are free"):
        detect_raster(path, model, Outputs(tmp_path / "a.gpkg"), resources=ONE)
    assert model.seen == []


def long_scene(path: Path) -> Path:
    return write_scene(path, random_scene(8, 130, 3000, 400, 14), 130, 3000)


@pytest.mark.parametrize("change", ["nothing", "suppression", "agnostic"])
def test_a_cancelled_run_goes_on_and_ends_the_same(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = long_scene(tmp_path / "m.tif")
    given: dict[str, dict[str, Any]] = {"suppression": {"suppression": 0.4}, "agnostic": {"agnostic": True}}
    options = given.get(change, {})
    whole = detect_raster(path, ByPatch(), Outputs(tmp_path / "whole.gpkg"), DetectOptions(**options), resources=ONE)
    model, out = ByPatch(), tmp_path / "a.gpkg"

    def stop(progress: Progress) -> None:
        assert progress.stage == "detect"
        if progress.done >= whole.tiles // 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        detect_raster(path, model, Outputs(out), resources=ONE, progress=stop)
    assert not out.exists()
    before = sum(model.seen)
    steps: list[Progress] = []
    again = detect_raster(
        path, model, Outputs(out), DetectOptions(**options), resources=Resources(), progress=steps.append
    )
    assert (again.counts, again.tiles, again.skipped) == (whole.counts, whole.tiles, whole.skipped)
    if change == "nothing":
        assert "Went on with" in again.notes[-1]
        assert sum(model.seen) - before < whole.tiles * 0.8
        one, two = (gpd.read_file(tmp_path / name, layer=name[:-5]) for name in ("a.gpkg", "whole.gpkg"))
        assert one.equals(two)
    else:
        assert f"other settings ({change})" in caplog.text
        same(read(out), read(tmp_path / "whole.gpkg"))
    assert {step.stage for step in steps} == {"detect", "write"}


SCRIPT = """
import sys, time
from pathlib import Path
from tests.inference.fake_detector import ByPatch
from tests.inference.test_detections import ONE
from torchgeo_debias.inference.detections import detect_raster
from torchgeo_debias.inference.mapping import Outputs

class Slow(ByPatch):
    def predict(self, images, valid):
        time.sleep(0.01)
        return super().predict(images, valid)

detect_raster(Path(sys.argv[1]), Slow(oriented=True), Outputs(Path(sys.argv[2])), resources=ONE)
"""


def test_killed_at_any_time_it_ends_the_same(tmp_path: Path) -> None:
    path = long_scene(tmp_path / "m.tif")
    whole: ClassifySummary = detect_raster(
        path, ByPatch(oriented=True), Outputs(tmp_path / "whole.gpkg"), resources=ONE
    )
    out = tmp_path / "out" / "whole.gpkg"
    out.parent.mkdir()
    journal = out.parent / "whole.gpkg.partial" / "journal.jsonl"
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, path, out])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not out.exists()
    again = detect_raster(path, ByPatch(oriented=True), Outputs(out), resources=ONE)
    assert "Went on" in again.notes[-1]
    assert again.counts == whole.counts
    one, two = (gpd.read_file(file, layer="whole") for file in (out, tmp_path / "whole.gpkg"))
    assert one.equals(two)
    assert os.listdir(out.parent) == ["whole.gpkg"]


def test_a_job_can_be_sent_to_another_process(tmp_path: Path) -> None:
    from torchgeo_debias.inference.detections import _job

    path = write_scene(tmp_path / "m.tif", random_scene(2, 90, 90, 10, 14), 90, 90)
    with RasterSource(path) as source:
        job = _job(source, ByPatch(gsd=4.0), Outputs(tmp_path / "a.gpkg"), DetectOptions(min_score=0))
        copied = pickle.loads(pickle.dumps((job.source, job.wanted, job.task)))
        assert copied[0].grid == job.source.grid
        images, valid = np.zeros((2, 1, 64, 64), np.uint8), np.ones((2, 64, 64), bool)
        images[1, 0, 4:9, 4:9] = 5
        (answer,) = pickle.loads(pickle.dumps(copied[2].predict(images, valid)))
    assert [len(found.boxes) for found in answer] == [0, 2]

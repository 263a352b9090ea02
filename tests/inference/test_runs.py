"""Runs that are interrupted, killed, repeated, or over many rasters."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin
from shapely import box

from tests.inference.fakes import ByColour, mosaic
from tests.tiling.rasters import write_raster
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import Cancelled, ConfigError, LabelError, OutputError, RasterError
from torchgeo_debias.inference.mapping import MapJob, MapOptions, OutputFormats, Outputs, Resources
from torchgeo_debias.inference.rasters import classify_raster, classify_rasters
from torchgeo_debias.progress import Progress
from torchgeo_debias.tiling.journal import locked
from torchgeo_debias.tiling.source import RasterSource

SPEC = ChipSpec(size=8, window=16)
ONE = Resources(batch_size=5, workers=1, threads=1)


def scene(path: Path, rows: int = 150, seed: int = 0, **options: Any) -> Path:
    ids = np.random.default_rng(seed).integers(0, 4, (rows, 6))
    return write_raster(path, mosaic(ids, 16, np.random.default_rng(1)), **options)


def outputs(folder: Path) -> Outputs:
    folder.mkdir(exist_ok=True)
    return Outputs(folder / "a.gpkg", folder / "a.tif", folder / "s.tif")


def stop_after(tiles: int) -> Any:
    def tell(progress: Progress) -> None:
        if progress.done >= tiles:
            raise Cancelled("stopped")

    return tell


def same(one: Path, two: Path) -> None:
    assert (one / "a.tif").read_bytes() == (two / "a.tif").read_bytes()
    assert (one / "s.tif").read_bytes() == (two / "s.tif").read_bytes()
    frames = [gpd.read_file(folder / "a.gpkg", layer="a") for folder in (one, two)]
    assert frames[0].equals(frames[1])
    assert sorted(os.listdir(one)) == sorted(os.listdir(two))


@pytest.mark.parametrize("overlap", [0.0, 0.6])
def test_a_cancelled_run_goes_on_and_ends_the_same(tmp_path: Path, overlap: float) -> None:
    path = scene(tmp_path / "m.tif")
    options = MapOptions(overlap=overlap, keep_background=True)
    whole = classify_raster(path, ByColour(SPEC, twin=True), outputs(tmp_path / "whole"), options, resources=ONE)
    model = ByColour(SPEC, twin=True)
    parts = outputs(tmp_path / "parts")
    with pytest.raises(Cancelled):
        classify_raster(path, model, parts, options, resources=ONE, progress=stop_after(whole.tiles * 2 // 3))
    assert os.listdir(tmp_path / "parts") == ["a.gpkg.partial"]
    before = sum(model.calls)
    steps: list[Progress] = []
    again = classify_raster(path, model, parts, options, resources=Resources(), progress=steps.append)
    same(tmp_path / "whole", tmp_path / "parts")
    assert (again.counts, again.tiles, again.skipped) == (whole.counts, whole.tiles, whole.skipped)
    assert "Went on with" in again.notes[-1]
    assert sum(model.calls) - before < whole.tiles * 2 / 3
    assert steps[0].done > whole.tiles / 4
    assert [step.done for step in steps if step.stage == "classify"][-1] == whole.tiles
    assert steps[-1].stage == "write"
    assert steps[-1].done == steps[-1].total


@pytest.mark.parametrize("change", ["option", "model", "raster", "output", "batch"])
def test_a_changed_run_starts_afresh_and_says_so(tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    path = scene(tmp_path / "m.tif")
    model, options, results = ByColour(SPEC), MapOptions(), outputs(tmp_path / "out")
    with pytest.raises(Cancelled):
        classify_raster(path, model, results, options, resources=ONE, progress=stop_after(600))
    if change == "option":
        options = MapOptions(min_score=0.1)
    elif change == "model":
        model = ByColour(SPEC, sure=0.8)
    elif change == "raster":
        os.utime(path, ns=(1, 1))
    elif change == "output":
        results = Outputs(results.layer, results.class_map, None)
    means = Resources(6, 1, 1) if change == "batch" else ONE
    summary = classify_raster(path, model, results, options, resources=means)
    assert not any("Went on" in note for note in summary.notes)
    wanted = {"option": "min-score", "model": "model", "output": "results", "batch": "batch-size"}.get(change)
    words = "raster has changed" if wanted is None else f"other settings ({wanted})"
    assert f"{words}: starting" in caplog.text


def test_a_tile_that_fails_in_the_middle_of_the_file_keeps_what_was_done(tmp_path: Path) -> None:
    path = scene(tmp_path / "m.tif", compress="deflate", blockysize=64)
    good = path.read_bytes()
    with rasterio.open(path) as dataset:
        wanted = dataset.read()
    broken = bytearray(good)
    middle = len(good) * 3 // 4
    broken[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(broken))
    stamp = path.stat().st_mtime_ns
    results = outputs(tmp_path / "out")
    with pytest.raises(RasterError, match="cannot be read at columns"):
        classify_raster(path, ByColour(SPEC), results, resources=ONE)
    assert os.listdir(tmp_path / "out") == ["a.gpkg.partial"]
    path.write_bytes(good)
    os.utime(path, ns=(stamp, stamp))
    summary = classify_raster(path, ByColour(SPEC), results, resources=ONE)
    assert "Went on" in summary.notes[-1]
    assert wanted.shape[1:] == rasterio.open(results.class_map).shape


def test_disk_space_is_looked_at_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "m.tif", rows=4)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    model = ByColour(SPEC)
    with pytest.raises(OutputError, match=r"needs about .* GB, but 0\.0 GB are free"):
        classify_raster(path, model, outputs(tmp_path / "out"), resources=ONE)
    assert model.calls == []
    assert os.listdir(tmp_path / "out") == []


SCRIPT = """
import sys, time
from pathlib import Path
from tests.inference.fakes import ByColour
from tests.inference.test_runs import ONE, SPEC, outputs
from torchgeo_debias.inference.mapping import MapOptions
from torchgeo_debias.inference.rasters import classify_raster

class Slow(ByColour):
    def predict(self, images, valid):
        time.sleep(0.002)
        return super().predict(images, valid)

classify_raster(Path(sys.argv[1]), Slow(SPEC, twin=True), outputs(Path(sys.argv[2])),
                MapOptions(overlap=0.5, keep_background=True), resources=ONE)
"""


def start(raster: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, raster, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def journal_lines(folder: Path) -> int:
    path = folder / "a.gpkg.partial" / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_at_any_time_it_ends_the_same(tmp_path: Path) -> None:
    path = scene(tmp_path / "m.tif")
    options = MapOptions(overlap=0.5, keep_background=True)
    classify_raster(path, ByColour(SPEC, twin=True), outputs(tmp_path / "whole"), options, resources=ONE)
    rng = random.Random(0)
    for kill in range(2):
        run = start(path, tmp_path / "parts")
        deadline = time.monotonic() + 60
        while journal_lines(tmp_path / "parts") < 3 + kill and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not any((tmp_path / "parts" / name).exists() for name in ("a.gpkg", "a.tif", "s.tif"))
    again = classify_raster(path, ByColour(SPEC, twin=True), outputs(tmp_path / "parts"), options, resources=ONE)
    assert "Went on" in again.notes[-1]
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_second_run_on_one_output_is_refused(tmp_path: Path) -> None:
    path = scene(tmp_path / "m.tif")
    first = start(path, tmp_path / "out")
    while journal_lines(tmp_path / "out") == 0 and first.poll() is None:
        time.sleep(0.01)
    with pytest.raises(OutputError, match="Another run is writing"):
        classify_raster(path, ByColour(SPEC), outputs(tmp_path / "out"), resources=ONE)
    assert first.wait(timeout=120) == 0
    assert (tmp_path / "out" / "a.gpkg").exists()


def test_many_rasters_each_become_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [scene(folder / f"{name}.tif", rows=3, seed=seed) for seed, name in enumerate("abc")]
    formats = OutputFormats(".fgb", class_map=True, scores=True)
    steps: list[Progress] = []
    summary = classify_rasters(
        [folder], ByColour(SPEC), tmp_path / "out", formats, MapOptions(keep_background=True), resources=ONE,
        progress=steps.append,
    )  # fmt: skip
    names = [f"{n}{e}" for n in "abc" for e in (".fgb", "_classes.tif", "_classes.tif.aux.xml", "_scores.tif")]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    assert (summary.tiles, sum(summary.counts.values()), len(summary.files)) == (54, 54, 9)
    assert [step.done for step in steps if step.stage == "classify"][-1] == 54
    for path in paths:
        single = Outputs(class_map=tmp_path / f"{path.stem}.tif")
        classify_raster(path, ByColour(SPEC), single, resources=ONE)
        many = tmp_path / "out" / f"{path.stem}_classes.tif"
        assert many.read_bytes() == (tmp_path / f"{path.stem}.tif").read_bytes()


def test_many_rasters_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    paths = [scene(tmp_path / f"{name}.tif", rows=3, seed=seed) for seed, name in enumerate("abc")]
    model, out = ByColour(SPEC), tmp_path / "out"
    with pytest.raises(Cancelled):
        classify_rasters(paths, model, out, resources=ONE, progress=stop_after(40))
    assert (out / "a.gpkg").exists()
    assert not (out / "c.gpkg").exists()
    stamp, before = (out / "a.gpkg").stat().st_mtime_ns, sum(model.calls)
    summary = classify_rasters(paths, model, out, resources=ONE)
    assert (out / "a.gpkg").stat().st_mtime_ns == stamp
    assert sum(model.calls) - before <= 36
    assert summary.tiles == 54
    fresh = classify_rasters(paths, ByColour(SPEC), tmp_path / "fresh", resources=ONE)
    assert (summary.counts, summary.skipped) == (fresh.counts, fresh.skipped)
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "fresh"))


def test_a_broken_raster_does_not_stop_the_others(tmp_path: Path) -> None:
    paths = [scene(tmp_path / f"{name}.tif", rows=3, seed=seed) for seed, name in enumerate("abc")]
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 32, 32), np.uint8), nodata=0)
    with pytest.raises(RasterError, match=r"1 of 4 rasters .* the others are complete.*b\.tif"):
        classify_rasters([*paths, empty], ByColour(SPEC), tmp_path / "out", resources=ONE)
    summary = classify_rasters([paths[0], empty], ByColour(SPEC), tmp_path / "two", resources=ONE)
    assert os.listdir(tmp_path / "two") == ["a.gpkg"]
    assert "Without data, so without files: empty." in summary.notes
    assert (tmp_path / "out" / "a.gpkg").exists()
    assert (tmp_path / "out" / "c.gpkg").exists()


def test_a_mended_raster_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    paths = [scene(tmp_path / f"{name}.tif", rows=3, seed=seed) for seed, name in enumerate("abc")]
    good = paths[1].read_bytes()
    paths[1].write_bytes(good[:300])
    model, out = ByColour(SPEC), tmp_path / "out"
    with pytest.raises(RasterError, match="1 of 3 rasters"):
        classify_rasters(paths, model, out, resources=ONE)
    assert sum(model.calls) == 36
    paths[1].write_bytes(good)
    summary = classify_rasters(paths, model, out, resources=ONE)
    assert sum(model.calls) == summary.tiles == sum(summary.counts.values()) == 54
    assert sorted(os.listdir(out)) == ["a.gpkg", "b.gpkg", "c.gpkg"]


def test_of_many_rasters_each_is_let_go_of_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchgeo_debias.inference import rasters

    first = scene(tmp_path / "0.tif", rows=1)
    paths = [first, *(Path(shutil.copy(first, tmp_path / f"{number}.tif")) for number in range(1, 12))]
    make, made = rasters._job, list[weakref.ref[MapJob]]()
    most = 0

    def watched(*given: Any) -> MapJob:
        nonlocal most
        job = make(*given)
        made.append(weakref.ref(job))
        most = max(most, sum(one() is not None for one in made))
        return job

    monkeypatch.setattr(rasters, "_job", watched)
    summary = classify_rasters(paths, ByColour(SPEC), tmp_path / "out", resources=ONE)
    assert (len(made), summary.tiles) == (24, 72)  # each is looked at, then mapped
    assert most <= 2


def test_many_rasters_need_no_open_file_each(tmp_path: Path) -> None:
    """Systems allow a process some hundred open files."""
    first = scene(tmp_path / "0.tif", rows=1)
    paths = [first, *(Path(shutil.copy(first, tmp_path / f"{number}.tif")) for number in range(1, 12))]
    most = 0

    def count(progress: Progress) -> None:
        nonlocal most
        locks = [name for name in os.listdir(tmp_path / "out") if name.endswith(".lock")]
        most = max(most, len(locks))

    formats = OutputFormats(class_map=True, scores=True)
    classify_rasters(paths, ByColour(SPEC), tmp_path / "out", formats, resources=ONE, progress=count)
    assert 0 < most <= 4  # of the folder, and of the three results of one raster


def test_two_runs_into_one_folder_are_refused_whatever_they_do(tmp_path: Path) -> None:
    path, out = scene(tmp_path / "m.tif", rows=1), tmp_path / "out"
    out.mkdir()
    with locked([out]), pytest.raises(OutputError, match=r"Another run is writing .*out right now"):
        classify_rasters([path], ByColour(SPEC), out, resources=ONE)
    assert os.listdir(out) == []


def test_a_raster_that_is_gone_when_its_turn_comes_does_not_stop_the_others(tmp_path: Path) -> None:
    paths = [scene(tmp_path / f"{name}.tif", rows=1) for name in "abc"]

    def lose(progress: Progress) -> None:
        paths[1].unlink(missing_ok=True)

    with pytest.raises(RasterError, match=r"1 of 3 rasters .* no raster at .*b\.tif"):
        classify_rasters(paths, ByColour(SPEC), tmp_path / "out", resources=ONE, progress=lose)
    assert {"a.gpkg", "c.gpkg"} <= set(os.listdir(tmp_path / "out"))


def test_an_overlap_with_which_a_run_would_take_for_ever_is_refused() -> None:
    for overlap in (0.91, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"overlap of tiles must lie between 0 and 0\.9"):
            MapOptions(overlap=overlap)
    assert MapOptions(overlap=0.9).overlap == 0.9


def test_an_area_passes_rasters_over(tmp_path: Path) -> None:
    near = scene(tmp_path / "near.tif", rows=3)
    far = scene(tmp_path / "far.tif", rows=3, transform=from_origin(600_000, 5_400_000, 2, 2))
    area = (500_000, 5_399_900, 500_100, 5_400_000)
    summary = classify_rasters(
        [near, far], ByColour(SPEC), tmp_path / "out", options=MapOptions(area=area), resources=ONE
    )
    assert os.listdir(tmp_path / "out") == ["near.gpkg"]
    assert 0 < summary.tiles < 18
    assert "1 rasters lie outside the area." in summary.notes
    with pytest.raises(LabelError, match="meets none of the 2 rasters"):
        classify_rasters([near, far], ByColour(SPEC), tmp_path / "out", options=MapOptions(area=(0, 0, 1, 1)))


def test_the_area_is_read_once_for_all_rasters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [scene(tmp_path / f"{name}.tif", rows=1) for name in "abc"]
    area = tmp_path / "area.gpkg"
    for layer in ("first", "second"):
        frame = gpd.GeoDataFrame(geometry=[box(500_000, 5_399_900, 500_100, 5_400_000)], crs="EPSG:32632")
        frame.to_file(area, layer=layer, mode="a")
    options = MapOptions(area=area)
    classify_rasters(paths, ByColour(SPEC), tmp_path / "out", options=options, resources=ONE)
    assert caplog.text.count("taking first for the area") == 1
    assert options == MapOptions(area=area)


def test_rasters_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    paths = [scene(tmp_path / "a.tif", rows=1), scene(tmp_path / "two" / "a.tif", rows=1)]
    with pytest.raises(ConfigError, match="Two rasters are called a"):
        classify_rasters(paths, ByColour(SPEC), tmp_path / "out", resources=ONE)


def test_no_input_is_destroyed(tmp_path: Path) -> None:
    path = scene(tmp_path / "m.tif", rows=2)
    before = path.read_bytes()
    vrt = tmp_path / "v.vrt"
    rasterio.shutil.copy(path, vrt, driver="VRT")
    area = tmp_path / "area.gpkg"
    gpd.GeoDataFrame(geometry=[box(500_000, 5_399_000, 501_000, 5_400_000)], crs="EPSG:32632").to_file(area)
    with RasterSource(path) as source:
        for raster, results, options in (
            (vrt, Outputs(class_map=path), MapOptions()),
            (source, Outputs(class_map=path), MapOptions()),
            (path, Outputs(area), MapOptions(area=area)),
        ):
            with pytest.raises(OutputError, match="would destroy the input"):
                classify_raster(raster, ByColour(SPEC), results, options, resources=ONE)
    assert path.read_bytes() == before


def test_one_file_of_two_runs_is_refused_too(tmp_path: Path) -> None:
    path = scene(tmp_path / "m.tif", rows=2)
    results = outputs(tmp_path / "out")
    with locked([tmp_path / "out" / "s.tif"]), pytest.raises(OutputError, match=r"Another run is writing .*s\.tif"):
        classify_raster(path, ByColour(SPEC), results, resources=ONE)
    classify_raster(path, ByColour(SPEC), results, resources=ONE)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.gpkg", "a.tif", "a.tif.aux.xml", "s.tif"]


def test_the_same_raster_by_another_path_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "m.tif")
    model, results = ByColour(SPEC), outputs(tmp_path / "out")
    with pytest.raises(Cancelled):
        classify_raster(path, model, results, resources=ONE, progress=stop_after(600))
    monkeypatch.chdir(tmp_path)
    summary = classify_raster(Path("m.tif"), model, results, resources=ONE)
    assert "Went on with" in summary.notes[-1]
    assert sum(model.calls) < 1.6 * summary.tiles


def test_a_score_at_the_threshold_stays_with_any_overlap(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", np.full((3, 160, 160), 200, np.uint8))
    for overlap in (0.0, 0.3, 0.6):
        options = MapOptions(overlap=overlap, min_score=0.7, keep_background=True)
        classify_raster(path, ByColour(SPEC, sure=0.7), Outputs(class_map=tmp_path / "a.tif"), options, resources=ONE)
        with rasterio.open(tmp_path / "a.tif") as found:
            assert (found.read(1) < 255).all()


def test_another_batch_size_leaves_finished_rasters_alone(tmp_path: Path) -> None:
    paths = [scene(tmp_path / f"{name}.tif", rows=3, seed=seed) for seed, name in enumerate("abc")]
    model, out = ByColour(SPEC), tmp_path / "out"
    with pytest.raises(Cancelled):
        classify_rasters(paths, model, out, resources=ONE, progress=stop_after(40))
    before = sum(model.calls)
    summary = classify_rasters(paths, model, out, resources=Resources(4, 1, 1))
    assert sum(model.calls) - before <= 36
    assert sum(summary.counts.values()) == 54

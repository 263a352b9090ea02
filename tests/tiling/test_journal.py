from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiling.disks import disk_of, small_disk
from torchgeo_debias.errors import Cancelled, OutputError
from torchgeo_debias.tiling.journal import SUFFIX, Journal, Key, require_space
from torchgeo_debias.tiling.parts import Part

RUN = {"model": "abc", "overlap": 0.5, "rasters": [{"files": [["a\nb\u2028ä.tif", 12, 34]]}]}
SETTINGS = {"batch_size": 8, "workers": 2}


def part(band: int) -> Part:
    return {"ids": np.full((3, 5), band, dtype=np.uint8), "scores": np.arange(band, dtype=np.float32)}


def bands(journal: Journal, raster: int = 0) -> list[int]:
    """The bands of one raster that the journal holds, each checked for what is in it."""
    found = []
    for done in journal.parts(raster):
        band = int(done["ids"][0, 0])
        np.testing.assert_array_equal(done["ids"], part(band)["ids"])
        np.testing.assert_array_equal(done["scores"], part(band)["scores"])
        found.append(band)
    return found


def folder_of(output: Path) -> Path:
    return output.with_name(f"{output.name}{SUFFIX}")


def never() -> dict[str, int]:
    pytest.fail("settings were chosen again")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "tiles.gpkg"


@pytest.fixture
def begun(output: Path) -> Path:
    """An output of which the bands 0, 1 and 2 are done."""
    with Journal(output, RUN) as journal:
        journal.settings(lambda: SETTINGS)
        for band in range(3):
            journal.add(Key(0, band), part(band))
    return output


def test_a_fresh_run_and_nothing_left(output: Path) -> None:
    with Journal(output, RUN) as journal:
        assert journal.count(0) == 0
        assert bands(journal) == []
        assert Key(0, 1) not in journal
        for band in (2, 0, 1):  # in any order
            journal.add(Key(0, band), part(band))
        journal.add(Key(1, 0), part(9))
        assert Key(0, 1) in journal
        assert Key(1, 1) not in journal
        assert bands(journal) == [0, 1, 2]
        assert bands(journal, 1) == [9]
        assert [set(done) for done in journal.parts(0, ["ids"])] == [{"ids"}] * 3
        journal.remove()
        assert bands(journal) == [0, 1, 2]
    assert list(output.parent.iterdir()) == []


def test_an_interrupted_run_goes_on(begun: Path) -> None:
    with suppress(Cancelled), Journal(begun, RUN) as journal:
        assert journal.count(0) == 3
        assert bands(journal) == [0, 1, 2]
        journal.add(Key(0, 3), part(3))
        raise Cancelled("stop")
    with Journal(begun, json.loads(json.dumps(RUN))) as journal:
        assert journal.count(0) == 4
        assert bands(journal) == [0, 1, 2, 3]


def test_nothing_is_left_where_no_band_was_finished(output: Path) -> None:
    with suppress(Cancelled), Journal(output, RUN) as journal:
        journal.settings(lambda: SETTINGS)
        raise Cancelled("stop")
    assert list(output.parent.iterdir()) == []


def test_settings_are_kept(begun: Path) -> None:
    for _ in range(2):
        with Journal(begun, RUN) as journal:
            assert journal.settings(never) == SETTINGS
            assert journal.settings(never) == SETTINGS


def test_cut_at_every_byte(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    with Journal(output, {}) as journal:
        journal.settings(lambda: {"n": 1})
        journal.add(Key(0, 0), part(0))
        journal.add(Key(1, 0), part(5))
        journal.finish(1, {"n": 7})
        journal.add(Key(0, 1), part(1))
    kept = {file.name: file.read_bytes() for file in folder_of(output).iterdir()}
    whole = kept.pop("journal.jsonl")
    ends = [i + 1 for i in range(len(whole)) if whole[i : i + 1] == b"\n"]
    assert len(ends) == 6
    # What comes after the cut where the power failed: nothing, or zeros that were never written over.
    for length, rest in [*((length, b"") for length in range(len(whole) + 1)), *((end, b"\0" * 9) for end in ends)]:
        for name, data in kept.items():
            if not (folder_of(output) / name).exists():
                (folder_of(output) / name).write_bytes(data)
        (folder_of(output) / "journal.jsonl").write_bytes(whole[:length] + rest)
        lines = sum(end <= length for end in ends)
        with Journal(output, {}) as journal:
            expected = [band for band, line in ((0, 3), (1, 6)) if lines >= line]
            assert bands(journal) == expected
            assert bands(journal, 1) == []  # its file went with the end of the raster
            assert journal.finished(1) == ({"n": 7} if lines >= 5 else None)
            settings = {"n": 1 if lines >= 2 else 2}
            assert journal.settings(lambda: {"n": 2}) == settings
            for band in {0, 1, 2} - set(expected):
                journal.add(Key(0, band), part(band))
        with Journal(output, {}) as journal:
            assert bands(journal) == [0, 1, 2]
            assert journal.settings(never) == settings


@pytest.mark.parametrize("harm", ["missing", "empty", "short", "flipped"])
def test_a_part_that_was_lost_is_done_again(begun: Path, harm: str) -> None:
    file = folder_of(begun) / "0-000001.npz"
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "short": data[:-1], "flipped": data[:90] + b"?" + data[91:]}[harm])
    for expected in ([0, 2], [0, 1, 2]):
        with Journal(begun, RUN) as journal:
            assert journal.count(0) == len(expected)
            assert bands(journal) == expected
            if 1 not in expected:
                journal.add(Key(0, 1), part(1))
                assert bands(journal) == [0, 1, 2]


def test_other_inputs_or_options_start_afresh_and_say_so(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {**RUN, "overlap": 0.25, "area": "x"}
    with caplog.at_level(logging.WARNING), Journal(begun, other) as journal:
        assert journal.count(0) == 0
        assert bands(journal) == []
        assert {file.name for file in journal.folder.iterdir()} == {"journal.jsonl", "lock"}
        assert journal.settings(lambda: {"batch_size": 1}) == {"batch_size": 1}
        journal.add(Key(0, 5), part(5))
    assert "(area, overlap)" in caplog.text
    assert str(begun) in caplog.text
    with Journal(begun, other) as journal:
        assert bands(journal) == [5]


@pytest.mark.parametrize("header", [{"version": 0}, {"format": "other"}], ids=["version", "format"])
def test_a_journal_of_another_version_is_of_no_use(begun: Path, header: dict[str, Any]) -> None:
    file = folder_of(begun) / "journal.jsonl"
    first, rest = file.read_text().split("\n", 1)
    file.write_text(json.dumps(json.loads(first) | header) + "\n" + rest)
    with Journal(begun, RUN) as journal:
        assert journal.count(0) == 0
        journal.add(Key(0, 1), part(1))
    with Journal(begun, RUN) as journal:
        assert bands(journal) == [1]


def test_a_finished_raster_is_remembered_without_its_bands(output: Path) -> None:
    with Journal(output, RUN) as journal:
        for raster in range(3):
            journal.add(Key(raster, 0), part(raster))
        file = journal.folder / "1-000000.npz"
        data = file.read_bytes()
        journal.finish(1, {"done": 4, "counts": [1, 2]})
        journal.discard(2)
        assert (bands(journal, 0), bands(journal, 1), bands(journal, 2)) == ([0], [], [])
        assert Key(2, 0) not in journal
        assert {file.name for file in journal.folder.iterdir()} == {"journal.jsonl", "lock", "0-000000.npz"}
    file.write_bytes(data)  # as after a kill just before it was removed
    with Journal(output, RUN) as journal:
        assert [journal.finished(raster) for raster in range(3)] == [None, {"done": 4, "counts": [1, 2]}, None]
        assert (bands(journal, 0), bands(journal, 1), bands(journal, 2)) == ([0], [], [])
        journal.discard(0)
    with Journal(output, RUN) as journal:  # the finished raster alone is worth keeping the folder
        assert journal.count(0) == 0
        assert journal.finished(1) == {"done": 4, "counts": [1, 2]}


def test_a_finished_raster_can_be_done_again(output: Path) -> None:
    with Journal(output, RUN) as journal:
        journal.add(Key(0, 0), part(0))
        journal.finish(0, {"done": 1})
        assert bands(journal) == []
        journal.add(Key(0, 1), part(1))
        assert bands(journal) == [1]
    with Journal(output, RUN) as journal:
        assert bands(journal) == [1]
        journal.finish(0, {"done": 2})
        assert journal.finished(0) == {"done": 2}
    with Journal(output, RUN) as journal:
        assert bands(journal) == []
        assert journal.finished(0) == {"done": 2}


HOLDER = """
import sys, time
import numpy as np
from pathlib import Path
from tests.tiling.test_journal import RUN, part
from torchgeo_debias.tiling.journal import Journal, Key

with Journal(Path(sys.argv[1]), RUN) as journal:
    journal.add(Key(0, 1), part(1))
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_dies(output: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(OutputError, match=r"Another run is writing .*tiles.gpkg"):
                Journal(output, RUN)
            with pytest.raises(OutputError, match="Another run"):
                Journal(output, {"other": "run"})
            Journal(output.with_name("other.gpkg"), RUN).__exit__(None, None, None)
        finally:
            holder.send_signal(signal.SIGKILL)
    with Journal(output, RUN) as journal:
        assert bands(journal) == [1]


def test_two_runs_of_one_process_do_not_mix_either(output: Path) -> None:
    with Journal(output, RUN) as journal:
        with pytest.raises(OutputError, match="Another run"):
            Journal(output, RUN)
        journal.add(Key(0, 0), part(0))
    with Journal(output, RUN) as journal:
        assert bands(journal) == [0]
        journal.remove()
    with Journal(output, RUN) as journal:
        assert journal.count(0) == 0


@pytest.mark.parametrize(
    "names", [["notes.txt"], ["journal.jsonl", "notes.txt"], ["numbers.npz"], ["0-000001.npz", "1.npz"], ["lock/"]]
)
def test_a_folder_of_something_else_is_left_alone(output: Path, names: list[str]) -> None:
    folder_of(output).mkdir()
    for name in names:
        if name.endswith("/"):
            (folder_of(output) / name).mkdir()
        else:
            (folder_of(output) / name).write_text("mine")
    before = sorted(folder_of(output).iterdir())
    with pytest.raises(OutputError, match="is something else"):
        Journal(output, RUN)
    assert sorted(folder_of(output).iterdir()) == before
    assert all(file.is_dir() or file.read_text() == "mine" for file in before)


def test_a_file_of_that_name_is_left_alone(output: Path) -> None:
    folder_of(output).write_text("mine")
    with pytest.raises(OutputError, match="is something else"):
        Journal(output, RUN)
    assert folder_of(output).read_text() == "mine"


def test_an_empty_folder_is_taken(output: Path) -> None:
    folder_of(output).mkdir()
    with Journal(output, RUN) as journal:
        journal.add(Key(0, 0), part(0))
        assert bands(journal) == [0]


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "gone" / "a.gpkg", tmp_path / "file" / "a.gpkg"):
        with pytest.raises(OutputError, match=r"a.gpkg failed .*run the same again"):
            Journal(output, RUN)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with Journal(begun, RUN) as journal:
        monkeypatch.setattr("torchgeo_debias.tiling.journal.open", refuse, raising=False)
        with pytest.raises(OutputError, match="Permission denied"):
            journal.add(Key(0, 3), part(3))
    monkeypatch.undo()
    with Journal(begun, RUN) as journal:
        assert bands(journal) == [0, 1, 2]


def test_no_room_for_a_part(begun: Path) -> None:
    large = {"scores": np.random.default_rng(0).random(2000)}
    with Journal(begun, RUN) as journal, disk_of(8_000):
        with pytest.raises(OutputError, match=r"tiles.gpkg failed .*what is finished is kept: make room"):
            journal.add(Key(0, 3), large)
    with Journal(begun, RUN) as journal:
        assert bands(journal) == [0, 1, 2]
        journal.add(Key(0, 3), part(3))
    with Journal(begun, RUN) as journal:
        assert bands(journal) == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [0, 1, 40])
@pytest.mark.parametrize("lasting", [True, False])
def test_no_room_for_a_line(output: Path, room: int, lasting: bool) -> None:
    run = RUN | {"long": "x" * 20_000}
    with Journal(output, run) as journal:
        journal.add(Key(0, 0), part(0))
    size = (folder_of(output) / "journal.jsonl").stat().st_size
    with disk_of(size + room) if lasting else nullcontext(), Journal(output, run) as journal:
        with pytest.raises(OutputError, match="make room"), disk_of(size + room):
            journal.add(Key(0, 1), part(1))
    with Journal(output, run) as journal:
        done = bands(journal)
        assert done == [0] or (done == [0, 1] and not lasting)
        journal.add(Key(0, 2), part(2))
    with Journal(output, run) as journal:
        assert bands(journal) == [*done, 2]
        journal.remove()
    assert not folder_of(output).exists()


def test_an_error_of_the_disk_itself(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    with Journal(begun, RUN) as journal:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            journal.add(Key(0, 3), part(3))
    monkeypatch.undo()
    with Journal(begun, RUN) as journal:
        assert bands(journal) == [0, 1, 2]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 128 * 1024) as folder:
        yield folder


def test_a_full_disk(disk: Path) -> None:
    output = disk / "tiles.gpkg"

    def fill(journal: Journal) -> None:
        for band in range(1, 99):
            journal.add(Key(0, band), part(band))

    with Journal(output, RUN) as journal:
        journal.add(Key(0, 0), part(0))
        (disk / "other").write_bytes(bytes(100 * 1024))
        with pytest.raises(OutputError, match=r"No space left on device.*make room"):
            fill(journal)
    with Journal(output, RUN) as journal:
        count = journal.count(0)
        assert bands(journal) == [*range(count)]
        with pytest.raises(OutputError, match="No space left on device"):
            journal.settings(lambda: {"long": "x" * 9000})
    (disk / "other").unlink()
    with Journal(output, RUN) as journal:
        assert bands(journal) == [*range(count)]
        assert count > 1
        journal.add(Key(0, count), part(count))
    with Journal(output, RUN) as journal:
        assert bands(journal) == [*range(count + 1)]
        journal.remove()
    assert list(disk.iterdir()) == []


def test_a_disk_that_is_full_from_the_start(disk: Path) -> None:
    with suppress(OSError), open(disk / "other", "wb") as file:
        file.write(bytes(200 * 1024))
    with pytest.raises(OutputError, match="No space left on device"):
        Journal(disk / "tiles.gpkg", RUN)
    (disk / "other").unlink()
    with Journal(disk / "tiles.gpkg", RUN) as journal:
        journal.add(Key(0, 0), part(0))
        assert bands(journal) == [0]


def test_room_is_asked_for_beforehand(tmp_path: Path) -> None:
    require_space(tmp_path, 1, tmp_path / "a.gpkg")
    with pytest.raises(OutputError, match=r"a.gpkg needs about 9000000000.0 GB, but \d+\.\d GB are free"):
        require_space(tmp_path, 9 * 10**18, tmp_path / "a.gpkg")

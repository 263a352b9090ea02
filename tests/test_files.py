"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from torchgeo_debias.errors import Cancelled, OutputError
from torchgeo_debias.files import atomic, make_folder


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "map.v2.tif"
    target.write_text("old")
    with atomic(target) as part:
        assert (part.parent, part.suffix) == (tmp_path, ".tif")
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert tiny.listing(tmp_path) == ["map.v2.tif"]


@pytest.mark.parametrize("error", [Cancelled("stopped"), KeyboardInterrupt(), ValueError("odd")])
def test_any_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "map.tif"
    target.write_text("old")
    with pytest.raises(type(error)):
        _write_half(target, error)
    assert target.read_text() == "old"
    assert tiny.listing(tmp_path) == ["map.tif"]


def _write_half(target: Path, error: BaseException) -> None:
    with atomic(target) as part:
        part.write_text("half")
        raise error


@pytest.mark.parametrize("place", ["file/map.tif", "none/map.tif", "folder"])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=f"{place} cannot be written .*; choose another place") as caught:
        with atomic(tmp_path / place) as part:
            part.write_text("new")
    assert "\n" not in str(caught.value)
    assert tiny.listing(tmp_path) == ["file", "folder"]


def test_errors_without_a_number_keep_their_words(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the driver gave up"), atomic(tmp_path / "map.tif"):
        raise OSError("the driver gave up")


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert tiny.listing(tmp_path) == ["a", "a/b"]
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/deeper"):
        with pytest.raises(OutputError, match=f"The folder .*{place} cannot be written to"):
            make_folder(tmp_path / place)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_not_even_root_can_write_into_every_folder() -> None:
    with pytest.raises(OutputError, match="cannot be written to"):
        make_folder(Path("/proc/self"))

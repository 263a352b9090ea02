from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchgeo_debias.errors import OutputError
from torchgeo_debias.inference.results import check_overwrite


def test_an_input_is_known_under_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "a.tif"
    own.write_text("pixels")
    (tmp_path / "soft.tif").symlink_to(own)
    os.link(own, tmp_path / "hard.tif")
    monkeypatch.chdir(tmp_path)
    for name in (own, tmp_path / "soft.tif", tmp_path / "hard.tif", Path("a.tif"), tmp_path / "x" / ".." / "a.tif"):
        with pytest.raises(OutputError, match="would destroy the input"):
            check_overwrite([tmp_path / "b.tif", own], [tmp_path / "new.tif", name])


def test_others_may_be_written(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_text("same")
    check_overwrite([tmp_path / "a.tif", tmp_path / "none.tif"], [tmp_path / "b.tif", tmp_path / "new.tif"])
    check_overwrite([], [tmp_path / "a.tif"])
    with pytest.raises(OutputError):  # not there yet, but the same place
        check_overwrite([tmp_path / "none.tif"], [tmp_path / "x" / ".." / "none.tif"])

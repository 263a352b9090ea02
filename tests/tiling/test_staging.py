"""Names of results, links to them, and what others left beside them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import pyogrio
import pytest

from tests.tiling.rasters import UTM
from tests.tiling.test_layers import FIELDS, every_format, features, read, write
from torchgeo_debias.errors import OutputError
from torchgeo_debias.tiling.layers import check_layer_path, write_layer
from torchgeo_debias.tiling.staging import Staging, clear_leftovers


def test_leftovers_of_a_killed_process_can_be_cleared(tmp_path: Path) -> None:
    (tmp_path / "link.gpkg").symlink_to(tmp_path / "a[1].gpkg")
    (tmp_path / "a[1].gpkg.partial").mkdir()
    attempts = [Staging(tmp_path / name, ()) for name in ("a[1].gpkg", "link.gpkg", "b.gpkg")]
    for attempt in attempts:
        attempt.file.touch()
    clear_leftovers(tmp_path / "a[1].gpkg")
    assert set(os.listdir(tmp_path)) == {attempts[2].folder.name, "a[1].gpkg.partial", "link.gpkg"}


@every_format
@pytest.mark.parametrize(
    "stem",
    [
        "gpkg_x", "SQLite_x", "layer_styles", "-dash", "x;y", "x!y", "a\nb", 'it\'s "q"', "a[1]%s{}", "ünï code", "a.b",
        "x" * 239, "地" * 79,
    ],
)  # fmt: skip
def test_any_name_that_a_file_can_have(tmp_path: Path, ending: str, stem: str) -> None:
    path = tmp_path / f"{stem}{ending}"
    assert write(path, features(3)) == 3
    assert os.listdir(tmp_path) == [path.name]
    plain = path.rename(tmp_path / f"plain{ending}")
    found = gpd.read_parquet(plain) if ending == ".parquet" else gpd.read_file(plain, layer=0)
    assert sorted(found["class_id"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "layer"),
    [("a b-1", "a b-1"), ("2", "2"), ("-1", "layer_-1"), ("GPKG_a", "layer_GPKG_a"), ("a\nb", "a_b")],
)
def test_the_layer_is_named_like_the_file_where_it_can_be(tmp_path: Path, name: str, layer: str) -> None:
    write(tmp_path / f"{name}.gpkg", features(3))
    plain = (tmp_path / f"{name}.gpkg").rename(tmp_path / "plain.gpkg")
    assert layer in pyogrio.list_layers(plain)[:, 0]
    with sqlite3.connect(plain) as database:
        assert database.execute("SELECT f_table_name FROM layer_styles").fetchall() == [(layer,)]


def test_a_link_leads_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link.gpkg"
    link.symlink_to(Path("disk", "there.bin"))
    for n in (2, 3):
        write(link, features(n))
        assert link.readlink() == Path("disk", "there.bin")
        assert len(read(link)) == n
    assert sorted(os.listdir(tmp_path)) == ["disk", "link.gpkg"]
    assert os.listdir(tmp_path / "disk") == ["there.bin"]


def test_a_geopackage_that_is_open_elsewhere_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    write(path, features(3))
    (tmp_path / "link.gpkg").symlink_to(path)
    with closing(sqlite3.connect(path)) as elsewhere:
        elsewhere.execute("PRAGMA journal_mode = WAL")
        elsewhere.execute("CREATE TABLE more (text)")
        elsewhere.commit()
        for name in ("a.gpkg", "link.gpkg"):
            with pytest.raises(OutputError, match="close it there first"):
                check_layer_path(tmp_path / name)
    check_layer_path(path)


def test_one_that_is_opened_meanwhile_is_left_alone_too(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    write(path, features(3))

    def parts() -> Iterator[gpd.GeoDataFrame]:
        yield features(5)
        (tmp_path / "a.gpkg-wal").write_bytes(b"a page")

    with pytest.raises(OutputError, match="close it there first"):
        write_layer(path, parts(), crs=UTM, fields=FIELDS)
    (tmp_path / "a.gpkg-wal").unlink()
    assert len(read(path)) == 3
    assert os.listdir(tmp_path) == ["a.gpkg"]


def test_what_sqlite_left_beside_an_old_geopackage_is_gone_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    write(path, features(3))
    for ending, content in (("wal", b""), ("shm", bytes(32768)), ("journal", b"half a change")):
        path.with_name(f"a.gpkg-{ending}").write_bytes(content)
    write(path, features(5))
    assert os.listdir(tmp_path) == ["a.gpkg"]
    assert len(read(path)) == 5

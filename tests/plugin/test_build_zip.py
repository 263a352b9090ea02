"""The zip that QGIS installs: reproducible, and as the plugin site wants it."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import build_zip
import pytest

import torchgeo_debias

LARGEST = 25 * 2**20
"""Of the plugin site, bytes."""

WARNED = {"B101", "B110", "B404", "B603", "B608"}
"""Findings of bandit that the site only warns of: assert, try with pass, subprocess without a shell, SQL text."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zip.build(tmp_path_factory.mktemp("zip"))


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder / "debias_mapper"


def metadata() -> dict[str, str]:
    parser = configparser.ConfigParser()  # interpolates, as the site does: a bare % is an error
    parser.read(build_zip.PLUGIN / "metadata.txt", encoding="utf-8")
    return dict(parser["general"])


def test_two_builds_are_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    assert build_zip.main([str(again)]) == 0
    assert again.read_bytes() == archive.read_bytes()


def test_the_zip_has_one_folder_and_no_stray_file(archive: Path) -> None:
    assert archive.stat().st_size < LARGEST
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    assert {PurePosixPath(name).parts[0] for name in names} == {"debias_mapper"}
    assert {"debias_mapper/LICENSE", "debias_mapper/metadata.txt", "debias_mapper/__init__.py"} <= set(names)
    assert not [name for name in names if ".." in name or "\\" in name or "__pycache__" in name or "/." in name]


def test_a_stray_file_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tool.exe").touch()
    monkeypatch.setattr(build_zip, "HERE", tmp_path)
    monkeypatch.setattr(build_zip, "PLUGIN", tmp_path)
    with pytest.raises(build_zip.BuildError, match=r"tool\.exe does not belong in a plugin"):
        build_zip.build(tmp_path / "plugin.zip")
    assert not (tmp_path / "plugin.zip").exists()


def test_metadata_have_what_the_site_requires() -> None:
    found = metadata()
    required = (
        "name", "description", "version", "qgisminimumversion", "author", "email", "about", "tracker", "repository",
    )  # fmt: skip
    assert not [name for name in required if not found.get(name, "").strip()]
    assert found["hasprocessingprovider"] == "yes"
    assert found["version"] == torchgeo_debias.__version__
    assert "supportsqt6" not in found
    assert not {"plugin"} & set(found["name"].lower().split())


def test_bandit_finds_nothing_that_stops_a_plugin(unpacked: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bandit", "-q", "-r", "-f", "json", str(unpacked)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    results = json.loads(run.stdout)
    assert not results["errors"]
    found = [f"{each['filename']}:{each['line_number']} {each['test_id']}" for each in results["results"]]
    assert not [each for each in found if each.split()[-1] not in WARNED]


def test_there_are_no_secrets(unpacked: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "detect_secrets", "scan", "--all-files", "."],
        cwd=unpacked, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(json.loads(run.stdout)["results"]) <= {"metadata.txt"}


def test_flake8_finds_no_undefined_name(unpacked: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "flake8", "--isolated", "--select=F821,E9", str(unpacked)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "")

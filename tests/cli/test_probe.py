"""The verb ``probe``: what there is to compute with."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.cli.verbs import Run
from torchgeo_debias.cli import probing


def test_it_tells_what_is_there(run: Run, tmp_path: Path) -> None:
    import rasterio
    import torch

    found = run("probe", "--folder", tmp_path, "--json").json
    assert list(found) == ["versions", "platform", "device", "devices", "memory", "disk"]
    versions = found["versions"]
    assert (versions.pop("python"), versions.pop("gdal")) == (platform.python_version(), rasterio.__gdal_version__)
    assert versions == {name: version(name) for name in versions}  # the tests need the optional ones too
    assert {"torchgeo-debias", "torch", "segment-anything", "onnxruntime"} <= set(versions)

    processor = found["devices"][0]
    assert (processor["device"], processor["threads"]) == ("cpu", torch.get_num_threads())
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["device"] == found["devices"][min(torch.cuda.device_count(), 1)]["device"]

    disk = shutil.disk_usage(tmp_path)
    assert (found["disk"]["folder"], found["disk"]["total"]) == (str(tmp_path), disk.total)
    assert 0 < found["disk"]["free"] <= disk.total


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system tells it in another way")
def test_memory_is_that_of_the_machine(run: Run) -> None:
    memory = run("probe", "--json").json["memory"]
    assert memory["total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory["free"] < memory["total"]


def test_for_people(run: Run, tmp_path: Path) -> None:
    result = run("probe", "--folder", tmp_path)
    assert (result.code, result.err) == (0, "")
    lines = dict(re.split(r"\s+", line, maxsplit=1) for line in result.out.splitlines())
    assert lines["torchgeo-debias"] == version("torchgeo-debias")
    assert re.search(r"threads, [\d.]+ GiB of [\d.]+ GiB free", lines["cpu"])
    assert lines["disk"].endswith(f"free in {tmp_path}")
    assert sum("(chosen)" in line for line in lines.values()) == 1


def test_graphics_cards_are_listed_and_the_first_is_chosen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[int] = []

    def room(card: int) -> tuple[int, int]:
        asked.append(card)
        return 3 * 2**30, 8 * 2**30

    facts = type("Properties", (), {"name": "Card", "total_memory": 8 * 2**30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", room)
    found = run("probe", "--json").json
    assert found["device"] == "cuda:0"
    assert found["devices"][1:] == [
        {"device": "cuda:0", "name": "Card", "total": 8 * 2**30, "free": 3 * 2**30},
        {"device": "cuda:1", "name": "Card", "total": 8 * 2**30, "free": None},
    ]
    text = run("probe").out
    assert re.search(r"^cuda:0 +Card, 3\.0 GiB of 8\.0 GiB free \(chosen\)$", text, re.MULTILINE)
    assert re.search(r"^cuda:1 +Card, unknown of 8\.0 GiB free$", text, re.MULTILINE)
    assert asked == [0, 0]  # opening a card costs some of its memory


def test_what_is_not_installed_or_not_told_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        if name == "ray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(probing, "version", find)
    monkeypatch.setattr(probing, "_memory", lambda: {"total": None, "free": None})
    found = run("probe", "--json").json
    assert found["versions"]["ray"] is None
    assert found["memory"] == {"total": None, "free": None}
    text = run("probe").out
    assert re.search(r"^ray +not installed$", text, re.MULTILINE)
    assert "unknown of unknown free" in text


def test_a_folder_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    assert run("probe", "--folder", tmp_path / "none").sentence.startswith("There is no folder")

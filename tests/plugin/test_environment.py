from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from debias_mapper.runtime import environment, installing
from debias_mapper.runtime.client import WorkerClient
from debias_mapper.runtime.environment import (
    check,
    create,
    default_folder,
    plugin_version,
    python_of,
    read_record,
    remove,
    repair,
    space,
)
from debias_mapper.runtime.installing import Installer, Registry, SetupCancelled, Source, WheelFolder
from debias_mapper.runtime.pythons import Python, SetupError

from tests.plugin.wheels import write_library, write_wheel

BASE = Python(sys.executable, sys.version_info[:3])
WITHOUT_ENSUREPIP = "a_module_that_debian_split_off"
PROXIES = {"HTTPS_PROXY": "http://ada:s3cret@proxy:3128"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> WheelFolder:
    return WheelFolder(write_library(tmp_path_factory.mktemp("wheels") / "my whéels", plugin_version()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheels: WheelFolder) -> Path:
    """An environment that was made to its end."""
    folder = tmp_path_factory.mktemp("made") / "my data ü" / "torchgeo-debias"
    create(folder, BASE, wheels, proxies=PROXIES)
    return folder


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, wheels: WheelFolder) -> Path:
    """The same by the base's pip, as on a Debian without python3-venv; tests take a copy of it, since it is small."""
    folder = tmp_path_factory.mktemp("light")
    with pytest.MonkeyPatch.context() as debian:
        debian.setattr(installing, "ENSUREPIP", WITHOUT_ENSUREPIP)
        create(folder, BASE, wheels)
    return folder


@pytest.fixture
def folder(light: Path, tmp_path: Path) -> Path:
    """A copy: an environment finds its packages from where it is."""
    return Path(shutil.copytree(light, tmp_path / "a copy 地", symlinks=True))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test installs anything itself, the base's pip does: it is faster."""
    monkeypatch.setattr(installing, "ENSUREPIP", WITHOUT_ENSUREPIP)


@pytest.fixture
def unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are unpacked in place of a run of pip, where it is not pip's part that is tested."""

    def install(self: Installer, base: Python, venv: Path, source: Source, *_: Any) -> None:
        assert isinstance(source, WheelFolder)
        packages = next((venv / "lib").glob("*/site-packages"))
        for wheel in Path(source.path).glob("*.whl"):
            shutil.unpack_archive(wheel, packages, "zip")

    monkeypatch.setattr(Installer, "install", install)


def python_in(folder: Path) -> str:
    return str(folder / "venv" / "bin" / "python")


def test_an_environment_is_made_from_wheels_and_a_worker_runs_in_it(made: Path) -> None:
    assert python_of(made) == python_in(made)
    status = check(python_in(made))
    assert (status.ready, status.repair, status.library) == (True, False, plugin_version())
    assert status.versions["small_thing"] == "1.5"
    client = WorkerClient(python_in(made))
    assert client.run("info", [])["prefix"] == str(made / "venv")
    client.close()


def test_the_record_says_what_was_installed(made: Path) -> None:
    record = read_record(made)
    assert record is not None
    assert record["base"] == BASE.path
    assert record["source"] == "folder of wheels"
    assert record["versions"]["torchgeo_debias"] == plugin_version()
    assert not (made / "unfinished").exists()


def test_the_log_holds_the_output_and_no_login(made: Path) -> None:
    log = environment.log_path(made).read_text(encoding="utf-8")
    assert "Successfully installed" in log
    assert "s3cret" not in log


def test_without_ensurepip_the_pip_of_the_base_installs(made: Path, light: Path) -> None:
    assert check(python_in(light)).ready
    assert list(made.glob("venv/lib/*/site-packages/pip"))
    assert not list(light.glob("venv/lib/*/site-packages/pip"))


def test_a_package_that_is_not_in_the_folder_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source = WheelFolder(write_library(tmp_path / "wheels", plugin_version(), dependency=False))
    with pytest.raises(SetupError, match=r"small[-_]thing\S* is not on offer for this Python"):
        create(tmp_path / "new", BASE, source)
    assert python_of(tmp_path / "new") is None
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["setup.log", "unfinished"]
    remove(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_set_up_that_is_cancelled_in_the_middle_passes_for_nothing(tmp_path: Path, wheels: WheelFolder) -> None:
    stages: list[str] = []
    with pytest.raises(SetupCancelled):
        create(
            tmp_path / "new", BASE, wheels,
            on_progress=lambda stage, done, total: stages.append(stage),
            is_cancelled=lambda: any(stage.startswith("Processing") for stage in stages),
        )  # fmt: skip
    assert stages[0] == "Making the environment"
    assert python_of(tmp_path / "new") is None
    assert not (tmp_path / "new" / "venv").exists()


@pytest.mark.usefixtures("unpacking")
def test_a_set_up_that_was_killed_is_known_as_such_and_made_anew(tmp_path: Path, wheels: WheelFolder) -> None:
    script = f"""\
import sys; sys.path.insert(0, {str(environment.PLUGIN.parent)!r})
from pathlib import Path
from debias_mapper.runtime.environment import create
from debias_mapper.runtime.installing import WheelFolder
from debias_mapper.runtime.pythons import Python
create(Path({str(tmp_path / "new")!r}), Python({BASE.path!r}, (3, 11, 0)), WheelFolder(Path({str(wheels.path)!r})))
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        python = Path(python_in(tmp_path / "new"))
        while not python.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    status = check(str(python))
    assert (status.ready, status.repair) == (False, True)
    assert "was not finished" in status.sentence
    assert check(create(tmp_path / "new", BASE, wheels)).ready


def test_without_room_nothing_begins(tmp_path: Path, wheels: WheelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 2 * 10**9))
    assert space(tmp_path / "not" / "there", Registry(torch_index_url="https://torch/cpu")).free == 2 * 10**9
    with pytest.raises(SetupError, match=r"4\.0 GB are needed in .*, but 2\.0 GB are free"):
        create(tmp_path / "new", BASE, Registry(torch_index_url="https://torch/cpu"))
    assert not (tmp_path / "new").exists()
    assert space(tmp_path, wheels).needed == 3 * sum(path.stat().st_size for path in Path(wheels.path).iterdir())


def test_the_room_of_an_old_environment_counts_as_free(
    folder: Path, wheels: WheelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 5))
    files = [path for path in (folder / "venv").rglob("*") if path.is_file()]
    assert space(folder, wheels).free == 5 + sum(path.lstat().st_size for path in files)
    shutil.move(folder / "venv", folder / "discarded")
    assert space(folder, wheels).free > 5
    shutil.move(folder / "discarded", folder.parent / "elsewhere")
    (folder / "venv").symlink_to(folder.parent / "elsewhere")
    assert space(folder, wheels).free == 5  # a link is deleted, and not what it leads to
    (folder / "environment.json").unlink()
    assert space(folder.parent, wheels).free == 5


@pytest.mark.parametrize("system", ["linux", "win32", "darwin"])
def test_the_build_with_cuda_needs_more_room_on_linux(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert (Registry().needed > Registry(torch_index_url="https://torch/cpu").needed) == (system == "linux")


def test_a_folder_without_the_librarys_wheel_is_refused(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "another", "1.0", {"another.py": ""})
    with pytest.raises(SetupError, match="holds no wheel of torchgeo-debias"):
        create(tmp_path / "new", BASE, WheelFolder(tmp_path / "wheels"))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, wheels: WheelFolder) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(SetupError, match=r"new cannot be written to .*: free some space there, or choose another"):
        create(tmp_path / "a file" / "new", BASE, wheels)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, wheels: WheelFolder) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.txt").write_text("years of work")
    with pytest.raises(SetupError, match="is not empty"):
        create(tmp_path, BASE, wheels)
    for work in (remove, lambda path: repair(path, BASE, wheels)):
        with pytest.raises(SetupError, match="no environment that this plugin made"):
            work(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["venv", "thesis.txt"]


def test_removing_takes_only_what_was_made(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    remove(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_removing_does_not_follow_links(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "venv", tmp_path / "elsewhere")
    (folder / "venv").symlink_to(tmp_path / "elsewhere")
    remove(folder)
    assert not folder.exists()
    assert (tmp_path / "elsewhere" / "pyvenv.cfg").exists()


@pytest.mark.parametrize("work", ["create", "remove"])
def test_an_environment_that_is_in_use_stays_as_it_was(
    folder: Path, wheels: WheelFolder, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SetupError, match="end all QGIS that use it"):
        create(folder, BASE, wheels) if work == "create" else remove(folder)
    assert sorted(folder.rglob("*")) == before
    assert python_of(folder) == python_in(folder)


def test_an_environment_that_is_half_deleted_is_marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Access is denied")

    with monkeypatch.context() as windows:
        windows.setattr(shutil, "rmtree", refuse)
        with pytest.raises(SetupError, match="end all QGIS that use it"):
            remove(folder)
    assert python_of(folder) is None
    remove(folder)
    assert not folder.exists()


def test_a_new_plugin_asks_for_a_repair_which_installs_its_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "plugin_version", lambda: "99.0")
    before = check(python_in(folder))
    assert (before.ready, before.repair) == (True, True)
    assert f"for version {plugin_version()}" in before.sentence
    kept = next((folder / "venv" / "lib").glob("*/site-packages/small_thing.py")).stat().st_ino
    python = repair(folder, BASE, WheelFolder(write_library(tmp_path / "wheels", "99.0")))
    after = check(python)
    assert (after.ready, after.repair, after.library) == (True, False, "99.0")
    assert next((folder / "venv" / "lib").glob("*/site-packages/small_thing.py")).stat().st_ino == kept


def test_a_repair_that_fails_leaves_the_environment_unfinished(
    folder: Path, tmp_path: Path, wheels: WheelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match="holds no wheel"):
        repair(folder, BASE, WheelFolder(tmp_path))
    assert check(python_in(folder)).ready  # nothing had begun

    def install(*_: Any) -> None:
        raise SetupError("The packages could not be installed.")

    monkeypatch.setattr(Installer, "install", install)
    with pytest.raises(SetupError, match="could not be installed"):
        repair(folder, BASE, wheels)
    status = check(python_in(folder))
    assert (status.ready, status.repair) == (False, True)


def test_a_lost_package_is_named_and_repaired(folder: Path, wheels: WheelFolder) -> None:
    for path in (folder / "venv" / "lib").glob("*/site-packages/small_thing*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    status = check(python_in(folder))
    assert (status.ready, status.repair) == (False, True)
    assert "lacks small_thing: repair it" in status.sentence
    assert check(repair(folder, BASE, wheels)).ready


@pytest.mark.usefixtures("unpacking")
def test_an_environment_that_would_fall_back_to_the_system_is_made_anew(folder: Path, wheels: WheelFolder) -> None:
    (folder / "venv" / "pyvenv.cfg").unlink()
    status = check(python_in(folder))
    assert "has lost its environment" in status.sentence
    assert (status.ready, status.repair) == (False, True)
    assert check(repair(folder, BASE, wheels)).ready


def test_an_environment_whose_python_is_gone_asks_for_a_repair(folder: Path) -> None:
    os.unlink(python_in(folder))
    status = check(python_in(folder))
    assert (status.ready, status.repair) == (False, True)
    assert "There is no Python" in status.sentence


@pytest.mark.parametrize("record", ["{", "[]", '{"made_by": "another"}'])
def test_a_record_of_another_hand_makes_no_environment_ours(folder: Path, record: str) -> None:
    (folder / "environment.json").write_text(record)
    assert python_of(folder) is None
    assert not check(python_in(folder)).repair
    with pytest.raises(SetupError):
        remove(folder)


def found(**changes: Any) -> dict[str, Any]:
    usual = {"python": "3.11.7", "library": "0.3.0", "worker": True, "versions": {"torch": "2.14.1+cpu"}, "own": True}
    return usual | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"library": None}, "lacks the library torchgeo-debias: choose another"),
        ({"worker": False}, "too old for this plugin"),
        ({"versions": {"torch": None, "rasterio": None, "numpy": "2"}}, "lacks rasterio, torch: choose another"),
        ({"versions": {"torch": "2.14.1+cpu", "torchvision": "0.29.1+cu130"}}, "different builds"),
        ({"versions": {"torch": "2.14.1+rocm6.4", "torchvision": "0.29.1+xpu"}}, "different builds"),
    ],
)
def test_an_environment_of_the_user_is_judged_but_not_repaired(changes: dict[str, Any], words: str) -> None:
    status = environment._judge("python", found(**changes), None)
    assert words in status.sentence
    assert (status.ready, status.repair) == (False, False)


@pytest.mark.parametrize(
    ("torch", "torchvision"),
    [
        ("2.6.0a0+ecf3b.nv25.01", "0.20.0a0+nv25.01"),
        ("2.6.0+cu124", "0.21.0"),
        ("2.6.0+cu124", "0.21.0+gitabc123"),
        ("2.6.0+cpu", "0.21.0+cpu"),
    ],
)
def test_builds_of_a_vendor_or_from_source_are_left_to_the_user(torch: str, torchvision: str) -> None:
    assert environment._judge("python", found(versions={"torch": torch, "torchvision": torchvision}), None).ready


def test_the_environment_of_these_tests_is_ready() -> None:
    status = check(sys.executable)
    assert (status.ready, status.repair) == (True, False), status.sentence
    assert {"python", "torch", "torchgeo", "rasterio"} <= set(status.versions)


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {}, "~/.local/share/torchgeo-debias"),
        ("linux", {"XDG_DATA_HOME": "/data of/ada"}, "/data of/ada/torchgeo-debias"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "~/.local/share/torchgeo-debias"),
        ("darwin", {}, "~/Library/Application Support/torchgeo-debias"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/torchgeo-debias"),
        ("win32", {}, "~/AppData/Local/torchgeo-debias"),
    ],
)
def test_the_default_folder_is_the_users_data_folder(
    system: str, variables: Mapping[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert default_folder() == Path(expected).expanduser()


def test_the_digest_of_the_requirements_follows_version_and_constraints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraints = tmp_path / "constraints.txt"
    monkeypatch.setattr(environment, "CONSTRAINTS", constraints)
    digests = {environment.requirements_digest()}
    constraints.write_text("torch==2.14.1\n")
    digests.add(environment.requirements_digest())
    monkeypatch.setattr(environment, "plugin_version", lambda: "99.0")
    digests.add(environment.requirements_digest())
    assert len(digests) == 3
    assert environment.requirement() == "torchgeo-debias[demo,sam]==99.0"


def test_the_record_is_json_without_a_login(made: Path) -> None:
    text = (made / "environment.json").read_text(encoding="utf-8")
    assert json.loads(text)["made_by"] == "debias_mapper"
    assert "s3cret" not in text

from __future__ import annotations

import json
import os
import sys
import venv
from pathlib import Path

import pytest
from debias_mapper.runtime import pythons
from debias_mapper.runtime.pythons import SetupError, ask, find_pythons, python_at

BASE = os.path.realpath(sys.executable)


def answering(path: Path, answer: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'noise first'\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


def about(**changes: object) -> str:
    usual = {"version": [3, 12, 4], "implementation": "cpython", "bits": 64, "virtual": False, "venv": True}
    return json.dumps(usual | changes)


@pytest.fixture
def only_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Pythons but those on the PATH that the test sets."""
    monkeypatch.setattr(pythons, "_folders", lambda: [])


def test_the_python_beneath_the_tests_is_found_usable() -> None:
    assert python_at(BASE).version == tuple(sys.version_info[:3])


def test_a_python_within_a_virtual_environment_is_no_base(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    with pytest.raises(SetupError, match="choose the Python that it was made from"):
        python_at(str(tmp_path / "bin" / "python"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": [3, 10, 9]}, "Python 3.10, but 3.11 to 3.13 is needed"),
        ({"version": [3, 14, 0]}, "Python 3.14, but"),
        ({"version": "three"}, "does not answer as a Python"),
        ({"version": None}, "does not answer as a Python"),
        ({"implementation": "pypy"}, "not the usual 64-bit Python"),
        ({"bits": 32}, "not the usual 64-bit Python"),
        ({"venv": False}, "install its venv module"),
    ],
)
def test_a_python_that_will_not_do_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(SetupError, match=words):
        python_at(answering(tmp_path / "python3", about(**change)))


@pytest.mark.parametrize("answer", ["hello", "[1]", ""])
def test_another_program_is_refused(tmp_path: Path, answer: str) -> None:
    with pytest.raises(SetupError, match="does not answer as a Python does"):
        python_at(answering(tmp_path / "a program", answer))


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(SetupError, match="cannot be started"):
        python_at(str(tmp_path / "text"))


def test_a_python_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythons, "PROBE_TIME", 0.3)
    path = tmp_path / "python3"
    path.write_text("#!/bin/sh\nsleep 60\n")
    path.chmod(0o755)
    with pytest.raises(SetupError, match="did not answer"):
        ask(str(path), "")


@pytest.mark.usefixtures("only_path")
def test_pythons_are_found_on_the_path_each_once_and_never_shims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = answering(tmp_path / "a b" / "python3.13", about(version=[3, 13, 1]))
    (tmp_path / "a b" / "python3").symlink_to(new)
    old = answering(tmp_path / "ü" / "python3", about(version=[3, 11, 2]))
    answering(tmp_path / "ü" / "python3.12", "broken")
    answering(tmp_path / "pyenv" / "shims" / "python3.12", about())
    answering(tmp_path / "Local" / "WindowsApps" / "python3.12", about())
    answering(tmp_path / "relative" / "python3.12", about())
    folders = ["relative", str(tmp_path / "none")]
    folders += [str(tmp_path / each) for each in ("pyenv/shims", "Local/WindowsApps", "a b", "ü")]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    monkeypatch.chdir(tmp_path)
    assert [(python.path, python.version) for python in find_pythons()] == [(old, (3, 11, 2)), (new, (3, 13, 1))]


@pytest.mark.usefixtures("only_path")
def test_what_runs_this_process_is_not_taken_for_a_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qgis = answering(tmp_path / "qgis", about())
    monkeypatch.setattr(sys, "executable", qgis)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_pythons() == []


def test_the_usual_folders_are_searched_whatever_the_path_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = answering(tmp_path / "python3.11", about(version=[3, 11, 2]))
    monkeypatch.setattr(pythons, "_folders", lambda: [str(tmp_path)])
    monkeypatch.setenv("PATH", "")
    assert [python.path for python in find_pythons()] == [usual]


def test_on_windows_programs_of_its_usual_folders_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = answering(tmp_path / "Programs" / "Python" / "Python312" / "python.exe", about())
    bundled = answering(tmp_path / "OSGeo4W" / "apps" / "Python312" / "python3.exe", about(version=[3, 12, 9]))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "base_prefix", os.path.dirname(bundled))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert list(pythons._candidates()) == [program, bundled]


def test_on_a_mac_the_stub_of_the_developer_tools_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    folders = pythons._folders()
    assert "/usr/bin" not in folders
    assert folders[-1] == os.path.join(sys.base_prefix, "bin")

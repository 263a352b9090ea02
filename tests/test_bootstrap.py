"""The way in: what the set-up makes of the machine it finds, without installing anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap

ROOT = Path(bootstrap.__file__).parent


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a fresh clone, where installing leaves a note instead of packages."""
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("x")
    for name in ("VENV", "DISCARDED", "SCRIPTS", "PYTHON", "UNFINISHED"):
        monkeypatch.setattr(bootstrap, name, tmp_path / getattr(bootstrap, name).relative_to(ROOT))
    monkeypatch.setattr(bootstrap, "ensure_pip", lambda: None)
    monkeypatch.setattr(bootstrap, "install", lambda extras: (bootstrap.VENV / "installed").open("a").write(extras))
    return tmp_path


def installed() -> str:
    return (bootstrap.VENV / "installed").read_text()


def test_settings_of_pip_reach_uv_in_the_order_of_pip() -> None:
    listing = """\
:env:.cert='/env.pem'
:env:.find-links='/wheels'
global.cert='/global.pem'
global.extra-index-url='\\nfile:///one\\nfile:///two'
global.index-url='https://user:secret@mirror.example/simple'
install.index-url='https://install.example/simple'
"""
    assert bootstrap.uv_environment(listing) == {
        "SSL_CERT_FILE": "/env.pem",
        "UV_DEFAULT_INDEX": "https://install.example/simple",
        "UV_INDEX": "file:///one file:///two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_an_old_python_is_told_so_in_one_sentence() -> None:
    code = f"import runpy, sys; sys.version_info = (3, 10, 0); runpy.run_path({str(bootstrap.__file__)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "needs Python 3.11 or newer, but this is Python 3.10" in run.stderr


@pytest.mark.parametrize("arguments", [[], ["tset"]])
def test_an_unknown_command_is_refused(arguments: list[str]) -> None:
    assert bootstrap.main(arguments) == 2


def test_set_up_installs_once_until_something_changes(clone: Path) -> None:
    bootstrap.set_up("demo")
    bootstrap.set_up("demo")
    assert installed() == "demo"
    bootstrap.set_up("test")
    bootstrap.set_up("demo")
    assert installed() == "demodev"
    (clone / "constraints.txt").write_text("y")
    bootstrap.set_up("test")
    assert installed() == "demodevdev"


def test_an_interrupted_set_up_starts_anew(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(extras: str) -> None:
        (bootstrap.VENV / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", killed)
        assert bootstrap.main(["demo"]) == 130
    assert not bootstrap.venv_is_sound()
    bootstrap.set_up("demo")
    assert bootstrap.venv_is_sound()
    assert not (bootstrap.VENV / "half").exists()


def test_a_venv_without_its_configuration_is_not_trusted(clone: Path) -> None:
    bootstrap.make_venv()
    assert bootstrap.venv_is_sound()
    (bootstrap.VENV / "pyvenv.cfg").unlink()
    assert not bootstrap.venv_is_sound()


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize(("failing", "expected"), [("", 0), ("mypy", 1), ("python", 1), ("pytest", 3)])
def test_every_check_runs_and_counts(clone: Path, failing: str, expected: int) -> None:
    bootstrap.SCRIPTS.mkdir(parents=True)
    for name in ("ruff", "mypy", "lint-imports", "python", "pytest"):
        script = bootstrap.SCRIPTS / name
        script.write_text(f"#!/bin/sh\necho {name} $@ >> ran\nexit {3 if name == failing else 0}\n")
        script.chmod(0o755)
    assert bootstrap.test([]) == expected
    ran = (clone / "ran").read_text().splitlines()
    assert ran == [
        "ruff check .", "ruff format --check .", "mypy", "lint-imports", "python qgis_tests/run.py",
        "pytest -n 2 --durations=10",
    ]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
def test_arguments_choose_among_the_tests_of_the_library(clone: Path) -> None:
    bootstrap.SCRIPTS.mkdir(parents=True)
    for name in ("ruff", "mypy", "lint-imports", "python", "pytest"):
        script = bootstrap.SCRIPTS / name
        script.write_text(f"#!/bin/sh\necho {name} $@ >> ran\n")
        script.chmod(0o755)
    assert bootstrap.test(["-k", "boxes"]) == 0
    ran = (clone / "ran").read_text().splitlines()
    assert ran[-1] == "pytest -n 2 --durations=10 -k boxes"
    assert not any("qgis" in line for line in ran)

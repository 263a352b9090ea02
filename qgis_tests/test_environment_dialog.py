"""The dialog of the environment: its state, and the ways to get one, without any network."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON
from qgis.PyQt.QtWidgets import QApplication, QMessageBox
from test_dock import until

WHEELS = 1


@pytest.fixture
def without(settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """No environment at all, and an empty data folder."""
    monkeypatch.delenv(settings.ENVIRONMENT_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "dåta folder"))
    return settings


@pytest.fixture
def dialog(without: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The dialog, with the Python that the worker's was made from."""
    from debias_mapper.dock import environment_dialog
    from debias_mapper.dock.tasks import wait_for
    from debias_mapper.runtime.pythons import python_at

    code = "import os, sys; print(os.path.join(sys.base_prefix, 'bin', 'python3'))"
    base = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setattr(environment_dialog, "find_pythons", lambda: [python_at(base)])
    dialog = environment_dialog.EnvironmentDialog()
    dialog.show()
    until(lambda: dialog.base.currentData() is not None and "Looking" not in dialog.state.text(), "the state")
    yield dialog
    tasks = dialog.close_down()
    wait_for(tasks, 10)
    assert all(task.is_over() for task in tasks)
    dialog.deleteLater()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with a wheel that has the library's name and a worker."""
    from debias_mapper.runtime.environment import plugin_version

    version = plugin_version()
    info = f"torchgeo_debias-{version}.dist-info"
    files = {
        "torchgeo_debias/__init__.py": "",
        "torchgeo_debias/worker/__main__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torchgeo-debias\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"torchgeo_debias-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)
    return folder


def create(dialog: Any, wheels: Path) -> None:
    """Press Create for an installation from the folder."""
    dialog.origin.setCurrentIndex(WHEELS)
    dialog.wheels.setFilePath(str(wheels))
    assert dialog.create_button.isEnabled()
    dialog.create_button.click()
    assert dialog.busy


def test_without_an_environment_it_says_what_to_do(dialog: Any) -> None:
    assert "There is no environment yet" in dialog.state.text()
    assert dialog.create_button.isEnabled()
    assert not dialog.use_button.isEnabled()
    assert not dialog.repair_button.isEnabled()
    assert not dialog.remove_button.isEnabled()
    assert not dialog.cancel_button.isVisible()
    until(lambda: "GB are free" in dialog.space.text(), "the room")
    everything = dialog.space.text()
    dialog.torch.setText("https://example.org/cpu")  # an index of small builds
    dialog.torch.editingFinished.emit()
    until(lambda: dialog.space.text() != everything, "the room without CUDA")
    assert dialog.space.text().startswith("Needs ")


def test_an_existing_python_is_taken(dialog: Any, without: Any) -> None:
    told: list[bool] = []
    dialog.changed.connect(lambda: told.append(True))
    dialog.existing.setFilePath(PYTHON)
    dialog.use_button.click()
    until(lambda: dialog.status is not None and dialog.status.ready, "the state")
    assert without.python_path() == PYTHON
    assert told == [True]
    assert "torch " in dialog.versions.text()
    label = dialog.versions
    until(lambda: label.height() >= label.heightForWidth(label.width()), "the room for both lines", 5)


def test_an_existing_python_is_taken_without_ending_a_run(
    dialog: Any, without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from debias_mapper import jobs

    closed: list[bool] = []
    monkeypatch.setattr(jobs, "close_workers", lambda: closed.append(True))
    monkeypatch.setattr(jobs, "busy", lambda: True)
    dialog.existing.setFilePath(PYTHON)
    dialog.use_button.click()
    until(lambda: without.python_path() == PYTHON, "the Python")
    assert closed == []


@pytest.mark.parametrize("act", ["create", "repair", "remove"])
def test_no_environment_is_changed_while_a_job_runs(dialog: Any, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    from debias_mapper import jobs

    done: list[str] = []
    monkeypatch.setattr(jobs, "busy", lambda: True)
    monkeypatch.setattr(jobs, "close_workers", lambda: done.append("closed"))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: done.append("asked"))
    getattr(dialog, act)()
    assert not dialog.busy
    assert "A run is under way" in dialog.stage.text()
    assert done == []


@pytest.mark.parametrize("inside", [True, False])
def test_removing_forgets_only_a_python_that_lay_there(
    dialog: Any, without: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inside: bool
) -> None:
    from debias_mapper.runtime import environment

    removed: list[Path] = []
    monkeypatch.setattr(environment, "remove", removed.append)
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    folder = tmp_path / "made"
    dialog.place.setFilePath(str(folder))
    python = str(folder / "venv" / "bin" / "python") if inside else PYTHON
    without.set_python_path(python)
    dialog.remove()
    until(lambda: not dialog.busy, "the removal")
    assert removed == [folder]
    assert without.python_path() == (None if inside else PYTHON)


def test_nothing_is_empty_between_the_fields_and_the_log(dialog: Any) -> None:
    form, log = dialog.create_button.parentWidget(), dialog.log.parentWidget()
    until(lambda: "GB are free" in dialog.space.text(), "the room")
    assert log.geometry().top() - form.geometry().bottom() < 60


def test_a_python_without_the_library_is_refused(dialog: Any, without: Any) -> None:
    dialog.existing.setFilePath("/usr/bin/python3")
    dialog.use_button.click()
    until(lambda: not dialog.busy, "the refusal")
    assert "lacks the library torchgeo-debias" in dialog.stage.text()
    assert without.python_path() is None


def test_an_environment_is_made_repaired_and_removed(
    dialog: Any, without: Any, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dåta folder" / "torchgeo-debias"
    create(dialog, wheels)
    assert dialog.cancel_button.isVisible()
    assert not dialog.create_button.isEnabled()
    until(lambda: not dialog.busy, "the environment")
    assert dialog.stage.text() == "The environment is set up."
    assert "Successfully installed torchgeo-debias" in dialog.log.toPlainText()
    python = without.python_path()
    assert Path(python).is_relative_to(folder)
    until(lambda: dialog.status is not None and dialog.status.ready, "the state")

    (library,) = folder.rglob("site-packages/torchgeo_debias/worker/__main__.py")
    library.unlink()
    dialog.again.click()
    until(lambda: dialog.status is not None and not dialog.status.ready, "the damage")
    assert "too old" in dialog.state.text()
    dialog.repair_button.click()
    until(lambda: not dialog.busy, "the repair")

    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    dialog.remove_button.click()
    until(lambda: not dialog.busy, "the removal")
    assert dialog.stage.text() == "The environment was removed."
    assert not folder.exists()
    assert without.python_path() is None


def test_a_cancelled_set_up_leaves_no_environment(dialog: Any, without: Any, wheels: Path, tmp_path: Path) -> None:
    create(dialog, wheels)
    dialog.cancel_button.click()
    until(lambda: not dialog.busy, "the end", 10)
    assert dialog.stage.text() == "Cancelled."
    assert without.python_path() is None
    assert not list(tmp_path.rglob("venv"))


def test_a_folder_without_the_wheel_is_refused(dialog: Any, tmp_path: Path) -> None:
    create(dialog, tmp_path)
    until(lambda: not dialog.busy, "the refusal")
    assert "holds no wheel of torchgeo-debias" in dialog.stage.text()


def test_diagnostics_name_no_user(dialog: Any) -> None:
    dialog.copy.click()
    text = QApplication.clipboard().text()
    assert "QGIS: 3." in text
    assert "plugin: " in text
    assert str(Path.home()) not in text

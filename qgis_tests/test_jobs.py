"""Running commands for algorithms: progress, logs, cancelling, crashes, and what layers do meanwhile."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, Feedback, Sample, create, run
from debias_mapper import jobs
from debias_mapper.outputs import Dress
from debias_mapper.runtime.commands import Command
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

PATIENCE = 120


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Callable[[str], None]:
    """Make the worker's Python a shell script."""

    def make(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(settings.ENVIRONMENT_VARIABLE, str(path))

    return make


HELLO = '{"type":"hello","protocol":1,"library":"0","python":"3","pid":1,"verbs":["detect"]}'


def test_progress_stages_and_logs_reach_the_feedback(fake: Callable[[str], None]) -> None:
    fake(f"""echo '{HELLO}'; read line
echo '{{"type":"progress","id":1,"stage":"adapt","done":1,"total":4}}'
echo '{{"type":"log","id":1,"level":"warning","text":"beware"}}'
echo '{{"type":"progress","id":1,"stage":"adapt","done":4,"total":4}}'
echo '{{"type":"done","id":1,"result":{{"tiles":3}}}}'; read line""")
    feedback = Feedback()
    seen: list[float] = []
    feedback.progressChanged.connect(seen.append)
    assert jobs.run_command(Command("detect", ["a b.tif"]), feedback) == {"tiles": 3}
    assert (seen, feedback.stages, feedback.said) == ([25, 100], ["Adapt"], ["beware"])
    assert feedback.commands == ["torchgeo-debias detect 'a b.tif'"]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (f"echo '{HELLO}'; read line; kill -9 $$", "killed by the system, most likely because the memory ran out"),
        (f"echo '{HELLO}'; read line; kill -11 $$", "crashed in native code .* QGIS is not affected"),
        (f"echo '{HELLO}'; read line; exit 3", "ended in the middle of a job with exit status 3"),
        ("echo no module >&2; exit 1", "ended before it was ready"),
        (HELLO.join(["echo '", "'"]).replace('"protocol":1', '"protocol":9'), "speaks protocol 9"),
        (
            f"""echo '{HELLO}'; read line
echo '{{"type":"error","id":1,"code":"refused","message":"No.","traceback":null}}'""",
            "^No\\.$",
        ),
    ],
)
def test_broken_workers_end_with_a_sentence(fake: Callable[[str], None], script: str, sentence: str) -> None:
    fake(script)
    with pytest.raises(QgsProcessingException, match=sentence):
        jobs.run_command(Command("detect"), Feedback())


def test_a_python_that_is_not_there_is_named(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ENVIRONMENT_VARIABLE, "/nowhere/python")
    with pytest.raises(QgsProcessingException, match="The Python /nowhere/python cannot be started"):
        jobs.run_command(Command("detect"), Feedback())


def test_the_worker_that_crashed_for_an_algorithm_leaves_nothing(
    sample: Sample, fake: Callable[[str], None], tmp_path: Path
) -> None:
    fake(f"echo '{HELLO}'; read line; kill -11 $$")
    out = tmp_path / "out.gpkg"
    with pytest.raises(QgsProcessingException, match="crashed in native code"):
        run("detect", INPUT=sample.scene, MODEL=sample.detector, OUTPUT=str(out))
    assert not out.exists()
    assert not list(Path(QgsProcessingUtils.tempFolder()).glob("debias_*"))


def test_cancelling_gives_nothing_and_frees_the_worker(sample: Sample, tmp_path: Path) -> None:
    feedback = Feedback(cancel_at="Detect")
    out = tmp_path / "out.gpkg"
    began = time.monotonic()
    model = {"MODEL": sample.detector, "WEIGHTS": sample.weights}
    assert run("detect", feedback, INPUT=sample.scene, **model, OUTPUT=str(out)).results == {}
    assert time.monotonic() - began < PATIENCE
    assert "Cancelled" in feedback.text
    assert not out.exists()
    assert run("detect", INPUT=sample.scene, **model, OUTPUT="TEMPORARY_OUTPUT").results["OUTPUT"]


class Task:
    """An algorithm in a task of QGIS, as the toolbox and the dock run it."""

    def __init__(self, name: str, parameters: dict[str, Any], feedback: QgsProcessingFeedback) -> None:
        self.context = QgsProcessingContext()
        self.context.setProject(QgsProject.instance())
        self.feedback = feedback
        self.algorithm = create(name)
        self.ended: list[tuple[bool, dict[str, Any]]] = []
        self.task = QgsProcessingAlgRunnerTask(self.algorithm, parameters, self.context, feedback)
        self.task.executed.connect(lambda successful, results: self.ended.append((successful, results)))
        QgsApplication.taskManager().addTask(self.task)

    def until(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < end
            QgsApplication.processEvents()
            time.sleep(0.005)

    def wait(self) -> tuple[bool, dict[str, Any]]:
        self.until(lambda: self.ended)
        return self.ended[0]


@pytest.fixture
def slow(tmp_path: Path, fake: Callable[[str], None]) -> Iterator[Path]:
    """The real worker, which begins once a file is there."""
    gate = tmp_path / "go"
    fake(f'while [ ! -e "{gate}" ]; do sleep 0.05; done; exec "{PYTHON}" "$@"')
    yield gate
    gate.touch()


def test_layers_may_be_renamed_and_removed_while_an_algorithm_runs(sample: Sample, slow: Path) -> None:
    raster = QgsRasterLayer(sample.scene, "scene")
    footprints = QgsVectorLayer(sample.labels, "footprints", "ogr")
    QgsProject.instance().addMapLayers([raster, footprints])
    parameters = {
        "INPUT": raster.id(), "FEATURES": footprints.id(), "MODEL": sample.classifier, "WEIGHTS": sample.weights,
        "OUTPUT": "TEMPORARY_OUTPUT",
    }  # fmt: skip
    feedback = Feedback()
    task = Task("classify_features", parameters, feedback)
    task.until(lambda: feedback.commands)
    raster.setName("another name")
    QgsProject.instance().removeAllMapLayers()
    del raster, footprints
    slow.touch()
    successful, results = task.wait()
    assert successful, feedback.text
    assert results["COUNT"] == 64


def test_algorithms_run_outside_the_main_thread_and_leave_it_free(
    sample: Sample, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    store = Dress.store

    def watched(dress: Dress) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        store(dress)

    monkeypatch.setattr(Dress, "store", watched)

    class Watching(Feedback):
        def pushCommandInfo(self, info: str) -> None:
            threads.append(threading.current_thread() is threading.main_thread())

    feedback = Watching()
    out = str(tmp_path / "out.gpkg")
    model = {"INPUT": sample.scene, "MODEL": sample.detector, "WEIGHTS": sample.weights}
    task = Task("detect", {**model, "OUTPUT": out}, feedback)
    slow.touch()
    assert task.wait()[0]
    assert threads == [False, False]  # the command, and style and metadata
    layer = QgsVectorLayer(f"{out}|layername=out", "again", "ogr")
    assert layer.renderer().type() == "categorizedSymbol"


def test_closing_the_pool_ends_a_run_and_its_worker(
    sample: Sample, fake: Callable[[str], None], tmp_path: Path
) -> None:
    number = tmp_path / "number"
    fake(f'echo $$ > "{number}.part"; mv "{number}.part" "{number}"; exec sleep 600')
    feedback = Feedback()
    parameters = {"INPUT": sample.scene, "MODEL": sample.detector, "OUTPUT": "TEMPORARY_OUTPUT"}
    task = Task("detect", parameters, feedback)
    task.until(number.exists)
    assert jobs.busy()
    began = time.monotonic()
    jobs.close_workers()
    assert time.monotonic() - began < 8
    assert not task.wait()[0]
    assert not jobs.busy()
    assert not os.path.exists(f"/proc/{number.read_text().strip()}")
    jobs.open_workers(warm=True)


def test_a_run_after_the_plugin_was_closed_starts_no_worker(fake: Callable[[str], None], tmp_path: Path) -> None:
    started = tmp_path / "started"
    fake(f"""touch "{started}"; echo '{HELLO}'; read line
echo '{{"type":"done","id":1,"result":{{}}}}'; read line""")
    jobs.close_workers()
    try:
        with pytest.raises(QgsProcessingException, match="The plugin is being closed"):
            jobs.run_command(Command("detect"), Feedback())
        assert not started.exists()
    finally:
        jobs.open_workers(warm=True)
    assert jobs.run_command(Command("detect"), Feedback()) == {}
    assert started.exists()

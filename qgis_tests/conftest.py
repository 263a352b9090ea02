"""What the plugin's tests share: QGIS with the provider, data and models, and the library's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsSettings,
    QgsVectorLayer,
)

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "qgis_plugin"
PYTHON = os.environ["TORCHGEO_DEBIAS_PYTHON"]
sys.path.insert(0, str(PLUGINS))
# Several tests of the plugin and of the library share the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


_status = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the status for the end."""
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: QGIS crashes when Python takes layers apart that outlive it, as those of a test's fixtures may.

    That QGIS itself ends in good order with the plugin, ``test_desktop.py`` and ``test_qgis_process.py`` see.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(config.stash.get(_status, 1))


def plain_environment() -> dict[str, str]:
    """The environment of a child that is not QGIS."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QGIS_", "QT_"))}


@dataclass(frozen=True)
class Sample:
    """Data and models that all tests share; not to be changed."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        """The path of a file by its stem, such as ``sample.scene``."""
        found = [path for path in self.folder.iterdir() if path.stem == name and "-" not in path.suffix]  # -wal
        if len(found) != 1:
            raise AttributeError(name)
        return str(found[0])


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A scene with labels, a classifier, a detector, the weights of their backbone, and a SAM that knows nothing."""
    folder = tmp_path_factory.mktemp("sämple data")
    command = [PYTHON, str(ROOT / "qgis_tests/make_sample.py"), str(folder)]
    subprocess.run(command, check=True, env=plain_environment(), cwd=ROOT, capture_output=True)
    return Sample(folder)


_server: list[subprocess.Popen[str]] = []


def library(verb: str, *arguments: object) -> dict[str, Any]:
    """What the library's own command says."""
    if not _server:
        command = [PYTHON, str(ROOT / "qgis_tests/library_server.py")]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        _server.append(subprocess.Popen(command, env=plain_environment(), cwd=ROOT, **pipes))
    server = _server[0]
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([verb, *map(str, arguments), "--json"]) + "\n")
    server.stdin.flush()
    said = json.loads(server.stdout.readline())
    assert said["code"] == 0, said["err"]
    answer: dict[str, Any] = json.loads(said["out"])
    return answer


@pytest.fixture(scope="session", autouse=True)
def provider(qgis_app: QgsApplication, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The plugin's provider beside QGIS's own algorithms; one worker is kept warm for all tests."""
    sys.path.append(os.path.join(QgsApplication.pkgDataPath(), "python", "plugins"))
    from processing.core.Processing import Processing

    Processing.initialize()
    from debias_mapper import classFactory, jobs

    jobs.open_workers(warm=True)
    plugin = classFactory(None)
    plugin.initProcessing()
    yield plugin.provider
    plugin.unload()
    for server in _server:
        server.communicate()


@pytest.fixture(autouse=True)
def clean_project() -> Iterator[None]:
    """A project of its own for each test."""
    QgsProject.instance().clear()
    yield
    QgsProject.instance().clear()


@pytest.fixture
def settings() -> Iterator[Any]:
    """The plugin's settings, empty."""
    from debias_mapper import settings as module

    QgsSettings().remove("debias_mapper")
    yield module
    QgsSettings().remove("debias_mapper")


class Feedback(QgsProcessingFeedback):  # type: ignore[misc]
    """Keeps all that it is told; cancels when a text is said."""

    def __init__(self, cancel_at: str | None = None) -> None:
        super().__init__(False)
        self.said: list[str] = []
        self.commands: list[str] = []
        self.stages: list[str] = []
        self._cancel_at = cancel_at

    def setProgressText(self, text: str) -> None:
        self.stages.append(text)
        if text == self._cancel_at:
            self.cancel()

    def pushCommandInfo(self, info: str) -> None:
        self.commands.append(info)

    def pushInfo(self, info: str) -> None:
        self.said.append(info)

    def pushDebugInfo(self, info: str) -> None:
        self.said.append(info)

    def pushWarning(self, warning: str) -> None:
        self.said.append(warning)

    def reportError(self, error: str, fatalError: bool = False) -> None:
        self.said.append(error)

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.said)


@dataclass
class Ran:
    """One run of an algorithm."""

    results: dict[str, Any]
    feedback: Feedback
    context: QgsProcessingContext = field(repr=False)

    def layer(self, name: str = "OUTPUT") -> Any:
        """An output as QGIS would load it."""
        destination = self.results[name]
        found = self.context.getMapLayer(destination)
        if found is None:
            raster = destination.endswith(".tif")
            found = QgsRasterLayer(destination) if raster else QgsVectorLayer(destination, "result", "ogr")
        assert found.isValid()
        return found


def create(identity: str) -> QgsProcessingAlgorithm:
    """An algorithm of the provider."""
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"debias:{identity}")
    assert algorithm is not None
    return algorithm


def run(identity: str, feedback: Feedback | None = None, /, **parameters: Any) -> Ran:
    """Run an algorithm here; a refusal or failure is raised with its sentence."""
    feedback = feedback or Feedback()
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    context.setFeedback(feedback)
    algorithm = create(identity)
    fine, sentence = algorithm.checkParameterValues(parameters, context)
    if not fine:
        raise QgsProcessingException(sentence)
    results, done = algorithm.run(parameters, context, feedback, {}, False)
    if not done:
        raise QgsProcessingException(feedback.text)
    return Ran(results, feedback, context)


def rows(layer: QgsVectorLayer, *without: str) -> list[tuple[Any, ...]]:
    """Attributes and geometry of all features in order, ready to be compared."""
    names = [name.name() for name in layer.fields() if name.name() not in ("fid", *without)]
    return [(*((name, _plain(each[name])) for name in names), each.geometry().asWkt(3)) for each in layer.getFeatures()]


def _plain(value: Any) -> Any:
    if value is None or (hasattr(value, "isNull") and value.isNull()):
        return None
    return round(value, 6) if isinstance(value, float) else value


def opened(path: object) -> QgsVectorLayer:
    """A GeoPackage of the library."""
    layer = QgsVectorLayer(str(path), "reference", "ogr")
    assert layer.isValid()
    return layer


def pixels(path: object) -> list[bytes]:
    """The bands of a raster, as bytes."""
    layer = QgsRasterLayer(str(path))
    provider = layer.dataProvider()
    size = provider.xSize(), provider.ySize()
    # Each block must live as long as its data are looked at.
    blocks = [provider.block(band, provider.extent(), *size) for band in range(1, provider.bandCount() + 1)]
    return [bytes(block.data()) for block in blocks]

"""From the files of the worker to layers of QGIS: copied, styled, and told where they come from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from qgis.core import (
    Qgis,
    QgsCoordinateTransformContext,
    QgsFeature,
    QgsFeatureSink,
    QgsField,
    QgsFields,
    QgsLayerMetadata,
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputLayerDefinition,
    QgsProviderRegistry,
    QgsProviderSublayerDetails,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QDateTime
from qgis.PyQt.QtXml import QDomDocument

from .runtime.commands import Command
from .runtime.environment import plugin_version

VOCABULARY = "debias"
"""Prefix of the keywords in the metadata of layers."""

_ADDRESS = re.compile(r"\w{2,}:")
"""Of what is not a path, such as ``memory:`` or ``postgis:``; the letter of a drive is one letter."""

MODEL_FILE = "model.json"
"""Of a model package; it says what the model is."""


@dataclass(frozen=True)
class Result:
    """A layer that the worker wrote, opened in the thread of the algorithm.

    Attributes:
        layer: Of the GeoPackage.
        qml: The style that the library stored with it, None where there is none.
        columns: Places of the fields that are results, the key of the file left out.
    """

    layer: QgsVectorLayer
    qml: str | None
    columns: tuple[int, ...]

    @classmethod
    def read(cls, path: str) -> Result:
        """Open one.

        Raises:
            QgsProcessingException: If it cannot be read.
        """
        name = os.path.splitext(os.path.basename(path))[0]
        options = QgsVectorLayer.LayerOptions(loadDefaultStyle=False, readExtentFromXml=False)
        layer = QgsVectorLayer(f"{path}|layername={name}", name, "ogr", options)
        if not layer.isValid():
            raise QgsProcessingException(f"The result of the worker cannot be read: {path}.")
        keys = set(layer.primaryKeyAttributes())
        columns = tuple(column for column in range(layer.fields().count()) if column not in keys)
        return cls(layer, stored_style(path), columns)

    @property
    def fields(self) -> list[QgsField]:
        """Its fields."""
        return [self.layer.fields().at(column) for column in self.columns]

    def values(self, feature: QgsFeature) -> list[Any]:
        """Values of these fields."""
        return [feature.attribute(column) for column in self.columns]

    def copy(self, feature: QgsFeature) -> QgsFeature:
        """A feature with these fields alone."""
        copy = QgsFeature()
        copy.setGeometry(feature.geometry())
        copy.setAttributes(self.values(feature))
        return copy


def stored_style(path: str) -> str | None:
    """The style that a GeoPackage names as the default of its layer."""
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'layer_styles'").fetchone():
            return None
        row = database.execute("SELECT styleQML FROM layer_styles WHERE useAsDefault").fetchone()
    return None if row is None else row[0]


def all_fields(*groups: Any) -> QgsFields:  # noqa: ANN401 - anything that yields fields
    """Fields of several groups, one after the other."""
    fields = QgsFields()
    for group in groups:
        for each in group:
            fields.append(each)
    return fields


def fill(
    sink: QgsFeatureSink,
    features: Iterable[QgsFeature],
    count: int,
    feedback: QgsProcessingFeedback,
) -> str | None:
    """Put features into a sink.

    Args:
        sink: Of the destination.
        features: As many as ``count``, or nearly so.
        count: For the progress.
        feedback: Told about it. What is nearly there is not cancelled any more, so that no half of it stays.

    Returns:
        What the sink says to a feature that it does not take; None where it took all.
    """
    feedback.setProgressText("Writing of the result")
    for done, feature in enumerate(features, 1):
        if not sink.addFeature(feature, QgsFeatureSink.Flag.FastInsert):
            return sink.lastError()
        if done % 1000 == 0:
            feedback.setProgress(100.0 * done / max(count, 1))
    return None if sink.flushBuffer() else sink.lastError()


def unwritable(destination: Any) -> str | None:  # noqa: ANN401 - any value of a parameter
    """Why a file cannot be written there, as far as its folder tells; None for what is no path as well."""
    if isinstance(destination, QgsProcessingOutputLayerDefinition):
        destination = destination.sink.staticValue()
    if not isinstance(destination, str) or destination in ("", QgsProcessing.TEMPORARY_OUTPUT):
        return None
    if _ADDRESS.match(destination):
        return None
    if os.path.isdir(destination):
        return f"{destination} is a folder: name a file."
    folder = os.path.dirname(os.path.abspath(destination))
    if not os.path.isdir(folder):
        return f"there is no folder {folder}: make it, or choose another one."
    return None if os.access(folder, os.W_OK) else f"nothing can be written into {folder}: choose another folder."


def remove_half(destination: str) -> None:
    """Delete a file that was not written to its end; a layer in a database stays."""
    if not os.path.isfile(destination):
        return
    if destination.lower().endswith(".shp"):
        QgsVectorFileWriter.deleteShapeFile(destination)
        return
    for ending in ("-journal", "-wal", "-shm", ""):
        with suppress(OSError):  # what keeps it from being written may keep it from being deleted
            os.remove(destination + ending)


@dataclass(frozen=True)
class Origin:
    """Where a result comes from; it is kept in the metadata of the layer.

    Attributes:
        title: Of the layer, such as "Detected objects".
        command: What the worker ran.
        model: Path of the model package, None where there was none.
    """

    title: str
    command: Command
    model: str | None = None

    def metadata(self) -> QgsLayerMetadata:
        """As QGIS keeps it: an abstract for people, keywords for machines, the command as the history."""
        known = {"command": self.command.shell(), "plugin": plugin_version(), "qgis": Qgis.version()}
        if self.model is not None:
            known["model"] = self.model
            known.update(describe_model(self.model))
        metadata = QgsLayerMetadata()
        metadata.setType("dataset")
        metadata.setTitle(self.title)
        metadata.setAbstract("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in known.items()))
        for name, value in known.items():
            metadata.addKeywords(f"{VOCABULARY}:{name}", [value])
        metadata.addHistoryItem(
            f"{QDateTime.currentDateTimeUtc().toString('yyyy-MM-ddTHH:mm:ssZ')} {self.command.shell()}"
        )
        return metadata


def describe_model(path: str) -> dict[str, str]:
    """Digest, method and library of a model package, as far as its description can be read; the worker checks it.

    The digest is the SHA-256 of ``model.json``, which holds the digests of all other files: a folder and the same
    folder zipped have the same.
    """
    try:
        if os.path.isdir(path):
            with open(os.path.join(path, MODEL_FILE), "rb") as file:
                content = file.read()
        else:
            with zipfile.ZipFile(path) as archive:
                content = archive.read(MODEL_FILE)
        info = json.loads(content)
        known = {"model_digest": hashlib.sha256(content).hexdigest()}
        known["model_method"] = str(info["method"]["method"])
        known["model_library"] = str(info["provenance"]["versions"]["torchgeo-debias"])
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError):
        return {}
    return known


def dress(layer: QgsMapLayer, qml: str | None, metadata: QgsLayerMetadata) -> None:
    """Give a layer the colours of its classes and what is known of its making."""
    if qml is not None:
        document = QDomDocument()
        document.setContent(qml)
        layer.importNamedStyle(document, QgsMapLayer.StyleCategory.Symbology)
        layer.triggerRepaint()
    given = layer.metadata()
    given.combine(metadata)
    layer.setMetadata(given)


class OutputStyler(QgsProcessingLayerPostProcessorInterface):
    """Dresses a result when QGIS has loaded it.

    QGIS keeps no reference to the Python half of it, so :data:`_kept` does, for good: which of them are still to be
    called, only QGIS knows.
    """

    _kept: ClassVar[list[OutputStyler]] = []

    def __init__(self, qml: str | None, metadata: QgsLayerMetadata) -> None:
        super().__init__()
        self._qml, self._metadata = qml, metadata
        self._kept.append(self)

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """In the main thread."""
        dress(layer, self._qml, self._metadata)


@dataclass(frozen=True)
class Dress:
    """What one output is to look like.

    Attributes:
        destination: As the sink or the raster parameter calls it.
        qml: A style, None where the file has its own.
        metadata: Where it comes from.
    """

    destination: str
    qml: str | None
    metadata: QgsLayerMetadata

    def when_loaded(self, context: QgsProcessingContext) -> None:
        """Dress the layer that QGIS will load, if it will."""
        if context.willLoadLayerOnCompletion(self.destination):
            styler = OutputStyler(self.qml, self.metadata)
            context.layerToLoadOnCompletionDetails(self.destination).setPostProcessor(styler)

    def store(self) -> None:
        """Put style and metadata beside a result that is a file, so that it looks the same whenever it is opened."""
        if not os.path.exists(self.destination.partition("|")[0]):
            return
        layers = QgsProviderRegistry.instance().querySublayers(self.destination)
        # With the name of the layer in it: under another address a GeoPackage takes no metadata.
        options = QgsProviderSublayerDetails.LayerOptions(QgsCoordinateTransformContext())
        layer = layers[0].toLayer(options) if layers else None
        if layer is None or not layer.isValid():
            return
        dress(layer, self.qml, self.metadata)
        layer.saveDefaultMetadata()
        if self.qml is None:
            return
        if layer.storageType() == "GPKG":
            layer.saveStyleToDatabase("classes", "Classes of the model", True, "")
        else:
            layer.saveDefaultStyle(QgsMapLayer.StyleCategory.Symbology)


def move_raster(source: str, destination: str) -> None:
    """Put a raster with the names of its classes where the user wants it.

    Raises:
        QgsProcessingException: If it cannot be put there.
    """
    try:
        for ending in (".aux.xml", ""):
            if os.path.exists(source + ending):
                shutil.move(source + ending, destination + ending)
    except OSError as error:
        raise QgsProcessingException(f"Cannot write {destination}: {error.strerror or error}.") from error

"""From layers of QGIS to files that the worker can open.

Layers belong to the main thread and may be renamed or removed while an algorithm runs. So an algorithm takes what it
needs of them in ``prepareAlgorithm``, as the classes here, and works on that in its own thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsFeature,
    QgsFeatureRequest,
    QgsField,
    QgsFields,
    QgsGeometry,
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProviderRegistry,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsVectorLayerFeatureSource,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QMetaType

if TYPE_CHECKING:
    from .rasters import Raster

ROW = "debias_row"
"""Field with the id that a feature of the temporary file has in the layer."""

_FILES = (".gpkg", ".shp", ".geojson", ".fgb")

_SEGMENTS = 100
"""Straight edges become curves in another CRS: at least so many pieces across an area are moved."""

_SURROUNDINGS = 0.1
"""Share of a layer's side by which an area may reach beyond the layer when it moves to another CRS."""

_TYPES = frozenset(
    {
        QMetaType.Type.Bool,
        QMetaType.Type.Int,
        QMetaType.Type.LongLong,
        QMetaType.Type.Double,
        QMetaType.Type.QDate,
        QMetaType.Type.QDateTime,
    }
)


def known_crs(layer: QgsMapLayer) -> QgsCoordinateReferenceSystem:
    """The CRS of a layer.

    Raises:
        QgsProcessingException: If it has none.
    """
    crs = layer.crs()
    if not crs.isValid():
        raise QgsProcessingException(
            f"The layer {layer.name()} has no coordinate reference system: set it in the layer's properties, under "
            "Source."
        )
    return crs


class Features:
    """The features of a vector layer as they are now, whatever its provider: edits, subset and selection included.

    Attributes:
        name: Of the layer.
        crs: Of the geometry.
        fields: Of the layer.
        wkb_type: Of the geometry.
    """

    def __init__(self, layer: QgsVectorLayer, definition: Any) -> None:  # noqa: ANN401 - any value of a parameter
        """Take a snapshot, in the main thread.

        Args:
            layer: May be removed afterwards.
            definition: Value of the parameter, which may ask for selected features, a filter or a limit.

        Raises:
            QgsProcessingException: If the layer has no CRS.
        """
        self.name = layer.name()
        self.crs = known_crs(layer)
        self.fields = layer.fields()
        self.wkb_type = layer.wkbType()
        self._file = _whole_file(layer, definition)
        self._source = QgsVectorLayerFeatureSource(layer)
        self._request = QgsFeatureRequest()
        self._limit: int | None = None
        self._selected: frozenset[int] | None = None
        if isinstance(definition, QgsProcessingFeatureSourceDefinition):
            if definition.selectedFeaturesOnly:
                self._selected = frozenset(layer.selectedFeatureIds())
            if definition.filterExpression:
                self._request.setFilterExpression(definition.filterExpression)
            if definition.featureLimit >= 0:
                self._limit = definition.featureLimit

    @classmethod
    def of(
        cls, algorithm: QgsProcessingAlgorithm, parameters: dict[str, Any], name: str, context: QgsProcessingContext
    ) -> Features | None:
        """Those of a parameter of an algorithm, None where it was left empty.

        Raises:
            QgsProcessingException: If there is no such layer, or it has no CRS.
        """
        given = parameters.get(name)
        if given in (None, ""):
            return None
        source = given.source if isinstance(given, QgsProcessingFeatureSourceDefinition) else given
        layer = algorithm.parameterAsVectorLayer({name: source}, name, context)
        if layer is None:
            raise QgsProcessingException(algorithm.invalidSourceError(parameters, name))
        return cls(layer, given)

    def __iter__(self) -> Iterator[QgsFeature]:
        found = self._source.getFeatures(self._request)
        chosen = (each for each in found if self._selected is None or each.id() in self._selected)
        return islice(chosen, self._limit)

    @property
    def extent(self) -> QgsRectangle:
        """Of all of their geometry."""
        extent = QgsRectangle()
        for feature in self:
            if feature.hasGeometry():
                extent.combineExtentWith(feature.geometry().boundingBox())
        return extent

    @property
    def names(self) -> list[str]:
        """Of the fields that a GeoPackage can hold beside its own."""
        return [field.name() for field in self.fields if field.name().lower() not in ("fid", "geom")]

    def write(
        self,
        path: str,
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
        names: Sequence[str] = (),
        within: QgsGeometry | None = None,
    ) -> int:
        """Write them as a GeoPackage with straight edges and without heights.

        Args:
            path: Ends in ``.gpkg``.
            context: For the transformations of the project.
            feedback: May cancel.
            names: Fields to write. Without any, each feature has its id in the layer as :data:`ROW`.
            within: Features that do not touch it are left out.

        Returns:
            How many features were written; those without geometry are left out.

        Raises:
            QgsProcessingException: If there is none, no such field, or the file cannot be written.
        """
        columns = [self._column(name) for name in names]
        fields = QgsFields()
        for column in columns:
            fields.append(_simple(self.fields.at(column)))
        if not columns:
            fields.append(QgsField(ROW, QMetaType.Type.LongLong))
        kind = _plain(self.wkb_type)
        written = 0
        writer = _geopackage(path, fields, kind, self.crs, context.transformContext())
        for feature in self:
            if feedback.isCanceled():
                break
            values = [feature.attribute(column) for column in columns] or [feature.id()]
            shape = feature.geometry()
            if shape.isNull() or (within is not None and not shape.intersects(within)):
                continue
            for geometry in shape.coerceToType(kind):
                copy = QgsFeature(fields)
                copy.setGeometry(geometry)
                copy.setAttributes(values)
                _add(writer, copy, path)
                written += 1
        del writer  # closes the file
        if not written and not feedback.isCanceled():
            chosen = "" if self._selected is None else "selected "
            where = "" if within is None else " in the area"
            raise QgsProcessingException(f"The layer {self.name} has no {chosen}features{where}.")
        return written

    def as_file(
        self, path: str, context: QgsProcessingContext, feedback: QgsProcessingFeedback, names: Sequence[str] = ()
    ) -> str:
        """The layer's own file where that says the same, so that a command can be repeated; else a copy.

        Arguments and exceptions are those of :meth:`write`; a file of its own has further fields as well.
        """
        for name in names:
            self._column(name)
        if self._file is not None and _has_one_layer(self._file):
            return self._file
        self.write(path, context, feedback, names)
        return path

    def _column(self, name: str) -> int:
        column = self.fields.indexFromName(name)
        if column < 0:
            raise QgsProcessingException(f"The layer {self.name} has no field {name}.")
        return column

    def union(self) -> QgsGeometry:
        """All of their geometry as one."""
        return QgsGeometry.unaryUnion([feature.geometry().makeValid() for feature in self if feature.hasGeometry()])


class Area:
    """Where results are wanted: a rectangle, or the polygons of a layer; everywhere where there is neither.

    A rectangle without a CRS is in that of the layer that it is applied to.
    """

    def __init__(
        self,
        rectangle: QgsRectangle | None = None,
        crs: QgsCoordinateReferenceSystem | None = None,
        polygons: Features | None = None,
    ) -> None:
        self._rectangle, self._crs, self._polygons = rectangle, crs, polygons

    def __bool__(self) -> bool:
        return self._rectangle is not None or self._polygons is not None

    def geometry(self, layer: Features | Raster, context: QgsProcessingContext) -> QgsGeometry | None:
        """The part of it that can matter to a layer as one geometry in that layer's CRS, None for everywhere.

        Raises:
            QgsProcessingException: If the layer's CRS has no coordinates there.
        """
        if self._polygons is not None:
            return _moved(self._polygons.union(), self._polygons.crs, layer, context)
        if self._rectangle is None:
            return None
        return _moved(QgsGeometry.fromRect(self._rectangle), self._crs, layer, context)

    def argument(
        self,
        crs: QgsCoordinateReferenceSystem,
        path: str,
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> str | None:
        """What ``--area`` takes: bounds, the path of a layer, or None for everywhere.

        Args:
            crs: Of the raster, in which bounds are.
            path: A GeoPackage to write where bounds do not say it.
            context: For the transformations of the project.
            feedback: May cancel.

        Raises:
            QgsProcessingException: If the layer has no features.
        """
        if self._polygons is not None:
            return self._polygons.as_file(path, context, feedback)
        if self._rectangle is None:
            return None
        box = self._rectangle
        if _same(self._crs, crs):
            return ",".join(repr(value) for value in (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()))
        # A rectangle of another CRS is none in that of the raster: the library bends its edges.
        writer = _geopackage(path, QgsFields(), Qgis.WkbType.Polygon, self._crs, context.transformContext())
        feature = QgsFeature()
        feature.setGeometry(QgsGeometry.fromRect(box))
        _add(writer, feature, path)
        del writer
        return path


def _whole_file(layer: QgsVectorLayer, definition: Any) -> str | None:  # noqa: ANN401 - any value of a parameter
    """The file of a layer that is all of a layer there, unchanged and of a kind that the library surely reads."""
    provider = layer.dataProvider()
    path = layer.source().partition("|")[0]
    if (
        layer.providerType() != "ogr"
        or not path.lower().endswith(_FILES)
        or not os.path.isfile(path)
        or isinstance(definition, QgsProcessingFeatureSourceDefinition)
        or layer.subsetString()
        or layer.isModified()
        or provider.crs() != layer.crs()
        or layer.fields().names() != provider.fields().names()  # joins and virtual fields
        or QgsWkbTypes.linearType(layer.wkbType()) != layer.wkbType()
    ):
        return None
    return path


def _has_one_layer(path: str) -> bool:
    """Whether a file has one layer with geometry; it is opened for that, which takes seconds for a large GeoJSON."""
    layers = QgsProviderRegistry.instance().querySublayers(path)
    return sum(each.wkbType() != Qgis.WkbType.NoGeometry for each in layers) == 1


def _plain(kind: Qgis.WkbType) -> Qgis.WkbType:
    """The flat type with straight edges; polygons as multi-polygons, so that each feature stays one."""
    flat = QgsWkbTypes.linearType(QgsWkbTypes.flatType(kind))
    polygons = QgsWkbTypes.geometryType(flat) == Qgis.GeometryType.Polygon
    return QgsWkbTypes.multiType(flat) if polygons else flat


def _simple(field: QgsField) -> QgsField:
    """The field without what a database asks of it, as text where its type is none of the usual ones."""
    kind = field.type()
    return QgsField(field.name(), kind if kind in _TYPES else QMetaType.Type.QString)


def file_name(title: str) -> str:
    """A GeoPackage's name made of a title, which reports show."""
    return (re.sub(r"\W+", "_", title).strip("_")[:60] or "layer") + ".gpkg"


def _geopackage(
    path: str,
    fields: QgsFields,
    kind: Qgis.WkbType,
    crs: QgsCoordinateReferenceSystem | None,
    transforms: QgsCoordinateTransformContext,
) -> QgsVectorFileWriter:
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = os.path.splitext(os.path.basename(path))[0]
    options.datasourceOptions = ["VERSION=1.2"]
    options.layerOptions = ["SPATIAL_INDEX=NO"]
    writer = QgsVectorFileWriter.create(path, fields, kind, crs, transforms, options)
    if writer.hasError() != QgsVectorFileWriter.WriterError.NoError:
        raise QgsProcessingException(f"The temporary file {path} cannot be written: {writer.errorMessage()}.")
    return writer


def _add(writer: QgsVectorFileWriter, feature: QgsFeature, path: str) -> None:
    if not writer.addFeature(feature):
        raise QgsProcessingException(f"The temporary file {path} cannot be written: {writer.errorMessage()}.")


def _same(here: QgsCoordinateReferenceSystem | None, there: QgsCoordinateReferenceSystem) -> bool:
    return here is None or not here.isValid() or here == there


def _moved(
    geometry: QgsGeometry,
    here: QgsCoordinateReferenceSystem | None,
    layer: Features | Raster,
    context: QgsProcessingContext,
) -> QgsGeometry:
    """An area of a CRS in the CRS of a layer.

    Most CRSs hold for a part of the world and bend what lies far from it, even into one another. So what lies far
    from the layer is cut away first.
    """
    if _same(here, layer.crs):
        return geometry
    near = _near(layer, here, context)
    if near is not None:
        geometry = geometry.intersection(QgsGeometry.fromRect(near))
    if geometry.isEmpty():
        return geometry
    box = geometry.boundingBox()
    moved = geometry.densifyByDistance(max(box.width(), box.height()) / _SEGMENTS)
    try:
        moved.transform(QgsCoordinateTransform(here, layer.crs, context.transformContext()))
    except QgsCsException as error:
        raise QgsProcessingException(
            f"The area lies where {layer.crs.userFriendlyIdentifier()} has no coordinates: choose another one."
        ) from error
    return moved


def _near(
    layer: Features | Raster, crs: QgsCoordinateReferenceSystem | None, context: QgsProcessingContext
) -> QgsRectangle | None:
    """The surroundings of a layer in a CRS, None where that has no coordinates for all of the layer."""
    extent = layer.extent
    if extent.isNull():
        return None
    try:
        box = QgsCoordinateTransform(layer.crs, crs, context.transformContext()).transformBoundingBox(extent)
    except QgsCsException:
        return None
    # A point has surroundings as well, in any unit.
    return box.buffered(max(box.width(), box.height(), 1.0) * _SURROUNDINGS)


def list_argument(values: Sequence[Any]) -> str | None:
    """Values with commas between, as ``--bands`` takes them; None for none."""
    return ",".join(map(str, values)) or None

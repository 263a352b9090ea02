"""From layers to files: whatever a layer is, the worker gets its pixels and features, or a sentence says why not."""

from __future__ import annotations

import os
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Feedback, Sample, opened, pixels
from debias_mapper.layers import ROW, Area, Features
from debias_mapper.rasters import Raster
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsField,
    QgsGeometry,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QMetaType
from qgis.PyQt.QtGui import QImage

UTM = QgsCoordinateReferenceSystem("EPSG:32633")
WINDOW = QgsRectangle(500060, 5399800, 500190, 5399930)


@pytest.fixture
def context() -> QgsProcessingContext:
    return QgsProcessingContext()


def exported(
    layer: QgsRasterLayer, folder: Path, context: QgsProcessingContext, bounds: Any = None, size: Any = None
) -> QgsRasterLayer:
    """What the worker gets of a layer that is no file."""
    raster = Raster(layer)
    assert not raster.is_file
    path = raster.path(str(folder), bounds, size, context, Feedback())
    found = QgsRasterLayer(path, "exported")
    assert found.isValid()
    return found


def test_a_file_is_read_where_it_is_even_when_its_layer_is_gone(sample: Sample, context: QgsProcessingContext) -> None:
    layer = QgsRasterLayer(sample.scene, "scene")
    raster = Raster(layer)
    del layer
    assert raster.path("/nowhere", None, None, context, Feedback()) == sample.scene


def test_a_file_in_an_archive_is_exported_pixel_by_pixel(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext
) -> None:
    with zipfile.ZipFile(tmp_path / "a b.zip", "w") as archive:
        archive.write(sample.scene, "scene.tif")
    layer = QgsRasterLayer(f"/vsizip/{tmp_path}/a b.zip/scene.tif", "zipped")
    found = exported(layer, tmp_path, context)
    assert pixels(found.source()) == pixels(sample.scene)
    assert found.extent() == QgsRasterLayer(sample.scene).extent()
    assert found.crs() == UTM
    colours = [found.dataProvider().colorInterpretationName(band) for band in (1, 2, 3)]
    assert colours == ["Red", "Green", "Blue"]


def test_open_options_are_kept_by_an_export(sample: Sample, tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = QgsRasterLayer(f"{sample.scene}|option:NUM_THREADS=1", "with options")
    assert pixels(exported(layer, tmp_path, context).source()) == pixels(sample.scene)


def test_an_export_has_the_area_on_the_pixels_of_the_layer_and_a_margin(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("debias_mapper.rasters.MARGIN", 2)
    layer = QgsRasterLayer(f"/vsizip//{tmp_path}/a.zip/scene.tif", "zipped")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(sample.scene, "scene.tif")
    layer = QgsRasterLayer(f"/vsizip/{tmp_path}/a.zip/scene.tif", "zipped")
    found = exported(layer, tmp_path, context, QgsRectangle(500060.4, 5399800, 500190, 5399930.6))
    assert found.extent() == QgsRectangle(500058, 5399798, 500192, 5399933)
    whole = QgsRasterLayer(sample.scene)
    for band in (1, 3):
        block = found.dataProvider().block(band, found.extent(), found.width(), found.height())
        same = whole.dataProvider().block(band, found.extent(), found.width(), found.height())
        assert bytes(block.data()) == bytes(same.data())


def test_an_area_beside_an_exported_layer_is_refused(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext
) -> None:
    layer = QgsRasterLayer(f"{sample.scene}|option:NUM_THREADS=1", "with options")
    with pytest.raises(QgsProcessingException, match="The area does not touch the layer with options"):
        exported(layer, tmp_path, context, QgsRectangle(0, 0, 10, 10))


def test_a_crs_that_was_set_in_qgis_counts(sample: Sample, tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = QgsRasterLayer(sample.scene, "moved")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32634"))
    assert exported(layer, tmp_path, context).crs().authid() == "EPSG:32634"


def test_nodata_and_alpha_and_types_outlive_an_export(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext
) -> None:
    layer = QgsRasterLayer(f"{sample.special}|option:NUM_THREADS=1", "special")
    found = exported(layer, tmp_path, context)
    there, here = layer.dataProvider(), found.dataProvider()
    for band in (1, 2):
        assert here.sourceDataType(band) == there.sourceDataType(band)
        assert here.sourceHasNoDataValue(band) == there.sourceHasNoDataValue(band)
        assert here.colorInterpretation(band) == there.colorInterpretation(band)
        assert here.bandDescription(band) == there.bandDescription(band)
    assert here.sourceNoDataValue(1) == -7
    assert pixels(found.source()) == pixels(sample.special)


@pytest.fixture
def tiles(tmp_path: Path) -> QgsRasterLayer:
    """A map service whose tiles lie on the disk: green in the east, red in the west."""
    for level in range(3):
        for x in range(2**level):
            for y in range(2**level):
                (tmp_path / f"{level}/{x}").mkdir(parents=True, exist_ok=True)
                image = QImage(256, 256, QImage.Format.Format_RGB32)
                image.fill(0xFF00FF00 if x >= 2**level / 2 else 0xFFFF0000)
                image.save(str(tmp_path / f"{level}/{x}/{y}.png"))
    layer = QgsRasterLayer(f"type=xyz&url=file://{tmp_path}/%7Bz%7D/%7Bx%7D/%7By%7D.png&zmin=1&zmax=2", "tiles", "wms")
    assert layer.isValid()
    return layer


def test_a_map_service_is_exported_for_an_area(
    tiles: QgsRasterLayer, tmp_path: Path, context: QgsProcessingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("debias_mapper.rasters.MARGIN", 0)
    found = exported(tiles, tmp_path, context, QgsRectangle(-1e6, 0, 1e6, 1e6), 10_000)
    assert (found.bandCount(), found.crs().authid()) == (4, "EPSG:3857")
    assert abs(found.rasterUnitsPerPixelX() - 10_000) < 1e-6
    red, green = pixels(found.source())[:2]
    row = red[: found.width()]
    assert (row[2], row[-2]) == (255, 0)
    assert (green[2], green[found.width() - 2]) == (0, 255)


@pytest.mark.parametrize(
    ("bounds", "size", "sentence"),
    [
        (None, 10.0, "has no end and no pixels of its own: give an area"),
        (QgsRectangle(-1e6, 0, 1e6, 1e6), None, "has no end and no pixels of its own: give an area"),
        (QgsRectangle(-1e6, 0, 1e6, 1e6), 1.0, "are too many"),
    ],
)
def test_a_map_service_needs_an_area_and_a_pixel_size(
    tiles: QgsRasterLayer, tmp_path: Path, context: QgsProcessingContext, bounds: Any, size: Any, sentence: str
) -> None:
    with pytest.raises(QgsProcessingException, match=sentence):
        exported(tiles, tmp_path, context, bounds, size)


def test_layers_without_a_crs_are_refused(sample: Sample) -> None:
    raster = QgsRasterLayer(sample.scene, "lost")
    raster.setCrs(QgsCoordinateReferenceSystem())
    with pytest.raises(QgsProcessingException, match="The layer lost has no coordinate reference system: set it"):
        Raster(raster)
    vector = QgsVectorLayer("Polygon", "lost too", "memory")
    vector.setCrs(QgsCoordinateReferenceSystem())
    with pytest.raises(QgsProcessingException, match="The layer lost too has no coordinate reference system"):
        Features(vector, None)


def memory(wkts: list[str], kind: str = "Polygon") -> QgsVectorLayer:
    layer = QgsVectorLayer(f"{kind}?crs=EPSG:32633&field=kind:string&field=n:integer&field=when:time", "mine", "memory")
    for number, wkt in enumerate(wkts):
        feature = QgsFeature(layer.fields())
        feature.setAttributes([f"k{number}", number, None])
        feature.setGeometry(QgsGeometry.fromWkt(wkt))
        layer.dataProvider().addFeatures([feature])
    return layer


def test_features_of_a_layer_that_is_gone_are_written(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext
) -> None:
    layer = QgsVectorLayer(sample.labels, "labels", "ogr")
    layer.setSubsetString("kind <> 'red'")
    layer.startEditing()
    layer.changeAttributeValue(next(layer.getFeatures()).id(), layer.fields().lookupField("kind"), "edited")
    features = Features(layer, None)
    expected = [(each["kind"], each.geometry().asWkt()) for each in layer.getFeatures()]
    layer.rollBack()
    del layer
    path = str(tmp_path / "written.gpkg")
    assert features.write(path, context, Feedback(), ["kind"]) == len(expected) < 64
    found = [(each["kind"], each.geometry().asWkt()) for each in opened(path).getFeatures()]
    assert [kind for kind, _ in found] == [kind for kind, _ in expected]
    assert found[0][0] == "edited"


def test_a_layer_that_is_all_of_a_file_is_read_where_it_is(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext
) -> None:
    copy = str(tmp_path / "copy.gpkg")

    def path(change: Callable[[QgsVectorLayer], object], definition: Any = None) -> str:
        layer = QgsVectorLayer(sample.labels, "labels", "ogr")
        change(layer)
        return Features(layer, definition).as_file(copy, context, Feedback(), ["kind"])

    assert path(lambda layer: None) == sample.labels
    assert path(lambda layer: layer.setSubsetString("kind = 'red'")) == copy
    assert path(lambda layer: layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32634"))) == copy
    assert path(lambda layer: layer.addExpressionField("1", QgsField("one", QMetaType.Type.Int))) == copy
    assert path(lambda layer: (layer.startEditing(), layer.deleteFeature(1))) == copy
    assert path(lambda layer: None, QgsProcessingFeatureSourceDefinition("labels", featureLimit=3)) == copy
    with pytest.raises(QgsProcessingException, match="The layer labels has no field colour"):
        Features(QgsVectorLayer(sample.labels, "labels", "ogr"), None).as_file(copy, context, Feedback(), ["colour"])


def test_only_selected_features_are_written_when_that_is_asked(tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = memory([f"POLYGON(({i} 0,{i} 1,{i + 1} 1,{i} 0))" for i in range(5)])
    layer.selectByIds([2, 4])
    asked = QgsProcessingFeatureSourceDefinition("mine", selectedFeaturesOnly=True)
    features = Features(layer, asked)
    layer.removeSelection()
    path = str(tmp_path / "selected.gpkg")
    assert features.write(path, context, Feedback()) == 2
    assert [each[ROW] for each in opened(path).getFeatures()] == [2, 4]
    with pytest.raises(QgsProcessingException, match="The layer mine has no selected features"):
        Features(layer, asked).write(path, context, Feedback())


def test_a_limit_counts_selected_features_alone(tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = memory([f"POLYGON(({i} 0,{i} 1,{i + 1} 1,{i} 0))" for i in range(5)])
    layer.selectByIds([2, 4, 5])
    asked = QgsProcessingFeatureSourceDefinition("mine", selectedFeaturesOnly=True, featureLimit=2)
    assert [each.id() for each in Features(layer, asked)] == [2, 4]


def test_an_alias_is_no_field(tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = memory(["POLYGON((0 0,0 1,1 1,0 0))"])
    layer.setFieldAlias(layer.fields().indexFromName("kind"), "class")
    with pytest.raises(QgsProcessingException, match="The layer mine has no field class"):
        Features(layer, None).write(str(tmp_path / "a.gpkg"), context, Feedback(), ["class"])


def test_filters_and_limits_of_a_source_hold(tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = memory([f"POLYGON(({i} 0,{i} 1,{i + 1} 1,{i} 0))" for i in range(5)])
    asked = QgsProcessingFeatureSourceDefinition("mine", featureLimit=2, filterExpression='"n" > 1')
    path = str(tmp_path / "filtered.gpkg")
    Features(layer, asked).write(path, context, Feedback(), ["n"])
    assert [each["n"] for each in opened(path).getFeatures()] == [2, 3]


def test_curves_heights_and_odd_fields_are_made_plain(tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = memory(["CURVEPOLYGON Z(CIRCULARSTRING Z(0 0 1,1 1 1,2 0 1,1 -1 1,0 0 1))"], "CurvePolygonZ")
    path = str(tmp_path / "plain.gpkg")
    assert Features(layer, None).write(path, context, Feedback(), ["when", "kind"]) == 1
    (found,) = opened(path).getFeatures()
    assert found.geometry().asWkt().startswith("MultiPolygon (((")
    assert abs(found.geometry().area() - 3.1416) < 0.01
    with pytest.raises(QgsProcessingException, match="The layer mine has no field colour"):
        Features(layer, None).write(path, context, Feedback(), ["colour"])


def test_temporary_geopackages_are_of_version_1_2(tmp_path: Path, context: QgsProcessingContext) -> None:
    path = str(tmp_path / "version.gpkg")
    Features(memory(["POLYGON((0 0,0 1,1 1,0 0))"]), None).write(path, context, Feedback())
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (10200,)


def test_bounds_in_the_crs_of_the_raster_are_words_and_others_a_layer(
    tmp_path: Path, context: QgsProcessingContext
) -> None:
    path = str(tmp_path / "area.gpkg")
    assert Area().argument(UTM, path, context, Feedback()) is None
    words = Area(WINDOW, UTM).argument(UTM, path, context, Feedback())
    assert words == "500060.0,5399800.0,500190.0,5399930.0"
    degrees = QgsCoordinateReferenceSystem("EPSG:4326")
    assert Area(QgsRectangle(15, 48.7, 15.1, 48.8), degrees).argument(UTM, path, context, Feedback()) == path
    (found,) = opened(path).getFeatures()
    assert (found.geometry().boundingBox(), opened(path).crs()) == (QgsRectangle(15, 48.7, 15.1, 48.8), degrees)


def test_an_area_moves_to_another_crs_and_back(context: QgsProcessingContext) -> None:
    degrees = QgsCoordinateReferenceSystem("EPSG:4326")
    here = Features(_as_layer(QgsGeometry.fromRect(WINDOW.buffered(50)), UTM), None)
    around = QgsGeometry.fromRect(QgsRectangle(14.9, 48.6, 15.2, 48.9))
    there = Area(WINDOW, UTM).geometry(Features(_as_layer(around, degrees), None), context)
    assert there is not None
    back = Area(polygons=Features(_as_layer(there, degrees), None)).geometry(here, context)
    assert back is not None
    assert abs(back.area() - WINDOW.area()) < 1e-3 * WINDOW.area()
    assert back.symDifference(QgsGeometry.fromRect(WINDOW)).area() < 1e-3 * WINDOW.area()


@pytest.mark.parametrize(
    ("rectangle", "crs"),
    [
        (QgsRectangle(-180, -90, 180, 90), "EPSG:4326"),
        (QgsRectangle(-200, -100, 200, 100), "EPSG:4326"),
        (QgsRectangle(-2e7, -2e7, 2e7, 2e7), "EPSG:3857"),
    ],
)
def test_the_whole_world_is_all_of_a_layer(
    sample: Sample, context: QgsProcessingContext, rectangle: QgsRectangle, crs: str
) -> None:
    world = Area(rectangle, QgsCoordinateReferenceSystem(crs))
    wide = memory(
        [f"POLYGON(({x} 5400000,{x} 5400050,{x + 50} 5400050,{x} 5400000))" for x in range(3 * 10**5, 7 * 10**5, 10**5)]
    )
    features = Features(wide, None)
    found = world.geometry(features, context)
    assert found is not None
    assert all(each.geometry().within(found) for each in features)
    scene = QgsRasterLayer(sample.scene)
    found = world.geometry(Raster(scene), context)
    assert found is not None
    assert found.boundingBox().contains(scene.extent())


def test_a_point_is_found_in_the_whole_world_and_an_area_beside_it_holds_nothing(
    context: QgsProcessingContext,
) -> None:
    point = Features(memory(["POINT(500060 5399800)"], "Point"), None)
    degrees = QgsCoordinateReferenceSystem("EPSG:4326")
    found = Area(QgsRectangle(-180, -90, 180, 90), degrees).geometry(point, context)
    assert found is not None
    assert all(each.geometry().within(found) for each in point)
    beside = Area(QgsRectangle(-100, -40, -90, -30), degrees).geometry(point, context)
    assert beside is not None
    assert beside.isEmpty()


def test_an_area_of_another_crs_beside_an_exported_layer_is_refused(
    sample: Sample, tmp_path: Path, context: QgsProcessingContext
) -> None:
    layer = QgsRasterLayer(f"{sample.scene}|option:NUM_THREADS=1", "with options")
    beside = Area(QgsRectangle(-100, -40, -90, -30), QgsCoordinateReferenceSystem("EPSG:4326"))
    found = beside.geometry(Raster(layer), context)
    assert found is not None
    with pytest.raises(QgsProcessingException, match="The area does not touch the layer with options"):
        exported(layer, tmp_path, context, found.boundingBox())


def test_an_extent_without_a_crs_is_in_that_of_the_layer(tmp_path: Path, context: QgsProcessingContext) -> None:
    area = Area(WINDOW, QgsCoordinateReferenceSystem())
    words = "500060.0,5399800.0,500190.0,5399930.0"
    assert area.argument(UTM, str(tmp_path / "a.gpkg"), context, Feedback()) == words
    features = Features(_as_layer(QgsGeometry.fromRect(WINDOW), UTM), None)
    found = area.geometry(features, context)
    assert found is not None
    assert found.boundingBox() == WINDOW


def _as_layer(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem) -> QgsVectorLayer:
    layer = QgsVectorLayer(f"Polygon?crs={crs.authid()}", "area", "memory")
    feature = QgsFeature()
    feature.setGeometry(geometry)
    layer.dataProvider().addFeatures([feature])
    return layer


def test_a_raster_in_a_geopackage_is_exported(sample: Sample, tmp_path: Path, context: QgsProcessingContext) -> None:
    layer = QgsRasterLayer(f"GPKG:{sample.rasters}:scene", "inside")
    assert layer.isValid()
    found = exported(layer, tmp_path, context)
    assert (found.width(), found.height()) == (256, 256)
    assert found.crs() == UTM
    assert os.path.exists(tmp_path / "pixels.tif")

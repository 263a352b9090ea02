"""The pictures of the manual: the steps that it describes, with the data of the demo."""

from __future__ import annotations

from typing import Any

from driver import Driver, Scenario, Wait
from qgis.core import QgsFillSymbol, QgsProject, QgsRasterLayer, QgsRectangle, QgsSingleSymbolRenderer, QgsVectorLayer
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QDockWidget, QScrollArea
from qgis.utils import iface
from scenarios import dock, idle, install, set_up

VIEW = QgsRectangle(412_700, 5_316_960, 413_100, 5_317_260)
"""A part of the half of the scene that no label covers."""


def pictures(driver: Driver) -> Scenario:
    """Take them all."""
    driver.step("install")
    install(driver)
    for name in ("Browser", "Layers"):
        panel = iface.mainWindow().findChild(QDockWidget, name)
        panel.setVisible(name == "Layers")
    scene = QgsRasterLayer(str(driver.sample / "scene" / "scene.tif"), "scene")
    labels = outlines(driver, "labels", "220,38,38")
    footprints = outlines(driver, "footprints", "255,255,255")
    for layer in (scene, labels, footprints):
        QgsProject.instance().addMapLayer(layer)
    yield driver.pause(1)
    iface.mainWindow().resizeDocks([panel], [230], Qt.Orientation.Horizontal)
    look(scene.extent())
    yield driver.pause(2)
    yield from set_up(driver)
    yield from train(driver, scene, labels)
    QgsProject.instance().layerTreeRoot().findLayer(labels.id()).setItemVisibilityChecked(False)
    look(VIEW)
    yield from name_features(driver, scene, footprints)
    yield from find_objects(driver)


def outlines(driver: Driver, name: str, colour: str) -> QgsVectorLayer:
    """A layer of the demo as plain outlines."""
    layer = QgsVectorLayer(str(driver.sample / "scene" / f"{name}.gpkg"), name)
    symbol = QgsFillSymbol.createSimple({"style": "no", "outline_color": colour, "outline_width": "0.5"})
    layer.setRenderer(QgsSingleSymbolRenderer(symbol))
    return layer


def look(extent: QgsRectangle) -> None:
    """Show a part of the map."""
    iface.mapCanvas().setExtent(extent)
    iface.mapCanvas().refresh()


def train(driver: Driver, scene: Any, labels: Any) -> Scenario:
    """The dialog of the training; the model is there already, since it takes minutes."""
    driver.step("train")
    dock().train_button.menu().actions()[0].trigger()
    dialog = dock().dialogs[-1]
    dialog.setParameters(
        {
            "INPUT": scene.id(), "LABELS": labels.id(), "CLASS_FIELD": "class", "BACKGROUND": 300, "WINDOW": 64,
            "OUTPUT": str(driver.out / "objects.tgd"),
        }
    )  # fmt: skip
    dialog.setGeometry(200, 26, 860, 736)  # as high as the screen
    yield driver.pause(1)
    panel = dialog.mainWidget()
    panel.findChild(QScrollArea).ensureWidgetVisible(panel.wrappers["WINDOW"].wrappedWidget(), 0, 8)
    yield driver.pause(1)
    driver.shot("train")
    dialog.close()


def name_features(driver: Driver, scene: Any, footprints: Any) -> Scenario:
    """The features of a layer, de-biased and with the plain LoRA."""
    driver.step("features")
    panel, results = dock().inputs, dock().results
    panel.image.setLayer(scene)
    panel.picker.choose(str(next(driver.sample.glob("*.tgd"))))
    yield Wait(lambda: panel.model is not None, "the card")
    panel.task.setCurrentIndex(2)
    panel.features.setLayer(footprints)
    yield driver.pause(2)
    driver.shot("model")
    dock().run_button.click()
    yield Wait(lambda: not dock().busy, "the end", 240)
    QgsProject.instance().layerTreeRoot().findLayer(footprints.id()).setItemVisibilityChecked(False)
    yield Wait(lambda: results._counts, "the counts")
    results.spin.setValue(0.5)
    expand(results)
    yield driver.pause(8)
    driver.shot("result")
    results.plain.click()
    yield driver.pause(2)
    driver.shot("plain")
    layer = results.layers.currentLayer()
    QgsProject.instance().layerTreeRoot().findLayer(layer.id()).setItemVisibilityChecked(False)


def expand(results: Any) -> None:
    """Show the legend of a result."""
    QgsProject.instance().layerTreeRoot().findLayer(results.layers.currentLayer().id()).setExpanded(True)


def find_objects(driver: Driver) -> Scenario:
    """Boxes in the visible part of the map."""
    driver.step("objects")
    panel, results = dock().inputs, dock().results
    dock().tabs.setCurrentIndex(0)
    panel.picker.choose(str(driver.sample / "detector"))
    yield Wait(lambda: panel.model is not None, "the card")
    panel.area.setCurrentIndex(1)
    dock().run_button.click()
    yield Wait(lambda: dock().bar.value() > 0, "progress")
    yield driver.pause(0.5)
    driver.shot("running")
    yield idle()
    yield Wait(lambda: results._counts, "the counts")
    results.spin.setValue(0.5)
    expand(results)
    yield driver.pause(8)
    driver.shot("objects")
    dock().tabs.setCurrentIndex(2)
    driver.shot("command")

"""What a user does with the plugin: one generator for each session of QGIS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from driver import Driver, Scenario, Wait
from qgis.core import (
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsMapLayer,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtWidgets import QApplication, QDialogButtonBox
from qgis.utils import iface, loadPlugin, plugins, reloadPlugin, startPlugin, unloadPlugin

NAME = "debias_mapper"
MAP, RESULT, LOG = range(3)


def dock() -> Any:
    """The dock of the loaded plugin."""
    return plugins[NAME]._desktop.dock


def install(driver: Driver) -> None:
    """Install the zip as the plugin manager does."""
    import pyplugin_installer

    with driver.unwatched():
        pyplugin_installer.instance().installFromZipFile(driver.plan["zip"])
    assert NAME in plugins, "the plugin was not installed"
    driver.report["installed_in"] = os.path.dirname(sys.modules[NAME].__file__ or "")


def add_layers(driver: Driver) -> dict[str, QgsMapLayer]:
    """The rasters and the labels."""
    folder = driver.sample
    layers = {
        "scene": QgsRasterLayer(str(folder / "scene.tif"), "scene"),
        "large": QgsRasterLayer(driver.plan["large"], "large"),
        "labels": QgsVectorLayer(str(folder / "labels.gpkg"), "labels"),
    }
    with driver.unwatched():
        for layer in layers.values():
            assert layer.isValid(), layer.source()
            QgsProject.instance().addMapLayer(layer)
        QgsProject.instance().layerTreeRoot().findLayer(layers["large"].id()).setItemVisibilityChecked(False)
    return layers


def choose(driver: Driver, layer: QgsMapLayer, model: str) -> Wait:
    """Pick an image and a model; waits for its card."""
    panel = dock().inputs
    panel.image.setLayer(layer)
    panel.weights.setFilePath(str(driver.sample / "weights.safetensors"))
    panel.picker.choose(model)
    return Wait(lambda: panel.model is not None, f"the card of {model}")


def idle() -> Wait:
    """The end of a run."""
    return Wait(lambda: not dock().busy, "the end of the run", 120)


def under_way() -> Wait:
    """A run that has begun to compute."""
    return Wait(lambda: dock().busy and dock().bar.value() > 0, "progress")


def sentence() -> str:
    """What the dock says."""
    return str(dock().sentence.text())


def first_map(driver: Driver) -> Scenario:
    """From the zip to a map: install, set up, train, classify, detect, compare, cancel, reload, disable."""
    driver.step("install")
    install(driver)
    driver.step("open")
    layers = add_layers(driver)
    yield driver.pause(0.5)
    QgsProject.instance().setCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    iface.setActiveLayer(layers["scene"])
    iface.zoomToActiveLayer()
    yield driver.pause(1)
    driver.shot("start")
    yield from set_up(driver)
    model = driver.out / "trained.tgd"
    yield from train(driver, layers, str(model))
    yield from classify(driver, layers, str(model))
    yield from detect(driver, layers)
    yield from disturb(driver, layers)
    yield from reload_and_disable(driver, layers)


def set_up(driver: Driver) -> Scenario:
    """Choose an existing Python in the dialog of the environment."""
    driver.step("environment")
    dock().environment_button.click()
    dialog = dock().environment
    yield Wait(lambda: dialog.status is not None and dialog.base.currentData() is not None, "the state")
    assert not dialog.status.ready
    driver.report["without"] = dialog.status.sentence
    dialog.existing.setFilePath(driver.plan["python"])
    dialog.use_button.click()
    yield Wait(lambda: dialog.status is not None and dialog.status.ready, "the environment")
    yield driver.pause(0.5)
    driver.shot("environment")
    driver.region("environment", dialog)
    dialog.close()


def train(driver: Driver, layers: dict[str, QgsMapLayer], model: str) -> Scenario:
    """Train a classifier in the toolbox's dialog, which the dock opens."""
    driver.step("train")
    dock().train_button.menu().actions()[0].trigger()
    dialog = dock().dialogs[-1]
    dialog.setParameters(
        {
            "INPUT": layers["scene"].id(), "LABELS": layers["labels"].id(), "CLASS_FIELD": "kind",
            "WINDOW": 32, "CHIP_SIZE": 32, "EPOCHS": 2, "BACKBONE": "timm:test_vit", "PRECISION": "32",
            "WEIGHTS": str(driver.sample / "weights.safetensors"), "OUTPUT": model,
        }
    )  # fmt: skip
    yield driver.pause(0.5)
    driver.shot("train")
    driver.region("train", dialog)
    ended: list[bool] = []
    dialog.algorithmFinished.connect(lambda successful, results: ended.append(successful))
    dialog.buttonBox().button(QDialogButtonBox.StandardButton.Ok).click()
    yield Wait(lambda: ended, "the end of the training", 180)
    driver.shot("trained")
    driver.region("trained", dialog)
    assert ended == [True], "the training failed"
    assert os.path.exists(model)
    dialog.close()
    yield Wait(lambda: not dock().dialogs, "the end of the dialog")


def classify(driver: Driver, layers: dict[str, QgsMapLayer], model: str) -> Scenario:
    """Map the scene with the trained model; filter and toggle the result."""
    driver.step("classify")
    yield choose(driver, layers["scene"], model)
    driver.shot("model")
    values: list[float] = []
    dock().runner.progressed.connect(values.append)
    began = time.monotonic()
    dock().run_button.click()
    yield Wait(lambda: dock().busy, "the run")
    yield idle()
    driver.report["seconds_to_result"] = time.monotonic() - began
    driver.report["progress"] = values
    panel = dock().results
    yield Wait(lambda: panel._counts, "the counts")
    assert dock().tabs.currentIndex() == RESULT, sentence()
    layer = panel.layers.currentLayer()
    driver.report["classified"] = {"features": layer.featureCount(), "sentence": sentence()}
    driver.shot("classified")

    driver.step("filter")
    total = layer.featureCount()
    scores = sorted(feature["score"] for feature in layer.getFeatures())
    threshold = round(scores[len(scores) // 2], 2)
    panel.spin.setValue(threshold)
    yield Wait(lambda: layer.subsetString() == f'"score" >= {threshold:g}', "the filter")
    driver.report["filtered"] = {
        "shown": layer.featureCount(), "expected": sum(score >= threshold for score in scores), "total": total
    }  # fmt: skip
    driver.step("toggle")
    panel.plain.click()
    yield Wait(lambda: "score_raw" in layer.subsetString(), "the plain LoRA")
    renderer = layer.renderer()
    driver.report["toggled"] = renderer.classAttribute() if isinstance(renderer, QgsCategorizedSymbolRenderer) else ""
    driver.shot("plain")
    panel.debiased.click()
    panel.spin.setValue(0)
    yield Wait(lambda: layer.subsetString() == "", "the whole layer")


def detect(driver: Driver, layers: dict[str, QgsMapLayer]) -> Scenario:
    """Find objects, then those of the plain LoRA; copy the command."""
    driver.step("detect")
    dock().tabs.setCurrentIndex(MAP)
    yield choose(driver, layers["scene"], str(driver.sample / "detector.tgd"))
    dock().inputs.score.setValue(0.05)
    driver.shot("detector")
    dock().run_button.click()
    yield idle()
    panel = dock().results
    yield Wait(lambda: panel._counts, "the counts")
    layer = panel.layers.currentLayer()
    driver.report["detected"] = {"name": layer.name(), "features": layer.featureCount()}
    driver.shot("detected")
    driver.step("detect with the plain LoRA")
    panel.run_plain.click()
    yield idle()
    yield Wait(lambda: len(panel._counts) == 2, "the counts of both")
    panel.plain.click()
    yield driver.pause(0.5)
    tree = QgsProject.instance().layerTreeRoot()
    driver.report["visible"] = [tree.findLayer(side.layer.id()).itemVisibilityChecked() for side in panel._sides]
    driver.shot("detected_plain")
    dock().copy.click()
    driver.report["command"] = QApplication.clipboard().text()
    dock().tabs.setCurrentIndex(LOG)
    driver.shot("log")


def disturb(driver: Driver, layers: dict[str, QgsMapLayer]) -> Scenario:
    """Cancel a run; rename and remove the image of another one."""
    driver.step("cancel")
    dock().tabs.setCurrentIndex(MAP)
    yield choose(driver, layers["large"], str(driver.sample / "detector.tgd"))
    dock().run_button.click()
    yield under_way()
    driver.shot("running")
    began = time.monotonic()
    dock().cancel_button.click()
    yield idle()
    driver.report["cancelled"] = {"seconds": time.monotonic() - began, "sentence": sentence()}

    driver.step("rename and remove")
    image = QgsRasterLayer(str(driver.sample / "scene.tif"), "passing")
    QgsProject.instance().addMapLayer(image)
    dock().inputs.image.setLayer(image)
    dock().run_button.click()
    image.setName("renamed")
    yield driver.pause(0.1)
    QgsProject.instance().removeMapLayer(image.id())
    yield idle()
    driver.report["removed"] = sentence()


def reload_and_disable(driver: Driver, layers: dict[str, QgsMapLayer]) -> Scenario:
    """Reload the plugin in the middle of a run, disable it in the middle of another one, and enable it again."""
    for name, act in (("reload", reloadPlugin), ("disable", unloadPlugin)):
        driver.step(f"{name} in a run")
        yield choose(driver, layers["large"], str(driver.sample / "detector.tgd"))
        dock().run_button.click()
        yield under_way()
        began = time.monotonic()
        with driver.unwatched():
            act(NAME)
        driver.report[name] = time.monotonic() - began
        yield Wait(lambda: QgsApplication.taskManager().countActiveTasks() == 0, "the end of all tasks")
    assert NAME not in plugins
    assert QgsApplication.processingRegistry().providerById("debias") is None
    driver.step("enable")
    began = time.monotonic()
    with driver.unwatched():
        assert loadPlugin(NAME)
        assert startPlugin(NAME)
    driver.report["enable"] = time.monotonic() - began
    yield choose(driver, layers["scene"], str(driver.sample / "detector.tgd"))
    dock().run_button.click()
    yield idle()
    driver.report["again"] = sentence()
    driver.shot("end")


def calibrate(driver: Driver) -> Scenario:
    """Show that gaps are measured as they are: block the interface, then let it compute where others do as well."""
    yield driver.pause(0.5)
    driver.step("blocked on purpose")
    time.sleep(0.3)
    yield driver.pause(0.1)
    driver.step("crowded out on purpose")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread; the others inherit it
    others = [subprocess.Popen(["/usr/bin/python3", "-c", "while True: pass"]) for _ in range(2)]
    time.sleep(0.1)  # they start
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
    os.sched_setaffinity(0, cores)
    for other in others:
        other.kill()
        other.wait()
    yield driver.pause(0.1)


def leave_in_a_run(driver: Driver) -> Scenario:
    """Close QGIS in the middle of a run; the plugin is there from the session before."""
    yield from calibrate(driver)
    driver.step("close")
    assert NAME in plugins, "the plugin is not loaded"
    layers = add_layers(driver)
    yield choose(driver, layers["large"], str(driver.sample / "detector.tgd"))
    dock().run_button.click()
    yield under_way()

"""The dock with the real worker: card, runs, filter, comparison, and what may happen meanwhile."""

from __future__ import annotations

import html
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, Sample
from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsMapLayer,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsTask,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QApplication, QDialog, QLabel

MAP, RESULT, LOG = range(3)


def until(condition: Callable[[], Any], what: str, seconds: float = 90) -> None:
    """Let the event loop run until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        QTest.qWait(20)


def add(layer: QgsMapLayer) -> Any:
    assert layer.isValid()
    return QgsProject.instance().addMapLayer(layer)


@pytest.fixture
def dock(qgis_iface: Any) -> Iterator[Any]:
    """A dock of its own for each test; the worker is shared."""
    from debias_mapper.dock.dock import DebiasDock
    from debias_mapper.dock.tasks import wait_for

    qgis_iface.messageBar().clear_messages()
    dock = DebiasDock(qgis_iface)
    dock.show()
    yield dock
    tasks = dock.close_down()
    wait_for(tasks, 10)
    assert all(task.is_over() for task in tasks)
    dock.deleteLater()


@pytest.fixture
def scene(sample: Sample) -> Any:
    """The scene in the project."""
    return add(QgsRasterLayer(sample.scene, "scene"))


@pytest.fixture
def large(sample: Sample, tmp_path: Path) -> Any:
    """An image that keeps the detector busy for long."""
    path = tmp_path / "large.tif"
    bounds = [500_000, 5_400_000, 504_096, 5_395_904]
    gdal.Translate(str(path), sample.scene, width=4096, height=4096, outputBounds=bounds)
    return add(QgsRasterLayer(str(path), "large"))


def choose(dock: Any, sample: Sample, model: str) -> None:
    """Choose a model and wait for its card."""
    dock.inputs.weights.setFilePath(sample.weights)
    dock.inputs.picker.choose(model)
    until(lambda: dock.inputs.model is not None, "the card")


def run(dock: Any) -> Any:
    """Run and wait; gives the layer that is looked at."""
    dock.run_button.click()
    assert dock.busy
    until(lambda: not dock.busy, "the end of the run")
    assert dock.tabs.currentIndex() == RESULT, dock.sentence.text()
    until(lambda: dock.results._counts, "the counts")
    return dock.results.layers.currentLayer()


def lines(dock: Any) -> dict[str, list[str]]:
    """The table: class to its texts, and groups to theirs."""
    tree = dock.results.table
    found = {}
    for number in range(tree.topLevelItemCount()):
        top = tree.topLevelItem(number)
        for item in (top, *(top.child(i) for i in range(top.childCount()))):
            found[item.text(0)] = [item.text(column) for column in range(1, tree.columnCount())]
    return found


def test_the_card_tells_of_a_classifier_and_the_tasks_follow_it(dock: Any, scene: Any, sample: Sample) -> None:
    assert not dock.run_button.isEnabled()
    choose(dock, sample, sample.classifier)
    card, panel = dock.inputs.picker.card, dock.inputs
    facts = dict(panel.model.facts)
    assert facts["Task"] == "Classifier"
    assert "plain LoRA kept" in facts["Method"]
    assert facts["Resolution"] == "1 m per pixel, chip of 32 px"
    shown = [[card.classes.topLevelItem(i).text(c) for c in range(3)] for i in range(card.classes.topLevelItemCount())]
    assert {tuple(row) for row in shown} == {(e.name, str(e.count), e.group) for e in panel.model.classes}
    assert [int(row[1]) for row in shown] == sorted((int(row[1]) for row in shown), reverse=True)
    assert card.sentence.isHidden()
    assert [panel.task.itemText(i) for i in range(panel.task.count())] == [
        "Classify tiles", "Make a class map", "Name the features of a layer",
    ]  # fmt: skip
    assert dock.run_button.isEnabled()
    panel.task.setCurrentIndex(2)
    assert not panel.features.isHidden()
    assert panel.score.isHidden()
    assert dock.sentence.text() == "Add the layer whose features are to be named."


def test_the_card_tells_of_a_detector(dock: Any, scene: Any, sample: Sample) -> None:
    choose(dock, sample, sample.detector)
    assert dict(dock.inputs.model.facts)["Task"] == "Detector, oriented boxes"
    assert [dock.inputs.task.itemText(i) for i in range(dock.inputs.task.count())] == ["Find the objects"]
    assert dock.inputs.score.value() == 0.3
    assert dock.inputs.overlap.value() == 0.25


def test_what_is_no_model_is_told_in_the_card(dock: Any, sample: Sample, tmp_path: Path) -> None:
    card = dock.inputs.picker.card
    dock.inputs.picker.choose(str(tmp_path / "nothing"))
    assert card.sentence.text() == f"There is no model at {tmp_path / 'nothing'}."
    dock.inputs.picker.choose(sample.scene)
    until(lambda: "Reading" not in card.sentence.text(), "the refusal")
    assert "scene.tif" in card.sentence.text()
    assert "Traceback" not in card.sentence.text()
    assert not dock.run_button.isEnabled()


def test_without_an_environment_the_dock_says_what_to_do(
    dock: Any, settings: Any, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(settings.ENVIRONMENT_VARIABLE)
    dock.check_environment()
    until(lambda: "no environment" in dock._line.text(), "the state")
    dock.inputs.picker.choose(sample.detector)
    until(lambda: "no Python environment" in dock.inputs.picker.card.sentence.text(), "the sentence")


def test_models_that_were_read_are_offered_again(dock: Any, settings: Any, sample: Sample) -> None:
    choose(dock, sample, sample.detector)
    choose(dock, sample, sample.classifier)
    paths = dock.inputs.picker.paths
    assert [paths.itemText(i) for i in range(paths.count())] == [sample.classifier, sample.detector]


def test_a_map_of_tiles_is_filtered_counted_and_compared(dock: Any, scene: Any, sample: Sample) -> None:
    choose(dock, sample, sample.classifier)
    layer = run(dock)
    features = [feature.attributeMap() for feature in layer.getFeatures()]
    assert f"{len(features)} features" in dock.sentence.text()
    found = lines(dock)
    debiased, plain = (Counter(each[name] for each in features) for name in ("class", "class_raw"))
    for name in set(debiased) | set(plain):
        assert found[name] == [str(debiased[name]), str(plain[name])]
    groups = Counter(each["group"] for each in features)
    assert {name.lower(): int(found[name][0]) for name in ("Head", "Middle", "Tail") if name in found} == {
        name: groups[name] for name in ("head", "middle", "tail") if name.capitalize() in found
    }

    scores = sorted(each["score"] for each in features)
    threshold = round(scores[len(scores) // 2], 2)
    dock.results.spin.setValue(threshold)
    left = sum(score >= threshold for score in scores)
    assert dock.results.hint.text() == f"{left} of {len(features)} features shown"  # at once, before the filter
    until(lambda: layer.subsetString(), "the filter")
    assert layer.subsetString() == f'"score" >= {threshold:g}'
    assert layer.featureCount() == left

    dock.results.plain.click()
    assert layer.subsetString() == f'"score_raw" >= {threshold:g}'
    assert isinstance(layer.renderer(), QgsCategorizedSymbolRenderer)
    assert layer.renderer().classAttribute() == "class_raw"
    assert layer.featureCount() == sum(each["score_raw"] >= threshold for each in features)

    dock.results._open(layer)  # as a project that is opened again
    assert dock.results.plain.isChecked()
    assert dock.results.threshold == threshold
    until(lambda: dock.results._counts, "the counts")
    assert dock.results._counts[0].total == len(features)

    dock.copy.click()
    words = shlex.split(QApplication.clipboard().text())
    assert words[:3] == ["torchgeo-debias", "classify", sample.scene]
    assert words[words.index("--model") + 1] == sample.classifier


def test_the_plain_lora_of_a_detector_is_a_second_layer(dock: Any, scene: Any, sample: Sample) -> None:
    choose(dock, sample, sample.detector)
    dock.inputs.score.setValue(0.05)
    layer = run(dock)
    panel, tree = dock.results, QgsProject.instance().layerTreeRoot()
    assert not panel.plain.isEnabled()
    assert not panel.run_plain.isHidden()
    panel.run_plain.click()
    until(lambda: not dock.busy and len(panel._counts) == 2, "the plain LoRA")
    assert "--raw" in dock.command.toPlainText()
    first, second = panel._sides
    assert first.layer is layer
    assert second.layer.name() == f"{layer.name()} (plain LoRA)"
    assert panel.run_plain.isHidden()
    for button, expected in ((panel.plain, [False, True]), (panel.debiased, [True, False])):
        button.click()
        assert [tree.findLayer(side.layer.id()).itemVisibilityChecked() for side in panel._sides] == expected
    panel.spin.setValue(0.1)
    until(lambda: layer.subsetString() and second.layer.subsetString(), "both filters")
    QgsProject.instance().removeMapLayer(second.layer.id())
    assert len(panel._sides) == 1
    assert not panel.run_plain.isHidden()


def test_a_filter_of_the_user_stays(dock: Any) -> None:
    layer = result_layer(30)
    layer.setSubsetString("\"class\" = 'a'")
    add(layer)
    until(lambda: dock.results._counts, "the counts")
    assert not dock.results.slider.isEnabled()
    assert "filter of its own" in dock.results.hint.text()
    dock.results._filter()
    assert layer.subsetString() == "\"class\" = 'a'"


def test_a_hundred_thousand_features_are_counted_in_the_background(dock: Any) -> None:
    layer = result_layer(100_000)
    add(layer)
    assert dock.results.hint.text() == "Counting…"  # the interface did not wait for it
    until(lambda: dock.results._counts, "the counts")
    dock.results.spin.setValue(0.5)
    expected = Counter(f["class"] for f in layer.getFeatures('"score" >= 0.5'))
    assert {name: int(texts[0].replace(",", "")) for name, texts in lines(dock).items() if name in expected} == expected


def result_layer(n: int) -> QgsVectorLayer:
    """A layer like one that the worker makes."""
    uri = "NoGeometry?field=class:string&field=score:double&field=group:string"
    layer = QgsVectorLayer(uri, "result", "memory")
    features = []
    for number in range(n):
        feature = QgsFeature(layer.fields())
        feature.setAttributes(["abc"[number % 3], (number * 7919 % n) / n, ("head", "middle", "tail")[number % 3]])
        features.append(feature)
    assert layer.dataProvider().addFeatures(features)[0]
    return layer


def two_sided(tmp_path: Path, n: int = 30) -> Any:
    """A layer with both results, as a GeoPackage, in the project."""
    memory = QgsVectorLayer(
        "Point?crs=EPSG:3857&field=class:string&field=score:double&field=class_raw:string&field=score_raw:double",
        "both",
        "memory",
    )
    features = []
    for number in range(n):
        feature = QgsFeature(memory.fields())
        feature.setAttributes(["abc"[number % 3], number / n, "ab"[number % 2], 1 - number / n])
        features.append(feature)
    assert memory.dataProvider().addFeatures(features)[0]
    path = str(tmp_path / "both.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(memory, path, QgsProject.instance().transformContext(), options)
    return add(QgsVectorLayer(path, "both", "ogr"))


def test_the_panel_reopens_on_the_side_that_the_filter_shows(dock: Any, tmp_path: Path) -> None:
    layer = two_sided(tmp_path)
    until(lambda: dock.results._counts, "the counts")
    layer.setSubsetString('"score_raw" >= 0.5')
    dock.results._open(layer)  # its style is no map of classes
    assert dock.results.plain.isChecked()
    assert dock.results.threshold == 0.5
    until(lambda: dock.results._counts, "the counts")
    assert [counts.total for counts in dock.results._counts] == [30, 30]
    assert layer.subsetString() == '"score_raw" >= 0.5'


def test_a_style_of_the_users_own_is_left_alone(dock: Any, tmp_path: Path) -> None:
    layer = two_sided(tmp_path)
    layer.setRenderer(QgsCategorizedSymbolRenderer("score"))
    until(lambda: dock.results._counts, "the counts")
    dock.results.plain.click()
    assert layer.renderer().classAttribute() == "score"
    layer.setRenderer(QgsCategorizedSymbolRenderer("class_raw"))
    dock.results.debiased.click()
    assert layer.renderer().classAttribute() == "class"


def test_the_threshold_lives_again_after_editing_and_counts_anew(dock: Any, tmp_path: Path) -> None:
    layer = two_sided(tmp_path)
    panel = dock.results
    until(lambda: panel._counts, "the counts")
    layer.startEditing()
    assert not panel.slider.isEnabled()
    assert "being edited" in panel.hint.text()
    layer.deleteFeature(next(layer.getFeatures()).id())
    layer.commitChanges()
    assert panel.slider.isEnabled()
    until(lambda: panel._counts and panel._counts[0].total == 29, "the new counts")
    layer.setSubsetString("\"class\" = 'a'")
    assert not panel.slider.isEnabled()
    layer.setSubsetString("")
    assert panel.slider.isEnabled()
    panel.spin.setValue(0.5)
    until(lambda: layer.subsetString(), "the filter")
    assert panel.threshold == 0.5


def test_a_layer_that_is_no_longer_shown_is_not_followed(dock: Any, tmp_path: Path) -> None:
    layer = two_sided(tmp_path)
    until(lambda: dock.results._counts, "the counts")
    assert layer.receivers(layer.subsetStringChanged) > 0
    before = layer.receivers(layer.subsetStringChanged)
    dock.results.show_layer(add(result_layer(3)))
    assert layer.receivers(layer.subsetStringChanged) == before - 1


def test_what_a_package_says_is_shown_as_it_is_written(dock: Any, qgis_iface: Any, tmp_path: Path) -> None:
    from debias_mapper.dock.model import Model

    evil = '<img src="/nowhere.png"><b>name</b>'
    card = dock.inputs.picker.card
    card.show_model(Model("path", "classification", (), (("Licence", evil),), False))
    labels = [label for label in card.findChildren(QLabel) if label.text() == evil]
    assert [label.textFormat() for label in labels] == [Qt.TextFormat.PlainText]
    dock._tell(evil, Qgis.MessageLevel.Critical)
    (message,) = qgis_iface.messageBar().get_messages(Qgis.MessageLevel.Critical)
    assert html.escape(evil) in message
    assert "<" not in message
    plain = (card.sentence, dock.sentence, dock.results.hint)
    assert {label.textFormat() for label in plain} == {Qt.TextFormat.PlainText}


def test_scores_that_are_whole_numbers_count(dock: Any) -> None:
    from debias_mapper.dock.counting import Counts

    counts = Counts.of([("a", 1, None), ("a", 0.5, None), ("b", None, None)])
    assert counts.scores == {"a": [0.5, 1.0]}


def test_a_layer_of_another_program_with_whole_scores_is_filtered(dock: Any) -> None:
    layer = QgsVectorLayer("NoGeometry?field=class:string&field=score:integer&field=group:integer", "theirs", "memory")
    features = []
    for values in (["a", 1, 5], ["a", 0, 5], ["b", 1, None], ["b", None, 5], [None, 1, 5]):
        feature = QgsFeature(layer.fields())
        feature.setAttributes(values)
        features.append(feature)
    assert layer.dataProvider().addFeatures(features)[0]
    layer.setCustomProperty("debias/plain", layer.id() + "?")
    add(layer)
    until(lambda: dock.results._counts, "the counts")
    assert lines(dock) == {"Group unknown": ["3", ""], "a": ["2", ""], "b": ["1", ""]}
    dock.results.spin.setValue(0.5)
    assert lines(dock) == {"Group unknown": ["2", ""], "a": ["1", ""], "b": ["1", ""]}
    until(lambda: layer.subsetString(), "the filter")
    assert {feature["score"] for feature in layer.getFeatures()} == {1}


@pytest.mark.parametrize("value", ["{not json", "[1]", '{"a": 1}', 7, {"a": "head"}, "[" * 100_000])
def test_a_malformed_property_of_groups_counts_as_none(dock: Any, value: object) -> None:
    layer = result_layer(6)
    layer.setCustomProperty("debias/groups", value)
    add(layer)
    until(lambda: dock.results._counts, "the counts")
    assert dock.results._counts[0].total == 6


def test_a_file_is_opened_in_the_thread_that_counts_it(
    dock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from debias_mapper.dock import counting

    threads = []
    opened = counting.SideReader._open

    def watched(reader: Any) -> Any:
        threads.append(threading.current_thread())
        return opened(reader)

    def clone(layer: Any) -> Any:
        raise AssertionError("the layer was opened in the main thread")

    monkeypatch.setattr(counting.SideReader, "_open", watched)
    monkeypatch.setattr(QgsVectorLayer, "clone", clone)
    two_sided(tmp_path)
    until(lambda: dock.results._counts, "the counts")
    assert threads
    assert threading.main_thread() not in threads


def test_closed_dialogs_are_let_go(dock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import processing

    made = QDialog()
    made.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)  # as QGIS does once nothing runs in it
    monkeypatch.setattr(processing, "createAlgorithmDialog", lambda *_: made)
    dock._open_dialog("debias:detect", {})
    (dialog,) = dock.dialogs
    dialog.close()
    until(lambda: not dock.dialogs, "the end of the dialog", 5)


def test_tasks_of_others_are_not_cancelled(scene: Any) -> None:
    from debias_mapper.dock.desktop import toolbox_tasks

    algorithm = QgsApplication.processingRegistry().createAlgorithmById("debias:detect")
    title = algorithm.displayName()
    foreign = QgsTask.fromFunction(f"Executing “{title}”", lambda task: time.sleep(0.5))
    longer = QgsTask.fromFunction(f"{title} of somebody else", lambda task: time.sleep(0.5))
    for task in (foreign, longer):
        QgsApplication.taskManager().addTask(task)
    assert QgsApplication.taskManager().countActiveTasks() == 2
    assert toolbox_tasks() == []
    until(lambda: QgsApplication.taskManager().countActiveTasks() == 0, "their end", 10)


def test_a_class_map_comes_into_the_project(dock: Any, scene: Any, sample: Sample) -> None:
    choose(dock, sample, sample.classifier)
    dock.inputs.task.setCurrentIndex(1)
    dock.run_button.click()
    until(lambda: not dock.busy, "the end of the run")
    assert dock.sentence.text().startswith("Done in")
    (made,) = [layer for layer in QgsProject.instance().mapLayers().values() if layer is not scene]
    assert isinstance(made, QgsRasterLayer)
    assert made.crs() == scene.crs()
    assert scene.extent().contains(made.extent())


def test_features_of_a_layer_are_named(dock: Any, scene: Any, sample: Sample) -> None:
    labels = add(QgsVectorLayer(sample.labels, "labels"))
    choose(dock, sample, sample.classifier)
    dock.inputs.task.setCurrentIndex(2)
    dock.inputs.features.setLayer(labels)
    layer = run(dock)
    assert layer is not labels
    assert layer.featureCount() == labels.featureCount()
    classes = {entry.name for entry in dock.inputs.model.classes}
    assert {feature["class"] for feature in layer.getFeatures()} <= classes | {None}
    assert dock.results._counts[0].total > 0


def test_a_result_that_qgis_cannot_open_is_no_success(
    dock: Any, scene: Any, sample: Sample, qgis_iface: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(dock, sample, sample.classifier)
    monkeypatch.setattr(QgsProcessingUtils, "mapLayerFromString", lambda *_, **__: None)
    dock.run_button.click()
    until(lambda: not dock.busy, "the end of the run")
    assert dock.sentence.text().endswith("but QGIS cannot open it.")
    (message,) = qgis_iface.messageBar().get_messages(Qgis.MessageLevel.Critical)
    assert dock.sentence.text() in message
    assert list(QgsProject.instance().mapLayers().values()) == [scene]


def test_a_cancelled_run_leaves_no_layer(dock: Any, large: Any, sample: Sample, qgis_iface: Any) -> None:
    choose(dock, sample, sample.detector)
    dock.run_button.click()
    until(lambda: dock.bar.value() > 0, "progress")
    assert dock.bar.format() == "Detect: %p%"
    assert not dock.run_button.isEnabled()
    dock.cancel_button.click()
    until(lambda: not dock.busy, "the end", 5)
    assert dock.sentence.text() == "Cancelled; nothing was left half-written."
    assert qgis_iface.messageBar().get_messages(Qgis.MessageLevel.Critical) == []
    assert list(QgsProject.instance().mapLayers().values()) == [large]
    assert dock.run_button.isEnabled()


def test_the_image_may_be_renamed_and_removed_in_a_run(dock: Any, scene: Any, sample: Sample) -> None:
    choose(dock, sample, sample.classifier)
    dock.run_button.click()
    scene.setName("renamed")
    QgsProject.instance().removeMapLayer(scene.id())
    until(lambda: not dock.busy, "the end")
    assert dock.sentence.text().startswith("Done in")


def test_another_project_ends_the_run(dock: Any, large: Any, sample: Sample) -> None:
    choose(dock, sample, sample.detector)
    dock.run_button.click()
    until(lambda: dock.bar.value() > 0, "progress")
    QgsProject.instance().clear()
    until(lambda: not dock.busy, "the end", 5)
    assert QgsProject.instance().mapLayers() == {}


def test_a_failed_run_ends_with_its_sentence(dock: Any, scene: Any, sample: Sample, qgis_iface: Any) -> None:
    choose(dock, sample, sample.classifier)
    dock.inputs.weights.setFilePath("/nowhere/weights.safetensors")
    dock.run_button.click()
    until(lambda: not dock.busy, "the end")
    (message,) = qgis_iface.messageBar().get_messages(Qgis.MessageLevel.Critical)
    assert "/nowhere/weights.safetensors" in message
    assert "Error: " in dock.log.toPlainText()


def test_an_image_without_crs_is_refused_before_the_run(dock: Any, sample: Sample) -> None:
    image = QgsRasterLayer(sample.scene, "nowhere")
    image.setCrs(QgsCoordinateReferenceSystem())
    add(image)
    choose(dock, sample, sample.classifier)
    dock.run_button.click()
    until(lambda: not dock.busy, "the refusal")
    assert "nowhere" in dock.sentence.text()
    assert "coordinate reference system" in dock.sentence.text()


def test_area_and_options_become_parameters(dock: Any, scene: Any, sample: Sample, qgis_iface: Any) -> None:
    labels = add(QgsVectorLayer(sample.labels, "labels"))
    choose(dock, sample, sample.classifier)
    panel = dock.inputs
    assert not {"EXTENT", "AREA"} & set(panel.parameters())
    panel.area.setCurrentIndex(2)
    assert panel.parameters()["AREA"] == labels.id()
    panel.area.setCurrentIndex(1)
    qgis_iface.mapCanvas().setDestinationCrs(scene.crs())
    qgis_iface.mapCanvas().setExtent(QgsRectangle(500_000, 5_399_900, 500_100, 5_400_000))
    extent = panel.parameters()["EXTENT"]
    assert extent.contains(QgsRectangle(500_000, 5_399_900, 500_100, 5_400_000))
    assert extent.crs() == scene.crs()
    panel.overlap.setValue(0.5)
    panel.device.setCurrentIndex(1)
    assert panel.parameters()["OVERLAP"] == 0.5
    assert panel.parameters()["DEVICE"] == "cpu"
    panel.device.setCurrentIndex(0)
    layer = run(dock)
    assert layer.featureCount() < 256
    assert extent.intersects(layer.extent())


def test_unloading_in_a_run_leaves_nothing(qgis_iface: Any, large: Any, sample: Sample) -> None:
    from debias_mapper import jobs
    from debias_mapper.dock.desktop import Desktop

    desktop = Desktop(qgis_iface)
    try:
        choose(desktop.dock, sample, sample.detector)
        desktop.dock.run_button.click()
        until(lambda: desktop.dock.bar.value() > 0, "progress")
    finally:
        desktop.close_down()
        jobs.open_workers(warm=True)  # for the tests that follow
    assert QgsApplication.taskManager().countActiveTasks() == 0
    assert not any(PYTHON in command for command in children())


def children() -> list[str]:
    """Command lines of the processes that this one started."""
    import os

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile
            continue
    return [command for command in found if "torchgeo_debias.worker" in command]

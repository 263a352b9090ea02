"""The algorithms that make maps: the same as the library's own command, styled, and told where it comes from."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Feedback, Ran, Sample, create, library, opened, pixels, rows, run
from debias_mapper import jobs
from debias_mapper.outputs import fill
from debias_mapper.runtime.commands import Command
from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsFeatureSink,
    QgsGeometry,
    QgsPalettedRasterRenderer,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

EXTENT = "500060,500190,5399800,5399930 [EPSG:32633]"
BOUNDS = "500060.0,5399800.0,500190.0,5399930.0"


def classifier(sample: Sample, **further: Any) -> dict[str, Any]:
    return {"INPUT": sample.scene, "MODEL": sample.classifier, "WEIGHTS": sample.weights, **further}


def detector(sample: Sample, **further: Any) -> dict[str, Any]:
    return {
        "INPUT": sample.scene, "MODEL": sample.detector, "WEIGHTS": sample.weights, "MIN_SCORE": 0.05, **further,
    }  # fmt: skip


def command(model: str, sample: Sample, *further: object) -> tuple[object, ...]:
    return ("--model", model, "--weights", sample.weights, *further)


def check_counts(ran: Ran, said: dict[str, Any]) -> None:
    assert json.loads(ran.results["COUNTS"]) == said["counts"]
    assert ran.results["COUNT"] == sum(said["counts"].values()) > 0


def test_objects_are_those_of_the_command(sample: Sample, tmp_path: Path) -> None:
    out = str(tmp_path / "objects.gpkg")
    ran = run("detect", **detector(sample, EXTENT=EXTENT, OUTPUT=out))
    words = command(sample.detector, sample, "--min-score", 0.05, "--area", BOUNDS, "--out", tmp_path / "own.gpkg")
    said = library("detect", sample.scene, *words)
    assert rows(opened(out)) == rows(opened(tmp_path / "own.gpkg"))
    names = {field.name() for field in opened(out).fields()}
    assert {"class", "class_id", "score", "group", "angle", "length", "width", "cut"} <= names
    check_counts(ran, said)


def test_tiles_are_those_of_the_command_for_polygons_in_another_crs(sample: Sample, tmp_path: Path) -> None:
    area = QgsVectorLayer("Polygon?crs=EPSG:3857", "area", "memory")

    shape = QgsGeometry.fromRect(QgsRectangle(500060, 5399800, 500190, 5399930))
    move = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32633"), area.crs(), QgsProject.instance().transformContext()
    )
    shape.transform(move)
    feature = QgsFeature()
    feature.setGeometry(shape)
    area.dataProvider().addFeatures([feature])
    ran = run("classify_tiles", **classifier(sample, AREA=area, OVERLAP=0.5, OUTPUT="TEMPORARY_OUTPUT"))
    words = command(sample.classifier, sample, "--overlap", 0.5, "--area", BOUNDS, "--out", tmp_path / "own.gpkg")
    said = library("classify", sample.scene, *words)
    assert rows(ran.layer()) == rows(opened(tmp_path / "own.gpkg"))
    assert {"class_raw", "score_raw"} <= {field.name() for field in ran.layer().fields()}
    check_counts(ran, said)


@pytest.mark.parametrize("shape", ["points", "regions"])
def test_shapes_of_tiles_are_those_of_the_command(sample: Sample, tmp_path: Path, shape: str) -> None:
    ran = run("classify_tiles", **classifier(sample, SHAPE=shape, MIN_SCORE=0.4, OUTPUT="TEMPORARY_OUTPUT"))
    words = command(sample.classifier, sample, "--shape", shape, "--min-score", 0.4, "--out", tmp_path / "own.gpkg")
    library("classify", sample.scene, *words)
    assert rows(ran.layer()) == rows(opened(tmp_path / "own.gpkg"))


def test_rasters_are_those_of_the_command(sample: Sample, tmp_path: Path) -> None:
    classes, scores = str(tmp_path / "classes.tif"), str(tmp_path / "scores.tif")
    ran = run("classify_pixels", **classifier(sample, EXTENT=EXTENT, OVERLAP=0, OUTPUT=classes, SCORES=scores))
    own = tmp_path / "own.tif", tmp_path / "own_scores.tif"
    words = command(sample.classifier, sample, "--area", BOUNDS, "--map", own[0], "--scores", own[1])
    check_counts(ran, library("classify", sample.scene, *words))
    assert pixels(classes) == pixels(own[0])
    assert pixels(scores) == pixels(own[1])
    layer = QgsRasterLayer(classes)
    renderer = layer.renderer()
    assert isinstance(renderer, QgsPalettedRasterRenderer)
    assert [entry.label for entry in renderer.classes()][:3] == ["blue", "green", "red"]
    layer.loadDefaultMetadata()
    assert layer.metadata().history()[0].endswith(ran.feedback.commands[0])


def test_rasters_of_other_formats_are_refused_before_anything_runs(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(QgsProcessingException, match=r"ends in \.tif"):
        run("classify_pixels", **classifier(sample, OUTPUT=str(tmp_path / "classes.img")))


def test_features_keep_all_they_have_and_gain_what_the_command_says(sample: Sample, tmp_path: Path) -> None:
    source = QgsVectorLayer("PolygonZ?crs=EPSG:32633&field=Class:string&field=tags:string[]", "footprints", "memory")

    features = []
    for number, wkt in enumerate(
        ("POLYGON Z((500010 5399980 7,500030 5399980 7,500030 5399990 7,500010 5399980 7))", "",
         "POLYGON Z((500070 5399900 1,500090 5399900 2,500090 5399920 3,500070 5399900 1))",
         "POLYGON Z((0 0 0,1 0 0,1 1 0,0 0 0))"),
    ):  # fmt: skip
        feature = QgsFeature(source.fields())
        feature.setAttributes([f"mine {number}", [str(number), "x"]])
        feature.setGeometry(QgsGeometry.fromWkt(wkt))
        features.append(feature)
    source.dataProvider().addFeatures(features)
    ran = run("classify_features", **classifier(sample, FEATURES=source, OUTPUT="TEMPORARY_OUTPUT"))
    result = list(ran.layer().getFeatures())
    assert [each["Class_label"] for each in result] == ["mine 0", "mine 2", "mine 3"]
    assert result[0]["tags"] == ["0", "x"]
    assert [each.geometry().asWkt() for each in result] == [features[i].geometry().asWkt() for i in (0, 2, 3)]
    assert result[2]["class"] is None or result[2]["class"].isNull()
    source.dataProvider().deleteAttributes([1])
    library_input = tmp_path / "footprints.gpkg"

    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(
        source, str(library_input), QgsProject.instance().transformContext(), options
    )
    own = tmp_path / "own.gpkg"
    library("classify-features", sample.scene, library_input, *command(sample.classifier, sample, "--out", own))
    names = ["class", "class_id", "score", "group", "class_raw", "score_raw", "Class_label"]
    ours = [[str(each[name]) for name in names] for each in result]
    theirs = [[str(each[name]) for name in names] for each in opened(own).getFeatures() if each.hasGeometry()]
    assert ours == theirs


def test_an_area_chooses_among_features(sample: Sample) -> None:
    ran = run(
        "classify_features", **classifier(sample, FEATURES=sample.labels, EXTENT=EXTENT, OUTPUT="TEMPORARY_OUTPUT")
    )

    area = QgsRectangle(500060, 5399800, 500190, 5399930)
    inside = [each["number"] for each in opened(sample.labels).getFeatures() if each.geometry().intersects(area)]
    assert [each["number"] for each in ran.layer().getFeatures()] == inside
    assert 0 < len(inside) < 64


def test_edits_that_are_saved_during_a_run_mix_up_no_features(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = QgsVectorLayer(sample.labels, "labels", "ogr")
    own = str(tmp_path / "mine.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(source, own, QgsProject.instance().transformContext(), options)
    layer = opened(own)
    layer.startEditing()
    new = QgsFeature(layer.fields())
    new.setGeometry(QgsGeometry.fromRect(QgsRectangle(500100, 5399800, 500120, 5399820)))
    new.setAttribute("number", 1000)
    layer.addFeature(new)
    QgsProject.instance().addMapLayer(layer)
    work = jobs.run_command

    def and_edit(*arguments: Any, **further: Any) -> dict[str, Any]:
        facts = work(*arguments, **further)
        layer.deleteFeature(min(each.id() for each in layer.getFeatures() if each.id() > 0))
        assert layer.commitChanges()
        return facts

    usual = run("classify_features", **classifier(sample, FEATURES=sample.labels, OUTPUT="TEMPORARY_OUTPUT"))
    expected = {each["number"]: (each["class"], each["score"]) for each in usual.layer().getFeatures()}
    monkeypatch.setattr(jobs, "run_command", and_edit)
    ran = run("classify_features", **classifier(sample, FEATURES=layer, OUTPUT=str(tmp_path / "out.gpkg")))
    found = {each["number"]: (each["class"], each["score"]) for each in ran.layer().getFeatures()}
    assert len({label for label, _ in expected.values()}) > 1
    del expected[min(expected)]
    assert found.pop(1000)[0] in ("red", "green", "blue")
    assert found == expected
    assert ran.layer().featureCount() == 64


@pytest.mark.parametrize("boxes", [False, True])
def test_outlines_are_those_of_the_command(sample: Sample, tmp_path: Path, boxes: bool) -> None:
    sam = {"INPUT": sample.scene, "SAM_CHECKPOINT": sample.sam, "TILE_SIZE": 64, "OUTPUT": "TEMPORARY_OUTPUT"}
    words = ["--sam-checkpoint", sample.sam, "--tile-size", 64, "--out", tmp_path / "own.gpkg"]
    if boxes:
        ran = run("segment", **sam, BOXES=sample.labels)
        said = library("segment", sample.scene, *words, "--boxes", sample.labels)
    else:
        few = {"POINTS": 2, "MIN_PIXELS": 1, "MODEL": sample.classifier, "WEIGHTS": sample.weights}
        ran = run("segment", **sam, **few, EXTENT=EXTENT)
        few_words = [*command(sample.classifier, sample), "--points", 2, "--min-pixels", 1, "--area", BOUNDS]
        said = library("segment", sample.scene, *words, *few_words)
    assert rows(ran.layer()) == rows(opened(tmp_path / "own.gpkg"))
    assert json.loads(ran.results["COUNTS"]) == said["counts"]


def test_results_have_the_colours_of_their_classes_and_know_their_origin(sample: Sample, tmp_path: Path) -> None:
    for name, part in (("objects.gpkg", "|layername=objects"), ("objects.shp", "")):
        out = str(tmp_path / name)
        ran = run("detect", **detector(sample, OUTPUT=out))
        layer = QgsVectorLayer(out + part, "again", "ogr")
        renderer = layer.renderer()
        assert isinstance(renderer, QgsCategorizedSymbolRenderer), name
        assert renderer.classAttribute() == "class"
        assert {category.value() for category in renderer.categories()} == {"red", "green", "blue"}
        layer.loadDefaultMetadata()  # files beside a layer are read on demand
        known = layer.metadata().keywords()
        assert len(known["debias:model_digest"][0]) == 64
        assert known["debias:command"] == ran.feedback.commands
        assert known["debias:model_method"] == ["deblora"]
        assert "--min-score 0.05" in layer.metadata().abstract()


def test_a_result_that_qgis_loads_is_dressed(sample: Sample) -> None:

    target = QgsProcessingOutputLayerDefinition("TEMPORARY_OUTPUT", QgsProject.instance())
    ran = run("detect", **detector(sample, OUTPUT=target))
    (destination,) = ran.context.layersToLoadOnCompletion()
    layer = ran.context.takeResultLayer(destination)
    details = ran.context.layerToLoadOnCompletionDetails(destination)
    details.postProcessor().postProcessLayer(layer, ran.context, ran.feedback)
    assert isinstance(layer.renderer(), QgsCategorizedSymbolRenderer)
    assert layer.metadata().keywords("debias:model_digest")


def test_a_map_without_any_object_is_an_empty_styled_layer(sample: Sample, tmp_path: Path) -> None:
    out = str(tmp_path / "none.gpkg")
    ran = run("detect", **detector(sample, MIN_SCORE=1, OUTPUT=out))
    layer = opened(out)
    assert (ran.results["COUNT"], layer.featureCount()) == (0, 0)
    assert isinstance(layer.renderer(), QgsCategorizedSymbolRenderer)
    assert "angle" in {field.name() for field in layer.fields()}


def test_bands_are_those_that_were_picked_in_their_order(sample: Sample, tmp_path: Path) -> None:
    ran = run("classify_tiles", **classifier(sample, INPUT=sample.five, BANDS=[3, 5, 1], OUTPUT="TEMPORARY_OUTPUT"))
    words = command(sample.classifier, sample, "--out", tmp_path / "own.gpkg")
    library("classify", sample.scene, *words)  # the bands 3, 5, 1 are its red, green, blue
    assert rows(ran.layer()) == rows(opened(tmp_path / "own.gpkg"))
    with pytest.raises(QgsProcessingException, match="gives 1 bands"):
        run("classify_tiles", **classifier(sample, BANDS=[2], OUTPUT="TEMPORARY_OUTPUT"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"MODEL": "/nowhere/model.tgd"}, "No model package at /nowhere/model.tgd"),
        ({"MODEL": "scene"}, "is no model package|is not a model package|damaged"),
        ({"MODEL": "detector"}, "is for detection, not for classification"),
        ({"INPUT": "/nowhere/scene.tif"}, "Could not load source layer for INPUT"),
        ({"EXTENT": EXTENT, "AREA": "labels"}, "There are two areas"),
        ({"EXTENT": "0,1,0,1 [EPSG:32633]"}, "area"),
        ({"PRECISION": "8"}, "PRECISION"),
        ({"OUTPUT": "/nowhere/at/all/x.gpkg"}, "/nowhere"),
    ],
)
def test_what_cannot_be_ends_with_a_sentence(sample: Sample, change: dict[str, Any], sentence: str) -> None:
    given = {name: getattr(sample, value) if value.isalpha() else value for name, value in change.items()}
    with pytest.raises(QgsProcessingException, match=sentence):
        run("classify_tiles", **{**classifier(sample, OUTPUT="TEMPORARY_OUTPUT"), **given})


def test_a_package_that_is_a_folder_is_found_by_the_file_in_it(sample: Sample, tmp_path: Path) -> None:

    with zipfile.ZipFile(sample.classifier) as archive:
        archive.extractall(tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / "model.json"):
        assert run("classify_tiles", **classifier(sample, MODEL=str(path), OUTPUT="TEMPORARY_OUTPUT")).results["COUNT"]


def test_nothing_temporary_stays(sample: Sample) -> None:

    folder = Path(QgsProcessingUtils.tempFolder())
    before = set(folder.glob("debias_*"))
    run("detect", **detector(sample, EXTENT=EXTENT, OUTPUT="TEMPORARY_OUTPUT"))
    with pytest.raises(QgsProcessingException):
        run("detect", **detector(sample, MODEL=sample.classifier, OUTPUT="TEMPORARY_OUTPUT"))
    assert set(folder.glob("debias_*")) == before


def test_a_map_service_is_classified_within_an_area(sample: Sample, tmp_path: Path) -> None:
    from qgis.PyQt.QtGui import QImage

    image = QImage(256, 256, QImage.Format.Format_RGB32)
    image.fill(0xFF28DC3C)
    (tmp_path / "0/0").mkdir(parents=True)
    image.save(str(tmp_path / "0/0/0.png"))
    layer = QgsRasterLayer(f"type=xyz&url=file://{tmp_path}/%7Bz%7D/%7Bx%7D/%7By%7D.png&zmin=0&zmax=0", "tiles", "wms")
    options = {"INPUT": layer, "EXTENT": "0,128,0,128 [EPSG:3857]", "PIXEL_SIZE": 1, "OUTPUT": "TEMPORARY_OUTPUT"}
    ran = run("classify_tiles", **classifier(sample, **options))
    result = ran.layer()
    assert result.crs().authid() == "EPSG:3857"
    assert ran.results["COUNT"] == result.featureCount() > 4
    assert len({each["class"] for each in result.getFeatures()}) == 1
    with pytest.raises(QgsProcessingException, match="give an area, and the pixel size"):
        run("classify_tiles", **classifier(sample, INPUT=layer, OUTPUT="TEMPORARY_OUTPUT"))


def test_a_raster_in_degrees_takes_an_area_in_metres(sample: Sample, tmp_path: Path) -> None:
    ran = run("classify_tiles", **classifier(sample, INPUT=sample.degrees, EXTENT=EXTENT, OUTPUT="TEMPORARY_OUTPUT"))
    assert ran.layer().crs().authid() == "EPSG:4326"
    area = QgsVectorLayer("Polygon?crs=EPSG:32633", "area", "memory")
    feature = QgsFeature()
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(500060, 5399800, 500190, 5399930)))
    area.dataProvider().addFeatures([feature])
    QgsVectorFileWriter.writeAsVectorFormatV3(
        area, str(tmp_path / "area.gpkg"), QgsProject.instance().transformContext(),
        QgsVectorFileWriter.SaveVectorOptions(),
    )  # fmt: skip
    words = command(sample.classifier, sample, "--area", tmp_path / "area.gpkg", "--out", tmp_path / "own.gpkg")
    said = library("classify", sample.degrees, *words)
    assert rows(ran.layer()) == rows(opened(tmp_path / "own.gpkg"))
    assert 0 < ran.results["COUNT"] == sum(said["counts"].values()) < 64


def test_a_temporary_class_raster_is_one_file_and_one_layer(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    import processing  # found once QGIS runs
    from processing.gui.Postprocessing import handleAlgorithmResults

    def write(command: Command, *rest: Any, **further: Any) -> dict[str, Any]:
        for flag in ("--map", "--scores"):
            shutil.copy(sample.scene, command.arguments[command.arguments.index(flag) + 1])
        return {"counts": {"red": 3}}

    monkeypatch.setattr(jobs, "run_command", write)

    def target() -> QgsProcessingOutputLayerDefinition:
        return QgsProcessingOutputLayerDefinition("TEMPORARY_OUTPUT", QgsProject.instance())

    parameters = classifier(sample, OUTPUT=target(), SCORES=target())
    ran = run("classify_pixels", **parameters)
    assert set(ran.context.layersToLoadOnCompletion()) == {ran.results["OUTPUT"], ran.results["SCORES"]}
    assert handleAlgorithmResults(create("classify_pixels"), ran.context, ran.feedback, parameters), ran.feedback.text
    assert len(QgsProject.instance().mapLayers()) == 2
    temporary = {"OUTPUT": "TEMPORARY_OUTPUT", "SCORES": "TEMPORARY_OUTPUT"}
    found = processing.run("debias:classify_pixels", classifier(sample, **temporary))
    assert pixels(found["OUTPUT"]) == pixels(sample.scene)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("{}/missing/out.gpkg", "there is no folder .*missing"), ("{}", "is a folder: name a file")],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_destination_that_cannot_be_is_refused_before_anything_runs(
    sample: Sample, tmp_path: Path, place: str, sentence: str, wrapped: bool
) -> None:
    path: Any = place.format(tmp_path)
    given = QgsProcessingOutputLayerDefinition(path) if wrapped else path
    fine, said = create("detect").checkParameterValues(detector(sample, OUTPUT=given), QgsProcessingContext())
    assert not fine
    assert re.search(f"Detected objects: .*{sentence}", said)


@pytest.mark.parametrize(
    "name", ["out.gpkg", "TEMPORARY_OUTPUT", "memory:", "ogr:dbname='/nowhere/x.gpkg' table=\"t\""]
)
def test_destinations_in_folders_that_are_there_or_without_one_are_accepted(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert create("detect").checkParameterValues(detector(sample, OUTPUT=name), QgsProcessingContext()) == (True, "")


@pytest.fixture
def twice(tmp_path: Path) -> QgsVectorLayer:
    """Two features whose field ``fid`` says the same."""
    layer = QgsVectorLayer("Polygon?crs=EPSG:32633&field=fid:integer&field=n:integer", "merged", "memory")
    for number in (1, 2):
        feature = QgsFeature(layer.fields())
        feature.setAttributes([7, number])
        left = 500000 + 40 * number
        feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(left, 5399900, left + 20, 5399920)))
        layer.dataProvider().addFeatures([feature])
    return layer


def test_a_field_fid_that_says_one_thing_twice_is_no_key(sample: Sample, tmp_path: Path, twice: QgsVectorLayer) -> None:
    ran = run("classify_features", **classifier(sample, FEATURES=twice, OUTPUT=str(tmp_path / "out.gpkg")))
    assert [each["n"] for each in ran.layer().getFeatures()] == [1, 2]


@pytest.mark.parametrize("name", ["out.gpkg", "out.shp"])
def test_a_result_that_cannot_be_written_to_its_end_is_deleted(
    sample: Sample, tmp_path: Path, twice: QgsVectorLayer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Full:
        """A disk that takes one feature."""

        def __init__(self, sink: QgsFeatureSink) -> None:
            self.sink, self.left = sink, 1

        def addFeature(self, feature: QgsFeature, flags: Any) -> bool:
            self.left -= 1
            return self.left >= 0 and self.sink.addFeature(feature, flags)

        def lastError(self) -> str:
            return "the disk is full"

    monkeypatch.setattr("debias_mapper.algorithms.base.fill", lambda sink, *rest: fill(Full(sink), *rest))
    with pytest.raises(QgsProcessingException, match=r"cannot be written to .*: the disk is full"):
        run("classify_features", **classifier(sample, FEATURES=twice, OUTPUT=str(tmp_path / name)))
    assert not list(tmp_path.iterdir())


def test_a_model_of_the_designer_hands_results_on(sample: Sample) -> None:
    model = QgsProcessingModelAlgorithm("found and filtered")
    detect = QgsProcessingModelChildAlgorithm("debias:detect")
    detect.setChildId("detect")
    for name, value in detector(sample).items():
        detect.addParameterSources(name, [QgsProcessingModelChildParameterSource.fromStaticValue(value)])
    model.addChildAlgorithm(detect)
    keep = QgsProcessingModelChildAlgorithm("native:extractbyexpression")
    keep.setChildId("keep")
    found = QgsProcessingModelChildParameterSource.fromChildOutput("detect", "OUTPUT")
    keep.addParameterSources("INPUT", [found])
    wanted = "\"group\" = 'head' and @detect_COUNT > 0"
    keep.addParameterSources("EXPRESSION", [QgsProcessingModelChildParameterSource.fromStaticValue(wanted)])
    output = QgsProcessingModelOutput("kept")
    output.setChildId("keep")
    output.setChildOutputName("OUTPUT")
    keep.setModelOutputs({"kept": output})
    model.addChildAlgorithm(keep)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    feedback = Feedback()
    results, done = model.run({"keep:kept": "TEMPORARY_OUTPUT"}, context, feedback, {}, False)
    assert done, feedback.text
    heads = [each["group"] for each in context.getMapLayer(results["keep:kept"]).getFeatures()]
    whole = run("detect", **detector(sample, OUTPUT="TEMPORARY_OUTPUT"))
    assert heads == ["head"] * sum(each["group"] == "head" for each in whole.layer().getFeatures()) != []

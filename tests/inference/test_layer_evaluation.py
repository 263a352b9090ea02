"""Layers of predictions against reference layers, beside figures computed by other means."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from pyproj import Geod
from sklearn import metrics as sk

from torchgeo_debias.boxes.convert import oriented_to_horizontal, to_polygons
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, LabelError
from torchgeo_debias.evaluation import Guess, Scores, Truth, average_precision
from torchgeo_debias.inference.layer_evaluation import NO_PREDICTION, ObjectScores, evaluate_layer
from torchgeo_debias.inference.layer_pair import read_pair

CRS, LEFT, BOTTOM = "EPSG:32633", 412_000.0, 5_318_000.0
ORIGIN = np.array([LEFT, BOTTOM])
NAMES = np.array(["barn", "house", "mill"])
GROUPS = {"barn": "tail", "house": "head", "mill": "middle"}


def layer(shapes: Any, crs: Any = CRS, **fields: Any) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(fields, geometry=list(shapes), crs=crs)


def grid(n: int, side: float = 8.0, step: float = 20.0) -> Any:
    at = np.arange(n)
    x, y = LEFT + step * (at % 10), BOTTOM + step * (at // 10)
    return shapely.box(x, y, x + side, y + side)


@pytest.fixture(scope="module")
def fields() -> dict[str, Any]:
    """120 true classes, what a model and its twin say, and their scores."""
    rng = np.random.default_rng(3)
    true = rng.choice(3, 120, p=[0.1, 0.6, 0.3])
    said, raw = (np.where(rng.random(120) < sure, true, rng.choice(3, 120)) for sure in (0.8, 0.5))
    return {
        "kind": NAMES[true],
        "class": NAMES[said],
        "class_raw": NAMES[raw],
        "score": rng.random(120).round(3),
        "score_raw": rng.random(120).round(3),
        "group": [GROUPS[name] for name in NAMES[said]],
    }


def predicted(fields: dict[str, Any], shapes: Any, crs: Any = CRS) -> gpd.GeoDataFrame:
    return layer(shapes, crs, **{name: values for name, values in fields.items() if name != "kind"})


# ---------------------------------------------------------------------------------------------------------- features


def test_scores_of_features_are_those_of_scikit_learn(fields: dict[str, Any]) -> None:
    reference = layer(grid(120), kind=fields["kind"]).to_crs(4326)
    found = evaluate_layer(predicted(fields, grid(120, side=6)), reference, "kind")
    for scores, answers in ((found.scores, fields["class"]), (found.raw, fields["class_raw"])):
        assert isinstance(scores, Scores)
        names = [name for name in scores.per_class if name != NO_PREDICTION]
        assert names == ["house", "mill", "barn"]
        parts = sk.precision_recall_fscore_support(fields["kind"], answers, labels=names)
        for i, name in enumerate(names):
            row = scores.per_class[name]
            assert [row["precision"], row["recall"], row["f1"], row["support"]] == [part[i] for part in parts]
        assert scores.accuracy == sk.accuracy_score(fields["kind"], answers)
        assert scores.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(fields["kind"], answers))
        assert [row[:3] for row in scores.confusion[:3]] == sk.confusion_matrix(
            fields["kind"], answers, labels=names
        ).tolist()
        assert scores.f1["tail"] == scores.per_class["barn"]["f1"]
        assert scores.absent == []
        assert scores.definition.startswith("Each reference polygon takes")
    assert found.facts.measured_in == "WGS 84 / UTM zone 33N"
    assert (found.facts.features, found.facts.predicted, found.facts.notes) == (120, 120, ())


def test_what_is_missed_costs_recall_and_stands_beside(fields: dict[str, Any]) -> None:
    reference = layer(grid(120), kind=fields["kind"])
    model = predicted(fields, grid(120))
    model.loc[model.index[:30], "class"] = None
    model = model.iloc[10:]
    found = evaluate_layer(model, reference, "kind")
    scores, raw = found.scores, found.raw
    assert isinstance(scores, Scores)
    assert isinstance(raw, Scores)
    assert sum(row[-1] for row in scores.confusion) == 30
    assert sum(row[-1] for row in raw.confusion) == 10
    right = (fields["kind"] == fields["class"])[30:].sum()
    assert scores.accuracy == right / 120
    recalls = [
        ((fields["kind"] == fields["class"]) & (fields["kind"] == name))[30:].sum() / (fields["kind"] == name).sum()
        for name in NAMES
    ]
    assert scores.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert scores.absent == []
    assert found.facts.notes == (
        "30 of 120 reference features have no prediction.",
        "20 of 110 predictions do not count: 20 without a class.",
    )


def test_predictions_below_the_score_are_not_there(fields: dict[str, Any]) -> None:
    found = evaluate_layer(predicted(fields, grid(120)), layer(grid(120), kind=fields["kind"]), "kind", min_score=0.4)
    for scores, values in ((found.scores, fields["score"]), (found.raw, fields["score_raw"])):
        assert isinstance(scores, Scores)
        assert sum(row[-1] for row in scores.confusion) == (values < 0.4).sum()


def test_the_surer_of_equal_predictions_and_the_larger_share_count() -> None:
    reference = layer([shapely.box(LEFT, BOTTOM, LEFT + 10, BOTTOM + 10)] * 1, kind=["mill"])
    whole, most, rest = (shapely.box(LEFT + a, BOTTOM, LEFT + b, BOTTOM + 10) for a, b in ((0, 10), (0, 6), (6, 10)))
    for shapes, scores, answer in (([most, rest], [0.1, 0.9], 0), ([whole, whole], [0.2, 0.7], 1)):
        said = layer(shapes, **{"class": ["mill", "barn"], "score": scores})
        result = evaluate_layer(said, reference, "kind").scores
        assert isinstance(result, Scores)
        assert result.accuracy == float(answer == 0)


def test_points_take_the_smallest_prediction_on_them(fields: dict[str, Any]) -> None:
    points = shapely.centroid(grid(120))
    reference = layer(points, kind=fields["kind"]).to_crs(4326)
    country = layer(
        [shapely.box(LEFT - 9, BOTTOM - 9, LEFT + 999, BOTTOM + 999)], **{"class": ["mill"], "score": [1.0]}
    )
    said = gpd.pd.concat([country, predicted(fields, grid(120))], ignore_index=True)
    result = evaluate_layer(said, reference, "kind").scores
    assert isinstance(result, Scores)
    assert result.accuracy == sk.accuracy_score(fields["kind"], fields["class"])
    # Points on points, whose coordinates were rounded on their way through a GeoJSON.
    rounded = predicted(fields, points).to_crs(4326)
    rounded.geometry = shapely.set_precision(rounded.geometry.to_numpy(), 1e-7)
    again = evaluate_layer(rounded, reference, "kind").scores
    assert isinstance(again, Scores)
    assert again.confusion == result.confusion


def test_a_lowest_score_of_nought_asks_nothing_of_a_layer_without_scores(fields: dict[str, Any]) -> None:
    said, reference = predicted(fields, grid(120))[["class", "geometry"]], layer(grid(120), kind=fields["kind"])
    found = evaluate_layer(said, reference, "kind", min_score=0.0)
    assert found.to_json() == evaluate_layer(said, reference, "kind").to_json()
    assert found.facts.min_score is None


def test_numbers_are_classes_too() -> None:
    reference = layer(grid(4), kind=[1.0, 2.0, 2.0, None])
    said = layer(grid(4), label=["1", "2", "1", "1"])
    scores = evaluate_layer(said, reference, "kind", predicted_field="label").scores
    assert isinstance(scores, Scores)
    assert (list(scores.per_class)[:2], scores.accuracy) == (["2", "1"], 2 / 3)


# ------------------------------------------------------------------------------------------------------------ groups


def test_groups_are_those_of_the_training_or_thirds_of_the_reference(fields: dict[str, Any]) -> None:
    reference = layer(grid(120), kind=fields["kind"])
    told = read_pair(predicted(fields, grid(120)), reference, "kind")
    assert dict(zip(told.table.names, told.table.groups, strict=True)) == GROUPS
    assert told.grouped == "Groups are those of the training, as the predictions tell them."
    plain = read_pair(predicted(fields, grid(120)).drop(columns="group"), reference, "kind")
    assert dict(zip(plain.table.names, plain.table.groups, strict=True)) == {
        "house": "head", "mill": "middle", "barn": "tail",
    }  # fmt: skip
    assert "by their number of reference features" in plain.grouped


def test_a_class_that_no_prediction_names_is_grouped_by_the_reference() -> None:
    reference = layer(grid(6), kind=["a", "a", "a", "b", "b", "c"])
    said = layer(grid(6), **{"class": ["a", "a", "a", "a", "a", "z"], "group": ["middle"] * 5 + ["background"]})
    pair = read_pair(said, reference, "kind")
    assert dict(zip(pair.table.names, pair.table.groups, strict=True)) == {
        "a": "middle", "b": "middle", "c": "tail", "z": "background",
    }  # fmt: skip
    assert pair.silent == ("b", "c")
    assert "; b, c, of which none tells it, by the number" in pair.grouped


def test_a_class_that_only_the_twin_names_is_grouped_by_the_reference() -> None:
    reference = layer(grid(6), kind=["a", "a", "a", "b", "b", "background"])
    said = layer(grid(6), **{"class": ["a"] * 6, "class_raw": ["b"] * 6, "group": ["tail"] * 6})
    pair = read_pair(said, reference, "kind")
    assert dict(zip(pair.table.names, pair.table.groups, strict=True)) == {
        "a": "tail", "b": "middle", "background": "background",
    }  # fmt: skip
    assert "; b, of which none tells it, by the number" in pair.grouped


def test_groups_that_contradict_each_other_are_not_used() -> None:
    said = layer(grid(2), **{"class": ["a", "a"], "group": ["head", "tail"]})
    assert "tell none" in read_pair(said, layer(grid(2), kind=["a", "b"]), "kind").grouped


# ------------------------------------------------------------------------------------------------------------- frame


@pytest.mark.parametrize("longitude", [11.0, 180.0])
def test_areas_in_degrees_are_measured_as_on_the_ground(longitude: float) -> None:
    east = longitude - 360 if longitude == 180.0 else longitude
    shapes = [
        shapely.box(longitude - 0.02, 68.0, longitude - 0.01, 68.02),
        shapely.box(east + 0.01, 68.0, east + 0.02, 68.01),
    ]
    pair = read_pair(layer(shapes, 4326, **{"class": ["a", "b"]}), layer(shapes, 4326, kind=["a", "b"]), "kind")
    geod = Geod(ellps="WGS84")
    assert shapely.area(pair.reference) == pytest.approx(
        [abs(geod.geometry_area_perimeter(shape)[0]) for shape in shapes], rel=1e-3
    )
    assert pair.crs.name == f"Lambert azimuthal equal-area about {east:.2f}, 68.01 degrees"
    left, right = shapely.centroid(pair.reference)
    assert left.distance(right) == pytest.approx(geod.inv(-0.015, 68.01, 0.015, 68.005)[2], rel=1e-3)


def test_only_what_lies_in_the_area_counts(fields: dict[str, Any], tmp_path: Path) -> None:
    reference = layer(grid(120), kind=fields["kind"]).to_crs(4326)
    model = predicted(fields, grid(120))
    area = gpd.GeoSeries([shapely.box(LEFT - 1, BOTTOM - 1, LEFT + 300, BOTTOM + 5 + 20 * 5)], crs=CRS)
    west, south, east, north = area.to_crs(4326).total_bounds
    area.to_crs(3857).to_file(tmp_path / "area.gpkg")
    for given in (str(tmp_path / "area.gpkg"), (west, south, east, north)):
        found = evaluate_layer(model, reference, "kind", area=given)
        assert found.facts.features == 60  # six rows, the last of which the edge cuts just above the middle
        assert isinstance(found.scores, Scores)
        assert found.scores.accuracy == sk.accuracy_score(fields["kind"][:60], fields["class"][:60])


@pytest.mark.parametrize("kind", ["polygons", "points"])
@pytest.mark.parametrize(("crs", "bounds"), [(4326, (-180, -90, 180, 90)), (4326, (-30, -60, 390, 85)), (3857, None)])
def test_an_area_may_be_as_wide_as_the_earth(kind: str, crs: int, bounds: Any) -> None:
    bounds = bounds or (-2e7, -1e8, 2e7, 1e8)
    shapes = grid(40) if kind == "polygons" else shapely.centroid(grid(40))
    reference, said = layer(shapes, kind=["a"] * 40), layer(grid(40), **{"class": ["a"] * 40})
    area = gpd.GeoDataFrame(geometry=[shapely.box(*bounds)], crs=crs)
    pair = read_pair(said, reference, "kind", area=area)
    assert pair.inside.all()
    assert pair.reached.all()
    # Bounds, in the CRS of the reference.
    assert read_pair(said, reference.to_crs(crs), "kind", area=bounds).inside.all()


def test_a_wide_area_that_ends_among_the_features_parts_them() -> None:
    """Half of the earth, whose edge is a meridian through the middle of the features."""
    reference, said = layer(grid(40), kind=["a"] * 40), layer(grid(40), **{"class": ["a"] * 40})
    centres = shapely.centroid(reference.geometry.to_crs(4326).to_numpy())
    east = float(np.median(shapely.get_x(centres)))
    area = gpd.GeoDataFrame(geometry=[shapely.box(east, -90, 180, 90)], crs=4326)
    pair = read_pair(said, reference, "kind", area=area)
    assert pair.inside.tolist() == (shapely.get_x(centres) >= east).tolist()
    assert pair.reached.tolist() == pair.inside.tolist()


def test_broken_and_deep_geometries_are_of_use() -> None:
    bow = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    bow = shapely.transform(shapely.force_3d(bow), lambda xyz: xyz + np.array([LEFT, BOTTOM, 0]), include_z=True)
    scores = evaluate_layer(layer(grid(1), **{"class": ["a"]}), layer([bow], kind=["a"]), "kind").scores
    assert isinstance(scores, Scores)
    assert scores.accuracy == 1.0


@pytest.mark.parametrize("how", ["features", "objects"])
def test_polygons_that_collapsed_are_left_out_and_counted(how: Any, caplog: pytest.LogCaptureFixture) -> None:
    flat = [(LEFT, BOTTOM), (LEFT + 4, BOTTOM + 4), (LEFT + 9, BOTTOM + 9), (LEFT, BOTTOM)]
    shapes = [*grid(3)[1:], shapely.Polygon(flat)]
    said = layer(shapes, **{"class": ["a"] * 3, "score": [0.5] * 3})
    found = evaluate_layer(said, layer(shapes, kind=["a"] * 3), "kind", how=how)
    assert (found.facts.features, found.facts.predicted) == (2, 2)
    assert [message for message in caplog.messages if "left out 1 polygons without area" in message] == caplog.messages
    assert len(caplog.messages) == 2
    with pytest.raises(LabelError, match=r"has no feature with a place in .* and an area"):
        evaluate_layer(said.iloc[2:], said.iloc[2:], "class", how=how)


def test_spikes_are_cut_off() -> None:
    """A corner that runs out and back on itself: an area with a line, whose far end is no part of the object."""
    spike = [(0, 0), (10, 0), (10, 6), (10, 90), (10, 6), (0, 6)]
    shape = shapely.Polygon(np.array(spike) + ORIGIN)
    box = shapely.box(LEFT, BOTTOM, LEFT + 10, BOTTOM + 6)
    said = layer([box], **{"class": ["a"], "score": [0.5]})
    pair = read_pair(said, layer([shape], kind=["a"]), "kind")
    assert pair.reference[0].equals(pair.predictions[0])
    found = evaluate_layer(said, layer([shape], kind=["a"]), "kind", how="objects").scores
    assert isinstance(found, ObjectScores)
    assert found.average.ap["macro"] == 1.0


# ----------------------------------------------------------------------------------------------------------- objects


def boxes(seed: int, n: int = 60) -> Any:
    rng = np.random.default_rng(seed)
    centres = np.column_stack([20.0 * (np.arange(n) % 10), 20.0 * (np.arange(n) // 10)]) + rng.normal(0, 0.6, (n, 2))
    return np.column_stack([centres, rng.uniform(9, 11, n), rng.uniform(4, 5, n), rng.uniform(0, 180, n)])


def placed(rows: Any) -> Any:
    return shapely.transform(to_polygons(rows), lambda points: points + ORIGIN)


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    true = rng.choice(3, 60, p=[0.5, 0.3, 0.2])
    said, raw = (np.where(rng.random(60) < sure, true, rng.choice(3, 60)) for sure in (0.9, 0.6))
    truth = boxes(1)
    noise = np.column_stack([rng.normal(0, 0.5, (60, 2)), rng.normal(0, 0.4, (60, 2)), rng.normal(0, 3, 60)])
    scores, scores_raw = rng.random(60), rng.random(60)
    return {"truth": truth, "boxes": truth + noise, "true": true, "said": said, "raw": raw, "scores": scores,
            "scores_raw": scores_raw}  # fmt: skip


def object_layers(objects: dict[str, Any]) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    said = {
        "class": NAMES[objects["said"]], "score": objects["scores"], "class_raw": NAMES[objects["raw"]],
        "score_raw": objects["scores_raw"],
    }  # fmt: skip
    return layer(placed(objects["boxes"]), **said), layer(placed(objects["truth"]), kind=NAMES[objects["true"]])


def expected(objects: dict[str, Any], table: ClassTable, said: str, scores: str, kept: Any = slice(None)) -> Any:
    """Straight from the boxes in their own frame."""
    order = [list(table.names).index(name) for name in NAMES]
    truth = Truth(objects["truth"], np.take(order, objects["true"]), np.zeros(60, bool))
    guess = Guess(objects["boxes"][kept], objects[scores][kept], np.take(order, objects[said])[kept])
    return average_precision([truth], [guess], table, max_per_image=None)


def test_scores_of_objects_are_those_of_their_boxes(objects: dict[str, Any]) -> None:
    model, reference = object_layers(objects)
    found = evaluate_layer(model, reference.to_crs(4326), "kind", how="objects", min_score=0.5)
    table = read_pair(model, reference, "kind").table
    for scores, said, rank in ((found.scores, "said", "scores"), (found.raw, "raw", "scores_raw")):
        assert isinstance(scores, ObjectScores)
        straight = expected(objects, table, said, rank)
        assert scores.average.per_class == straight.per_class
        assert scores.average.ap["tail"] == straight.ap["tail"]
    assert isinstance(found.scores, ObjectScores)
    assert 0.2 < found.scores.average.ap["macro"] < 0.9
    at = found.scores.found
    sure = objects["scores"] >= 0.5
    assert sum(row["found"] + row["false_alarms"] for row in at.per_class.values()) == sure.sum()
    assert at.means["recall"]["overall"] == sum(row["found"] for row in at.per_class.values()) / 60
    assert found.facts.notes == ("Compared are the smallest rectangles around the objects, turned as they lie.",)


def test_more_than_a_hundred_objects_of_a_class_count() -> None:
    reference = layer(grid(300), kind=["a"] * 300)
    said = layer(grid(300), **{"class": ["a"] * 300, "score": np.linspace(0, 1, 300)})
    scores = evaluate_layer(said, reference, "kind", how="objects").scores
    assert isinstance(scores, ObjectScores)
    assert scores.average.ap["macro"] == 1.0


def test_upright_predictions_are_compared_upright(objects: dict[str, Any]) -> None:
    model, reference = object_layers(objects)
    upright = oriented_to_horizontal(objects["boxes"])
    model = model.set_geometry(gpd.GeoSeries(placed(upright), crs=CRS))
    found = evaluate_layer(model, reference, "kind", how="objects")
    table = read_pair(model, reference, "kind").table
    own = {**objects, "truth": oriented_to_horizontal(objects["truth"]), "boxes": upright}
    assert isinstance(found.scores, ObjectScores)
    assert found.scores.average.per_class == expected(own, table, "said", "scores").per_class
    assert found.facts.notes[0].startswith("All predictions are upright boxes")


def test_round_objects_are_compared_by_the_upright_boxes_around_them() -> None:
    """As in training. The smallest rectangle around a circle lies at any angle, and its bounds are too large."""
    rng = np.random.default_rng(2)
    circles = shapely.buffer(shapely.centroid(grid(40)), rng.uniform(3, 8, 40))
    circles = np.array([shapely.affinity.rotate(circle, rng.uniform(0, 90)) for circle in circles])
    said = layer(shapely.box(*shapely.bounds(circles).T), **{"class": ["a"] * 40, "score": rng.random(40)})
    found = evaluate_layer(said, layer(circles, kind=["a"] * 40), "kind", how="objects").scores
    assert isinstance(found, ObjectScores)
    assert found.average.ap["macro"] == 1.0


def test_each_part_of_a_feature_is_an_object() -> None:
    shapes = grid(4)
    pairs = [shapely.MultiPolygon(list(shapes[:2])), shapely.MultiPolygon(list(shapes[2:]))]
    said = layer(shapes, **{"class": ["a"] * 4, "score": [0.9, 0.8, 0.7, 0.6]})
    for predictions, reference in (
        (said, layer(pairs, kind=["a", "a"])),
        (layer(pairs, **{"class": ["a", "a"], "score": [0.9, 0.7]}), layer(shapes, kind=["a"] * 4)),
    ):
        found = evaluate_layer(predictions, reference, "kind", how="objects")
        assert isinstance(found.scores, ObjectScores)
        assert found.scores.average.ap["macro"] == 1.0
        assert (found.facts.features, found.facts.predicted) == (4, 4)
    # By features, each is one as it stands.
    assert evaluate_layer(said, layer(pairs, kind=["a", "a"]), "kind").facts.features == 2


@pytest.mark.parametrize("crs", [CRS, 4326])
def test_a_neighbour_outside_the_area_that_only_touches_is_no_false_alarm(crs: Any) -> None:
    shapes = [shapely.box(LEFT + x, BOTTOM, LEFT + x + 10, BOTTOM + 6) for x in (0, -10)]
    said = layer(shapes, **{"class": ["a", "a"], "score": [0.5, 0.9]})
    reference = layer(shapes[:1], kind=["a"]).to_crs(crs)
    area = gpd.GeoDataFrame(geometry=[shapely.box(LEFT, BOTTOM - 1, LEFT + 20, BOTTOM + 9)], crs=CRS)
    found = evaluate_layer(said, reference, "kind", how="objects", area=area)
    assert isinstance(found.scores, ObjectScores)
    row = found.scores.found.per_class["a"]
    assert (row["found"], row["false_alarms"]) == (1, 0)


def test_scores_may_be_of_any_range(objects: dict[str, Any]) -> None:
    """Logits: what a lowest score of 0 cuts counts where none is asked for."""
    model, reference = object_layers(objects)
    logits = model.assign(score=np.log(model["score"] / (1 - model["score"])))
    assert (logits["score"] < 0).sum() > 20
    values, others = (evaluate_layer(one, reference, "kind", how="objects").scores for one in (model, logits))
    assert isinstance(values, ObjectScores)
    assert isinstance(others, ObjectScores)
    assert values.found == others.found
    assert values.found.min_score is None
    assert "those of all guesses at the overlap 0.5" in values.found.definition
    cut = evaluate_layer(logits, reference, "kind", how="objects", min_score=0.0).scores
    assert isinstance(cut, ObjectScores)
    counted = [row["found"] + row["false_alarms"] for row in cut.found.per_class.values()]
    assert sum(counted) == (logits["score"] >= 0).sum()
    for low, missed in ((None, 0), (0.0, (logits["score"] < 0).sum())):
        by_feature = evaluate_layer(logits, logits, "class", min_score=low).scores
        assert isinstance(by_feature, Scores)
        assert sum(row[-1] for row in by_feature.confusion) == missed


def test_what_has_no_score_or_class_is_told(objects: dict[str, Any]) -> None:
    model, reference = object_layers(objects)
    model.loc[:2, "score"] = None
    model.loc[2:6, "class"] = None
    found = evaluate_layer(model, reference, "kind", how="objects")
    assert found.facts.notes[-1] == "7 of 60 predictions do not count: 5 without a class and 2 without a score."
    assert isinstance(found.scores, ObjectScores)
    assert sum(row["guesses"] for row in found.scores.average.per_class.values()) == 53
    by_feature = evaluate_layer(model, model, "class_raw")
    assert by_feature.facts.notes[-1] == "5 of 60 predictions do not count: 5 without a class."
    cut = evaluate_layer(model, model, "class_raw", min_score=0.0)
    assert cut.facts.notes[-1] == "7 of 60 predictions do not count: 5 without a class and 2 without a score."


def test_outlines_stand_as_their_rectangles() -> None:
    corner = shapely.Polygon([(0, 0), (10, 0), (10, 2), (2, 2), (2, 6), (0, 6)])
    shapes = shapely.transform(np.array([corner, shapely.box(30, 0, 40, 6)]), lambda points: points + ORIGIN)
    said = layer(shapely.box(*shapely.bounds(shapes).T), **{"class": ["a", "a"], "score": [0.5, 0.4]})
    found = evaluate_layer(said, layer(shapes, kind=["a", "a"]), "kind", how="objects")
    assert isinstance(found.scores, ObjectScores)
    assert found.scores.average.ap75["macro"] == 1.0
    assert found.facts.notes[1] == "1 of 2 reference polygons are no rectangles; the box stands for them."


def test_objects_across_the_edge_of_the_area() -> None:
    """In: found across the edge, missed, false alarm. Out: a hit, and a false alarm near it."""
    at = {"edge": 0, "missed": 20, "out": -60}
    reference = layer(
        [shapely.box(LEFT + x, BOTTOM, LEFT + x + 10, BOTTOM + 4) for x in at.values()], kind=["a", "a", "b"]
    )
    guesses = [-5.0, 50.0, -60.0, -100.0]  # moved over the edge at 0; false; on the one outside; outside alone
    said = layer(
        [shapely.box(LEFT + x, BOTTOM, LEFT + x + 10, BOTTOM + 4) for x in guesses],
        **{"class": ["a", "a", "b", "a"], "score": [0.9, 0.8, 0.7, 0.6]},
    )
    area = (LEFT, BOTTOM - 50, LEFT + 200, BOTTOM + 50)
    found = evaluate_layer(said, reference, "kind", how="objects", area=area, iou=0.3)
    assert isinstance(found.scores, ObjectScores)
    row = found.scores.found.per_class
    assert (row["a"]["found"], row["a"]["missed"], row["a"]["false_alarms"]) == (1, 1, 1)
    assert (row["b"]["found"], row["b"]["missed"], row["b"]["false_alarms"]) == (0, 0, 0)
    assert found.scores.average.absent == ["b"]
    assert found.facts.bounded


# ------------------------------------------------------------------------------------------------- report, refusals


@pytest.mark.parametrize("how", ["features", "objects"])
@pytest.mark.parametrize("twin", [True, False])
def test_report_and_json_say_what_was_done(objects: dict[str, Any], tmp_path: Path, how: Any, twin: bool) -> None:
    model, reference = object_layers(objects)
    if not twin:
        model = model.drop(columns=["class_raw", "score_raw"])
    model.to_file(tmp_path / "model.gpkg")
    reference.to_file(tmp_path / "truth.geojson", driver="GeoJSON")
    found = evaluate_layer(tmp_path / "model.gpkg", tmp_path / "truth.geojson", "kind", how=how)
    found.write_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for part in ("model.gpkg against truth.geojson", "60 features", "UTM zone 33N", "thirds of the classes", "barn"):
        assert part in page
    assert (f"{'F1' if how == 'features' else 'AP50'} twin" in page) == twin
    assert "LoRA" not in page.replace("the debLoRA paper", "")
    assert "Lowest score" in page
    assert "training samples" not in page
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (values["raw"] is not None) == twin
    assert (values["how"], values["features"], values["bounded"]) == (how, 60, False)
    assert ("found" in values["scores"]) == (how == "objects")


def test_a_twin_without_scores_beside_a_model_with_scores_is_no_twin(objects: dict[str, Any]) -> None:
    model, reference = object_layers(objects)
    assert evaluate_layer(model.drop(columns="score_raw"), reference, "kind", how="objects").raw is None
    assert evaluate_layer(model.drop(columns=["score", "score_raw"]), reference, "kind").raw is not None


def test_layers_without_a_class_in_common_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate_layer(layer(grid(2), **{"class": ["x", "y"]}), layer(grid(2), kind=["a", "b"]), "kind")
    assert isinstance(found.scores, Scores)
    assert found.scores.accuracy == 0
    (warning,) = caplog.messages
    assert warning.startswith(
        "The layers have no class in common: the reference has a, b and the predictions have x, y"
    )
    assert found.facts.notes == ("No prediction names a, b.",)


LINES = layer([shapely.LineString([(LEFT, BOTTOM), (LEFT + 9, BOTTOM)])], **{"class": ["a"], "score": [1.0]})
SAID = layer(grid(2), **{"class": ["a", "b"], "score": [0.5, 0.6]})
TRUE = layer(grid(2), kind=["a", "b"])


@pytest.mark.parametrize(
    ("said", "true", "options", "sentence"),
    [
        (SAID, TRUE, {"class_field": "sort"}, "has no field 'sort'; its fields are: kind"),
        (SAID, TRUE, {"predicted_field": "label"}, "has no field 'label'; its fields are: class, score"),
        (SAID, TRUE, {"score_field": "sure"}, "has no field 'sure' with scores; its fields are: class, score"),
        (SAID, TRUE, {"score_field": "class"}, "must hold numbers"),
        (SAID.iloc[:0], TRUE, {}, "is empty"),
        (SAID, TRUE.iloc[:0], {}, "is empty"),
        (SAID.set_crs(None, allow_override=True), TRUE, {}, "no coordinate reference system"),
        (LINES, TRUE, {}, "has 1 lines"),
        (SAID, TRUE.translate(1000).to_frame("geometry").assign(kind=["a", "b"]), {}, "No prediction of .* overlaps"),
        (SAID, TRUE, {"area": (0, 0, 1, 1)}, "lies in the area"),
        (SAID, TRUE, {"area": "nowhere.gpkg"}, "no area layer at nowhere.gpkg"),
        (SAID, TRUE, {"area": TRUE.set_crs("IAU_2015:30100", allow_override=True)}, "without a place on the earth"),
        (SAID.drop(columns="score"), TRUE, {"how": "objects"}, "has no scores, which objects are ranked by"),
        (SAID.drop(columns="score"), TRUE, {"min_score": 0.5}, "has no scores, so none can be asked for"),
        (SAID.set_geometry(SAID.centroid), TRUE, {"how": "objects"}, "has points, which have no overlap"),
        (SAID, TRUE.set_geometry(TRUE.centroid), {"how": "objects"}, "has points, which have no overlap"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_compared_are_refused(
    said: gpd.GeoDataFrame, true: gpd.GeoDataFrame, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(LabelError, match=sentence):
        evaluate_layer(said, true, **{"class_field": "kind", **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"how": "pixels"}, "by features or objects; received 'pixels'"),
        ({"min_score": math.nan}, "must be a number"),
        ({"how": "objects", "iou": 0.0}, "received 0.0"),
        ({"area": (1, 0, 0, 1)}, "left, bottom, right, top in the CRS of the reference"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        evaluate_layer(SAID, TRUE, "kind", **options)

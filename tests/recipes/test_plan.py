"""Dry runs, with the data and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny
from tests.recipes.making import CLASSES, DOTA, recipe, write_dota, write_scenes
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.recipes import Plan, find_recipe, plan_recipe
from torchgeo_debias.recipes.plan import check_ready


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


def planned(tmp_path: Path, data: Path | None, weights: object = "random", **changes: object) -> Plan:
    return plan_recipe(recipe(tmp_path, **changes), "small", data, {"weights": str(weights)})


def test_without_the_data_it_says_where_to_get_them() -> None:
    plan = plan_recipe(*find_recipe("fusrs/dinov2"), given={"weights": "random"})
    assert not plan.problems
    assert not plan.ready
    (sentence,) = plan.missing
    assert "Hugging Face" in sentence
    assert "train/<class>/*" in sentence
    assert plan.parts["train"].chips == 6971
    assert plan.parts["train"].found is None
    assert plan.groups is not None
    assert plan.groups["dredger"] == "tail"
    assert plan.estimate is not None
    # 6,971 chips in batches of 32 are 218 steps an epoch; 30 epochs of two stages.
    assert plan.estimate.steps == 218 * 30 * 2
    assert plan.estimate.trained_images == 6971 * 60
    assert plan.estimate.passed_images == 6971 * 2 + (869 + 1260) * 2
    assert plan.estimate.chips_bytes == (6971 + 869 + 1260) * 224 * 224 * 4
    json.dumps(plan.to_json())


def test_a_chain_asks_for_the_model_before(tmp_path: Path) -> None:
    chain = find_recipe("fusrs-chained/dinov2")
    plan = plan_recipe(*chain, given={"weights": "random"})
    assert any("dota-a/dinov2" in sentence for sentence in plan.missing)
    with_model = plan_recipe(*chain, given={"weights": "random", "start": str(tmp_path)})
    assert not any("dota-a" in sentence for sentence in with_model.missing)
    assert any("cannot start from" in sentence for sentence in with_model.problems), "an empty folder is no model"
    assert plan_recipe(*chain, given={"start": str(tmp_path / "none.tgd")}).problems


def test_scenes_that_are_there(scenes: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, scenes)
    assert plan.ready, (plan.missing, plan.problems)
    assert {part: facts.found for part, facts in plan.parts.items()} == dict.fromkeys(
        ("train", "validation", "test"), tiny.COUNTS
    )
    assert plan.groups == CLASSES
    assert plan.estimate is not None
    assert plan.estimate.steps == 2 * 4
    check_ready(plan)


def test_other_counts_are_told(scenes: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, scenes, counts={"test": {"bare": 15, "field": 11, "water": 5}})
    (sentence,) = plan.notes
    assert "field 10, not 11" in sentence
    assert "bare" not in sentence
    assert plan.ready


def test_counts_of_classes_that_are_not_there_are_told(scenes: Path, tmp_path: Path) -> None:
    (sentence,) = planned(tmp_path, scenes, classes=None, counts={"test": {"bare": 15, "ice": 3}}).notes
    assert "ice 0, not 3" in sentence


def test_any_classes_are_in_thirds(scenes: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, scenes, classes=None)
    assert plan.groups == {"bare": "head", "field": "middle", "water": "tail"}
    assert planned(tmp_path, None, classes=None).groups is None


def test_a_share_of_the_training_is_held_out_where_there_is_no_validation(scenes: Path, tmp_path: Path) -> None:
    parts = planned(tmp_path, scenes, parts={"train": "train", "test": "test"}, share=0.2).parts
    assert (parts["train"].chips, parts["validation"].chips, parts["test"].chips) == (24, 6, 30)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("rm -r val", "There is no folder"),
        ("rm -r water", "has no water"),
        ("one water", "has 1 water"),
        ("add class", "'ice', which is none of"),
        ("grey", "not alike"),
    ],
)
def test_data_that_are_not_right(change: str, word: str, scenes: Path, tmp_path: Path) -> None:
    if change == "rm -r val":
        shutil.rmtree(scenes / "val")
    elif change == "rm -r water":
        shutil.rmtree(scenes / "train" / "water")
    elif change == "one water":
        for path in sorted((scenes / "train" / "water").iterdir())[1:]:
            path.unlink()
    elif change == "add class":
        (scenes / "test" / "water").rename(scenes / "test" / "ice")
    else:
        for path in (scenes / "test").rglob("*.png"):
            Image.open(path).convert("L").save(path)
    plan = planned(tmp_path, scenes)
    assert any(word in sentence for sentence in plan.problems), plan.problems
    with pytest.raises(ConfigError, match="cannot be run"):
        check_ready(plan)


def test_bands_and_pixels_that_are_expected(scenes: Path, tmp_path: Path) -> None:
    assert planned(tmp_path, scenes, bands=["red", "green", "blue"], dtype="uint8").ready
    plan = planned(tmp_path, scenes, bands=["vv", "vh"], dtype="uint16")
    assert any("3 bands, but 2" in sentence for sentence in plan.problems)
    assert any("uint8 pixels, but uint16" in sentence for sentence in plan.problems)


def test_weights_that_are_not_there(scenes: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, scenes, weights=tmp_path / "none.pth")
    assert (plan.weights["availability"], plan.ready) == ("missing", False)
    assert "none.pth" in plan.missing[0]


def test_objects_in_dota_s_form(tmp_path: Path) -> None:
    plan = planned(tmp_path, write_dota(tmp_path / "dota"), **DOTA)
    assert plan.ready, plan.problems
    assert plan.parts["test"].found == {"bare": 30, "field": 20, "water": 5}
    assert (plan.parts["train"].chips, plan.parts["validation"].chips) == (49, 6)
    easy = planned(tmp_path, tmp_path / "dota", **DOTA, difficult=False)
    assert easy.parts["test"].found == {"bare": 30, "field": 20, "water": 0}
    assert any("no water" in sentence for sentence in easy.problems)


def test_a_chip_size_that_does_not_fit(tmp_path: Path) -> None:
    plan = planned(tmp_path, None, variants={"small": {"chip_size": 40, "training": {}}})
    assert "multiple of 16" in plan.problems[0]
    assert plan.estimate is None

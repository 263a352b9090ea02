"""Recipes from made-up data to scored models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.recipes.making import CLASSES, DOTA, TRAINING, recipe, write_dota, write_scenes
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.recipes import run_recipe
from torchgeo_debias.recipes.parts import read_parts


def test_scenes_to_a_model_with_the_groups_of_the_recipe(tmp_path: Path, tiny_weights: Path) -> None:
    data, out = write_scenes(tmp_path / "scenes"), tmp_path / "m.tgd"
    groups = {"bare": "head", "field": "tail", "water": "tail"}
    steps: dict[str, int] = {}
    result = run_recipe(
        recipe(tmp_path, classes=groups), "small", data, out, {"weights": str(tiny_weights)},
        progress=lambda at: steps.update({at.stage: at.total or 0}),
    )  # fmt: skip
    package = ModelPackage.load(out)
    assert dict(zip(package.table.names, package.table.groups, strict=True)) == groups
    assert result.plan.estimate is not None
    assert steps["adapt"] + steps["align"] == result.plan.estimate.steps
    assert set(result.scores) == {"validation", "test"}
    assert package.metrics["test"]["scores"] == result.scores["test"].scores.to_json()
    assert np.isnan(result.scores["test"].scores.f1["middle"])
    per_class = result.scores["test"].scores.per_class
    tail = np.mean([per_class[name]["f1"] for name in ("field", "water")])
    assert result.scores["test"].scores.f1["tail"] == pytest.approx(tail)
    assert package.provenance["recipe"] == "mine/small"
    assert package.provenance["test_chips"] == 30


def test_objects_to_a_model(tmp_path: Path, tiny_weights: Path) -> None:
    data, out = write_dota(tmp_path / "dota"), tmp_path / "m"
    result = run_recipe(recipe(tmp_path, **DOTA), "small", data, out, {"weights": str(tiny_weights)})
    package = ModelPackage.load(out)
    assert package.table.names == tuple(CLASSES)
    held = package.provenance["validation_chips"]
    assert package.provenance["training_chips"] + held == 55
    assert held > 0
    assert result.scores["test"].scores.f1["macro"] >= 0


def test_no_source_is_in_two_parts(tmp_path: Path) -> None:
    data = write_dota(tmp_path / "dota")
    facts = recipe(tmp_path, **DOTA).data
    parts = read_parts(facts, data, 32, seed=1)
    train, held = (set(parts[part].sources.tolist()) for part in ("train", "validation"))
    assert train
    assert held
    assert not train & held
    assert parts["train"].images.shape[1:] == (3, 32, 32)
    again = read_parts(facts, data, 32, seed=1)
    np.testing.assert_array_equal(again["validation"].images, parts["validation"].images)


def test_images_of_one_place_stay_together(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes")
    for path in sorted((data / "train").rglob("*.png")):
        number = int(path.stem)
        path.rename(path.with_name(f"place{number // 3}_{number % 3}.png"))
    facts = recipe(tmp_path, parts={"train": "train", "test": "test"}, share=0.3, source=r"(place\d+)_\d+\.png").data
    parts = read_parts(facts, data, 32, seed=0)
    train, held = (set(parts[part].sources.tolist()) for part in ("train", "validation"))
    assert "bare/place0" in train | held
    assert not train & held
    assert len(parts["train"]) + len(parts["validation"]) == 30


def test_bands_get_their_names(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes")
    parts = read_parts(recipe(tmp_path, bands=["b04", "b03", "b02"]).data, data, 32, seed=0)
    assert {chips.bands for chips in parts.values()} == {("b04", "b03", "b02")}


def test_one_recipe_after_another(tmp_path: Path, tiny_weights: Path) -> None:
    data, first = write_scenes(tmp_path / "scenes"), tmp_path / "first.tgd"
    given = {"weights": str(tiny_weights)}
    run_recipe(recipe(tmp_path, training={**TRAINING, "method": "lora", "head": "own"}), "small", data, first, given)
    second = recipe(tmp_path, after="dota-a")
    with pytest.raises(ConfigError, match="dota-a/small"):
        run_recipe(second, "small", data, tmp_path / "none.tgd", given)
    chained = run_recipe(second, "small", data, tmp_path / "second.tgd", {**given, "start": str(first)})
    assert chained.trained.package.method["start"] == str(first)


def test_nothing_is_run_that_is_not_ready(tmp_path: Path, tiny_weights: Path) -> None:
    mine = recipe(tmp_path)
    with pytest.raises(ConfigError, match="There is no folder"):
        run_recipe(mine, "small", tmp_path / "none", tmp_path / "m.tgd", {"weights": str(tiny_weights)})
    with pytest.raises(OutputError, match="mine"):
        run_recipe(mine, "small", tmp_path, tmp_path / "mine.json" / "m.tgd", {"weights": str(tiny_weights)})
    assert not (tmp_path / "m.tgd").exists()

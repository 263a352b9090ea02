"""The verb ``recipe``, and groups that are given to a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.verbs import Run, train_options
from tests.recipes.making import write_recipe, write_scenes
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.recipes import list_recipes


def test_all_are_listed(run: Run) -> None:
    assert set(run("recipe", "--json").json) == {recipe.name for recipe in list_recipes()}
    text = run("recipe").out
    assert all(recipe.title in text for recipe in list_recipes())


def test_a_dry_run_without_data_ends_well(run: Run) -> None:
    result = run("recipe", "fusrs-chained/satmae", "--dry-run", "--quiet")
    assert result.code == 0
    for word in ("Hugging Face", "--weights", "dota-a/satmae", "It cannot be run yet.", "13,080 steps", "CC-BY-NC-4.0"):
        assert word in result.out
    found = run("recipe", "fusrs/satmae", "--dry-run", "--json", "--quiet").json
    assert (found["ready"], found["problems"]) == (False, [])
    assert found["estimate"]["steps"] == 13_080


def test_a_dry_run_and_a_run(run: Run, tmp_path: Path, tiny_weights: Path) -> None:
    recipe, data, out = write_recipe(tmp_path), write_scenes(tmp_path / "scenes"), tmp_path / "m.tgd"
    usual = ("recipe", recipe, "--data", data, "--weights", tiny_weights, "--quiet")
    dry = run(*usual, "--dry-run")
    assert (dry.code, dry.out.splitlines()[-1]) == (0, "It can be run.")
    assert not out.exists()
    config = tmp_path / "more.json"
    config.write_text(json.dumps({"epochs": 2, "adapter": {"rank": 4}}))
    found = run(*usual, "--out", out, "--config", config, "--seed", 3, "--json").json
    assert set(found["scores"]) == {"validation", "test"}
    package = ModelPackage.load(out)
    assert (package.method["epochs"], package.method["adapter"]["rank"], package.provenance["seed"]) == (2, 4, 3)
    assert "test part" in run(*usual, "--out", out).out


def test_a_dry_run_tells_what_is_held_out(run: Run, tmp_path: Path, tiny_weights: Path) -> None:
    recipe = write_recipe(tmp_path, parts={"train": "train", "test": "test"})
    usual = ("recipe", recipe, "--weights", tiny_weights, "--dry-run", "--quiet")
    lines = run(*usual, "--data", write_scenes(tmp_path / "scenes")).out.splitlines()
    assert "train       27 chips (about, of the 30 below)" in lines
    assert "validation  3 chips (about, held out of the training part)" in lines
    assert "test        30 chips" in lines
    assert not any(line.endswith(" ") for line in lines)
    assert "0.0 GiB" not in "".join(lines)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("nothing",), "no recipe 'nothing'"),
        (("dota-a/dinov2",), "--dry-run"),
        (("--dry-run",), "Name the recipe"),
        (("dota-a", "--dry-run", "--config", "none.json"), "none.json"),
    ],
)
def test_refusals(run: Run, options: tuple[str, ...], word: str) -> None:
    assert word in run("recipe", *options).sentence


def test_a_dry_run_on_wrong_data_shows_its_plan_and_fails(run: Run, tmp_path: Path) -> None:
    result = run("recipe", "fusrs/dinov2", "--data", tmp_path, "--dry-run", "--json", "--quiet")
    assert result.code == 2
    assert len(json.loads(result.out)["problems"]) == 3
    assert "There is no folder" in result.err


def test_groups_of_a_training(run: Run, tmp_path: Path, tiny_images: Path, tiny_weights: Path) -> None:
    groups = tmp_path / "groups.json"
    given = {"bare": "tail", "field": "head", "water": "head"}
    groups.write_text(json.dumps(given))
    usual = ("train", "--data", tiny_images, "--out", tmp_path / "m.tgd", *train_options(tiny_weights))
    found = run(*usual, "--method", "probe", "--groups", groups, "--json").json
    assert {row["name"]: row["group"] for row in found["classes"]} == given
    groups.write_text('{"bare": "tail"}')
    assert "field" in run(*usual, "--method", "probe", "--groups", groups).sentence

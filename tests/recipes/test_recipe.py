"""The recipes that come with the package, and files of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from torchgeo_debias.backbones import find_spec
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.recipes import Recipe, find_recipe, list_recipes

RECIPES = list_recipes()
EVERY = [(recipe, variant) for recipe in RECIPES for variant in recipe.variants]


def known(name: str) -> Recipe:
    return find_recipe(name)[0]


def test_names_are_those_of_the_files() -> None:
    assert {recipe.name for recipe in RECIPES} == {"dota-a", "dota-b", "fusrs", "fusrs-chained", "sentinel2"}


@pytest.mark.parametrize(("recipe", "variant"), EVERY, ids=lambda value: getattr(value, "name", value))
def test_every_variant_has_a_configuration_of_the_trainer(recipe: Recipe, variant: str) -> None:
    config = recipe.config(variant)
    spec = find_spec(config.backbone)
    assert recipe.variant(variant).chip_size % spec.patch == 0
    assert config.method == "deblora"
    assert config.val_share == 0, "validation parts are scored, nothing is chosen by them within the training"
    assert config.align_loss == "l2"
    assert config.head_on == "features"
    assert config.views == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_is_tested_on_is_not_what_is_chosen_by(recipe: Recipe) -> None:
    places = [json.dumps(place) for place in recipe.data.parts.values()]
    assert len(set(places)) == len(places)
    assert recipe.after is None or recipe.after in {other.name for other in RECIPES}
    assert recipe.data.licence
    assert recipe.status


@pytest.mark.parametrize("backbone", ["dinov2_vitb14", "vit_base_in21k", "clip_vith14", "satmae_vitl16", "sd15_unet"])
@pytest.mark.parametrize("name", ["dota-a", "dota-b", "fusrs", "fusrs-chained"])
def test_each_experiment_comes_with_each_backbone(name: str, backbone: str) -> None:
    recipe = known(name)
    assert backbone in {recipe.config(variant).backbone for variant in recipe.variants}


def test_the_lists_of_dota() -> None:
    one, other = known("dota-a").data, known("dota-b").data
    assert one.classes is not None
    assert other.classes is not None
    assert list(one.classes) == list(other.classes)
    assert {name for name in one.classes if one.classes[name] != other.classes[name]} == {"plane"}
    assert (one.classes["plane"], other.classes["plane"]) == ("head", "middle")
    assert list(one.classes.values()).count("tail") == 6
    assert sum(one.counts["test"].values()) == 28_853
    assert list(one.counts["test"].values()) == sorted(one.counts["test"].values(), reverse=True)
    assert (one.classes["storage-tank"], one.classes["helicopter"]) == ("middle", "tail")
    same = {"name", "title", "data"}
    assert {k: v for k, v in asdict(known("dota-a")).items() if k not in same} == {
        k: v for k, v in asdict(known("dota-b")).items() if k not in same
    }


def test_the_counts_of_fusrs() -> None:
    facts = known("fusrs").data
    assert {part: sum(counts.values()) for part, counts in facts.counts.items()} == {
        "train": 6971, "validation": 869, "test": 1260,
    }  # fmt: skip
    assert facts.classes == {"cargo": "head", "other": "head", "fishing": "head", "tanker": "tail", "dredger": "tail"}
    assert asdict(known("fusrs-chained").data) == asdict(facts)


def test_fields_that_are_given_go_first() -> None:
    recipe = known("dota-a")
    config = recipe.config("dinov2", {"seed": 7, "adapter": {"rank": 16}, "backbone": "dinov2_vits14"})
    assert (config.seed, config.adapter.rank, config.backbone) == (7, 16, "dinov2_vits14")
    assert config.adapter.kind == "lora"
    assert config.epochs == recipe.config("dinov2").epochs == 30


def smallest() -> dict[str, Any]:
    return {
        "name": "mine", "title": "t", "status": "s", "training": {"method": "lora"},
        "data": {
            "name": "d", "where": "w", "licence": "l", "form": "scenes", "layout": "y", "groups": "g",
            "parts": {"train": "train", "test": "test"}, "classes": {"a": "head", "b": "tail"},
        },
        "variants": {"one": {"chip_size": 32, "training": {"backbone": "timm:test_vit"}},
                     "two": {"chip_size": 64, "training": {"backbone": "timm:test_vit"}}},
    }  # fmt: skip


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(smallest()))
    assert [find_recipe(str(path))[1], find_recipe(f"{path}/two")[1]] == ["one", "two"]
    assert find_recipe(f"{path}/two")[0].variant("two").chip_size == 64


@pytest.mark.parametrize("name", ["dota", "dota-a/resnet", "none.json", "dota-a/"])
def test_what_there_is_not(name: str) -> None:
    if name == "dota-a/":
        assert find_recipe(name)[1] == "dinov2"
        return
    with pytest.raises(ConfigError, match=r"no recipe|no variant|Cannot read"):
        find_recipe(name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"training": {"epoch": 3}}, "Unknown field epoch"),
        ({"variants": {}}, "no variants"),
        ({"variants": {"one": {"training": {}}}}, "chip_size is missing"),
        ({"data.parts": {"train": "a"}}, "train and test"),
        ({"data.parts": {"train": "a", "test": "a"}}, "the same"),
        ({"data.parts": {"train": "a", "test": "./b/../a"}}, "the same"),
        ({"data.parts": {"train": "a", "test": {"images": "b", "labels": "c"}}}, "a path"),
        ({"data.classes": {"a": "many"}}, "head, middle, tail"),
        ({"data.classes": {}}, "at least one class"),
        ({"data.counts": {"test": {"a": 1}}}, "every class"),
        ({"data.counts": {"train": 5}}, "a whole number for each class"),
        ({"data.counts": {"train": ["a"]}}, "a whole number for each class"),
        ({"data.counts": {"train": {"a": "x"}}}, "a whole number for each class"),
        ({"data.counts": {"val": {"a": 1}}}, "has 'val'"),
        ({"data.dtype": "uint99"}, "type of pixels"),
        ({"data.bands": ["red", "red"]}, "unique names"),
        ({"variants": {"one": {"chip_size": 0, "training": {}}}}, "Chip size"),
        ({"data.share": 1.0}, "between 0 and 1"),
        ({"data.source": "no group"}, "regular expression"),
        ({"data.source": "("}, "regular expression"),
        ({"data.form": "dota"}, "images and labels"),
        ({"data.more": 1}, "data.more"),
    ],
)
def test_files_that_make_no_sense_are_refused(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    values = smallest()
    for place, value in change.items():
        owner, _, name = place.rpartition(".")
        (values[owner] if owner else values)[name] = value
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=word):
        find_recipe(str(path))


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3}'])
def test_files_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.json"):
        find_recipe(str(path))

"""The help of the verbs, and the page of the documentation, tell what the options take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cli.verbs import Run
from torchgeo_debias.cli.app import app
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.tiling.layers import VECTOR_FORMATS
from torchgeo_debias.tiling.plan import LARGEST_OVERLAP
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.detection import DetectConfig

GROUP: Any = typer.main.get_command(app)
PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def helps(option: str) -> dict[str, str]:
    """What each verb that has an option says of it."""
    found = {name: param.help for name, verb in GROUP.commands.items() for param in verb.params if option in param.opts}
    assert found, option
    return found


def meaning(verb: str, option: str) -> str:
    """What the page says of an option of a verb."""
    _, _, rest = PAGE.partition(f"\n## {verb}\n")
    found = re.search(rf"^\| `{option}`.*\| (.*) \|$", rest.partition("\n## ")[0], re.MULTILINE)
    assert found, (verb, option)
    return found[1]


def test_the_largest_overlap_is_told_wherever_tiles_overlap() -> None:
    told = helps("--overlap")
    assert set(told) == {"classify", "detect", "segment"}
    for verb, text in told.items():
        assert f" 0 to {LARGEST_OVERLAP:g}" in text
        assert f" 0 to {LARGEST_OVERLAP:g}" in meaning(verb, "--overlap")


def test_formats_of_layers_are_told_wherever_one_is_written() -> None:
    for verb in ("classify", "classify-features", "detect", "segment"):
        assert all(ending in helps("--out")[verb] for ending in VECTOR_FORMATS), verb


def test_precisions_that_need_another_backend_are_told_where_one_can_be_chosen() -> None:
    with_backends = set(helps("--backend"))
    for verb, text in helps("--precision").items():
        assert ("int8" in text) == (verb in with_backends), verb


@pytest.mark.parametrize(("verb", "kind"), [("train", TrainConfig), ("train-detector", DetectConfig)])
def test_defaults_of_a_training_are_those_of_its_configuration(verb: str, kind: Any) -> None:
    given = kind().to_json()
    given["rank"] = next(part["rank"] for part in given.values() if isinstance(part, dict) and "rank" in part)
    if kind is TrainConfig:
        given["views"] = TrainConfig().view_count
    told = {name for name, value in given.items() if value is not None}
    shown = {param.name: param.show_default for param in GROUP.commands[verb].params if param.name in told}
    common = {"method", "seed", "epochs", "batch_size", "backbone", "rank", "stretch", "weights", "precision"}
    assert common | ({"loss", "head", "views"} if verb == "train" else set()) == set(shown)
    assert shown == {name: str(given[name]) for name in shown}


def test_defaults_of_a_chip_are_those_of_its_spec() -> None:
    spec = ChipSpec(112).to_json()
    shown = {param.name: param.show_default for param in GROUP.commands["train"].params}
    assert (shown["margin"], shown["window_unit"]) == (str(spec["margin"]), spec["unit"])


def test_the_list_of_verbs_cuts_no_sentence_short(run: Run) -> None:
    _, _, listed = run("--help").out.partition("Commands:")
    sentences = {line.split()[0]: line.rstrip() for line in listed.splitlines() if line.strip()}
    assert set(sentences) == set(GROUP.commands)
    assert not [line for line in sentences.values() if line.endswith("...") or not line.endswith(".")]

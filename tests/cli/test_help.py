"""The help of the verbs, and the page of the documentation, tell what the options take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from torchgeo_debias.cli.app import app
from torchgeo_debias.tiling.plan import LARGEST_OVERLAP

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

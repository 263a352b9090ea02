"""The page of the long-tail methods says what the registry says."""

from __future__ import annotations

import json
import re
from dataclasses import fields

from tests.docs.test_docs import DOCS, rows, section
from torchgeo_debias.debias.losses import LOSSES
from torchgeo_debias.debias.methods import METHODS

PAGE = (DOCS / "methods.md").read_text()
TABLE = list(rows(section(PAGE, "The methods")))


def test_every_method_stands_in_the_table_in_the_order_of_the_registry() -> None:
    assert [cells[0] for cells in TABLE] == [f"`{name}`" for name in METHODS]


def test_source_and_origin_are_those_of_the_registry() -> None:
    written = [(cells[2], cells[3]) for cells in TABLE]
    assert written == [(method.source, method.origin) for method in METHODS.values()]


def test_every_setting_stands_with_its_default() -> None:
    written = [re.findall(r"`(\w+)` ([^,]+)", cells[4]) for cells in TABLE]
    real = [[(f.name, json.dumps(f.default)) for f in fields(method.settings)] for method in METHODS.values()]
    assert written == real


def test_every_loss_stands_in_its_table_with_source_and_settings() -> None:
    written = [
        (cells[0], cells[2], cells[3], re.findall(r"`(\w+)` ([^,]+)", cells[4]))
        for cells in rows(section(PAGE, "Losses for training"))
    ]
    assert written == [
        (f"`{name}`", loss.source, loss.origin, [(f.name, json.dumps(f.default)) for f in fields(loss.settings)])
        for name, loss in LOSSES.items()
    ]


def test_every_method_is_told_in_a_sentence() -> None:
    assert all(cells[1].endswith(".") and len(cells[1].split()) > 5 for cells in TABLE)


def test_what_was_adapted_is_said_of_each() -> None:
    told = set(
        re.findall(r"`([^`]+)`", " ".join(re.findall(r"^- \*\*(.+?)\*\*", section(PAGE, "What was adapted"), re.M)))
    )
    assert told == {name for name, method in METHODS.items() if method.origin == "adapted"}


def test_the_examples_run() -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(block, "methods.md", "exec"), names)
        assert "head" in names

"""The class table: groups, ratios, and what survives a new count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, DataError


def test_groups_are_thirds_of_the_sorted_classes() -> None:
    table = ClassTable.from_counts({"a": 5, "b": 90, "c": 30, "d": 2, "e": 40, "f": 1})
    assert table.groups == ("middle", "head", "middle", "tail", "head", "tail")
    assert table.of_group("tail") == [3, 5]
    np.testing.assert_allclose(table.imbalance_ratios, [18, 1, 3, 45, 2.25, 90])
    assert table.priors.sum() == pytest.approx(1)


def test_background_is_no_yardstick_of_rareness() -> None:
    table = ClassTable.from_counts({"a": 40, "b": 20, "c": 10, "background": 400}, background="background")
    np.testing.assert_allclose(table.imbalance_ratios[:3], [1, 2, 4])
    assert table.groups == ("head", "middle", "tail", "background")
    assert table.background == 3


def test_given_groups_survive_a_new_count() -> None:
    table = ClassTable.from_counts({"a": 9, "b": 6, "c": 3}, groups={"a": "head", "b": "tail", "c": "tail"})
    again = table.with_counts(np.array([0, 0, 1, 2, 2, 2]))
    assert again.groups == ("head", "tail", "tail")
    assert again.counts == (2, 1, 3)


def test_thirds_follow_a_new_count() -> None:
    table = ClassTable.from_counts({"a": 9, "b": 6, "c": 3})
    assert table.with_counts(np.array([0, 1, 1, 2, 2, 2])).groups == ("tail", "middle", "head")


def test_json_round_trip() -> None:
    table = ClassTable.from_counts({"a": 9, "b": 6, "background": 3}, background="background")
    assert ClassTable.from_json(table.to_json()) == table


def test_refusals() -> None:
    with pytest.raises(DataError, match="No class"):
        ClassTable((), (), ())
    with pytest.raises(ConfigError, match="unique"):
        ClassTable(("a", "a"), (1, 1), ("head", "tail"))
    with pytest.raises(ConfigError, match="car stands more than once"):
        ClassTable.from_labels(np.array([0, 1, 2]), ["car", "car", "bus"])
    with pytest.raises(ConfigError, match=r"must be a list of texts, one for each class; received \[1, 2\]"):
        ClassTable.from_labels(np.array([0, 1]), [1, 2])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="must be a list of texts, one for each class; received 'car'"):
        ClassTable.from_labels(np.array([0, 1, 2]), "car")
    with pytest.raises(ConfigError, match="background class 'x'"):
        ClassTable.from_counts({"a": 1}, background="x")
    with pytest.raises(ConfigError, match="every class once"):
        ClassTable.from_counts({"a": 1, "b": 2}, groups={"a": "head"})


def test_groups_may_be_given_later() -> None:
    table = ClassTable.from_counts({"ship": 9, "plane": 5, "land": 50}, background="land")
    given = table.with_groups({"ship": "tail", "plane": "tail"})
    assert given.groups == ("tail", "tail", "background")
    assert (given.names, given.counts) == (table.names, table.counts)
    assert given.with_counts(np.array([0, 1, 1, 2])).groups == given.groups


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ({"ship": "head"}, "plane"),
        ({"ship": "head", "plane": "many"}, "no group 'many'"),
        ({"ship": "head", "plane": ["tail"]}, "no group"),
        ({"ship": "head", "plane": "tail", "car": "tail"}, "car"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ClassTable.from_counts({"ship": 9, "plane": 5}).with_groups(groups)

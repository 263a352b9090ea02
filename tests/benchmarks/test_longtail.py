"""The comparison of long-tail methods: what names, digests and tables keep apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.longtail import __main__ as longtail
from benchmarks.longtail import data, features
from benchmarks.longtail.data import Task
from benchmarks.longtail.features import Features, Problem, digest_of, facts_of
from benchmarks.longtail.rows import SUITES, Row, rows
from benchmarks.longtail.tables import by_setting, heading, table
from tests.training.conftest import toy_chips
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.debias.methods import METHODS

PROBLEM = Problem("ucmerced", 10.0, 0, "validation")
TWO = [Row("lora", "la"), Row("lora", "la", calibrate=DebiasSettings(n_clusters=4))]


def task() -> Task:
    return Task(toy_chips((24, 12, 6, 3), size=8), toy_chips((5, 5, 5, 5), seed=1, size=8))


def test_a_name_tells_what_is_set() -> None:
    assert Row("lora", "smote", {"k": 3}).name == "lora | smote | k 3"
    assert Row("lora", "la", calibrate=DebiasSettings()).name == "lora | calibrated | la"
    other = DebiasSettings(centre="global", gamma0=5.0)
    assert Row("lora", "la", calibrate=other).name == "lora | calibrated, centre global, gamma0 5.0 | la"


@pytest.mark.parametrize("suite", SUITES)
def test_the_rows_of_a_suite_are_told_apart_and_can_be_made(suite: str) -> None:
    found = rows(suite)
    assert len({row.name for row in found}) == len(found)
    for row in found:
        assert row.head in METHODS or row.head.startswith("own")
        config = features._config(PROBLEM, row.way, 10)
        assert config.view_count == (1 if row.way.endswith("one view") else 4)
        if row.way.startswith("deblora") and row.head == "la":
            assert row.calibrate == (None if config.debias.pull == 0 else config.debias), "moved as in its stage 2"


def test_features_of_anything_else_have_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(made: Task, way: str = "lora", epochs: int = 10) -> str:
        return digest_of(facts_of(PROBLEM, way, made, epochs))

    def changed(chips: Chips) -> Chips:
        images = chips.images.copy()
        images[0, 0, 0, 0] ^= 1
        return replace(chips, images=images)

    one = task()
    found = [
        digest(one),
        digest(one, way="frozen"),
        digest(one, epochs=5),
        digest(Task(changed(one.train), one.score)),
        digest(Task(one.train, changed(one.score))),
    ]
    assert digest(task()) == found[0]
    with monkeypatch.context() as patch:
        patch.setitem(data.SOURCES, "ucmerced", replace(data.SOURCES["ucmerced"], aside=10))
        found.append(digest(one))
    for name, other in (("SIZE", 98), ("versions", lambda: {"torch": "9.9"})):
        with monkeypatch.context() as patch:
            patch.setattr(features, name, other)
            found.append(digest(one))
    assert len(set(found)) == len(found)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Where scores go to a folder and features cost nothing: the epochs that features were asked for with."""
    asked: list[int] = []

    def drawn(problem: Problem, way: str, made: Task, cache: Path, epochs: int) -> Features:
        asked.append(epochs)
        rng = np.random.default_rng(problem.seed + epochs)
        train, score = (chips.labels[:, None] + rng.normal(size=(len(chips), 6)) for chips in (made.train, made.score))
        return Features(train.astype(np.float32), score.astype(np.float32), None, {})

    monkeypatch.setattr(longtail, "FOLDER", tmp_path)
    monkeypatch.setattr(longtail, "make_task", lambda *which: task())
    monkeypatch.setattr(longtail, "features_of", drawn)
    return asked


def test_scores_are_kept_and_those_of_other_epochs_stand_apart(made: list[int], tmp_path: Path) -> None:
    for seed, epochs in ((0, 10), (1, 10), (1, 10), (2, 5)):
        longtail.run(replace(PROBLEM, seed=seed), TWO, tmp_path, tmp_path, epochs)
    assert made == [10, 10, 10, 10, 5, 5], "what is there is not done again"
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [record["imbalance"] for record in records] == [{"nominal": 10.0, "real": 8.0}] * 3
    groups = by_setting(records)
    assert [(heading(group), len(group)) for group in groups] == [
        ("imbalance 10 (as drawn 8), 10 epochs", 2),
        ("imbalance 10 (as drawn 8), 5 epochs", 1),
    ]
    (line,) = (line for line in table(groups[0]).splitlines() if line.startswith("| lora + la |"))
    tails = [100 * record["rows"]["lora | la"]["f1"]["tail"] for record in records[:2]]
    assert f"{np.mean(tails):.1f} ± {np.std(tails, ddof=1):.1f}" in line
    assert line.endswith("| 2 |")

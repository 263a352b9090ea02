"""From a training that keeps its features to the report on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.verbs import Run, train_options
from torchgeo_debias.evaluation.feature_space import FACTS, TENSORS, FeatureSpace


@pytest.fixture(scope="module")
def kept(tiny_images: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train --keep-features`` leaves; not to be changed."""
    from torchgeo_debias.cli.app import run

    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.json").write_text(json.dumps({"debias": {"pull": 0.5, "n_clusters": 4}}))
    run(
        ["train", "--data", str(tiny_images), "--out", str(folder / "model"), "--keep-features", str(folder / "kept"),
         "--config", str(folder / "config.json"), *train_options(tiny_weights)]
    )  # fmt: skip
    return folder / "kept"


def test_the_training_keeps_all_training_chips(kept: Path) -> None:
    space = FeatureSpace.load(kept)
    assert dict(zip(space.table.names, space.table.counts, strict=True)) == tiny.TRAIN_COUNTS
    assert len(space.sources) == sum(tiny.TRAIN_COUNTS.values())


def test_the_table_is_that_of_the_library(run: Run, kept: Path) -> None:
    found = FeatureSpace.load(kept).distances()
    result = run("feature-space", kept)
    assert result.code == 0, result.err
    heading, *lines = [line.split() for line in result.out.splitlines()]
    assert heading == ["cosine", "distance", "before", "calibrated", "after"]
    assert len(lines) == 9
    for first, second, *cells in lines:
        values = [found[state].means[f"{first} {second}"] for state in ("before", "calibrated", "after")]
        assert cells == [f"{value:.3f}" if value == value else "n/a" for value in values]
    assert [" ".join(words[:2]) for words in lines[:3]] == ["between head-tail", "between tail-tail", "within tail"]


def test_json_holds_every_distance_and_the_pulls(run: Run, kept: Path) -> None:
    space = FeatureSpace.load(kept)
    found = run("feature-space", kept, "--json").json
    assert set(found) == {"before", "calibrated", "after", "pull"}
    for state, distances in space.distances().items():
        assert found[state] == distances.to_json()
    assert found["pull"] == {"water": 0.5}


def test_the_report_is_written_and_repeats(run: Run, kept: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.html", tmp_path / "other.htm"
    result = run("feature-space", kept, "--out", one, "--seed", 1)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"Report written to {one}"
    run("feature-space", kept, "--out", other, "--seed", 1)
    assert one.read_bytes() == other.read_bytes()


def test_wrong_input_ends_with_one_sentence(run: Run, kept: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "report.html")
    assert "below the number of chips, 24; received 24" in run("feature-space", kept, *out, "--perplexity", 24).sentence
    assert "holds no kept features" in run("feature-space", tmp_path).sentence
    assert "give --out as well" in run("feature-space", kept, "--seed", 1).sentence
    assert "must end in .html, .htm" in run("feature-space", kept, "--out", tmp_path / "report.pdf").sentence
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / FACTS).write_bytes((kept / FACTS).read_bytes())
    (broken / TENSORS).write_bytes((kept / TENSORS).read_bytes()[:100])
    assert "are damaged" in run("feature-space", broken, *out).sentence
    assert not (tmp_path / "report.html").exists()


def test_only_deblora_keeps_features(run: Run, tmp_path: Path) -> None:
    told = run(
        "train", "--data", "none", "--out", tmp_path / "m", "--method", "lora", "--keep-features", tmp_path / "k"
    )
    assert told.sentence.startswith("The method lora calibrates no features that could be kept")
    assert not (tmp_path / "k").exists()

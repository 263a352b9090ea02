from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save

from tests.evaluation.spaces import make_space
from tests.tiny import listing
from torchgeo_debias.errors import DataError, OutputError
from torchgeo_debias.evaluation.feature_space import FACTS, STATES, TENSORS, FeatureSpace, check_folder


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return make_space()


@pytest.fixture
def kept(space: FeatureSpace, tmp_path: Path) -> Path:
    space.save(tmp_path / "kept")
    return tmp_path / "kept"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the facts, and nothing else."""
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    (folder / FACTS).write_text(json.dumps(facts))


def put_arrays(folder: Path, **arrays: npt.NDArray[Any]) -> None:
    """Other arrays in place of some, with the digest that goes with them."""
    data = save({**load_file(folder / TENSORS), **arrays})
    (folder / TENSORS).write_bytes(data)
    rewrite(folder, lambda facts: facts.update(tensors_sha256=hashlib.sha256(data).hexdigest()))


def test_what_is_kept_is_read_as_it_was(space: FeatureSpace, kept: Path) -> None:
    assert listing(kept) == [FACTS, TENSORS]
    read = FeatureSpace.load(kept)
    for field in fields(FeatureSpace):
        np.testing.assert_equal(getattr(read, field.name), getattr(space, field.name), err_msg=field.name)
    assert read.before.dtype == np.float32
    assert read.labels.dtype == np.int64


def test_other_files_of_the_folder_stay_and_older_features_are_replaced(space: FeatureSpace, kept: Path) -> None:
    (kept / "notes.txt").write_text("mine")
    replace(space, seed=7, after=space.before).save(kept)
    assert listing(kept) == [FACTS, TENSORS, "notes.txt"]
    read = FeatureSpace.load(kept)
    assert read.seed == 7
    np.testing.assert_array_equal(read.after, space.before)


def test_a_failure_to_write_leaves_older_features_whole(
    space: FeatureSpace, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match="No space left"):
            replace(space, seed=7).save(kept)
    assert listing(kept) == [FACTS, TENSORS]
    assert FeatureSpace.load(kept).seed == space.seed


def test_files_of_two_runs_are_not_taken_for_one(space: FeatureSpace, kept: Path, tmp_path: Path) -> None:
    replace(space, after=space.before).save(tmp_path / "other")
    (kept / TENSORS).write_bytes((tmp_path / "other" / TENSORS).read_bytes())
    with pytest.raises(DataError, match=r"damaged.*digest is not the one"):
        FeatureSpace.load(kept)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / FACTS).unlink(), "holds no kept features, there is no features.json"),
        (lambda f: (f / TENSORS).unlink(), "Cannot read .*features.safetensors"),
        (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-8]), "damaged"),
        (lambda f: (f / FACTS).write_text("{"), "this is no JSON"),
        (lambda f: (f / FACTS).write_bytes(b"\xff\xfe"), "this is no JSON"),
        (lambda f: (f / FACTS).write_text("[]"), "does not name the format"),
        (lambda f: rewrite(f, lambda facts: facts.update(format="a model")), "does not name the format"),
        (lambda f: rewrite(f, lambda facts: facts.update(format_version=2)), "version 2, this library reads 1"),
        (lambda f: rewrite(f, lambda facts: facts.update(seed="one")), "seed must be a whole number"),
        (lambda f: rewrite(f, lambda facts: facts["classes"].pop()), "need debiased of the shape"),
        (lambda f: rewrite(f, lambda facts: facts["classes"][0].update(group="torso")), "group must be one of"),
        (lambda f: rewrite(f, lambda facts: facts["sources"].pop()), "54 chips, but 53 sources"),
        (lambda f: put_arrays(f, more=np.zeros(3)), "it holds after, before, calibrated"),
        (lambda f: put_arrays(f, pull=np.zeros(6, dtype=np.float32)), "need pull as float64"),
        (lambda f: put_arrays(f, after=np.zeros((54, 9), dtype=np.float32)), r"need after of the shape \(54, 8\)"),
        (lambda f: put_arrays(f, labels=np.full(54, 6)), "labels beyond the 6"),
        (lambda f: put_arrays(f, clusters=np.full(54, -1)), "clusters beyond the 5"),
        (lambda f: put_arrays(f, before=np.full((54, 8), np.nan, dtype=np.float32)), "in before that are not finite"),
        (lambda f: put_arrays(f, debiased=np.full((6, 8), np.nan, dtype=np.float32)), "debiased that are not finite"),
        (lambda f: put_arrays(f, before=np.zeros((0, 8), dtype=np.float32)), r"must be \(N, D\)"),
    ],
)
def test_damaged_and_foreign_files_are_refused_in_one_sentence(
    kept: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    assert FeatureSpace.load(kept)
    spoil(kept)
    with pytest.raises(DataError, match=sentence) as refused:
        FeatureSpace.load(kept)
    assert str(refused.value).endswith(".")
    assert not str(refused.value).endswith("..")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no kept features"):
        FeatureSpace.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Cannot read"):
        FeatureSpace.load(tmp_path / "file")
    with pytest.raises(OutputError, match="is a file: features are kept in a folder"):
        check_folder(tmp_path / "file")


def test_distances_are_those_that_their_definition_gives(space: FeatureSpace) -> None:
    def apart(a: Any, b: Any) -> float:
        return float(1 - np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))

    head, tail = ([i for i, g in enumerate(space.table.groups) if g == group] for group in ("head", "tail"))
    assert (head, tail) == ([0, 1], [4, 5])
    for state in STATES:
        features = getattr(space, state).astype(np.float64)
        means = [features[space.labels == c].mean(axis=0) for c in range(6)]
        spread = [np.mean([apart(z, means[c]) for z in features[space.labels == c]]) for c in range(6)]
        found = space.distances()[state].means
        assert found["within tail"] == pytest.approx((spread[4] + spread[5]) / 2, abs=1e-6)
        assert found["between tail-tail"] == pytest.approx(
            np.mean([apart(means[a], means[b]) for a, b in combinations(tail, 2)]), abs=1e-6
        )
        assert found["between head-tail"] == pytest.approx(
            np.mean([apart(means[a], means[b]) for a in head for b in tail]), abs=1e-6
        )


def test_a_tail_class_of_one_sample_has_no_spread_and_a_place(space: FeatureSpace) -> None:
    assert space.table.counts[5] == 1
    found = space.distances()["after"]
    assert found.intra[5] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(found.inter[5]).all()
    assert space.moved[5]


def test_only_what_is_moved_differs_from_before(space: FeatureSpace) -> None:
    still = ~space.moved[space.labels]
    np.testing.assert_array_equal(space.calibrated[still], space.before[still])
    assert not np.isclose(space.calibrated[~still], space.before[~still]).all(axis=1).any()

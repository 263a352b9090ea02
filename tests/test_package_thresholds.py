"""Thresholds travel in a package, and damaged ones are refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torchgeo_debias.errors import PackageError
from torchgeo_debias.evaluation.thresholds import ClassThreshold, Thresholds
from torchgeo_debias.package import MODEL, DetectorPackage, ModelPackage, load_package


def limited(package: Any) -> Any:
    classes = (ClassThreshold(0.123456789, 30, True), ClassThreshold(0.0, 3, False), ClassThreshold(0.4, 12, True))
    facts = {"data": "land", "ece": {"before": 0.2, "after": 0.1}}
    return replace(package, thresholds=Thresholds(package.table.names, classes, 0.9, 1.3, "omit", facts))


@pytest.mark.parametrize("name", ["m.tgd", "folder"])
def test_thresholds_are_the_same_after_saving(tiny_package: ModelPackage, tmp_path: Path, name: str) -> None:
    package = limited(tiny_package)
    package.save(tmp_path / name)
    found = ModelPackage.load(tmp_path / name)
    assert found.thresholds == package.thresholds
    assert found.to_json() == package.to_json()


def test_those_of_a_detector_too(tiny_detector: DetectorPackage, tmp_path: Path) -> None:
    package = limited(tiny_detector)
    package.save(tmp_path / "d")
    assert DetectorPackage.load(tmp_path / "d").thresholds == package.thresholds


def test_without_any_the_object_is_empty(tiny_package: ModelPackage, tiny_model: Path) -> None:
    assert tiny_package.thresholds is None
    assert json.loads((tiny_model / MODEL).read_text())["thresholds"] == {}
    assert ModelPackage.load(tiny_model).thresholds is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), 5),
        ((), {"ship": 0.5}),
        (("classes",), {}),
        (("classes", "bare"), 0.5),
        (("classes", "bare", "threshold"), 7),
        (("classes", "bare", "threshold"), "much"),
        (("classes", "bare", "samples"), 1.5),
        (("temperature",), -1.0),
        (("recall",), 2),
        (("abstain",), True),
        (("facts",), "none"),
    ],
)
def test_damaged_thresholds_are_refused(
    tiny_package: ModelPackage, tmp_path: Path, path: tuple[str, ...], value: object
) -> None:
    limited(tiny_package).save(tmp_path / "m")
    info = json.loads((tmp_path / "m" / MODEL).read_text())
    place, (*way, last) = info, ("thresholds", *path)
    for key in way:
        place = place[key]
    place[last] = value
    (tmp_path / "m" / MODEL).write_text(json.dumps(info))
    with pytest.raises(PackageError, match="is damaged") as refused:
        load_package(tmp_path / "m")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("train or copy it again.")

"""Evaluating reads images as training did, and never takes training images for test images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.cli.verbs import Run, train_options
from torchgeo_debias.cli.app import _repeated


def test_bands_are_remembered(run: Run, tiny_weights: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "scenes")
    model = tmp_path / "model"
    options = ("--method", "probe", *train_options(tiny_weights))
    assert run("train", "--data", images, "--bands", "3,2,1", "--out", model, *options).code == 0
    evaluate = ("evaluate", "--model", model, "--data", images, "--weights", tiny_weights, "--json", "--quiet")
    assert run(*evaluate).json == run(*evaluate, "--bands", "3,2,1").json
    assert "in this order" in run(*evaluate, "--bands", "1,2,3").sentence


def test_a_changed_training_folder_is_not_split_again(run: Run, tiny_weights: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "scenes")
    model = tmp_path / "model"
    assert run("train", "--data", images, "--out", model, "--method", "probe", *train_options(tiny_weights)).code == 0
    evaluate = ("evaluate", "--model", model, "--data", images, "--weights", tiny_weights, "--json", "--quiet")
    assert run(*evaluate).code == 0
    next((images / "bare").iterdir()).unlink()
    assert "--split all" in run(*evaluate).sentence
    assert run(*evaluate, "--split", "all").code == 0
    elsewhere = tiny.write_images(tmp_path / "elsewhere", seed=5)
    assert run(*("evaluate", "--model", model, "--data", elsewhere), *evaluate[5:]).code == 0


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["train", "--raster", "a", "b", "--out", "m"], ["train", "--raster", "a", "--raster", "b", "--out", "m"]),
        (
            ["train", "--raster", "a", "--raster", "b", "c"],
            ["train", "--raster", "a", "--raster", "b", "--raster", "c"],
        ),
        (["classify", "a", "b", "--model", "m"], ["classify", "a", "b", "--model", "m"]),
        (["train", "--raster"], ["train", "--raster"]),
    ],
)
def test_one_option_takes_several_rasters(given: list[str], meant: list[str]) -> None:
    assert _repeated(given, "--raster") == meant

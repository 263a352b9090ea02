"""One training after another: train --start."""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny
from tests.cli.verbs import Run, train_options
from torchgeo_debias.package import ModelPackage


def test_a_training_goes_on_from_a_model(
    run: Run, tiny_weights: Path, tiny_model: Path, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    radar = tiny.write_images(tmp_path / "radar", {"bare": 6, "field": 6}, seed=3)
    out = tmp_path / "second.tgd"
    done = run("train", "--data", radar, "--start", tiny_model, "--out", out, *train_options(tiny_weights))
    assert done.code == 0, done.err
    package = ModelPackage.load(out)
    assert package.provenance["start"] == {"model": tiny_model.name, "digest": tiny_package.digest}
    assert package.table.names == ("bare", "field")
    assert package.method["start"] == str(tiny_model)
    shown = run("info", out)
    assert f"started from  {tiny_model.name} ({tiny_package.digest[:12]})" in shown.out
    assert "started from" not in run("info", tiny_model).out


def test_a_model_that_does_not_fit_is_refused(
    run: Run, tiny_weights: Path, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    command = ("train", "--data", tiny_images, "--out", tmp_path / "out", *train_options(tiny_weights))
    sentence = run(*command, "--start", tiny_model, "--rank", 4).sentence
    assert sentence == (
        f"The training cannot start from the model {tiny_model.name}: its adapter has the rank 8, that of this "
        "training 4."
    )
    # Before any image is read.
    missing = ("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "out", *train_options(tiny_weights))
    assert "no folder" in run(*missing).sentence
    assert "model" in run(*missing, "--start", tmp_path / "nothing.tgd").sentence
    assert not (tmp_path / "out").exists()


def test_the_start_may_stand_in_the_configuration(
    run: Run, tiny_weights: Path, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"start": str(tiny_model), "method": "finetune"}))
    command = ("train", "--data", tiny_images, "--out", tmp_path / "out", "--config", config)
    assert "leave start out" in run(*command, *train_options(tiny_weights)).sentence
    assert run(*command, "--method", "lora", *train_options(tiny_weights)).code == 0

"""Ctrl+C and a sudden end: nothing stands half-written under its final name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.verbs import Run, map_options, train_options
from torchgeo_debias.cli import show
from torchgeo_debias.data.synthetic import Scene
from torchgeo_debias.errors import Cancelled
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.progress import Progress

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


def at_stage(stage: str, *args: object, cwd: Path) -> subprocess.Popen[str]:
    """Start a command and wait until a bar shows that ``stage`` runs."""
    command = [sys.executable, "-m", "torchgeo_debias", *map(str, args)]
    process = subprocess.Popen(
        [part for part in command if part != "--quiet"], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background is deaf to Ctrl+C, and hands that on to all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    seen = ""
    deadline = time.monotonic() + 120
    while f"{stage}: " not in seen:
        character = process.stderr.read(1)
        assert character, seen
        assert time.monotonic() < deadline
        seen += character
    return process


def long_training(images: Path, weights: Path) -> list[object]:
    options = [option if option != "1" else "100000" for option in train_options(weights)]
    return ["train", "--data", images, "--method", "lora", *options, "--out"]


def test_ctrl_c_in_training_ends_with_130_and_a_sentence(tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    process = at_stage("adapt", *long_training(tiny_images, tiny_weights), "model", cwd=tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "Error: Stopped; nothing was left half-written."
    assert "Traceback" not in err
    assert tiny.listing(tmp_path) == []


def test_a_killed_training_leaves_nothing_under_the_name_of_the_model(
    tiny_images: Path, tiny_weights: Path, tiny_model: Path, tmp_path: Path
) -> None:
    process = at_stage("adapt", *long_training(tiny_images, tiny_weights), "model.tgd", cwd=tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "model.tgd").exists()


def test_a_killed_classification_leaves_the_older_result_alone(
    tiny_scene: Scene, tiny_model: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiles.gpkg").write_text("older")
    options = ("--overlap", "0.9", "--batch-size", "1", "--out", "tiles.gpkg", "--map", "map.tif")
    process = at_stage(
        "classify", "classify", tiny_scene.raster, *options, *map_options(tiny_model, tiny_weights), cwd=tmp_path
    )
    process.kill()
    process.communicate(timeout=60)
    assert (tmp_path / "tiles.gpkg").read_text() == "older"
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_a_stop_anywhere_leaves_the_folder_as_it_was(
    run: Run, tiny_images: Path, tiny_weights: Path, tiny_scene: Scene, tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, stop: type[BaseException],
) -> None:  # fmt: skip
    def at(stage: str) -> None:
        def report(progress: Progress) -> None:
            if progress.stage == stage and progress.done >= min(1, progress.total):
                raise stop

        monkeypatch.setattr(show, "silent", report)

    handler = signal.getsignal(signal.SIGINT)
    mapping = map_options(tiny_model, tiny_weights)
    train = ("train", "--data", tiny_images, "--out", tmp_path / "model", *train_options(tiny_weights))
    tiles = ("--out", tmp_path / "tiles.gpkg", "--map", tmp_path / "map.tif")
    footprints = ("--out", tmp_path / "objects.gpkg")
    jobs: list[tuple[str, tuple[object, ...]]] = [
        *((stage, train) for stage in ("read images", "adapt", "features", "align")),
        ("predict", ("evaluate", "--data", tiny_images, *mapping, "--report", tmp_path / "report.html")),
        ("classify", ("classify", tiny_scene.raster, *tiles, *mapping)),
        ("classify", ("classify-features", tiny_scene.raster, tiny_scene.footprints, *footprints, *mapping)),
    ]
    for stage, command in jobs:
        at(stage)
        result = run(*command)
        assert (result.code, result.out) == (130, ""), stage
        assert result.err == "Error: Stopped; nothing was left half-written.\n"
        assert tiny.listing(tmp_path) == []
        assert signal.getsignal(signal.SIGINT) is handler


def test_an_older_model_survives_a_stopped_training(
    run: Run, tiny_images: Path, tiny_weights: Path, tiny_package: ModelPackage, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tiny_package.save(tmp_path / "model")

    def report(progress: Progress) -> None:
        if progress.stage == "align":
            raise KeyboardInterrupt

    monkeypatch.setattr(show, "silent", report)
    assert run("train", "--data", tiny_images, "--out", tmp_path / "model", *train_options(tiny_weights)).code == 130
    assert ModelPackage.load(tmp_path / "model").to_json() == tiny_package.to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]

"""A training that is killed, at whatever point, and given again ends with the model of one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import tiny
from torchgeo_debias.package import ModelPackage

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")

# The command line, in a process of its own each time, which is killed as the system kills it: at a step that it
# reports, or while it writes a checkpoint. All of them are forked from one that has imported what takes long.
HOST = """
import json, os, signal, sys
from pathlib import Path
import peft, timm
from torchgeo_debias.cli import main, show
from torchgeo_debias.cli import inputs, reports
from torchgeo_debias.training import train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def run(stage, count, command):
    whole = Path.write_bytes

    def write(path, content):
        nonlocal count
        if stage == "write" and path.suffix == ".ckpt":
            count -= 1
            if count == 0:
                whole(path, bytes(content)[: len(content) // 2])
                die()
        return whole(path, content)

    def report(progress):
        if (progress.stage, progress.done) == (stage, count):
            die()

    Path.write_bytes, show.silent = write, report
    sys.argv = ["torchgeo-debias", *command]
    main()

for job in json.loads(sys.stdin.read()):
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        try:
            run(*job)
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
DROPOUT = '{"adapter": {"rank": 4, "dropout": 0.1}, "align_epochs": 2}'


class Case(NamedTuple):
    """A training, and where it is killed, one time after the other: (stage, step) or ("write", which checkpoint)."""

    options: tuple[str, ...]
    kills: tuple[tuple[str, int], ...]


# 24 chips in batches of 8: three steps an epoch, three epochs of stage 1 and two of stage 3.
CASES = {
    "deblora": Case(
        (),
        (("adapt", 5), ("write", 2), ("features", 1), ("align", 5)),
    ),
    "sbcl from a model": Case(("--loss", "sbcl", "--start", "START"), (("adapt", 8), ("align", 4))),
}


@pytest.mark.parametrize("name", CASES)
def test_it_ends_with_the_same_bytes(name: str, tiny_images: Path, tiny_weights: Path, tmp_path: Path) -> None:
    case = CASES[name]
    start, config = tmp_path / "first.tgd", tmp_path / "config.json"
    config.write_text(DROPOUT)
    base = (
        "train", "--data", str(tiny_images), "--backbone", tiny.BACKBONE, "--weights", str(tiny_weights),
        "--chip-size", str(tiny.CHIP), "--precision", "32", "--quiet", "--config", str(config), "--batch-size", "8",
    )  # fmt: skip
    command = [*base, "--epochs", "3", *(str(start) if option == "START" else option for option in case.options)]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    kept = [*command, "--checkpoints", str(tmp_path / "kept"), "--out", str(out)]
    jobs: list[tuple[str, int, list[str]]] = []
    if "START" in case.options:
        jobs.append(("never", 0, [*base, "--method", "lora", "--epochs", "1", "--out", str(start)]))
    jobs += [(*kill, kept) for kill in case.kills]
    jobs += [("never", 0, kept), ("never", 0, [*command, "--out", str(whole)])]
    done = subprocess.run([sys.executable, "-c", HOST], input=json.dumps(jobs), capture_output=True, text=True)
    assert [int(code) for code in done.stdout.split()] == [
        0 if stage == "never" else -signal.SIGKILL for stage, _, _ in jobs
    ], done.stderr
    files = [file for file in tiny.listing(out) if file.endswith((".safetensors", "adapter_config.json"))]
    assert {"head.safetensors", "adapter/adapter_model.safetensors", "raw/head.safetensors"} <= set(files)
    for file in files:
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    one, two = ModelPackage.load(out), ModelPackage.load(whole)
    assert one.digest == two.digest
    assert ("start" in one.provenance) == ("START" in case.options)

"""The client with the library's own worker, in the environment of these tests."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from debias_mapper.runtime import client as client_module
from debias_mapper.runtime import pool as pool_module
from debias_mapper.runtime.client import Cancelled, WorkerClient, WorkerError
from debias_mapper.runtime.environment import plugin_version
from debias_mapper.runtime.pool import Workers

from tests import tiny
from tests.plugin.conftest import gone
from torchgeo_debias.cli import main


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerClient]:
    client = WorkerClient(sys.executable, device="cpu")
    yield client
    client.close()


def test_the_worker_greets_in_the_words_of_the_client(client: WorkerClient) -> None:
    hello = client.start()
    assert (hello.protocol, hello.library) == (1, plugin_version())
    assert {"train", "train-detector", "classify", "detect", "segment", "info", "probe"} <= set(hello.verbs)


def test_a_model_is_described_as_in_the_shell(
    client: WorkerClient,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "my mödel\n地"
    model.symlink_to(tiny_model)
    monkeypatch.setattr(sys, "argv", ["torchgeo-debias", "info", str(model), "--json"])
    with suppress(SystemExit):
        main()
    assert client.run("info", [str(model)]) == json.loads(capsys.readouterr().out)


def test_what_the_library_refuses_is_a_sentence_and_the_worker_stays(client: WorkerClient, tmp_path: Path) -> None:
    pid = client.start().pid
    for arguments in ([str(tmp_path / "no model")], ["--no-such-option"]):
        with pytest.raises(WorkerError) as caught:
            client.run("info", arguments)
        assert caught.value.code == "refused"
        assert arguments[0] in str(caught.value)
    assert client.start().pid == pid


def test_training_tells_its_progress_and_stops_when_it_is_cancelled_or_the_pool_is_closed(
    tiny_images: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine too, the worker is to stop by itself.
    monkeypatch.setattr(client_module, "GRACE", 60.0)
    monkeypatch.setattr(pool_module, "CLOSING", 60.0)
    arguments = ["--data", str(tiny_images), "--out", str(tmp_path / "model"), "--epochs", "5000"]
    arguments += ["--backbone", tiny.BACKBONE, "--weights", str(tiny_weights), "--chip-size", str(tiny.CHIP)]
    workers, begun = Workers(), threading.Event()
    pids: list[int] = []
    steps: list[tuple[str, int, int]] = []

    def work() -> None:
        with workers.client(sys.executable, "cpu") as client:
            pids.append(client.start().pid)
            with pytest.raises(Cancelled):
                client.run("train", arguments, on_progress=lambda *_: begun.set())

    with workers.client(sys.executable, "cpu") as client:
        pids.append(client.start().pid)
        with pytest.raises(Cancelled):
            client.run(
                "train", arguments,
                on_progress=lambda *step: steps.append(step), is_cancelled=lambda: len(steps) > 3,
            )  # fmt: skip
    assert steps[0][1] == 0
    assert not (tmp_path / "model").exists()
    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(120)
    workers.close()
    thread.join(30)
    assert pids[0] == pids[1]  # the cancelled job had left the worker as it was
    assert gone(pids[0])
    assert not (tmp_path / "model").exists()


def test_the_worker_ends_with_the_program_that_started_it() -> None:
    script = f"""\
import os, sys; sys.path.insert(0, {str(Path(sys.modules["debias_mapper"].__path__[0]).parent)!r})
from debias_mapper.runtime.client import WorkerClient
print(WorkerClient(sys.executable).start().pid, flush=True)
os.kill(os.getpid(), 9)
"""
    crashed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False)
    assert crashed.returncode == -9
    assert gone(int(crashed.stdout))

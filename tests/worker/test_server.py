"""A worker in a process of its own, and a verb that does what verbs should not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchgeo_debias
from tests.worker.client import REAL, Client, talking


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    """One worker for many tests: each shows that those before it did no harm."""
    with talking() as client:
        yield client


@pytest.fixture
def worker(shared: Client) -> Iterator[Client]:
    yield shared
    assert shared.result("strange", "echo", "still", "there") == {"deed": "echo", "words": ["still", "there"]}


def test_hello_comes_first_and_before_anything_heavy() -> None:
    code = (
        "import os, sys, runpy; os._exit = lambda code: sys.exit(code)\n"
        "try: runpy.run_module('torchgeo_debias.worker', run_name='__main__')\n"
        "finally: print(*sorted(sys.modules), file=sys.stderr)"
    )
    from sys import executable

    run = subprocess.run([executable, "-c", code], input=b"", capture_output=True, check=True)
    (hello,) = run.stdout.splitlines()
    assert hello.startswith(b'{"type": "hello", "protocol": 1, "library": "%b"' % torchgeo_debias.__version__.encode())
    loaded = {name.partition(".")[0] for name in run.stderr.decode().split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "rasterio", "pandas", "lightning", "PIL", "tqdm"}


def test_it_knows_the_verbs_of_the_command_line() -> None:
    client = Client(REAL)
    hello = client.next()
    assert hello is not None
    assert {"train", "train-detector", "classify", "detect", "segment", "info", "probe"} <= set(hello["verbs"])
    client.send(type="quit")
    assert client.rest() == []
    assert client.process.returncode == 0
    assert client.stderr == b""


@pytest.mark.parametrize("asked", ["2", "one", "", "01"])
def test_another_protocol_is_refused_in_one_line(asked: str) -> None:
    client = Client([*REAL, "--protocol", asked])
    (error,) = client.rest()
    assert (error["type"], error["id"], error["code"]) == ("error", None, "protocol")
    assert "This worker speaks protocol 1" in error["message"]
    assert client.process.returncode == 2


def test_its_own_protocol_is_spoken() -> None:
    with talking([*REAL, "--protocol", "1"]) as client:
        assert client.refusal("info", "--model")["code"] == "refused"


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b"\xff\xfe", b'{"type": "dance", "id": 9}', b"[" * 100_000])
def test_what_is_no_request_is_answered_and_forgotten(worker: Client, line: bytes) -> None:
    worker.write(b"\n  \n" + line + b"\n")
    error = worker.next()
    assert error is not None
    assert (error["type"], error["code"], error["traceback"]) == ("error", "protocol", None)
    assert error["id"] == (9 if b"9" in line else None)


@pytest.mark.parametrize(
    ("verb", "arguments", "sentence"),
    [
        ("trian", (), "No such command 'trian'. Did you mean 'train'"),
        ("", (), "No such command ''."),
        ("--loud", (), "No such option: --loud"),
        ("--help", (), "No such option"),
        ("info", (), "Missing argument 'model'"),
        ("info", ("a", "b"), "Got unexpected extra argument"),
        ("info", ("--colour", "a"), "No such option: --colour"),
        ("classify", ("a.tif", "--model", "m", "--batch-size", "many"), "Invalid value for '--batch-size'"),
        ("info", ("no model here",), "no model here"),
    ],
)
def test_wrong_options_are_refused_with_the_sentence_of_the_shell(
    worker: Client, verb: str, arguments: tuple[str, ...], sentence: str
) -> None:
    error = worker.refusal(verb, *arguments)
    assert (error["code"], error["traceback"]) == ("refused", None)
    assert sentence in error["message"]


@pytest.mark.parametrize(("verb", "arguments"), [("info", ("--help",)), ("strange", ("steps", "--help"))])
def test_help_harms_nobody(worker: Client, verb: str, arguments: tuple[str, ...]) -> None:
    before = len(worker.stderr)
    assert worker.result(verb, *arguments) == {}
    assert worker.result("strange", "echo")
    assert b"Usage: torchgeo-debias" in worker.stderr[before:]


@pytest.mark.parametrize("given", [["--json"], ["--quiet", "--json"], []])
def test_json_and_quiet_may_be_given_too(worker: Client, given: list[str]) -> None:
    first, last, done = worker.run("strange", *given, "steps", "1")
    assert [first["done"], last["done"]] == [0, 1]
    assert done["result"] == {"deed": "steps"}


def test_an_argument_that_looks_like_an_option_can_be_given(worker: Client) -> None:
    assert worker.result("strange", "--", "echo", "--json")["words"] == ["--json"]


@pytest.mark.parametrize("deed", ["print", "native"])
def test_noise_goes_to_stderr(worker: Client, deed: str) -> None:
    before = len(worker.stderr)
    assert [message["type"] for message in worker.run("strange", deed)] == ["done"]
    worker.result("strange", "echo")
    noise = worker.stderr[before:]
    expected = {"print": [b"a stray line", b"\\udcff"], "native": [b"descriptor 1", b"put by libc", b"from a shell"]}
    assert all(line in noise for line in expected[deed])


def test_a_verb_that_reads_stdin_takes_no_request(worker: Client) -> None:
    assert worker.result("strange", "read") == {"deed": "read", "stdin": "", "descriptor": ""}


@pytest.mark.parametrize(
    ("deed", "code", "message"),
    [
        ("refuse", "refused", "There is nothing."),
        ("bug", "failed", "ZeroDivisionError: division by zero"),
        ("empty", "failed", "AssertionError"),
        ("deep", "failed", "RecursionError: maximum recursion depth exceeded"),
        ("exit", "failed", "SystemExit: 3"),
        ("interrupt", "cancelled", "Stopped; nothing was left half-written."),
        ("nan", "failed", "ValueError: Out of range float values are not JSON compliant"),
        ("set", "failed", "TypeError: Object of type set is not JSON serializable"),
        ("memory", "memory", "There is not enough memory"),
        ("errno", "memory", "There is not enough memory"),
        ("torch", "memory", "There is not enough memory"),
        ("gpu", "memory", "There is not enough memory"),
    ],
)
def test_whatever_a_verb_raises_is_answered(worker: Client, deed: str, code: str, message: str) -> None:
    error = worker.refusal("strange", deed)
    assert error["code"] == code
    assert error["message"].startswith(message)
    assert (error["traceback"] is None) == (code in ("refused", "cancelled"))


@pytest.mark.parametrize(("deed", "trace"), [("end", "EOFError: no more data"), ("pipe", "Broken pipe")])
def test_errors_that_the_command_line_takes_for_its_own_are_bugs_here(worker: Client, deed: str, trace: str) -> None:
    error = worker.refusal("strange", deed)
    assert error["code"] == "failed"
    assert trace in error["traceback"]


def test_logs_and_warnings_are_remarks_on_the_run_once_each(worker: Client) -> None:
    *remarks, done = worker.run("strange", "log", "here")
    assert done["type"] == "done"
    assert [(remark["level"], remark["text"]) for remark in remarks] == [
        ("warning", "look at ['here']"),
        ("error", "two\nlines"),
        ("info", "UserWarning: from below"),
    ]
    assert b"look at" not in worker.stderr


def test_names_of_files_may_be_anything(worker: Client, tmp_path: Path) -> None:
    for name in ("a b.tif", "Köln Größe.tif", "two\nlines", "'quoted\" \\ %s"):
        assert worker.result("strange", "echo", tmp_path / name)["words"] == [str(tmp_path / name)]
        assert " ".join(name.split()) in worker.refusal("info", tmp_path / name)["message"]
    odd = os.fsdecode(b"\xff")
    assert worker.result("strange", "name", odd) == {"deed": "name", "name": odd + ".tif", "bytes": [255]}
    assert odd in worker.refusal("info", tmp_path / odd)["message"]


def test_two_runs_at_once_do_not_disturb_each_other(worker: Client) -> None:
    worker.send(type="run", id=5, verb="strange", arguments=["steps", "100"])
    worker.until("progress")
    worker.send(type="run", id=6, verb="strange", arguments=["echo"])
    error = worker.until("error")
    assert (error["id"], error["code"]) == (6, "busy")
    assert error["message"] == "strange is still running: wait for it, or cancel it."
    worker.write(b"nonsense\n")
    assert worker.until("error")["code"] == "protocol"
    assert worker.until("done")["id"] == 5


def test_the_next_run_may_be_asked_for_as_soon_as_the_last_one_was_answered() -> None:
    with talking() as client:
        for i in range(40):
            assert [message["type"] for message in client.run("strange", "echo", id=i)] == ["done"]


def test_cancel_stops_the_run_it_names_and_no_other(worker: Client) -> None:
    worker.send(type="cancel", id=5)
    worker.send(type="run", id=5, verb="strange", arguments=["steps", "100000"])
    worker.until("progress")
    worker.send(type="cancel", id=4)
    assert worker.next() is not None
    worker.send(type="cancel", id=5)
    error = worker.until("error", "done")
    assert (error["id"], error["code"]) == (5, "cancelled")
    worker.send(type="cancel", id=5)


def test_a_run_without_steps_is_not_cancelled(worker: Client) -> None:
    worker.send(type="run", id=5, verb="strange", arguments=["pause"])
    worker.until("progress")
    worker.send(type="cancel", id=5)
    assert worker.until("error", "done")["type"] == "done"


@pytest.mark.skipif(os.name == "nt", reason="processes are not forked there")
def test_a_forked_process_neither_speaks_for_the_worker_nor_ends_it(worker: Client) -> None:
    messages = worker.run("strange", "fork")
    assert [message["type"] for message in messages] == ["done"]
    assert messages[0]["result"]["signal"] == -15

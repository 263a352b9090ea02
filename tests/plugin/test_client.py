from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from debias_mapper.runtime import client as client_module
from debias_mapper.runtime.client import Cancelled, WorkerClient, WorkerError, device_variables, ended
from debias_mapper.runtime.process import Child, clean_environment

from tests.plugin.conftest import ECHO, FakeWorker, MakeClient, gone

HARD_ARGUMENTS = ["a b", "ä地\U0001f600", "line\nbreak\r\n", '"quoted" \\', "", "--flag", "\udcff"]


def failure(client: WorkerClient, **options: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        client.run("echo", [], **options)
    return caught.value


def test_a_job_gets_its_arguments_unchanged_and_gives_back_its_result(make_client: MakeClient) -> None:
    client = make_client(ECHO)
    result = client.run("echo", HARD_ARGUMENTS)
    assert result["arguments"] == HARD_ARGUMENTS
    assert result["verb"] == "echo"


def test_one_process_serves_all_jobs_of_a_client(make_client: MakeClient) -> None:
    client = make_client(ECHO)
    hello = client.start()
    assert (hello.protocol, hello.library, hello.verbs) == (1, "9.9.9", ("echo",))
    assert {client.run("echo", [])["pid"] for _ in range(3)} == {hello.pid}


def test_progress_and_warnings_reach_the_caller_in_order(make_client: MakeClient) -> None:
    client = make_client("""\
hello()
for job in jobs():
    say("progress", id=job["id"], stage="read", done=0, total=2)
    say("progress", id=99, stage="another job's", done=0, total=2)
    say("log", id=None, level="warning", text="käse")
    say("weather", id=job["id"], rain=True)
    say("progress", id=job["id"], stage="read", done=2, total=2)
    say("done", id=99, result={"whose": "another job's"})
    say("done", id=job["id"], result={"whose": "mine"})
""")
    heard: list[Any] = []
    result = client.run("echo", [], on_progress=lambda *step: heard.append(step), on_log=lambda *log: heard.append(log))
    assert heard == [("read", 0, 2), ("warning", "käse"), ("read", 2, 2)]
    assert result == {"whose": "mine"}


def test_noise_before_the_hello_is_skipped(make_client: MakeClient) -> None:
    client = make_client('print("Welcome to this Python!", 3, "\\x00", "[1, 2]", sep="\\n", flush=True)\n' + ECHO)
    assert client.run("echo", [])["arguments"] == []


def test_endless_noise_instead_of_a_hello_is_refused(make_client: MakeClient) -> None:
    error = failure(make_client('while True: print("mining coins", flush=True)'))
    assert error.code == "start"
    assert "prints other things" in str(error)
    assert error.details == "mining coins"


@pytest.mark.parametrize("line", ["this is no JSON", "{", "[1]", '{"id": 1}', "[" * 100_000])
def test_a_line_that_is_no_message_ends_the_job_and_the_worker(make_client: MakeClient, line: str) -> None:
    client = make_client(f"hello()\nfor job in jobs():\n    print({line!r}, flush=True)\n")
    error = failure(client)
    assert error.code == "protocol"
    assert not client.alive


def test_a_line_over_the_limit_ends_the_job(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("debias_mapper.runtime.process.LINE_LIMIT", 1000)
    monkeypatch.setattr(client_module, "LINE_LIMIT", 1000)
    body = 'hello()\nfor job in jobs():\n    say("done", id=job["id"], result={"long": "x" * 5000})\n'
    error = failure(make_client(body))
    assert error.code == "protocol"
    assert "too long" in str(error)
    assert len(error.details) == 500


def test_a_long_result_under_the_limit_arrives_whole(make_client: MakeClient) -> None:
    body = 'hello()\nfor job in jobs():\n    say("done", id=job["id"], result={"long": "ä" * 5_000_000})\n'
    assert make_client(body).run("echo", [])["long"] == "ä" * 5_000_000


@pytest.mark.parametrize(
    ("code", "expected"), [("refused", "refused"), ("failed", "failed"), ("memory", "memory"), ("busy", "busy")]
)
def test_an_error_message_becomes_an_exception_of_its_code(make_client: MakeClient, code: str, expected: str) -> None:
    body = f"""\
hello()
for job in jobs():
    say("error", id=job["id"], code={code!r}, message="The raster has no CRS.", traceback="Traceback...")
"""
    client = make_client(body)
    error = failure(client)
    assert (str(error), error.code, error.details) == ("The raster has no CRS.", expected, "Traceback...")
    assert client.alive == (code == "refused")  # after a failure the next job gets a fresh process


@pytest.mark.parametrize(
    ("number", "code", "words"), [(9, "memory", "memory ran out"), (11, "crashed", "native"), (6, "crashed", "native")]
)
def test_a_crash_in_a_job_becomes_a_sentence(make_client: MakeClient, number: int, code: str, words: str) -> None:
    client = make_client(f"hello()\nfor job in jobs():\n    os.kill(os.getpid(), {number})\n    time.sleep(60)\n")
    error = failure(client)
    assert error.code == code
    assert words in str(error)
    assert not client.alive


def test_the_end_of_the_worker_in_a_job_is_told_with_its_last_words(make_client: MakeClient) -> None:
    client = make_client('hello()\nfor job in jobs():\n    sys.stderr.write("out of cheese\\n")\n    sys.exit(7)\n')
    error = failure(client)
    assert error.code == "crashed"
    assert "exit status 7" in str(error)
    assert error.details == "out of cheese"


@pytest.mark.usefixtures("short_grace")
def test_a_worker_that_closes_its_output_but_stays_is_ended(make_client: MakeClient) -> None:
    client = make_client("hello()\nfor job in jobs():\n    os.close(1)\n    time.sleep(60)\n")
    error = failure(client)
    assert error.code == "crashed"
    assert "fell silent" in str(error)
    assert not client.alive


def test_after_a_crash_the_next_job_runs_in_a_new_process(make_client: MakeClient, tmp_path: Path) -> None:
    mark = tmp_path / "crashed"
    client = make_client(f"""\
hello()
for job in jobs():
    if not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        os._exit(1)
    say("done", id=job["id"], result={{"pid": os.getpid()}})
""")
    first = client.start().pid
    assert failure(client).code == "crashed"
    assert client.run("echo", [])["pid"] != first


def test_a_python_without_the_library_is_named_with_what_to_do(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.symlink_to(os.path.realpath(sys.executable))  # without the pyvenv.cfg beside it, no site packages
    error = failure(WorkerClient(str(bare)))
    assert error.code == "start"
    assert "lacks the library torchgeo-debias" in str(error)
    assert "No module named" in error.details


def test_a_library_without_one_of_its_packages_asks_for_a_repair(make_client: MakeClient) -> None:
    error = failure(make_client("import rasterio_that_is_missing"))
    assert "lacks the package rasterio_that_is_missing: repair it" in str(error)
    assert "Traceback" in error.details


@pytest.mark.parametrize("name", ["no such file", "a folder", "no program"])
def test_what_is_no_python_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "no program").write_text("text")
    error = failure(WorkerClient(str(tmp_path / name)))
    assert error.code == "start"
    assert str(tmp_path / name) in str(error)
    assert "choose another one" in str(error)


def test_a_worker_that_says_nothing_is_given_up_and_killed(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []

    def start(*arguments: Any) -> Child:
        started.append(Child(*arguments))
        return started[-1]

    monkeypatch.setattr(client_module, "Child", start)
    with pytest.raises(WorkerError, match="said nothing for 1 s") as caught:
        make_client("time.sleep(60)\n").start(timeout=1)
    assert caught.value.code == "start"
    assert [child.killed for child in started] == [True]
    assert gone(started[0].process.pid)


def test_a_slow_start_is_waited_for(make_client: MakeClient) -> None:
    assert make_client("time.sleep(1)\n" + ECHO).start(timeout=30).library == "9.9.9"


def test_a_start_can_be_cancelled(make_client: MakeClient) -> None:
    client = make_client("time.sleep(60)\n")
    with pytest.raises(Cancelled):
        client.run("echo", [], is_cancelled=lambda: True)
    assert not client.alive


@pytest.mark.parametrize(("number", "older"), [(0, "environment"), (2, "plugin")])
def test_another_protocol_says_which_side_to_update(make_client: MakeClient, number: int, older: str) -> None:
    error = failure(make_client(f"hello({number})\ntime.sleep(60)\n"))
    assert error.code == "protocol"
    assert f"update the {older}" in str(error)


def test_a_worker_that_refuses_the_protocol_is_heard(make_client: MakeClient) -> None:
    error = failure(make_client('say("error", id=None, code="protocol", message="Protocol 1 is gone.")\nsys.exit(2)\n'))
    assert (error.code, str(error)) == ("protocol", "Protocol 1 is gone.")


CANCELLABLE = """\
hello()
for job in jobs():
    say("progress", id=job["id"], stage="map", done=0, total=9)
    while hear() != {"type": "cancel", "id": job["id"]}:
        pass
    say("error", id=job["id"], code="cancelled", message="Cancelled.", traceback=None)
"""


def cancelled_in_the_middle(client: WorkerClient) -> Cancelled:
    begun = threading.Event()
    with pytest.raises(Cancelled) as caught:
        client.run("echo", [], on_progress=lambda *_: begun.set(), is_cancelled=begun.is_set)
    return caught.value


def test_a_cancelled_job_leaves_the_worker_ready_for_the_next(make_client: MakeClient) -> None:
    client = make_client(CANCELLABLE)
    pid = client.start().pid
    assert [cancelled_in_the_middle(client).code for _ in range(2)] == ["cancelled", "cancelled"]
    assert client.start().pid == pid


@pytest.mark.usefixtures("short_grace")
def test_a_worker_that_ignores_cancelling_is_killed_with_its_children(make_client: MakeClient) -> None:
    client = make_client("""\
hello()
for job in jobs():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    say("progress", id=job["id"], stage="map", done=child.pid, total=os.getpid())
    while True:
        time.sleep(1)
""")
    pids: list[int] = []
    with pytest.raises(Cancelled, match="killed"):
        client.run("echo", [], on_progress=lambda _, *both: pids.extend(both), is_cancelled=lambda: bool(pids))
    assert [gone(pid) for pid in pids] == [True, True]


def test_the_children_of_a_worker_that_crashed_do_not_outlive_it(make_client: MakeClient) -> None:
    client = make_client("""\
hello()
for job in jobs():
    child = subprocess.Popen(["sleep", "60"], stdout=sys.stdout)  # which holds the worker's output open
    say("progress", id=job["id"], stage="map", done=child.pid, total=0)
    os._exit(3)
""")
    pids: list[int] = []
    error = failure(client, on_progress=lambda _, done, total: pids.append(done))
    assert "exit status 3" in str(error)
    assert gone(pids[0])


@pytest.mark.usefixtures("short_grace")
def test_a_result_that_crosses_a_cancel_counts_as_cancelled(make_client: MakeClient) -> None:
    client = make_client("""\
hello()
for job in jobs():
    say("progress", id=job["id"], stage="map", done=1, total=1)
    time.sleep(0.2)
    say("done", id=job["id"], result={})
""")
    cancelled_in_the_middle(client)


@pytest.mark.usefixtures("short_grace")
def test_a_worker_that_does_not_read_cannot_block_the_caller(make_client: MakeClient) -> None:
    client = make_client("hello()\ntime.sleep(60)\n")
    client.start()
    with pytest.raises(Cancelled):
        client.run("echo", ["x" * 10_000_000], is_cancelled=lambda: True)


def test_a_flood_on_standard_error_does_not_stop_the_job(make_client: MakeClient) -> None:
    client = make_client("""\
hello()
for job in jobs():
    sys.stderr.write("z" * 5_000_000)
    for number in range(100_000):
        sys.stderr.write(f"warning {number:06} " + "y" * 80 + "\\n")
    sys.stderr.flush()
    say("progress", id=job["id"], stage="map", done=1, total=1)
    sys.exit(5)
""")
    steps: list[int] = []
    error = failure(client, on_progress=lambda _, done, total: steps.append(done))
    assert steps == [1]
    assert error.details.count("\n") == 199
    assert error.details.splitlines()[-1].startswith("warning 099999")


def test_a_callback_that_raises_ends_the_job(make_client: MakeClient) -> None:
    client = make_client("""\
hello()
for job in jobs():
    say("progress", id=job["id"], stage="map", done=1, total=1)
    time.sleep(60)
""")

    def broken(stage: str, done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.run("echo", [], on_progress=broken)
    assert not client.alive


def test_a_second_job_at_the_same_time_is_refused_and_closing_ends_the_first(make_client: MakeClient) -> None:
    client = make_client(CANCELLABLE)
    begun = threading.Event()
    errors: list[WorkerError] = []

    def work() -> None:
        errors.append(failure(client, on_progress=lambda *_: begun.set()))

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(30)
    assert failure(client).code == "busy"
    client.close()
    thread.join(30)
    assert [error.code for error in errors] == ["cancelled"]
    assert not client.alive


def test_a_job_whose_worker_is_killed_by_closing_counts_as_cancelled(make_client: MakeClient) -> None:
    client = make_client("hello()\nfor job in jobs():\n    time.sleep(60)\n")
    client.start()

    def close() -> bool:
        client.close(0)  # between two looks at whether the client is being closed
        return False

    error = failure(client, is_cancelled=close)
    assert isinstance(error, Cancelled), error
    assert str(error) == "The worker was closed."


def test_a_job_that_comes_while_the_client_is_closing_is_not_told_that_it_is_busy(make_client: MakeClient) -> None:
    client = make_client(CANCELLABLE)
    second: list[WorkerError] = []

    def close(*_: object) -> None:
        client.stop()
        second.append(failure(client))

    assert isinstance(failure(client, on_progress=close), Cancelled)
    assert [str(error) for error in second] == ["The worker was closed."]
    assert isinstance(second[0], Cancelled)


@pytest.mark.usefixtures("short_grace")
def test_closing_kills_a_worker_that_does_not_quit(make_client: MakeClient) -> None:
    client = make_client("hello()\nwhile True: time.sleep(1)\n")
    pid = client.start().pid
    client.close()
    client.close()
    assert gone(pid)
    assert isinstance(failure(client), Cancelled)  # closed is closed: nothing starts again behind an unloaded plugin


def test_closing_lets_a_worker_say_goodbye(make_client: MakeClient, tmp_path: Path) -> None:
    mark = tmp_path / "goodbye"
    client = make_client(ECHO + f"open({str(mark)!r}, 'w').close()\n")
    client.start()
    client.close(30)
    assert mark.exists()


def test_a_worker_ends_with_the_end_of_its_input(make_client: MakeClient) -> None:
    client = make_client(ECHO)
    pid = client.start().pid
    child = client._child
    assert child is not None
    child.end_input()
    assert gone(pid)


def test_the_worker_sees_nothing_of_qgis_and_what_the_caller_adds(
    fake: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = ["PYTHONPATH", "PYTHONHOME", "GDAL_DATA", "PROJ_LIB", "QGIS_PREFIX_PATH", "QT_PLUGIN_PATH", "PIP_TARGET"]
    for name in [*dropped, "A_NAME_OF_THE_USER"]:
        monkeypatch.setenv(name, "set")
    body = 'hello()\nfor job in jobs():\n    say("done", id=job["id"], result=dict(os.environ))\n'
    client = WorkerClient(fake(body), environment={"HTTPS_PROXY": "http://proxy:3128"}, device="cpu")
    seen = client.run("echo", [])
    client.close()
    assert not set(dropped) & set(seen)
    assert seen["A_NAME_OF_THE_USER"] == "set"
    assert seen["HTTPS_PROXY"] == "http://proxy:3128"
    assert seen["CUDA_VISIBLE_DEVICES"] == "-1"


def test_loader_variables_of_a_mac_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYLD_LIBRARY_PATH", "/Applications/QGIS.app/Contents/MacOS/lib")
    monkeypatch.setenv("__PYVENV_LAUNCHER__", "/Applications/QGIS.app")
    assert not {"DYLD_LIBRARY_PATH", "__PYVENV_LAUNCHER__"} & set(clean_environment())


@pytest.mark.parametrize(("device", "seen"), [("auto", None), ("cpu", "-1"), ("1", "1"), ("cuda:0", "0")])
def test_a_device_is_what_the_worker_can_see(device: str, seen: str | None) -> None:
    assert device_variables(device).get("CUDA_VISIBLE_DEVICES") == seen


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'gpu' is none of auto"):
        WorkerClient("python", device="gpu")


@pytest.mark.parametrize("status", [0xC0000005, 0xC0000005 - 2**32])
def test_an_access_violation_on_windows_is_a_native_crash(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    error = ended("python.exe", status, "", started=True)
    assert error.code == "crashed"
    assert "0xc0000005" in str(error)

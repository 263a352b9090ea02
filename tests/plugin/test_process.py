from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from debias_mapper.runtime import process
from debias_mapper.runtime.process import Child, Stopped, clean_environment, kill_tree, run_to_end, spawning

from tests.plugin.conftest import gone

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

GRANDCHILD = """\
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def run(code: str, *, timeout: float = 60, cancel: bool = False) -> tuple[int, list[str]]:
    lines: list[str] = []
    command = [sys.executable, "-c", code]
    status = run_to_end(command, clean_environment(), lines.append, timeout=timeout, is_cancelled=lambda: cancel)
    return status, lines


def test_both_outputs_arrive_line_by_line_with_the_exit_status() -> None:
    code = "import sys\nprint('ä', flush=True)\nsys.stderr.write('two  \\nthree')\nsys.stderr.flush()\nsys.exit(5)"
    assert run(code) == (5, ["ä", "two", "three"])


def test_a_program_that_asks_finds_no_input() -> None:
    assert run("print(input())")[1][-1].startswith("EOFError")


def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    assert run("import os; os.write(1, b'\\xff\\xfe!\\n')") == (0, ["��!"])


def test_a_program_that_takes_too_long_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(Stopped):
        run("import time; time.sleep(60)", timeout=0.3)
    assert time.monotonic() - begun < 30


def test_a_cancelled_program_is_ended_with_all_that_it_started() -> None:
    pids: list[int] = []
    with pytest.raises(Stopped):
        run_to_end(
            [sys.executable, "-c", GRANDCHILD], clean_environment(),
            lambda line: pids.append(int(line)), is_cancelled=lambda: bool(pids),
        )  # fmt: skip
    assert gone(pids[0])


def test_the_end_of_a_program_is_seen_though_what_it_started_holds_its_output() -> None:
    detached = GRANDCHILD.replace('60)"])', '60)"], start_new_session=True)').replace("time.sleep(60)\n", "")
    begun = time.monotonic()
    status, lines = run(detached)
    assert status == 0
    assert time.monotonic() - begun < 30  # and not the minute of the one that stays
    os.kill(int(lines[0]), 9)


def test_ending_twice_from_two_threads_gives_the_same_status() -> None:
    child = Child(SLEEP, clean_environment())
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(child.end(0))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [*found, child.end(0)] == [-9, -9, -9]
    assert child.killed


def test_a_child_that_cannot_be_killed_holds_nobody_up_and_is_fetched_when_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = Child(SLEEP, clean_environment())
    monkeypatch.setattr(process, "kill_tree", lambda _: None)  # as when it hangs in a driver
    found: list[int] = []
    ending = threading.Thread(target=lambda: found.append(child.end(0)), daemon=True)
    ending.start()
    ending.join(30)
    assert found == [process.KILLED]
    assert child.killed
    child.process.kill()
    for thread in threading.enumerate():
        if thread.name == process.KILLER:
            thread.join(30)
    assert child.process.returncode == -9
    assert child.end(0) == -9


def test_a_child_heads_a_group_and_ending_one_that_is_gone_is_no_error() -> None:
    child = Child([sys.executable, "-c", ""], clean_environment())
    assert spawning() == {"start_new_session": True}
    assert child.end(30) == 0
    assert not child.killed
    kill_tree(child.process)


def test_on_windows_a_child_has_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    assert spawning() == {"creationflags": 0x08000200}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as context:
        context.setattr(sys, "platform", "win32")
        context.setenv("SYSTEMROOT", "C:\\Windows")
        context.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
        yield context


def test_on_windows_the_systems_own_program_ends_the_tree(windows: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    windows.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    with subprocess.Popen(SLEEP) as child:
        kill_tree(child)
        child.kill()
    assert commands[0][0].startswith("C:\\Windows")
    assert commands[0][1:] == ["/F", "/T", "/PID", str(child.pid)]


@pytest.mark.parametrize("failure", [subprocess.TimeoutExpired, FileNotFoundError])
def test_on_windows_the_child_alone_is_ended_where_that_program_hangs_or_is_missing(
    windows: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    def run(command: list[str], *, timeout: float, **_: object) -> None:
        raise failure(command, timeout)

    windows.setattr(subprocess, "run", run)
    with subprocess.Popen(SLEEP) as child:
        kill_tree(child)
        assert child.wait(30) == -9

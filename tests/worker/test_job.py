"""Progress that can be read, and what an exception means."""

from __future__ import annotations

import pytest

from torchgeo_debias.cli import app
from torchgeo_debias.errors import Cancelled, OutputError
from torchgeo_debias.progress import Progress
from torchgeo_debias.worker import job as module
from torchgeo_debias.worker.job import Job
from torchgeo_debias.worker.messages import Message, Run


@pytest.fixture
def sent() -> list[Message]:
    return []


@pytest.fixture
def job(sent: list[Message]) -> Job:
    return Job(Run(4, "info", ()), sent.append)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def steps(sent: list[Message]) -> list[tuple[str, int, int]]:
    return [(message["stage"], message["done"], message["total"]) for message in sent]


def test_about_ten_steps_a_second_are_sent_and_always_the_last(job: Job, sent: list[Message], clock: Clock) -> None:
    for i in range(1000):  # two seconds
        job.progress(Progress("adapt", i, 1000))
        clock.now += 0.002
    assert 19 <= len(sent) <= 21
    assert steps(sent)[0] == ("adapt", 0, 1000)
    job.progress(Progress("adapt", 1000, 1000))
    assert steps(sent)[-1] == ("adapt", 1000, 1000)
    assert {message["id"] for message in sent} == {4}


def test_the_last_step_of_a_stage_that_ends_early_is_sent_before_the_next(
    job: Job, sent: list[Message], clock: Clock
) -> None:
    for stage, done, total in [("read", 0, 0), ("read", 1, 0), ("read", 2, 0), ("adapt", 0, 9), ("adapt", 1, 9)]:
        job.progress(Progress(stage, done, total))
    assert steps(sent) == [("read", 0, 0), ("read", 2, 0), ("adapt", 0, 9)]
    job.progress(Progress("adapt", 0, 9))  # the stage starts again
    assert steps(sent)[3:] == [("adapt", 1, 9), ("adapt", 0, 9)]


def test_what_was_held_back_is_sent_at_the_end(
    job: Job, sent: list[Message], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(arguments: list[str]) -> None:
        assert arguments == ["info", "--json"]
        for i in range(3):
            job.progress(Progress("a", i, 0))
        job.result({"x": 1})

    monkeypatch.setattr(app, "run", work)
    assert job.run() == {"type": "done", "id": 4, "result": {"x": 1}}
    assert steps(sent) == [("a", 0, 0), ("a", 2, 0)]


def test_a_cancelled_job_stops_at_its_next_step_or_before_its_first(job: Job, sent: list[Message]) -> None:
    job.progress(Progress("a", 0, 2))
    job.cancel()
    for _ in range(2):
        with pytest.raises(Cancelled):
            job.progress(Progress("a", 1, 2))
    assert steps(sent) == [("a", 0, 2)]
    ending = job.run()
    assert (ending["code"], ending["message"]) == ("cancelled", "Stopped; nothing was left half-written.")


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OutputError("There is\nno room."), "refused", "There is no room."),
        (MemoryError("Unable to allocate 8 TiB"), "memory", module._MEMORY),
        (OSError(12, "Cannot allocate memory"), "memory", module._MEMORY),
        (OutOfMemoryError("CUDA out of memory"), "memory", module._MEMORY),
        (RuntimeError("not enough memory: you tried to allocate 9 bytes"), "memory", module._MEMORY),
        (OSError(13, "Permission denied"), "failed", "PermissionError: [Errno 13] Permission denied"),
        (RuntimeError("mat1 and mat2"), "failed", "RuntimeError: mat1 and mat2"),
        (AssertionError(), "failed", "AssertionError"),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
)
def test_exceptions_have_codes(
    job: Job, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: str, message: str
) -> None:
    def work(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(app, "run", work)
    ending = job.run()
    assert (ending["id"], ending["code"], ending["message"]) == (4, code, message)
    if code == "refused":
        assert ending["traceback"] is None
    else:
        assert "in work" in ending["traceback"]


def test_torch_is_known_by_what_it_really_raises(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def work(arguments: list[str]) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(app, "run", work)
    assert job.run()["code"] == "memory"
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert torch.OutOfMemoryError.__name__ == OutOfMemoryError.__name__

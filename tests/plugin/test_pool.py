from __future__ import annotations

import threading

import pytest
from debias_mapper.runtime.client import Cancelled
from debias_mapper.runtime.pool import Workers

from tests.plugin.conftest import ECHO, FakeWorker, gone


def pid_of_a_job(workers: Workers, python: str, device: str = "auto") -> int:
    with workers.client(python, device) as client:
        return int(client.run("echo", [])["pid"])


def test_a_warm_worker_serves_job_after_job(fake: FakeWorker) -> None:
    workers, python = Workers(), fake(ECHO)
    pids = {pid_of_a_job(workers, python) for _ in range(3)}
    assert len(pids) == 1
    workers.close()
    assert gone(pids.pop())


def test_without_warmth_every_job_has_a_worker_of_its_own_that_ends_with_it(fake: FakeWorker) -> None:
    workers, python = Workers(warm=False), fake(ECHO)
    pids = [pid_of_a_job(workers, python) for _ in range(2)]
    assert pids[0] != pids[1]
    assert [gone(pid) for pid in pids] == [True, True]


def test_while_the_warm_worker_is_busy_another_job_gets_its_own(fake: FakeWorker) -> None:
    workers, python = Workers(), fake(ECHO)
    with workers.client(python) as first:
        one = first.start().pid
        two = pid_of_a_job(workers, python)
    assert one != two
    assert pid_of_a_job(workers, python) == two  # that one came back first; only one is kept
    assert gone(one)
    workers.close()


def test_another_device_gets_a_new_worker_and_the_old_one_ends(fake: FakeWorker) -> None:
    workers, python = Workers(), fake(ECHO)
    one = pid_of_a_job(workers, python)
    two = pid_of_a_job(workers, python, "cpu")
    assert one != two
    assert gone(one)
    workers.close()


def test_an_unknown_device_costs_nobody_the_warm_worker(fake: FakeWorker) -> None:
    workers, python = Workers(), fake(ECHO)
    pid = pid_of_a_job(workers, python)
    with pytest.raises(ValueError, match="'gpu'"), workers.client(python, "gpu"):
        pass
    assert pid_of_a_job(workers, python) == pid
    workers.close()
    assert gone(pid)


def test_an_idle_worker_is_closed(fake: FakeWorker) -> None:
    workers = Workers(idle=0.2)
    pid = pid_of_a_job(workers, fake(ECHO))
    assert gone(pid)
    workers.close()


def test_a_worker_that_broke_is_not_kept(fake: FakeWorker) -> None:
    workers, python = Workers(), fake(ECHO)
    with workers.client(python) as client:
        pid = client.start().pid
        assert client._child is not None
        client._child.process.kill()
        client._child.process.wait()
    assert pid_of_a_job(workers, python) != pid
    workers.close()


@pytest.mark.usefixtures("short_grace")
def test_closing_ends_jobs_that_run_and_refuses_later_ones(fake: FakeWorker) -> None:
    workers = Workers()
    python = fake('hello()\nfor job in jobs():\n    say("progress", id=job["id"])\n    time.sleep(60)\n')
    begun, codes, pids = threading.Event(), [], []

    def work() -> None:
        with workers.client(python) as client:
            pids.append(client.start().pid)
            try:
                client.run("echo", [], on_progress=lambda *_: begun.set())
            except Cancelled as error:
                codes.append(error.code)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(30)
    workers.close()
    thread.join(30)
    assert codes == ["cancelled"]
    assert gone(pids[0])
    with pytest.raises(Cancelled, match="closed"), workers.client(python):
        pass

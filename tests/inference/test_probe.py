"""The probe: on models whose speed is known, it must find the way that is fastest."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.inference.fakes import TABLE
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.inference import probe
from torchgeo_debias.inference.predictor import Prediction
from torchgeo_debias.inference.probe import Tuning, tune


@dataclass
class Sleepy:
    """A call takes ``cost(batch, threads, calls at once)`` seconds, without any computing."""

    cost: Callable[[int, int, int], float]
    spec: ChipSpec = field(default_factory=lambda: ChipSpec(size=112, window=112))
    table: ClassTable = TABLE
    bands: tuple[str, ...] = ("red", "green")
    dtype: str = "uint16"
    identity: str = "sleepy"
    twin: bool = False
    place: str = "cpu"
    threads: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)
    largest: int = 10**9
    busy: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def use_threads(self, n: int) -> None:
        self.threads = n

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        assert images.dtype == np.dtype(self.dtype)
        assert images.shape == (len(images), 2, 112, 112)
        assert valid.shape == (len(images), 112, 112)
        assert valid.all()
        if len(images) > self.largest:
            raise torch.OutOfMemoryError("not so much")
        with self.lock:
            self.busy += 1
            self.seen.append((len(images), self.threads))
            busy = self.busy
        time.sleep(self.cost(len(images), self.threads, busy))
        with self.lock:
            self.busy -= 1
        return Prediction(np.zeros((len(images), 4), np.float32))


def test_workers_of_one_thread_where_threads_do_not_help() -> None:
    model = Sleepy(lambda batch, threads, busy: batch**1.3 * 2e-3)
    assert tune(model, cores=2, seconds=0.8) == Tuning(8, 2, 1)
    assert model.threads == 1


def test_one_worker_on_all_cores_where_workers_stand_in_each_others_way() -> None:
    model = Sleepy(lambda batch, threads, busy: batch**1.3 * 2e-3 * (3 if threads == 1 else 1))
    assert tune(model, cores=2, seconds=0.8) == Tuning(8, 1, 2)
    assert model.threads == 2


def test_a_larger_batch_where_calls_are_dear() -> None:
    model = Sleepy(lambda batch, threads, busy: (0.05 + batch * 1e-4) * (1 if threads == 2 else 4))
    assert tune(model, cores=2, seconds=0.8) == Tuning(32, 1, 2)


def test_small_batches_on_single_threads_where_all_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {(8, 1, 2): 104.0, (8, 2, 1): 100.0, (32, 1, 2): 103.0, (32, 2, 1): 104.5}
    monkeypatch.setattr(probe, "_rate", lambda model, way, seconds: rates[way])
    model = Sleepy(lambda batch, threads, busy: 0)
    assert tune(model, cores=2) == (8, 2, 1)
    rates[8, 1, 2] = 106.0
    assert tune(model, cores=2) == (8, 1, 2)
    rates[32, 1, 2] = 120.0
    assert tune(model, cores=2) == (32, 1, 2)


def test_given_numbers_stay() -> None:
    def model() -> Sleepy:
        return Sleepy(lambda batch, threads, busy: batch * 1e-4)

    assert tune(model(), cores=4, seconds=0.1, workers=2)[1:] == (2, 2)
    assert tune(model(), cores=4, seconds=0.1, threads=3)[1:] == (1, 3)
    assert tune(model(), cores=4, seconds=0.1, batch_size=5).batch_size == 5
    asked = model()
    assert tune(asked, batch_size=7, workers=3, threads=2) == Tuning(7, 3, 2)
    assert not asked.seen  # nothing to find out
    assert asked.threads == 2


def _cost(per_chip: float, batch: int, threads: int, busy: int) -> float:
    return batch * per_chip


def test_it_takes_about_as_long_as_it_may() -> None:
    for per_chip in (1e-4, 0.02):
        model = Sleepy(functools.partial(_cost, per_chip))
        start = time.perf_counter()
        tune(model, cores=2, seconds=0.4)
        assert time.perf_counter() - start < 2.5
    assert max(batch for batch, _ in model.seen) == 8  # a call of 32 would have taken all the time there is


def test_many_cores_are_few_trials() -> None:
    model = Sleepy(lambda batch, threads, busy: 0.005)
    tune(model, cores=16, seconds=0.3)
    assert set(model.seen) == {(b, t) for b in (8, 32) for t in (16, 4, 1)}


def test_a_gpu_gets_batches_that_double_while_it_pays() -> None:
    model = Sleepy(lambda batch, threads, busy: max(0.01, batch * 1e-4), place="cuda")
    assert tune(model, seconds=0.5) == Tuning(128, 1, 1)
    assert max(batch for batch, _ in model.seen) == 256


def test_a_gpu_gets_no_more_than_its_memory_holds() -> None:
    model = Sleepy(lambda batch, threads, busy: 0.01, place="cuda", largest=64)
    assert tune(model, seconds=0.5) == Tuning(64, 1, 1)


@pytest.mark.parametrize("name", ["cores", "batch_size", "workers", "threads"])
def test_numbers_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match="must be at least 1; received 0"):
        tune(Sleepy(lambda batch, threads, busy: 0), **{name: 0})

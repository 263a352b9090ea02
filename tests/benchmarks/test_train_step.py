"""A training step is measured in each way, and ours is that of the bare loop."""

from __future__ import annotations

import math

import pytest

from benchmarks import train_step


def test_our_step_is_that_of_the_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "SIZE", 32)
    assert train_step.check("test_vit") < 1e-4


@pytest.mark.parametrize("way", ["lora, checkpointing", "finetune", "bare"])
def test_each_way_is_measured_batch_by_batch(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "SIZE", 32)
    rows = train_step.measure("test_vit", way, [3, 2], steps=2)
    assert [row["batch"] for row in rows] == [2, 3]
    # So small a network may need less than what is freed meanwhile.
    assert all(row["images_per_s"] > 0 and math.isfinite(row["peak_mb"]) for row in rows)


def test_all_weights_ask_for_more_work_than_a_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "SIZE", 32)
    lora, whole = (train_step.flops_per_image("test_vit", way) for way in ("lora", "finetune"))
    assert lora < whole < 2 * lora

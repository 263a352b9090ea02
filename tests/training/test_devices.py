"""Training on several devices, here two processes, hands the weights back to one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.training import TrainConfig, train


def test_two_processes_train_one_model(toy: Chips, configure: Callable[..., TrainConfig]) -> None:
    after = train(toy, configure(method="lora", epochs=2, devices=2)).package.model
    assert after.adapter is not None
    moved = [name for name in after.adapter.tensors if "lora_B" in name and after.adapter.tensors[name].any()]
    assert len(moved) == len(after.adapter.tensors) // 2
    assert np.isfinite(after.head.weight).all()

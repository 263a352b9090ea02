"""What makes training faster or smaller changes nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.training.test_methods import same
from tests.training.test_runs import statistics
from torchgeo_debias.backbones import AdapterSettings, add_adapter, create_backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias.losses import build_loss
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.training import TrainConfig, train
from torchgeo_debias.training.ahead import Ahead
from torchgeo_debias.training.module import Objective, StageModule, run_stage

Configure = Callable[..., TrainConfig]


@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:test_resnet"])
def test_gradient_checkpointing_trains_the_same_model(backbone: str, toy: Chips, configure: Configure) -> None:
    def model(recomputed: bool) -> Any:
        adapter = AdapterSettings(rank=2, dropout=0.2)
        config = configure(
            method="lora", backbone=backbone, epochs=2, adapter=adapter, gradient_checkpointing=recomputed
        )
        return train(toy, config).package

    assert same(model(True), model(False))


def test_compiled_training_ends_the_same_and_leaves_the_usual_names(
    held_out: Chips, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    plain = train(held_out, configure(method="lora", epochs=1)).package
    assert not graphs
    package = train(held_out, configure(method="lora", epochs=1, compile=True), checkpoints=tmp_path).package
    assert graphs
    assert package.model.adapter is not None
    assert plain.model.adapter is not None
    assert package.model.adapter.tensors.keys() == plain.model.adapter.tensors.keys()
    for name, tensor in plain.model.adapter.tensors.items():
        torch.testing.assert_close(package.model.adapter.tensors[name], tensor)
    (file,) = tmp_path.rglob("last.ckpt")
    state = torch.load(file, weights_only=True)["state_dict"]
    assert state
    assert not [name for name in state if "_orig_mod" in name]


def test_channels_last_is_for_convolutions_in_few_bits_and_changes_no_feature(configure: Configure) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("timm:test_resnet", size=32, weights=configure(backbone="timm:test_resnet").weights)
    images = torch.randn(2, 3, 32, 32)
    plain = backbone.eval()(images)
    cpu = torch.device("cpu")
    weight = backbone.model.layer2[0].conv1.weight  # type: ignore[union-attr, index]
    backbone.prefer(cpu, torch.bfloat16)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    torch.testing.assert_close(backbone(images), plain)
    backbone.prefer(cpu, torch.float32)
    assert weight.is_contiguous()
    assert torch.equal(backbone(images), plain)


def test_batches_are_made_ahead_and_in_order() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def collate(indices: list[int]) -> Tensor:
        made.append(indices[0])
        threads.add(threading.get_ident())
        return torch.tensor(indices)

    indices: Any = range(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    options: dict[str, Any] = {"batch_size": 3, "sampler": order, "collate_fn": collate}
    plain = [batch.tolist() for batch in DataLoader(indices, **options)]
    threads.clear()
    for _ in range(2):
        assert [batch.tolist() for batch in Ahead(indices, **options)] == plain
    assert threads
    assert threading.get_ident() not in threads

    made.clear()
    batches: Iterator[Any] = iter(Ahead(indices, **options))
    next(batches)
    first = next(batches)
    assert first.tolist() == plain[1]
    batches.close()  # type: ignore[attr-defined]  # waits for what was under way
    assert made == [batch[0] for batch in plain[:3]], "one batch more than was asked for"


def test_what_fails_while_a_batch_is_made_is_told() -> None:
    def collate(indices: list[int]) -> Tensor:
        if 4 in indices:
            raise ValueError("chip 4 is broken")
        return torch.tensor(indices)

    indices: Any = range(6)
    batches = iter(Ahead(indices, batch_size=2, collate_fn=collate))
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="chip 4 is broken"):
        next(batches)


class Watched(StageModule):
    """Writes down what it sees, for each process into a file of its own."""

    folder: Path
    losses: list[float]

    def on_fit_start(self) -> None:
        self.losses = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss

    def on_train_end(self) -> None:
        trained = {name: p.tolist() for name, p in self.named_parameters() if p.requires_grad}
        text = json.dumps({"losses": self.losses, "trained": trained})
        (self.folder / f"{self.trainer.world_size}-{self.global_rank}.json").write_text(text)


def test_two_processes_train_what_one_does_with_batches_twice_as_large(
    toy: Chips, configure: Configure, tmp_path: Path
) -> None:
    chips = toy.subset(list(range(4, 36)))
    for devices, batch_size in ((1, 16), (2, 8)):
        config = configure(
            method="lora", epochs=2, devices=devices, batch_size=batch_size, augment=False, gradient_checkpointing=True
        )
        torch.manual_seed(0)
        backbone = add_adapter(create_backbone(config.backbone, size=32, weights=config.weights), config.adapter)
        objective = Objective(build_loss("ce", chips.table))
        module = Watched(backbone, nn.Linear(backbone.dim, 4), statistics(), objective, config)
        module.folder = tmp_path
        run_stage(module, chips, None, "adapt", lambda progress: None)
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["trained"] == second["trained"], "both processes end with the same weights"
    assert np.isfinite([*first["losses"], *second["losses"]]).all()
    assert first["losses"] != second["losses"], "each saw chips of its own"
    np.testing.assert_allclose(np.mean([first["losses"], second["losses"]], axis=0), alone["losses"], rtol=1e-4)
    for name, values in alone["trained"].items():
        np.testing.assert_allclose(first["trained"][name], values, atol=2e-4, err_msg=name)


def test_a_machine_that_cannot_compile_is_told_in_one_sentence(
    held_out: Chips, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise RuntimeError("no C++ compiler\nand a long story")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    with pytest.raises(ConfigError, match=r"cannot be compiled on this machine .*no C\+\+ compiler") as error:
        train(held_out, configure(method="lora", epochs=1, compile=True))
    assert "\n" not in str(error.value)

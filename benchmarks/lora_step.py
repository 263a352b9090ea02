"""A LoRA training step of our trainer against a bare loop of peft and timm.

Both train DINOv2 ViT-S/14 (rank 8 on qkv and proj of every block, 112 px, batch 16, AdamW, warm-up and cosine, no
augmentation) on the same seeded noise with the same weights, number format and attention; the bare loop gets the
batches that our trainer drew. The losses of all steps must agree before anything is timed. Run::

    python -m benchmarks.lora_step

``benchmarks.train_step`` has other backbones, batches and sizes, full fine-tuning, and memory on a GPU.

Time is that from the end of the first step to the end of the last one, divided by the steps between, so that it holds
all that comes back with each step (loading, logging, the end of an epoch) and nothing that happens once. Memory is
measured in a fresh process for each side, from where the model stands ready.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import ForeignLoad, Times, in_turn, peak, reset_peak, save
from torchgeo_debias.backbones import add_adapter, create_backbone, find_spec, pick_device, pick_dtype
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias.losses import build_loss
from torchgeo_debias.progress import Progress
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.module import Objective, StageModule, run_stage

SIZE, CLASSES, STATISTICS = 112, 21, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Clock = list[tuple[float, float]]


class Recorded(StageModule):
    """Keeps the loss of each step and which chips it saw."""

    losses: list[Tensor]
    order: list[list[int]]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        self.order.append(batch["index"].tolist())
        return loss


def noise(count: int, size: int = SIZE) -> Chips:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, count)
    return Chips(
        images=rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8),
        valid=np.ones((count, size, size), dtype=bool),
        labels=labels,
        sources=np.arange(count).astype(str),
        table=ClassTable.from_counts({f"class {c:02d}": int((labels == c).sum()) for c in range(CLASSES)}),
        spec=ChipSpec(size),
        bands=("red", "green", "blue"),
    )


def our_model(config: TrainConfig, kind: type[StageModule] = StageModule, size: int = SIZE) -> StageModule:
    torch.manual_seed(config.seed)
    backbone = create_backbone(config.backbone, size=size, weights=config.weights)
    if config.method == "lora":
        add_adapter(backbone, config.adapter)
    backbone.prefer(pick_device(), pick_dtype(config.precision, pick_device()))
    head = nn.Linear(backbone.dim, CLASSES)
    objective = Objective(build_loss("ce", ClassTable.from_counts({str(c): 1 for c in range(CLASSES)})))
    return kind(backbone, head, Normalisation.from_unit_range(*STATISTICS), objective, config)


class Bare(nn.Module):
    """What one writes with peft and timm alone for a ViT; weights, LoRA and head are copied from ours."""

    def __init__(self, like: StageModule, config: TrainConfig, size: int = SIZE) -> None:
        super().__init__()
        arch = find_spec(config.backbone).arch
        vit = timm.create_model(arch, pretrained=False, num_classes=0, img_size=size)
        lora = peft.LoraConfig(
            r=config.adapter.rank, lora_alpha=int(config.adapter.alpha), target_modules=r".*\.attn\.(qkv|proj)"
        )
        self.model: Any = peft.get_peft_model(vit, lora)
        self.model.load_state_dict(like.backbone.model.state_dict())
        self.head = nn.Linear(2 * vit.embed_dim, CLASSES)
        self.head.load_state_dict(like.head.state_dict())
        theirs = dict(like.backbone.model.named_modules())
        for name, module in self.model.named_modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = theirs[name].fused_attn

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model.forward_features(images)
        pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        logits: Tensor = self.head(pooled.float())
        return logits


def train_ours(module: StageModule, chips: Chips) -> Clock:
    """Returns wall and processor time at the end of each step."""
    clock: Clock = []

    def tick(progress: Progress) -> None:
        clock.append(now(progress.done in (1, progress.total)))

    run_stage(module, chips, None, "adapt", tick)
    return clock


def train_bare(module: Bare, chips: Chips, config: TrainConfig, order: list[list[int]]) -> tuple[Clock, list[Tensor]]:
    """The order lists the chips of each step of all epochs."""
    device = pick_device()
    dtype = pick_dtype(config.precision, device)
    module.to(device).train()
    data = TensorDataset(torch.from_numpy(chips.images), torch.from_numpy(chips.labels))
    steps = len(order) // config.epochs
    mean, std = (255 * torch.tensor(values, device=device).view(1, 3, 1, 1) for values in STATISTICS)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    total = len(order)
    warmup = max(1, round(config.warmup * total))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    clock: Clock = []
    losses: list[Tensor] = []
    for epoch in range(config.epochs):
        for images, labels in DataLoader(data, batch_sampler=order[epoch * steps : (epoch + 1) * steps]):
            images = (images.to(device).float() - mean) / std
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(module(images), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            clock.append(now(len(clock) in (0, total - 1)))
    return clock, losses


def now(wait: bool) -> tuple[float, float]:
    """Wall and processor time; at the first and the last step once the device is done with it."""
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def per_step(clock: Clock) -> Times:
    steps = len(clock) - 1
    return Times((clock[-1][0] - clock[0][0]) / steps, (clock[-1][1] - clock[0][1]) / steps)


def compare_losses(chips: Chips, config: TrainConfig, learning: float = 1.05) -> tuple[float, list[list[int]]]:
    """Train both sides once; the largest relative difference between the losses of a step, and the order of chips.

    The loss must have fallen by the factor ``learning``.
    """
    size = chips.spec.size
    ours = our_model(config, Recorded, size)
    assert isinstance(ours, Recorded)
    ours.losses, ours.order = [], []
    bare = Bare(ours, config, size)
    train_ours(ours, chips)
    _, losses = train_bare(bare, chips, config, ours.order)
    assert len(ours.losses) == len(losses) == config.epochs * -(-len(chips) // config.batch_size)
    a, b = torch.stack(ours.losses).cpu(), torch.stack(losses).cpu()
    assert a[-1] < a.max() / learning, "nothing was learned, so that equal losses would prove nothing"
    return float(((a - b).abs() / b).max()), ours.order


def peak_of(side: str, chips: Chips, config: TrainConfig) -> dict[str, float]:
    """Memory of one side, MB; to be called in a process of its own."""
    # Both models stand ready on both sides, so that the peaks differ by the training alone.
    ours = our_model(config)
    bare = Bare(ours, config)
    order = np.arange(len(chips)).reshape(-1, config.batch_size).tolist() * config.epochs
    before = reset_peak()
    if side == "ours":
        train_ours(ours, chips)
    else:
        train_bare(bare, chips, config, order)
    return {"before": round(before, 1), "peak": round(peak(), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="in each of two epochs")
    parser.add_argument("--memory-of", choices=("ours", "bare"), help="only measure the memory of one side")
    options = parser.parse_args()
    load = ForeignLoad()
    config = TrainConfig(method="lora", epochs=2, batch_size=16, augment=False)
    chips = noise(options.steps * config.batch_size)
    if options.memory_of:
        print(json.dumps(peak_of(options.memory_of, chips, config)))
        return

    # In single precision rounding alone may differ; bf16 rounds to 8 bits, which the steps then carry on.
    exact, _ = compare_losses(chips, replace(config, precision="32"))
    rounded, order = compare_losses(chips, config)
    assert exact < 1e-4, f"the losses differ by {exact:.1e} in single precision"
    assert rounded < 2e-2, f"the losses differ by {rounded:.1e}"

    def ours() -> Times:
        return per_step(train_ours(our_model(config), chips))

    def theirs() -> Times:
        return per_step(train_bare(Bare(our_model(config), config), chips, config, order)[0])

    speed = in_turn(ours, theirs, options.repeats)
    memory = {side: _in_own_process(side) for side in ("ours", "bare")}
    save(
        "lora_step",
        load,
        {
            "task": f"DINOv2 ViT-S/14, LoRA rank 8 on attention, {SIZE} px, batch 16, {2 * options.steps} steps",
            "dtype": str(pick_dtype(config.precision, pick_device())).removeprefix("torch."),
            "largest_relative_loss_difference": {"float32": exact, "as trained": rounded},
            "step": speed,
            "memory_mb": memory,
            "ratio_peak": round(memory["ours"]["peak"] / memory["bare"]["peak"], 3),
            "target": {"ratio": 1.05, "ratio_peak": 1.03},
        },
    )


def _in_own_process(side: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.lora_step", "--memory-of", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


if __name__ == "__main__":
    main()

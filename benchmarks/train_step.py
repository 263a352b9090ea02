"""A training step by backbone, batch and what is trained: images a second, peak memory, share of the ceiling.

On a GPU where there is one, else on the processor; each backbone and way in a process of its own. Run::

    python -m benchmarks.train_step [--backbones vit_small_patch16_224 resnet50] [--batches 16 64 256] [--steps 30]
    python -m benchmarks.train_step --steps 2 --batches 1 8 16      # on a processor

Ways: ``lora`` (rank 8 on the attention, on the convolutions of a ResNet), the same with gradient checkpointing or
compiled, ``finetune`` (all weights), and ``bare``, the loop of ``benchmarks.lora_step`` that one writes with peft and
timm alone. Weights are random, images are noise. Before anything is timed, the losses of ``lora`` and ``bare`` must
agree in 32 bits: 1e-4.

Memory on a GPU is the peak of what torch allocated; on a processor the peak of resident memory above what the imports
take, so that weights, their gradients and the state of the optimiser are in it. Both hold two steps at least: only the
second one meets the state of the optimiser. The ceiling is the rate of one large matrix product in the same number
format; the share is that of the floating-point operations of a step (as torch counts them, what gradient checkpointing
computes twice counted once) in it. On a processor both are by processor time of one thread, which foreign load slows
down less than the clock; beside such load, trust the memory alone (``--memory-only``).
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lora_step import Bare, compare_losses, noise, our_model, per_step, train_bare, train_ours
from benchmarks.measure import ForeignLoad, peak, reset_peak, save
from torchgeo_debias.backbones import pick_device, pick_dtype
from torchgeo_debias.training import TrainConfig

SIZE = 224
WAYS = ("lora", "lora, checkpointing", "lora, compiled", "finetune", "bare")


def config_of(backbone: str, way: str, batch: int) -> TrainConfig:
    method, _, extra = way.partition(", ")
    return TrainConfig(
        method="finetune" if method == "finetune" else "lora",
        backbone=f"timm:{backbone}",
        weights="random",
        epochs=1,
        batch_size=batch,
        augment=False,
        lr=1e-5 if method == "finetune" else 1e-3,
        compile=extra == "compiled",
        gradient_checkpointing=extra == "checkpointing",
    )


def measure(backbone: str, way: str, batches: list[int], steps: int) -> list[dict[str, Any]]:
    """One row a batch size, ascending; to be called in a process of its own."""
    gpu = pick_device().type == "cuda"
    baseline = reset_peak()
    rows = []
    for batch in sorted(batches):
        config = config_of(backbone, way, batch)
        chips = noise(batch * steps, SIZE)
        module = our_model(config, size=SIZE)
        gc.collect()  # of the batch before
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()
        if way == "bare":
            order = torch.arange(len(chips)).view(-1, batch).tolist()
            clock, _ = train_bare(Bare(module, config, SIZE), chips, config, order)
        else:
            clock = train_ours(module, chips)
        memory = torch.cuda.max_memory_allocated() / 2**20 if gpu else peak() - baseline
        seconds = per_step(clock).wall if gpu else per_step(clock).cpu
        rows.append({"batch": batch, "peak_mb": round(memory), "images_per_s": round(batch / seconds, 2)})
    return rows


def flops_per_image(backbone: str, way: str) -> int:
    """Of a step forwards and backwards."""
    module = our_model(config_of(backbone, way, 1), size=SIZE)
    with FlopCounterMode(display=False) as counter:
        module.backbone(torch.zeros(1, 3, SIZE, SIZE)).sum().backward()
    return int(counter.get_total_flops())


def ceiling() -> float:
    """Floating-point operations a second of one large matrix product, the best of some."""
    device = pick_device()
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=pick_dtype("auto", device)) for _ in range(2))

    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def once() -> float:
        start = clock()
        _wait(a @ b)
        return clock() - start

    once()
    return float(2 * side**3 / min(once() for _ in range(10)))


def _wait(result: Tensor) -> None:
    if result.is_cuda:
        torch.cuda.synchronize()


def check(backbone: str) -> float:
    """Both sides must compute the same: the largest relative difference of the losses of some steps in 32 bits."""
    config = replace(config_of(backbone, "lora", 4), precision="32", epochs=3, warmup=0.0)
    gap, _ = compare_losses(noise(8, SIZE), config, learning=1.001)
    assert gap < 1e-4, f"{backbone}: the losses differ by {gap:.1e}"
    return gap


def in_own_process(backbone: str, way: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [
        sys.executable, "-m", "benchmarks.train_step", "--child", way, "--backbones", backbone,
        "--steps", str(options.steps), "--batches", *map(str, options.batches),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    vits = [f"vit_{size}_patch16_224" for size in ("small", "base", "large")]
    parser.add_argument("--backbones", nargs="+", default=vits, help="names of timm")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--steps", type=int, default=30, help="timed are all but the first")
    parser.add_argument("--memory-only", action="store_true", help="report no speed, as beside foreign load")
    parser.add_argument("--child", choices=WAYS, help="only measure this way, in this process")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2")
    if options.child:
        print(json.dumps(measure(options.backbones[0], options.child, options.batches, options.steps)))
        return
    load = ForeignLoad()
    most = None if options.memory_only else ceiling()
    rows, gaps = [], {}
    for backbone in options.backbones:
        plain = backbone.startswith("vit_")  # what the bare loop is written for
        if plain and "bare" in options.ways:
            gaps[backbone] = check(backbone)
        for way in options.ways:
            if way == "bare" and not plain:
                continue
            for row in in_own_process(backbone, way, options):
                if most is None:
                    del row["images_per_s"]
                else:
                    row["share_of_ceiling"] = round(row["images_per_s"] * flops_per_image(backbone, way) / most, 3)
                rows.append({"backbone": backbone, "way": way, **row})
                print(rows[-1], flush=True)
    save(
        "train_step",
        load,
        {
            "task": f"{SIZE} px, {options.steps} steps",
            "dtype": str(pick_dtype("auto", pick_device())).removeprefix("torch."),
            "largest_relative_loss_difference": gaps,
            "ceiling_tflops": None if most is None else round(most / 1e12, 3),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()

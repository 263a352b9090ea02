"""Long-tailed UC Merced: every method side by side, with the two controls of debLoRA.

UC Merced (21 classes, at most 80 training images each) is subsampled to imbalance 40; the seed decides which class
becomes rare. Test: the 20 images a class of the test split, never used for any choice. Run::

    python -m benchmarks.ucmerced --data DIR/ucmerced --out benchmarks/results/ucmerced.json

Stages that methods share (the plain LoRA under most of them) are run once an order; ``deblora`` is exactly what
``torchgeo-debias train --method deblora`` trains. The JSON file is written after each order, and orders that it holds
are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torchgeo_debias.backbones import Backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.data.longtail import long_tail
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.debias import DebiasSettings, LinearHead, logit_adjustment
from torchgeo_debias.evaluation import compare, score, summarise
from torchgeo_debias.files import atomic
from torchgeo_debias.training import TrainConfig, extract_features, versions
from torchgeo_debias.training.stages import Run, adapt, adjusted_head, align, debias, finetune
from torchgeo_debias.training.trainer import normalisation_for

GROUPS = ("head", "middle", "tail", "macro")
Row = tuple[str, Backbone, LinearHead]


def methods(run: Run, more: bool) -> Iterator[Row]:
    """Train everything on the chips of one order; yields name, backbone and head.

    Args:
        run: Of the order.
        more: Train the two slow yardsticks as well.
    """
    frozen = run.backbone()
    plain = run.features(frozen, "features")
    yield "frozen, CE", frozen, adjusted_head(run, plain, tau=0.0)
    yield "frozen + LA (probe-la)", frozen, adjusted_head(run, plain)

    lora, head = adapt(run)
    features = run.features(lora, "features")
    yield "LoRA (lora)", lora, head
    yield "LoRA, LA afterwards", lora, head.shifted(-logit_adjustment(run.chips.table, 1.0))
    yield "LoRA, new CE probe", lora, adjusted_head(run, features, tau=0.0)
    yield "LoRA, new probe + LA (lora-la)", lora, adjusted_head(run, features)
    calibrated = debias(run, features).targets
    yield "LoRA, calibrated features into a CE probe", lora, adjusted_head(run, calibrated, tau=0.0)
    yield "LoRA, calibrated features into a probe + LA", lora, adjusted_head(run, calibrated)
    if more:
        yield ("LoRA, LA in training", *adapt(run, 1.0))
        yield ("full fine-tuning (finetune)", *finetune(run))
    yield ("debLoRA (deblora)", *align(run, features, calibrated))
    for name, settings in (
        ("debLoRA, control: pull 0", DebiasSettings(pull=0.0)),
        ("debLoRA, control: one global centre", DebiasSettings(centre="global")),
    ):
        control = replace(run, config=replace(run.config, debias=settings))
        yield (name, *align(control, features, debias(control, features).targets))


def one_order(train: Chips, test: Chips, seed: int, epochs: int, more: bool) -> dict[str, dict[str, float]]:
    """F1 of every method by group for one class order."""
    chips = long_tail(train, 40.0, seed)
    config = TrainConfig(seed=seed, epochs=epochs)
    normalisation: Normalisation = normalisation_for(chips, config)
    run = Run(chips, None, normalisation, config, lambda progress: None, None)
    results = {}
    for name, backbone, head in methods(run, more):
        logits = head.logits(extract_features(backbone, test, normalisation))
        results[name] = score(test.labels, None, chips.table, y_pred=logits.argmax(axis=1)).f1
        print(seed, name, {k: round(100 * v, 1) for k, v in results[name].items()}, flush=True)
    return results


def table(orders: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: mean ± std over orders, and the paired difference of the tail to plain LoRA."""
    lines = ["| method | head | middle | tail | macro-F1 | tail against LoRA |", "|---|---|---|---|---|---|"]
    runs = list(orders.values())
    for name in runs[0]:
        cells = []
        for group in GROUPS:
            spread = summarise([100 * run[name][group] for run in runs])
            cells.append(f"{spread.mean:.1f} ± {spread.std:.1f}")
        paired = compare([100 * run["LoRA (lora)"]["tail"] for run in runs], [100 * run[name]["tail"] for run in runs])
        lines.append(f"| {name} | {' | '.join(cells)} | {paired.mean:+.1f} ({paired.low:+.1f} to {paired.high:+.1f}) |")
    return "\n".join(lines)


def main() -> None:
    """Run the orders that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ucmerced.json"))
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--more", action="store_true", help="LA in training and full fine-tuning as well")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {"orders": {}}
    train = read_folder(options.data, 112, split="train")
    test = read_folder(options.data, 112, split="test")
    for seed in options.orders:
        if str(seed) in result["orders"]:
            continue
        start = time.time()
        result["orders"][str(seed)] = one_order(train, test, seed, options.epochs, options.more)
        result |= {"versions": versions(), "epochs": options.epochs, "imbalance": 40, "chip": 112}
        result.setdefault("seconds", {})[str(seed)] = round(time.time() - start)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(options.out) as part:
            part.write_text(json.dumps(result, indent=1))
    print(table(result["orders"]))


if __name__ == "__main__":
    main()

"""What debLoRA costs beside plain LoRA: time of each stage, memory and parameters, of a frozen probe and of full
fine-tuning as well.

Run::

    python -m benchmarks.cost [--data DIR]

DIR holds the folder ucmerced: chips are UC Merced at imbalance 40 (112 px), without the images that choices are made
on, which serve here for scores; the test images are not read. Without DIR they are those of a synthetic scene.

Each training runs in a process of its own, all of them in turn and once more in the other direction for each further
repeat, which draws another long tail. A ratio is that to plain LoRA of the same repeat, which must have seen equal
chips in equal steps. Time is that of the training from chips in memory to the fitted head; loading of weights and the
fit of the head are in what is left beside the stages. Memory is the peak of the process above what was resident
before (on a GPU: what torch has allocated there).

Few epochs are dear beside what happens once, so that the ratio at the library's default epochs is computed as well: the
processor time of the stages that train is scaled by their epochs, that of the others is taken as measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - the library imports it late, which is no cost of a training
import torch

from benchmarks.debias_stage import chips_of
from benchmarks.longtail.data import make_task
from benchmarks.measure import ForeignLoad, peak, reset_peak, save
from torchgeo_debias.backbones import Backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.evaluation import score
from torchgeo_debias.progress import Progress
from torchgeo_debias.training import TrainConfig, extract_features
from torchgeo_debias.training.checkpoints import fingerprint, pieces_of
from torchgeo_debias.training.features import Array
from torchgeo_debias.training.stages import Run, adapt, deblora, finetune, finished_head
from torchgeo_debias.training.trainer import normalisation_for

IMBALANCE = 40
BASE = "lora"
FIRST: dict[str, Callable[[Run], tuple[Backbone, LinearHead | None]]] = {
    "probe": lambda run: (run.backbone(), None),
    "lora": adapt,
    "finetune": finetune,
}
Record = dict[str, Any]


def settings_of(name: str, options: argparse.Namespace) -> TrainConfig:
    """The configuration of one run by its name."""
    fields: dict[str, dict[str, Any]] = {
        "probe": {"method": "probe", "head": "la"},
        "lora": {"method": "lora"},
        "finetune": {"method": "finetune"},
        "deblora": {"method": "deblora"},
        "deblora, adapted": {"method": "deblora", "align_start": "adapted", "align_epochs": options.align_epochs},
    }
    common = {"epochs": options.epochs, "seed": options.repeat, "backbone": options.backbone}
    return TrainConfig(**common, weights=options.weights, **fields[name])


NAMES = ("lora", "deblora", "probe", "finetune", "deblora, adapted")


@dataclass
class Clocked(Run):
    """A run that also knows the processor time of its stages, and how long features take.

    Attributes:
        cpu: Processor time of each stage so far, over all threads.
    """

    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        with super().timed(stage):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.cpu[stage] = self.cpu.get(stage, 0.0) + time.process_time() - start

    def features(self, backbone: Backbone, stage: str) -> Array:
        with self.timed("features"):
            return super().features(backbone, stage)


def trained(run: Run) -> tuple[Backbone, LinearHead]:
    """Backbone and head, as :func:`torchgeo_debias.training.train` makes them."""
    if run.config.method == "deblora":
        return deblora(run)[:2]
    backbone, own = FIRST[run.config.method](run)
    return backbone, finished_head(run, backbone, own)


def measured(name: str, chips: Chips, held: Chips | None, config: TrainConfig) -> Record:
    """Train once; to be called in a process of its own."""
    steps: dict[str, int] = {}

    def count(progress: Progress) -> None:
        steps[progress.stage] = progress.total

    run = Clocked(chips, None, normalisation_for(chips, config), config, count, None)
    cuda = torch.cuda.is_available()
    before = 0.0 if cuda else reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    backbone, head = trained(run)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    highest = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak()
    stages = {stage: {"wall_s": seconds, "cpu_s": run.cpu[stage]} for stage, seconds in run.seconds.items()}
    left = {"wall_s": wall - sum(run.seconds.values()), "cpu_s": cpu - sum(run.cpu.values())}
    learnt = 0 if name == "probe" else sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    f1 = None
    if held is not None:
        features = extract_features(backbone, held, run.normalisation, precision=config.precision)
        f1 = score(held.labels, None, chips.table, head.logits(features).argmax(axis=1)).f1
    return {
        "chips": fingerprint(pieces_of(chips)),
        "count": len(chips),
        "steps": {stage: total for stage, total in steps.items() if stage in ("adapt", "align", "finetune")},
        "trained_parameters": learnt + head.weight.size + head.bias.size,
        "backbone_parameters": sum(p.numel() for p in run.backbone().parameters()),
        "wall_s": wall,
        "cpu_s": cpu,
        "stages": {**stages, "rest": left},
        "peak_mb": highest - before,
        "f1": f1,
    }


def check_equal(records: dict[str, Record], epochs: int, align_epochs: int) -> None:
    """All runs of a repeat saw the same chips, in as many steps as their epochs ask for."""
    base = records[BASE]
    per_epoch, odd = divmod(base["steps"]["adapt"], epochs)
    assert not odd
    for name, record in records.items():
        assert record["chips"] == base["chips"], f"{name} saw other chips than {BASE}"
        align = per_epoch * (align_epochs if name == "deblora, adapted" else epochs)
        expected = {
            "probe": {},
            "lora": {"adapt": per_epoch * epochs},
            "finetune": {"finetune": per_epoch * epochs},
        }.get(name, {"adapt": per_epoch * epochs, "align": align})
        assert record["steps"] == expected, f"{name} took {record['steps']} steps in place of {expected}"


def scaled(record: Record, adapt: float, align: float) -> float:
    """Processor time, s, with ``adapt`` times the epochs of stage 1 (or of all that is trained) and ``align`` of 3."""
    by = {"adapt": adapt, "finetune": adapt, "align": align}
    return float(sum(by.get(stage, 1.0) * times["cpu_s"] for stage, times in record["stages"].items()))


def ratios_at(records: dict[str, Record], options: argparse.Namespace) -> dict[str, float]:
    """Computed, not measured: processor time over that of plain LoRA at the default epochs, of one repeat.

    Stage 3 from the adapter of stage 1 takes a fifth of them.
    """
    default = TrainConfig().epochs
    grown = default / options.epochs
    less = default / 5 / options.align_epochs
    base = scaled(records[BASE], grown, grown)
    return {
        name: round(scaled(record, grown, less if name == "deblora, adapted" else grown) / base, 3)
        for name, record in records.items()
    }


def summary(repeats: Sequence[dict[str, Record]]) -> dict[str, Record]:
    """By run: medians over the repeats, and of the ratios to plain LoRA of the same repeat."""

    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 3)

    found: dict[str, Record] = {}
    for name in repeats[0]:
        own = [records[name] for records in repeats]
        base = [records[BASE] for records in repeats]
        cpu = statistics.median(record["cpu_s"] for record in own)
        stages = {
            stage: {key: median(record["stages"][stage][key] for record in own) for key in ("wall_s", "cpu_s")}
            for stage in own[0]["stages"]
        }
        found[name] = {
            "trained_parameters": own[0]["trained_parameters"],
            "share_of_backbone": round(own[0]["trained_parameters"] / own[0]["backbone_parameters"], 5),
            **{key: median(record[key] for record in own) for key in ("wall_s", "cpu_s", "peak_mb")},
            "stages": {
                stage: {**times, "share_cpu": round(times["cpu_s"] / cpu, 3)} for stage, times in stages.items()
            },
            **{
                f"ratio_{key.partition('_')[0]}": median(a[key] / b[key] for a, b in zip(own, base, strict=True))
                for key in ("wall_s", "cpu_s", "peak_mb")
            },
            "f1": own[0]["f1"]
            and {
                key: round(statistics.mean(r["f1"][key] for r in own), 4) for key in ("head", "middle", "tail", "macro")
            },
        }
    return found


def chips_for(data: Path | None, seed: int) -> tuple[str, Chips, Chips | None]:
    """The name of the set, chips to train on, and chips to score on where there are some."""
    if data is None:
        return *chips_of(None), None
    task = make_task(data, "ucmerced", IMBALANCE, seed, "validation")
    return f"UC Merced, imbalance {IMBALANCE}, scored on validation images", task.train, task.score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds ucmerced")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--align-epochs", type=int, help="of stage 3 from stage 1's adapter; default: a fifth")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help=f"besides {BASE}")
    parser.add_argument("--backbone", default=TrainConfig().backbone)
    parser.add_argument("--weights", default=TrainConfig().weights)
    parser.add_argument("--record", default="cost", help="name of the file in results")
    parser.add_argument("--child", choices=NAMES, help="only train this once, and print its record")
    parser.add_argument("--repeat", type=int, default=0, help="of a child")
    options = parser.parse_args()
    options.align_epochs = options.align_epochs or max(1, round(options.epochs / 5))
    if options.child:
        data, chips, held = chips_for(options.data, options.repeat)
        print(json.dumps({"data": data, **measured(options.child, chips, held, settings_of(options.child, options))}))
        return

    load = ForeignLoad()
    names = [name for name in NAMES if name in options.only or name == BASE]
    repeats = []
    for repeat in range(options.repeats):
        order = names[:: -1 if repeat % 2 else 1]
        records = {name: _in_own_process(name, repeat, options) for name in order}
        check_equal(records, options.epochs, options.align_epochs)
        repeats.append({name: records[name] for name in names})
    save(
        options.record,
        load,
        {
            "data": repeats[0][BASE]["data"],
            "chips": repeats[0][BASE]["count"],
            "backbone": options.backbone,
            "epochs": options.epochs,
            "align_epochs_adapted": options.align_epochs,
            "repeats": options.repeats,
            "runs": summary(repeats),
            "computed_ratio_cpu": {"epochs": TrainConfig().epochs, **ratios_at(repeats[0], options)},
            "target": {"deblora": 2.2, "deblora, adapted": 1.3},
        },
    )


def _in_own_process(name: str, repeat: int, options: argparse.Namespace) -> Record:
    given = {
        "--child": name, "--repeat": repeat, "--epochs": options.epochs, "--align-epochs": options.align_epochs,
        "--backbone": options.backbone, "--weights": options.weights,
        **({} if options.data is None else {"--data": options.data}),
    }  # fmt: skip
    words = [str(word) for pair in given.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    record: Record = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({name: record}), file=sys.stderr, flush=True)  # of a run that is stopped, so much is known
    return record


if __name__ == "__main__":
    main()

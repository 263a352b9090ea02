"""Features of a task under each way to adapt the backbone, made once: every head is fitted on the same ones."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from benchmarks.longtail.data import SOURCES, Part, Task, make_task
from torchgeo_debias.backbones import Backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias import DebiasSettings, LinearHead
from torchgeo_debias.debias.losses import LOSSES
from torchgeo_debias.files import atomic
from torchgeo_debias.training import TrainConfig, extract_features, versions
from torchgeo_debias.training.stages import Run, adapt, align, debias, finetune
from torchgeo_debias.training.trainer import normalisation_for

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """Names one task.

    Attributes:
        source: Of `benchmarks.longtail.data.SOURCES`.
        imbalance: Largest class over the smallest.
        seed: Of the long tail, and of the training.
        part: What methods are scored on.
    """

    source: str
    imbalance: float
    seed: int
    part: Part

    def __str__(self) -> str:
        return f"{self.source}-{self.imbalance:g}-{self.part}-s{self.seed}"


@dataclass(frozen=True)
class Features:
    """What one way of adapting gives.

    Attributes:
        train: (8, N, D) of the training chips, in each symmetry of the square; the first is as they are.
        score: (8, M, D) of the chips to score on, likewise.
        head: The head that was trained along, None where there is none.
        facts: Configuration, digests, versions, seconds.
    """

    train: Array
    score: Array
    head: LinearHead | None
    facts: dict[str, Any] = field(default_factory=dict)


Made = tuple[Backbone, LinearHead | None]


def _frozen(run: Run) -> Made:
    return run.backbone(), None


def _aligned(run: Run) -> Made:
    """Stages 1 to 3; the plain LoRA is trained anew in each, which costs time and nothing else: a seed repeats it."""
    backbone, _ = adapt(run)
    features = run.features(backbone, "features")
    return align(run, features, debias(run, features).targets, backbone)


class Way(NamedTuple):
    """How a backbone is adapted.

    Attributes:
        make: Does it.
        fields: Of the configuration, other than the defaults.
    """

    make: Callable[[Run], Made]
    fields: Mapping[str, Any] = {}


WAYS: dict[str, Way] = {
    "frozen": Way(_frozen),
    "lora": Way(adapt),
    **{f"lora, {loss}": Way(adapt, {"loss": loss}) for loss in LOSSES if loss != "ce"},
    "finetune": Way(finetune),
    "deblora": Way(_aligned),
    "deblora, from stage 1": Way(_aligned, {"align_start": "adapted"}),
    "deblora, pull 0": Way(_aligned, {"debias": DebiasSettings(pull=0.0)}),
    "deblora, global centre": Way(_aligned, {"debias": DebiasSettings(centre="global")}),
}


def features_of(problem: Problem, way: str, data: Path, cache: Path, epochs: int) -> Features:
    """Features of one problem under one way, from the cache where they are there."""
    fields = WAYS[way].fields
    config = TrainConfig(seed=problem.seed, epochs=epochs, stretch=SOURCES[problem.source].stretch, **fields)
    facts = {"problem": str(problem), "way": way, "config": config.to_json()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    path = cache / f"{problem}-{way.replace(',', '').replace(' ', '_')}-{digest}.safetensors"
    if not path.exists():
        task = make_task(data, problem.source, problem.imbalance, problem.seed, problem.part)
        _make(task, config, way, facts, path)
    arrays = load_file(path)
    head = LinearHead(arrays["weight"], arrays["bias"]) if "weight" in arrays else None
    return Features(arrays["train"], arrays["score"], head, json.loads(path.with_suffix(".json").read_text()))


def _make(task: Task, config: TrainConfig, way: str, facts: dict[str, Any], path: Path) -> None:
    start = time.process_time()
    run = Run(task.train, None, normalisation_for(task.train, config), config, lambda progress: None, None)
    backbone, head = WAYS[way].make(run)
    arrays = {
        name: np.stack([extract_features(backbone, view, run.normalisation) for view in symmetries(chips)])
        for name, chips in (("train", task.train), ("score", task.score))
    }
    if head is not None:
        arrays |= {"weight": head.weight, "bias": head.bias}
    more = {
        "seconds": {stage: round(wall, 1) for stage, wall in run.seconds.items()},
        "processor_s": round(time.process_time() - start, 1),
        "backbone": backbone.digest,
        "versions": versions(),
        "counts": task.train.table.counts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({**facts, **more}))
    with atomic(path) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)


def symmetries(chips: Chips) -> Iterator[Chips]:
    """The chips in the eight symmetries of the square, first as they are: seen from above, the world has no up."""
    for number in range(8):
        images = np.rot90(chips.images, number % 4, axes=(2, 3))
        valid = np.rot90(chips.valid, number % 4, axes=(1, 2))
        if number >= 4:
            images, valid = images[..., ::-1], valid[..., ::-1]
        yield replace(chips, images=np.ascontiguousarray(images), valid=np.ascontiguousarray(valid))

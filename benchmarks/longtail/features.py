"""Features of a task under each way to adapt the backbone, made once: every head is fitted on the same ones."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from benchmarks.longtail.data import SIZE, SOURCES, Part, Task
from torchgeo_debias.backbones import KINDS, AdapterSettings, Backbone
from torchgeo_debias.debias import DebiasSettings, LinearHead
from torchgeo_debias.debias.losses import LOSSES
from torchgeo_debias.files import atomic
from torchgeo_debias.training import TrainConfig, extract_features, versions
from torchgeo_debias.training.checkpoints import fingerprint, pieces_of
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
        train: (N, D) of the training chips.
        score: (M, D) of the chips to score on.
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


def _adapted(run: Run) -> Made:
    """Stage 1, which ways that train it alike share; what they do with it afterwards has no say in it."""
    config = run.config
    alike = {name: config.to_json()[name] for name in ("seed", "epochs", "stretch", "loss", "adapter")}
    key = digest_of({**alike, "chips": fingerprint(pieces_of(run.chips))})
    if key not in _STAGE_1:
        _STAGE_1.clear()  # problems come one after the other
        _STAGE_1[key] = adapt(run)
    backbone, head = copy.deepcopy(_STAGE_1[key])
    backbone.views = config.view_count
    return backbone, head


_STAGE_1: dict[str, tuple[Backbone, LinearHead]] = {}


def _aligned(run: Run) -> Made:
    backbone, _ = _adapted(run)
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


RANKS = (16, 32, 64)
CLUSTERS = (8, 16, 64, 128)
PULLS = (0.0, 0.25, 0.5, 0.75, 1.0)
OTHER_KINDS = tuple(kind for kind in KINDS if kind != "lora")

_VARIANTS: dict[str, Mapping[str, Any]] = {
    **{f"rank {rank}": {"adapter": AdapterSettings(rank=rank, alpha=2.0 * rank)} for rank in RANKS},
    **{kind: {"adapter": AdapterSettings(kind=kind)} for kind in OTHER_KINDS},
}
WAYS: dict[str, Way] = {
    "frozen": Way(_frozen),
    "lora": Way(_adapted),
    # What aligns sensors needs several of them.
    **{f"lora, {name}": Way(_adapted, {"loss": name}) for name in LOSSES if name != "ce" and not LOSSES[name].domains},
    **{f"lora, {name}": Way(_adapted, fields) for name, fields in _VARIANTS.items()},
    "finetune": Way(finetune),
    "deblora": Way(_aligned),
    "deblora, from stage 1": Way(_aligned, {"align_start": "adapted"}),
    **{f"deblora, pull {pull:g}": Way(_aligned, {"debias": DebiasSettings(pull=pull)}) for pull in PULLS},
    "deblora, shrinkage": Way(_aligned, {"debias": DebiasSettings(pull="shrinkage")}),
    "deblora, global centre": Way(_aligned, {"debias": DebiasSettings(centre="global")}),
    **{f"deblora, K {count}": Way(_aligned, {"debias": DebiasSettings(n_clusters=count)}) for count in CLUSTERS},
    **{f"deblora, {name}": Way(_aligned, fields) for name, fields in _VARIANTS.items()},
}
"""Each with as many views of a chip as is the default."""
WAYS |= {f"{name}, one view": Way(way.make, {**way.fields, "views": 1}) for name, way in WAYS.items()}


def setting_of(problem: Problem, epochs: int) -> dict[str, Any]:
    """What must be the same for scores of several seeds and ways to stand in one table."""
    return {"epochs": epochs, "size": SIZE, "source": asdict(SOURCES[problem.source]), "versions": versions()}


def facts_of(problem: Problem, way: str, task: Task, epochs: int) -> dict[str, Any]:
    """All that decides the features of one problem under one way."""
    config = _config(problem, way, epochs).to_json()
    setting = setting_of(problem, epochs)
    return {"problem": str(problem), "way": way, "config": config, "chips": task.digest, "setting": setting}


def digest_of(facts: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that stand for plain JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def features_of(problem: Problem, way: str, task: Task, cache: Path, epochs: int) -> Features:
    """Features of one problem under one way, from the cache where they are there."""
    facts = facts_of(problem, way, task, epochs)
    path = cache / f"{problem}-{way.replace(',', '').replace(' ', '_')}-{digest_of(facts)}.safetensors"
    if not path.exists():
        _make(task, _config(problem, way, epochs), way, facts, path)
    arrays = load_file(path)
    head = LinearHead(arrays["weight"], arrays["bias"]) if "weight" in arrays else None
    return Features(arrays["train"], arrays["score"], head, json.loads(path.with_suffix(".json").read_text()))


def _config(problem: Problem, way: str, epochs: int) -> TrainConfig:
    stretch = SOURCES[problem.source].stretch
    return TrainConfig(seed=problem.seed, epochs=epochs, stretch=stretch, **WAYS[way].fields)


def _make(task: Task, config: TrainConfig, way: str, facts: dict[str, Any], path: Path) -> None:
    start = time.process_time()
    run = Run(task.train, None, normalisation_for(task.train, config), config, lambda progress: None, None)
    backbone, head = WAYS[way].make(run)
    arrays = {
        name: extract_features(backbone, chips, run.normalisation)
        for name, chips in (("train", task.train), ("score", task.score))
    }
    if head is not None:
        arrays |= {"weight": head.weight, "bias": head.bias}
    more = {
        "seconds": {stage: round(wall, 1) for stage, wall in run.seconds.items()},
        "processor_s": round(time.process_time() - start, 1),
        "backbone": backbone.digest,
        "counts": task.train.table.counts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({**facts, **more}))
    with atomic(path) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)

"""The rows of the comparison: which features, moved or not, under which head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.longtail.features import CLUSTERS, OTHER_KINDS, PULLS, RANKS, WAYS, Features
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias import DebiasSettings, LinearHead, calibrate, logit_adjustment
from torchgeo_debias.debias.methods import METHODS, fit_method
from torchgeo_debias.debias.samples import Samples

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        way: How the backbone was adapted, one of `benchmarks.longtail.features.WAYS`.
        head: A method of `torchgeo_debias.debias.METHODS`; ``own`` for the head that was trained along, ``own+la`` with
            its logits adjusted afterwards.
        settings: Of the head.
        calibrate: Stage 2 of debLoRA on the features that the head is fitted on; None leaves them as they are.
    """

    way: str
    head: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibrate: DebiasSettings | None = None

    @property
    def name(self) -> str:
        """As tables show it."""
        moved = [] if self.calibrate is None else [", ".join(["calibrated", *_changes(self.calibrate)])]
        return " | ".join([self.way, *moved, self.head, *(f"{key} {value}" for key, value in self.settings.items())])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def predict(row: Row, features: Features, labels: npt.NDArray[np.int64], table: ClassTable, seed: int) -> Array:
    """Logits (M, C) of the chips to score on."""
    return _head(row, features, labels, table, seed).logits(features.score)


def _changes(settings: DebiasSettings) -> list[str]:
    """What of the settings is not the default."""
    default = DebiasSettings().to_json()
    return [f"{key} {value}" for key, value in settings.to_json().items() if value != default[key]]


def _head(row: Row, features: Features, labels: npt.NDArray[np.int64], table: ClassTable, seed: int) -> LinearHead:
    if row.head.startswith("own"):
        if features.head is None:
            raise ValueError(f"No head was trained along in {row.way}.")
        return features.head.shifted(-logit_adjustment(table, 1.0)) if row.head == "own+la" else features.head
    train = features.train
    if row.calibrate is not None:
        train = calibrate(train, labels, table, row.calibrate, seed).targets
    return fit_method(row.head, Samples(train, labels, table), row.settings, seed)


def rows(suite: str) -> list[Row]:
    """The rows of one of the `SUITES`."""
    return SUITES[suite]()


def _heads() -> list[Row]:
    """Every method on the features of the plain LoRA, and debLoRA with its controls, all of one view."""
    ways = ("deblora, one view", "deblora, pull 0, one view", "deblora, global centre, one view")
    rivals = [Row("lora, one view", head) for head in ("own", "own+la", *METHODS)]
    return [*rivals, Row("lora, balanced-softmax, one view", "own"), *_debiased(*ways)]


def _finalists() -> list[Row]:
    """Those that are worth ten seeds, with one view and with those of the default."""
    rivals = [Row(way, head) for way in ("lora, one view", "lora") for head in ("own", "own+la", "la")]
    return [*rivals, *_debiased("deblora", "deblora, pull 0")]


def _frozen() -> list[Row]:
    """Every method on frozen features."""
    return [Row("frozen, one view", head) for head in METHODS]


def _sweep(names: Iterable[str]) -> list[Row]:
    """debLoRA with one setting at several values."""
    return _debiased("deblora", *(f"deblora, {name}" for name in names))


def _adapters() -> list[Row]:
    """Every kind of adapter, plain and with its logits adjusted, and debLoRA on top of it."""
    plain = [Row(name, head) for name in ("lora", *(f"lora, {kind}" for kind in OTHER_KINDS)) for head in _OWN]
    return [*plain, *_sweep(OTHER_KINDS)]


def _ranks() -> list[Row]:
    """Ranks of the LoRA, plain and with debLoRA."""
    plain = [Row(name, head) for name in ("lora", *(f"lora, rank {rank}" for rank in RANKS)) for head in _OWN]
    return [*plain, *_sweep(f"rank {rank}" for rank in RANKS)]


_OWN = ("own", "own+la")
SUITES: Mapping[str, Callable[[], list[Row]]] = {
    "heads": _heads,
    "finalists": _finalists,
    "frozen": _frozen,
    "adapters": _adapters,
    "ranks": _ranks,
    "clusters": lambda: _sweep(f"K {count}" for count in CLUSTERS),
    "pulls": lambda: _sweep(["shrinkage", *(f"pull {pull:g}" for pull in PULLS)]),
}


def _debiased(*ways: str) -> list[Row]:
    """The heads of debLoRA: fitted on its features, calibrated once more as stage 2 was, and the one trained along."""
    found = []
    for way in ways:
        settings = WAYS[way].fields.get("debias", DebiasSettings())
        found += [Row(way, "la", calibrate=None if settings.pull == 0 else settings), Row(way, "own")]
    return found

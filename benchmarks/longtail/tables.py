"""From records to the table and the plot that people look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from torchgeo_debias.evaluation import compare, summarise

GROUPS = ("head", "middle", "tail", "macro")
RIVAL = "lora, one view | own+la"
"""The strongest simple rival: plain LoRA, the logits of its own head adjusted afterwards."""

Record = Mapping[str, Any]


def by_setting(records: Sequence[Record]) -> list[list[Record]]:
    """The records once for each setting under which rows were made, with the rows of that setting alone.

    Scores after other numbers of epochs, on other splits or by other versions have no common mean.
    """
    settings = sorted({_setting(row) for record in records for row in record["rows"].values()})
    groups: list[list[Record]] = []
    for setting in settings:
        kept = [
            {**record, "rows": {name: row for name, row in record["rows"].items() if _setting(row) == setting}}
            for record in records
        ]
        groups.append([record for record in kept if record["rows"]])
    return groups


def heading(records: Sequence[Record]) -> str:
    """Imbalance and epochs of records of one setting."""
    imbalance = records[0]["imbalance"]
    real = sorted({f"{record['imbalance']['real']:.3g}" for record in records}, key=float)
    epochs = next(iter(records[0]["rows"].values()))["setting"]["epochs"]
    return f"imbalance {imbalance['nominal']:g} (as drawn {' to '.join([real[0], *real[1:][-1:]])}), {epochs} epochs"


def table(records: Sequence[Record]) -> str:
    """Markdown, rows by falling mean tail: F1 x 100, mean ± std over seeds, and paired differences of tail and head."""
    rival = RIVAL.replace("|", "+")
    lines = [
        f"| method | head | middle | tail | macro | tail against {rival} | head | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {name for record in records for name in record["rows"]}
    tails = {name: summarise(_values(records, name, "tail")).mean for name in names}
    for name in sorted(names, key=lambda name: -tails[name]):
        cells = [_spread(_values(records, name, group)) for group in GROUPS]
        both = [record for record in records if {name, RIVAL} <= set(record["rows"])]
        against = " | ".join(_difference(both, name, group) if both else "" for group in ("tail", "head"))
        seeds = len(_values(records, name, "tail"))
        lines.append(f"| {name.replace('|', '+')} | {' | '.join(cells)} | {against} | {seeds} |")
    return "\n".join(lines)


def plot(records: Sequence[Record], path: Path) -> None:
    """Tail against head, a point for each method, bars of one standard deviation."""
    figure, axes = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    for name in sorted({name for record in records for name in record["rows"]}):
        head, tail = (summarise(_values(records, name, group)) for group in ("head", "tail"))
        axes.errorbar(head.mean, tail.mean, xerr=head.std, yerr=tail.std, fmt="o", alpha=0.6, linewidth=0.6)
        axes.annotate(name, (head.mean, tail.mean), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel="F1 of head classes", ylabel="F1 of tail classes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _setting(row: Mapping[str, Any]) -> str:
    return json.dumps(row["setting"], sort_keys=True)


def _values(records: Sequence[Record], name: str, group: str) -> list[float]:
    return [100 * record["rows"][name]["f1"][group] for record in records if name in record["rows"]]


def _spread(values: Sequence[float]) -> str:
    spread = summarise(values)
    return f"{spread.mean:.1f}" + (f" ± {spread.std:.1f}" if len(values) > 1 else "")


def _difference(records: Sequence[Record], name: str, group: str) -> str:
    paired = compare(_values(records, RIVAL, group), _values(records, name, group))
    interval = f" ({paired.low:+.1f} to {paired.high:+.1f})" if len(records) > 1 else ""
    return f"{paired.mean:+.1f}{interval}"

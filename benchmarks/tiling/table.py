"""One table of all sections, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.tiling import suppression

META = ("date", "foreign_load_cores", "repeats")
HEAD = """| section | contender | wall s (quartiles) | cpu s | peak above imports MB | against ours |
|---|---|---:|---:|---:|---:|"""


def table(results: dict[str, Any]) -> str:
    """The figures of :mod:`benchmarks.tiling.run` for people; above 1 beside a peer: how much slower it is."""
    bare = {name: {k: v for k, v in figures.items() if k not in META} for name, figures in results.items()}
    boxes = bare.pop("suppression", None)
    rows = [f"| {' | '.join(row)} |" for name, figures in bare.items() for row in _rows(name, figures)]
    tables = ["\n".join([HEAD, *rows])] if rows else []
    return "\n\n".join(["", *tables, *([suppression.table(boxes)] if boxes else [])])


def _rows(name: str, figures: dict[str, Any]) -> Iterator[list[str]]:
    if name == "memory":
        for raster, facts in figures.items():
            share = facts["peak_above_imports_mb"] / figures["tiled"]["peak_above_imports_mb"]
            yield [name, f"ours, {raster}", *_measured(facts), f"{share:.2f} x the memory at 'tiled'"]
    elif name == "blending":
        yield [name, "ours, blended", *_measured(figures["blended"]), ""]
        ratio, cpu = figures["ratio_wall"], figures["ratio_cpu"]
        yield [
            name,
            "ours, cropped",
            *_measured(figures["plain"]),
            f"{1 / ratio['median']:.2f} (cpu {1 / cpu['median']:.2f})",
        ]
    elif name == "kills":
        yield [
            name,
            f"{figures['kills']} SIGKILLs, {figures['completed']} completions, {figures['resumed']} resumptions",
            f"{figures['undisturbed_s']}",
            "",
            "",
            f"equal; {figures['files_left_behind']} files left behind",
        ]
    else:
        for threads, case in figures.items():
            for contender, facts in case["contenders"].items():
                ratio = case["peers_over_ours"].get(contender)
                yield [f"{name}, {threads}", contender, *_measured(facts), _spread(ratio) if ratio else ""]
            for stage, facts in case["stages"].items():
                yield [f"{name}, {threads}", f"{stage} alone ({facts['way']})", *_measured(facts), ""]
            over = f"ours is {_spread(case['ours_over_limit'])} x that"
            yield [f"{name}, {threads}", "physical limit", _spread(case["limit_s"]), "", "", over]


def _measured(facts: dict[str, Any]) -> list[str]:
    return [_spread(facts["wall_s"]), f"{facts['cpu_s']['median']:.2f}", f"{facts['peak_above_imports_mb']}"]


def _spread(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"

"""What the command line prints: bars on stderr, results on stdout; or what it tells a listener instead."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from torchgeo_debias.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from torchgeo_debias.classes import ClassTable
    from torchgeo_debias.evaluation import FoundScores, Scores, Thresholds
    from torchgeo_debias.evaluation.detection import DetectionScores
    from torchgeo_debias.inference.held_out import HeldOutScores
    from torchgeo_debias.inference.results import ClassifySummary
    from torchgeo_debias.package import DetectorPackage, ModelPackage


_FILES = 6
"""Files that are named one by one."""


class Listener(Protocol):
    """Another program that runs verbs in its own process, and takes what would be shown to a person."""

    def progress(self, progress: Progress) -> None:
        """Take a step of the run; may raise :class:`~torchgeo_debias.errors.Cancelled` to stop it."""
        ...

    def result(self, value: dict[str, Any]) -> None:
        """Take what the verb prints with ``--json``."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of progress and results in this block, and show neither."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def line(text: str) -> None:
    """One line of result."""
    typer.echo(text)


def error(sentence: str) -> None:
    """The sentence that ends a refused run."""
    typer.echo(f"Error: {' '.join(sentence.split())}", err=True)


def as_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    if (listener := _listener.get()) is not None:
        listener.result(value)
        return
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def plain_logging() -> None:
    """Show the library's warnings as plain lines on stderr, and nothing of the libraries below."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log = logging.getLogger("torchgeo_debias")
    log.handlers = [handler]
    log.setLevel(logging.WARNING)


@contextmanager
def bar(quiet: bool) -> Iterator[ProgressCallback]:
    """A callback that draws one bar a stage on stderr."""
    if (listener := _listener.get()) is not None:
        yield listener.progress
        return
    if quiet:
        yield silent
        return
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def report(progress: Progress) -> None:
        current = bars.get("now")
        # A stage that starts again (the same name from zero) gets a bar of its own.
        if current is None or current.desc != progress.stage or progress.done < current.n:
            if current is not None:
                current.close()
            current = bars["now"] = tqdm(total=progress.total or None, desc=progress.stage, leave=True)
        current.update(progress.done - current.n)

    try:
        yield report
    finally:
        if "now" in bars:
            bars["now"].close()


def class_counts(table: ClassTable) -> None:
    """The class table, most frequent first."""
    width = max(len(name) for name in table.names)
    for name, count, group in sorted(zip(table.names, table.counts, table.groups, strict=True), key=lambda r: -r[1]):
        line(f"  {name:<{width}}  {count:>7}  {group}")


def scores(after: Scores, before: Scores | None, twin: str = "LoRA") -> None:
    """F1 of the groups, beside those of the twin where one was kept."""
    line(f"{'F1':<8}" + (f"{twin:>8}" if before is not None else "") + f"{'model':>8}")
    for key in ("head", "middle", "tail", "macro"):
        old = f"{100 * before.f1[key]:>8.1f}" if before is not None else ""
        line(f"{key:<8}{old}{100 * after.f1[key]:>8.1f}")
    if after.absent:
        line(f"No test sample: {', '.join(after.absent)}")


def summary(result: ClassifySummary, machine: bool) -> None:
    """What classifying a raster or a layer came to."""
    if machine:
        as_json(
            {
                "counts": result.counts,
                "tiles": result.tiles,
                "skipped": result.skipped,
                "files": [str(path) for path in result.files],
                "notes": list(result.notes),
            }
        )
        return
    for note in result.notes:
        line(note)
    for name, count in result.counts.items():
        line(f"  {name:<24} {count:>8}")
    names = [str(path) for path in result.files]
    written = ", ".join(names) if len(names) <= _FILES else f"{len(names)} files in {result.files[0].parent}"
    line(f"{result.tiles} seen, {result.skipped} of them without data; written: {written}")


def trained(
    out: Path, table: ClassTable, seconds: Mapping[str, float], tested: HeldOutScores | None, machine: bool
) -> None:
    """What a training came to, and how the model does on what was held out."""
    if machine:
        held = None if tested is None else tested.to_json()
        as_json({"model": str(out), "classes": table.to_json(), "seconds": seconds, "hold_out": held})
        return
    class_counts(table)
    if tested is not None:
        line(tested.sentence)
        found: Any = tested.evaluation
        if tested.unit == "chips":
            scores(found.scores, found.raw)
        else:
            average_precision(found.scores, found.raw, tested.twin)
    line(f"Model written to {out}")


def agreement(exports: dict[str, Any]) -> None:
    """How far the backends of an export agree with torch."""
    found = exports["agreement"]
    line(f"agreement with {found['with']} on {found['chips']} chips ({found['source']})")
    for name, entry in found["of"].items():
        mean, most = entry["mean_difference"], entry["max_difference"]
        line(f"  {name:<16}{entry['same_class']:>8.1%} same class, probabilities {mean:.1e} apart, at most {most:.1e}")


def average_precision(after: DetectionScores, before: DetectionScores | None, twin: str = "LoRA") -> None:
    """AP50 of the groups, beside that of the twin where one was kept."""
    line(f"{'AP50':<8}" + (f"{twin:>8}" if before is not None else "") + f"{'model':>8}{'AP75':>8}{after.ap_name:>10}")
    for key in ("head", "middle", "tail", "macro"):
        old = _hundredths(before.ap50[key]) if before is not None else ""
        line(
            f"{key:<8}{old}{_hundredths(after.ap50[key])}{_hundredths(after.ap75[key])}{_hundredths(after.ap[key]):>10}"
        )
    if after.absent:
        line(f"No test object: {', '.join(after.absent)}")


def _hundredths(value: float) -> str:
    return f"{'-' if math.isnan(value) else f'{100 * value:.1f}':>8}"


def found(scores: FoundScores) -> None:
    """Precision and recall of what the thresholds of a detector leave."""
    recall, precision = (scores.means[measure]["macro"] for measure in ("recall", "precision"))
    line(f"With the thresholds of the model: recall{_hundredths(recall)}, precision{_hundredths(precision)}")


def package(model: ModelPackage | DetectorPackage) -> None:
    """A model package for people."""
    facts = {
        "task": model.task,
        "method": model.method.get("method"),
        "backbone": f"{model.backbone.name} ({model.backbone.licence}), weights {model.backbone.digest[:12]}",
        "bands": f"{', '.join(model.bands)} ({model.dtype})",
        **(_of_classifier(model) if model.task == "classification" else _of_detector(model)),
        **_start(model),
        "compared with": _twin(model) if model.raw is not None else "nothing",
        "thresholds": _limits(model.thresholds),
        "seed": model.provenance.get("seed"),
    }
    for name, value in facts.items():
        line(f"{name:<14}{value}")
    line("classes")
    class_counts(model.table)


def _start(model: ModelPackage | DetectorPackage) -> dict[str, str]:
    start = model.provenance.get("start")
    return {"started from": f"{start.get('model')} ({str(start.get('digest'))[:12]})"} if start else {}


def _twin(model: ModelPackage | DetectorPackage) -> str:
    return "plain LoRA" if model.twin_name == "LoRA" else "control of as many steps"


def _limits(thresholds: Thresholds | None) -> str:
    if thresholds is None:
        return "none"
    sure = f"{thresholds.guaranteed.sum()} of {len(thresholds.names)} classes"
    rest = "" if thresholds.abstain == "never" else f"; chips like no class: {thresholds.abstain}"
    return f"recall {thresholds.recall:g} for {sure}, temperature {thresholds.temperature:.3g}{rest}"


def _of_classifier(model: Any) -> dict[str, str]:  # noqa: ANN401 (its module imports torch)
    spec = model.spec
    window = "fitted to the object" if spec.window is None else f"{spec.window:g} {spec.unit}"
    return {
        "chip": f"{spec.size} px of a window of {window}, ground sampling distance {_metres(spec.gsd)}",
        "trained on": f"{model.provenance.get('training_chips')} chips",
    }


def _of_detector(model: Any) -> dict[str, str]:  # noqa: ANN401 (its module imports torch)
    known = model.provenance
    return {
        "boxes": "oriented" if model.detector.oriented else "horizontal",
        "tile": f"{model.spec.size} px, ground sampling distance {_metres(model.spec.gsd)}",
        "trained on": f"{known.get('training_objects')} objects in {known.get('training_images')} images",
    }


def _metres(gsd: float | None) -> str:
    return f"{gsd:g} m" if gsd else "unknown"

"""What the verbs that write a report have in common, and the test of what a training held out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.tiling.staging import check_target

if TYPE_CHECKING:
    from torchgeo_debias.data.chips import Chips
    from torchgeo_debias.data.objects import ObjectSet
    from torchgeo_debias.inference.held_out import HeldOutScores, Split
    from torchgeo_debias.package import DetectorPackage, ModelPackage
    from torchgeo_debias.progress import ProgressCallback
    from torchgeo_debias.training import TrainConfig
    from torchgeo_debias.training.detection import DetectConfig


def check_report(path: Path | None) -> None:
    """Refuse a name under which no report can be written, before the work that it reports on.

    Raises:
        OutputError: If it does not end in ``.html`` or ``.htm``, or its folder takes no files.
    """
    if path is not None:
        check_target(path, (".html", ".htm"))


def check_held_out(share: float | None, report: Path | None) -> None:
    """Refuse what cannot be held out or reported, before anything is read.

    Raises:
        ConfigError: If the share is none, or there is a report without a share.
        OutputError: See :func:`check_report`.
    """
    if share is None and report is not None:
        raise ConfigError("--report needs --hold-out SHARE: a training without a test has no scores to report.")
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"The share to hold out must lie between 0 and 1; received {share}.")
    check_report(report)


def score_test(
    package: ModelPackage | DetectorPackage,
    held: Chips | ObjectSet,
    split: Split,
    out: Path,
    report: Path | None,
    settings: TrainConfig | DetectConfig,
    progress: ProgressCallback,
) -> HeldOutScores:
    """Score what was held out; the package, which is there already, gets the scores, and a report is written."""
    from torchgeo_debias.inference.held_out import score_held_out, write_held_out

    tested = score_held_out(
        package, held, split, weights=settings.weights, precision=settings.precision, progress=progress
    )
    package.save(out)
    if report is not None:
        write_held_out(report, tested, package, str(package.provenance["data"]))
    return tested

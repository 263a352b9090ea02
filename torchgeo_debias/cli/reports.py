"""What the verbs that write a report have in common."""

from __future__ import annotations

from pathlib import Path

from torchgeo_debias.tiling.staging import check_target


def check_report(path: Path | None) -> None:
    """Refuse a name under which no report can be written, before the work that it reports on.

    Raises:
        OutputError: If it does not end in ``.html`` or ``.htm``, or its folder takes no files.
    """
    if path is not None:
        check_target(path, (".html", ".htm"))

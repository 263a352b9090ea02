"""The verb that looks at features which a training kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app
from torchgeo_debias.cli.options import Json
from torchgeo_debias.errors import ConfigError


@app.command()
def feature_space(
    folder: Annotated[Path, typer.Argument(help="Folder that 'train --keep-features' wrote.")],
    out: Annotated[Path | None, typer.Option(help="Write an HTML report with a picture here (.html).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the picture.", show_default="0", min=0, max=2**32 - 1)] = None,
    perplexity: Annotated[
        float | None,
        typer.Option(help="About how many neighbours a chip has in the picture.", show_default="30 or fewer"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what debLoRA did to the features.

    Distances within and between head and tail classes, before, calibrated and after.
    """
    from torchgeo_debias.cli.reports import check_report
    from torchgeo_debias.evaluation.feature_space import STATES, FeatureSpace
    from torchgeo_debias.evaluation.feature_space_report import distance_rows, embed, feature_space_report

    if out is None and (seed, perplexity) != (None, None):
        raise ConfigError("--seed and --perplexity are those of the picture: give --out as well, or leave them out.")
    check_report(out)
    space = FeatureSpace.load(folder)
    found = space.distances()
    if out is not None:
        seed = seed or 0
        feature_space_report(out, space, embed(space, perplexity, seed), title=f"Features in {folder.name}", seed=seed)
    if as_json:
        moved = {name: pull for name, pull in zip(space.table.names, space.pull.tolist(), strict=True) if pull > 0}
        show.as_json({**{state: found[state].to_json() for state in STATES}, "pull": moved})
        return
    rows = distance_rows(found)
    width = max(len(row[0]) for row in rows)
    show.line(f"{'cosine distance':<{width}}" + "".join(f"{state:>12}" for state in STATES))
    for name, *cells in rows:
        show.line(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    if out is not None:
        show.line(f"Report written to {out}")

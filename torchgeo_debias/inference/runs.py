"""Runs over one raster or many: opening, the journal, the probe, and the summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchgeo_debias.errors import ConfigError, LabelError, OutputError, RasterError
from torchgeo_debias.files import make_folder
from torchgeo_debias.inference.backends import cores
from torchgeo_debias.inference.making import run_map
from torchgeo_debias.inference.mapping import (
    MapJob,
    MapOptions,
    OutputFormats,
    Outputs,
    Resources,
    Tally,
    require_room,
    room,
)
from torchgeo_debias.inference.predictor import TilePredictor
from torchgeo_debias.inference.probe import tune
from torchgeo_debias.inference.results import ClassifySummary, check_overwrite
from torchgeo_debias.progress import ProgressCallback
from torchgeo_debias.tiling.engine import Settings
from torchgeo_debias.tiling.journal import Journal, locked
from torchgeo_debias.tiling.opening import list_rasters, open_source
from torchgeo_debias.tiling.plan import LARGEST_OVERLAP
from torchgeo_debias.tiling.source import Source

Rasters = Path | Sequence[Path] | Source

MakeJob = Callable[[Source], MapJob]
_WORTH_A_PROBE = 500
"""Tiles from which finding the best settings saves more time than it takes."""

_BATCH_PIXELS = 800_000
"""Pixels of one batch where nothing was probed: activations stay small."""

_NAMED = 3
"""So many broken rasters are named in the closing sentence."""


def run_one(
    rasters: Rasters,
    predictor: TilePredictor,
    outputs: Outputs,
    make_job: MakeJob,
    options: MapOptions,
    resources: Resources,
    progress: ProgressCallback,
    gsd: float | None = None,
) -> ClassifySummary:
    """Map one raster, or a mosaic of several.

    Args:
        rasters: A file, several files or folders, or a source.
        predictor: The model.
        outputs: What to write.
        make_job: What is done with the raster; refuses one that does not fit.
        options: As in ``make_job``.
        resources: Batch size, threads and engine.
        progress: Told about finished tiles.
        gsd: Metres per pixel to read at; None reads the raster as it is.
    """
    with opened(rasters, bands=options.bands, nodata=options.nodata, crs=options.crs, gsd=gsd) as source:
        outputs.check([*source.files, *_area_file(options)])
        job = make_job(source)
        if not len(job.wanted):
            raise LabelError(f"The area asked for does not meet {source.name}; check the CRS and the place of both.")
        require_room(room(job), outputs.paths[0])
        made = {"shape": outputs.shape, "layer": outputs.layer is not None, "map": outputs.class_map is not None}
        run = _describe(predictor, options, made | {"scores": outputs.scores is not None})
        with locked(outputs.paths), Journal(outputs.paths[0], run) as journal:
            tally = Tally(len(job.wanted), len(job.table.names), progress, options.verb)
            settings = _settings(journal, predictor, job, resources, tally.total)
            raster = journal.begin("The raster", job.source.identity())
            found = run_map(job, journal, raster, settings, resources.engine, tally)
            journal.remove()
        if not found:
            raise RasterError(
                f"There is no data in the bands read of {source.name}, or none in the area asked for; check the nodata "
                "value (--nodata), the bands (--bands) and the area (--area)."
            )
    notes = (*job.notes, *_cut(tally, job.task.size), *_resumed(journal))
    return _summary(predictor, tally, outputs.paths, notes)


def run_many(
    rasters: Sequence[Path],
    predictor: TilePredictor,
    out_dir: Path,
    formats: OutputFormats,
    make_job: Callable[[Source, Outputs], MapJob],
    options: MapOptions,
    resources: Resources,
    progress: ProgressCallback,
) -> ClassifySummary:
    """Map many rasters, each on its own, with one journal in ``out_dir``; see :func:`run_one`.

    Raises:
        RasterError: If some could not be mapped; the others are finished first.
    """
    paths = list_rasters(rasters)
    stems = [path.stem for path in paths]
    twice = sorted(stem for stem, times in Counter(stems).items() if times > 1)
    if twice:
        raise ConfigError(f"Two rasters are called {twice[0]}, so their results would be too; map them one by one.")
    make_folder(out_dir)
    results = [formats.of(out_dir, stem) for stem in stems]
    check_overwrite(paths, [path for outputs in results for path in outputs.paths])

    # There may be thousands of rasters: no more than two of them are in memory, or open, at a time.
    @contextmanager
    def made(number: int) -> Iterator[MapJob]:
        with opened(paths[number], bands=options.bands, nodata=options.nodata, crs=options.crs) as source:
            results[number].check([*source.files, *_area_file(options)])
            yield make_job(source, results[number])

    failures: list[str] = []
    tiles: dict[int, int] = {}
    needed: Counter[Path] = Counter()
    for number in range(len(paths)):
        try:
            with made(number) as job:
                tiles[number] = len(job.wanted)
                if tiles[number]:
                    needed += room(job)
        except RasterError as error:
            failures.append(str(error))
    wanted = [number for number, count in tiles.items() if count]
    if tiles and not wanted:
        raise LabelError(f"The area asked for meets none of the {len(tiles)} rasters; check the CRS and the place.")
    require_room(needed, out_dir)
    notes: dict[str, None] = {}
    if len(wanted) < len(tiles):
        notes[f"{len(tiles) - len(wanted)} rasters lie outside the area."] = None
    empty: list[str] = []
    files: list[Path] = []
    tally = Tally(sum(tiles.values()), len(predictor.table.names), progress, options.verb)
    tile = 0

    run = _describe(predictor, options, asdict(formats))
    with locked([out_dir]), Journal(out_dir / options.verb, run) as journal:
        for number in wanted:
            try:
                with made(number) as job, locked(results[number].paths):
                    facts = _finish(journal, stems[number], job, predictor, resources, tally)
            except (RasterError, OutputError) as error:
                failures.append(str(error))
                continue
            tile = job.task.size  # that of the model, for all of them
            notes |= dict.fromkeys(job.notes)
            files += map(Path, facts["files"])
            empty += [] if facts["files"] else [stems[number]]
        if not failures:
            journal.remove()
    if empty:
        notes[f"Without data, so without files: {', '.join(empty[:_NAMED])}{' ...' * (len(empty) > _NAMED)}."] = None
    if failures:
        raise RasterError(
            f"{len(failures)} of {len(paths)} rasters could not be mapped, the others are complete: "
            f"{' '.join(failures[:_NAMED])}"
        )
    return _summary(predictor, tally, tuple(files), (*notes, *_cut(tally, tile), *_resumed(journal)))


def _finish(
    journal: Journal, name: str, job: MapJob, predictor: TilePredictor, resources: Resources, tally: Tally
) -> dict[str, Any]:
    """Map one raster of many, unless its files are there already.

    Returns:
        The facts of it: its counts and files.
    """
    settings = _settings(journal, predictor, job, resources, tally.total)
    raster = journal.begin(name, job.source.identity())
    if (facts := journal.finished(raster)) and all(Path(path).exists() for path in facts["files"]):
        tally.take(facts)
        return facts
    before = tally.facts()
    found = run_map(job, journal, raster, settings, resources.engine, tally)
    facts = {**tally.facts(before), "files": [str(path) for path in job.outputs.paths] if found else []}
    journal.finish(raster, facts)
    return facts


@contextmanager
def opened(
    rasters: Rasters,
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    crs: object | None = None,
    gsd: float | None = None,
) -> Iterator[Source]:
    """What :func:`~torchgeo_debias.tiling.opening.open_source` opens; what was handed over open stays open."""
    source = open_source(rasters, bands=bands, nodata=nodata, crs=crs, gsd=gsd)
    try:
        yield source
    finally:
        if isinstance(rasters, str | Path | Sequence):
            source.close()


def _area_file(options: MapOptions) -> list[Path]:
    return [Path(options.area)] if isinstance(options.area, str | Path) else []


def _describe(predictor: TilePredictor, options: MapOptions, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the result of a run hangs on, for its journal."""
    return {
        "version": version("torchgeo-debias"),
        "model": predictor.identity,
        **options.described(),
        "results": dict(outputs),
    }


def _settings(journal: Journal, predictor: TilePredictor, job: MapJob, resources: Resources, tiles: int) -> Settings:
    """Those asked for, else those of an earlier attempt, else found out now."""
    asked = {name: getattr(resources, name) for name in ("batch_size", "workers", "threads")}

    def choose() -> Mapping[str, int]:
        if tiles < _WORTH_A_PROBE or None not in asked.values():
            return {name: asked[name] or default for name, default in _defaults(predictor, job).items()}
        return tune(predictor, **asked)._asdict()

    # Bands are cut for one batch size; the others differ by rounding.
    chosen = journal.settings(choose, {"batch_size": resources.batch_size})
    chosen |= {name: value for name, value in asked.items() if value is not None}
    return Settings(**chosen, readers=resources.readers)


def _defaults(predictor: TilePredictor, job: MapJob) -> dict[str, int]:
    pixels = job.task.size**2
    # One core a call: threads of one call wait for the slowest of them, and so for whatever else the machine does.
    workers = cores() if getattr(predictor, "place", "cpu") == "cpu" else 1
    return {"batch_size": min(max(_BATCH_PIXELS // pixels, 1), 64), "workers": workers, "threads": 1}


def _cut(tally: Tally, tile: int) -> list[str]:
    """What to do about objects that are larger than the overlap of tiles of so many pixels of the model."""
    if not tally.cut:
        return []
    advice = (
        f"raise the overlap to at least {math.ceil(100 * tally.reach / tile) / 100:.2f} "
        f"({tally.reach} of {tile} pixels)"
        if tally.reach <= LARGEST_OVERLAP * tile
        else f"they may be longer than a tile ({tile} pixels)"
    )
    return [f"{tally.cut} objects reach the rim of their tile and may be cut: {advice}."]


def _resumed(journal: Journal) -> list[str]:
    return [f"Went on with {journal.resumed} bands that were finished before."] if journal.resumed else []


def _summary(
    predictor: TilePredictor, tally: Tally, files: tuple[Path, ...], notes: tuple[str, ...]
) -> ClassifySummary:
    counts = dict(zip(predictor.table.names, tally.counts.tolist(), strict=True))
    return ClassifySummary(counts, tally.total, tally.skipped, files, notes)

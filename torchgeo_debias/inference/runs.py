"""Runs over one raster or many: opening, the journal, the probe, and the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchgeo_debias.errors import ConfigError, LabelError, RasterError
from torchgeo_debias.files import make_folder
from torchgeo_debias.inference.backends import cores
from torchgeo_debias.inference.mapping import MapJob, MapOptions, OutputFormats, Outputs, Resources, Tally, run_map
from torchgeo_debias.inference.predictor import ChipPredictor, PixelPredictor
from torchgeo_debias.inference.probe import tune
from torchgeo_debias.inference.results import ClassifySummary
from torchgeo_debias.progress import ProgressCallback
from torchgeo_debias.tiling.area import area_digest
from torchgeo_debias.tiling.engine import Settings
from torchgeo_debias.tiling.journal import Journal
from torchgeo_debias.tiling.opening import list_rasters, open_source
from torchgeo_debias.tiling.source import Source

Rasters = Path | Sequence[Path] | Source

MakeJob = Callable[[Source], MapJob]
_BATCH_JOURNAL = "classify"
_WORTH_A_PROBE = 500
"""Tiles from which finding the best settings saves more time than it takes."""

_BATCH_PIXELS = 800_000
"""Pixels of one batch where nothing was probed: activations stay small."""

_NAMED = 3
"""So many broken rasters are named in the closing sentence."""


def run_one(
    rasters: Rasters,
    predictor: ChipPredictor | PixelPredictor,
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
    with _opened(rasters, options, gsd) as source:
        job = make_job(source)
        outputs.check(_files(rasters))
        if not len(job.wanted):
            raise LabelError(f"The area asked for does not meet {source.name}; check the CRS and the place of both.")
        made = {"shape": outputs.shape, "layer": outputs.layer is not None, "map": outputs.class_map is not None}
        run = _describe(predictor, options, made | {"scores": outputs.scores is not None})
        with Journal(outputs.paths[0], run) as journal:
            tally = Tally(len(job.wanted), len(job.table.names), progress)
            settings = _settings(journal, predictor, job, resources, tally.total)
            raster = journal.begin(source.name, source.identity())
            run_map(job, journal, raster, settings, resources.engine, tally)
            journal.remove()
    return _summary(predictor, tally, outputs.paths, (*job.notes, *_resumed(journal)))


def run_many(
    rasters: Sequence[Path],
    predictor: ChipPredictor | PixelPredictor,
    out_dir: Path,
    formats: OutputFormats,
    make_job: Callable[[Source, Outputs], MapJob],
    options: MapOptions,
    resources: Resources,
    progress: ProgressCallback,
    gsd: float | None = None,
) -> ClassifySummary:
    """Map many rasters, each on its own, with one journal in ``out_dir``; see :func:`run_one`.

    Raises:
        RasterError: If some could not be mapped; the others are finished first.
    """
    paths = list_rasters(rasters)
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(f"Two rasters are called {twice[0]}, so their results would be too; map them one by one.")
    make_folder(out_dir)
    results = [formats.of(out_dir, stem) for stem in stems]
    for outputs in results:
        outputs.check(paths)

    failures: list[str] = []
    tiles: dict[int, int] = {}
    for number, (path, outputs) in enumerate(zip(paths, results, strict=True)):
        try:
            with _opened(path, options, gsd) as source:
                tiles[number] = len(make_job(source, outputs).wanted)
        except RasterError as error:
            failures.append(str(error))

    with Journal(out_dir / _BATCH_JOURNAL, _describe(predictor, options, asdict(formats))) as journal:
        tally = Tally(sum(tiles.values()), len(predictor.table.names), progress)
        files: list[Path] = []
        notes: dict[str, None] = {}
        for number in [number for number, count in tiles.items() if count]:
            outputs = results[number]
            with _opened(paths[number], options, gsd) as source:
                job = make_job(source, outputs)
                settings = _settings(journal, predictor, job, resources, tally.total)
                raster = journal.begin(stems[number], source.identity())
                if (facts := journal.finished(raster)) and all(path.exists() for path in outputs.paths):
                    tally.take(facts)
                else:
                    before = tally.facts()
                    try:
                        run_map(job, journal, raster, settings, resources.engine, tally)
                    except RasterError as error:
                        failures.append(str(error))
                        continue
                    journal.finish(raster, tally.facts(before))
            notes |= dict.fromkeys(job.notes)
            files += outputs.paths
        if not failures:
            journal.remove()
    if failures:
        raise RasterError(
            f"{len(failures)} of {len(paths)} rasters could not be mapped, the others are complete: "
            f"{' '.join(failures[:_NAMED])}"
        )
    return _summary(predictor, tally, tuple(files), (*notes, *_resumed(journal)))


@contextmanager
def _opened(rasters: Rasters, options: MapOptions, gsd: float | None) -> Iterator[Source]:
    source = open_source(rasters, bands=options.bands, nodata=options.nodata, crs=options.crs, gsd=gsd)
    try:
        yield source
    finally:
        if source is not rasters:  # what was handed over open stays open
            source.close()


def _files(rasters: Rasters) -> list[Path]:
    if isinstance(rasters, str | Path):
        return list_rasters([rasters])
    return list_rasters(rasters) if isinstance(rasters, Sequence) else []


def _describe(
    predictor: ChipPredictor | PixelPredictor, options: MapOptions, outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the result of a run hangs on, for its journal."""
    return {
        "version": version("torchgeo-debias"),
        "model": predictor.identity,
        "overlap": options.overlap,
        "min-score": options.min_score,
        "keep-background": options.keep_background,
        "bands": None if options.bands is None else list(options.bands),
        "nodata": repr(options.nodata),  # in JSON, NaN would not even equal itself
        "crs": options.crs,
        "area": area_digest(options.area),
        "results": dict(outputs),
    }


def _settings(
    journal: Journal, predictor: ChipPredictor | PixelPredictor, job: MapJob, resources: Resources, tiles: int
) -> Settings:
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


def _defaults(predictor: ChipPredictor | PixelPredictor, job: MapJob) -> dict[str, int]:
    pixels = job.task.size**2
    # One core a call: threads of one call wait for the slowest of them, and so for whatever else the machine does.
    workers = cores() if getattr(predictor, "place", "cpu") == "cpu" else 1
    return {"batch_size": min(max(_BATCH_PIXELS // pixels, 1), 64), "workers": workers, "threads": 1}


def _resumed(journal: Journal) -> list[str]:
    return [f"Went on with {journal.resumed} bands that were finished before."] if journal.resumed else []


def _summary(
    predictor: ChipPredictor | PixelPredictor, tally: Tally, files: tuple[Path, ...], notes: tuple[str, ...]
) -> ClassifySummary:
    counts = dict(zip(predictor.table.names, tally.counts.tolist(), strict=True))
    return ClassifySummary(counts, tally.total, tally.skipped, files, notes)

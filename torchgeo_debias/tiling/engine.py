"""Running a model over the tiles of a raster, band by band, with reading, computing and merging side by side."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import rasterio

from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.parts import Part, join
from torchgeo_debias.tiling.plan import Band, Tile
from torchgeo_debias.tiling.source import Source

_CACHE = 128 * 2**20
_MAX_CACHE = 512 * 2**20

COUNTS = "tiles"
"""Array that the engine adds to each part: tiles of the band, and how many of them hold no data, (1, 2)."""


class Cut(NamedTuple):
    """What a model sees of one tile.

    Attributes:
        pixels: (C, h, w), raw units, 0 where invalid.
        valid: (h, w), False where a pixel holds no data.
        own: Validity of the tile's own part in pixels of the raster, (own height, own width).
    """

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    own: npt.NDArray[np.bool_]


Answer = tuple[npt.NDArray[Any], ...]
"""What a model says of N tiles: arrays with N entries each; of one tile, the entries."""


class Merger(Protocol):
    """Lays the answers of neighbouring tiles together; tiles come in reading order."""

    def add(self, tile: Tile, own: npt.NDArray[np.bool_], answer: Answer | None) -> None:
        """Take the answer for a tile; None where it holds no data."""
        ...

    def settle(self, row: int) -> Mapping[str, npt.NDArray[Any]]:
        """What the pixels that are a row of tiles' own came to, now that no later tile reaches them."""
        ...


class Task(Protocol):
    """What is done with the tiles; it can be sent to another process.

    Attributes:
        size: Side of what the model sees, pixels.
    """

    @property
    def size(self) -> int: ...  # noqa: D102

    def cut(self, source: Source, tile: Tile) -> Cut:
        """Read a tile."""
        ...

    def use_threads(self, n: int) -> None:
        """Let the model use ``n`` threads in each call."""
        ...

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        """Ask the model about (N, C, h, w); called from several threads at once."""
        ...

    def merger(self, wanted: Wanted) -> Merger:
        """A new merger that has seen nothing."""
        ...


class Settings(NamedTuple):
    """How the work is spread; results differ by no more than rounding.

    Attributes:
        batch_size: Tiles in one call of the model.
        workers: Threads that call the model.
        threads: Threads that the model uses in each call.
        readers: Threads that read, each with a handle of its own.
    """

    batch_size: int
    workers: int = 1
    threads: int = 1
    readers: int = 1


Results = Generator[tuple[Band, Part], None, None]
"""Bands with their parts, as they are finished; closing it stops the work."""

Engine = Callable[[Source, Wanted, Task, Sequence[Band], Settings, Callable[[int], None]], Results]
"""Computes bands: the source, the tiles, what to do, which bands, how, and whom to tell about finished tiles."""


def compute_bands(
    source: Source, wanted: Wanted, task: Task, bands: Sequence[Band], settings: Settings, tell: Callable[[int], None]
) -> Results:
    """The engine of this process.

    A band's result depends on the band alone: where the one before it was not computed right before, the rows of
    tiles that reach into the band from above are computed once more. Batches are cut from the plan, not from the
    order of events, so that even rounding is the same whatever was interrupted.

    Args:
        source: Copied for each reader; left open.
        wanted: The tiles.
        task: What to do with them.
        bands: In order from the top.
        settings: Threads and batch size.
        tell: Called with the number of tiles of ``bands`` that were finished; may raise to stop.

    Yields:
        Each band with its part.
    """
    task.use_threads(settings.threads)
    with block_cache(source), _Pipeline(source, task, settings, wanted.plan.columns.tiles) as pipeline:
        for run in _runs(bands):
            yield from _compute_run(pipeline, wanted, task, run, settings.batch_size, tell)


def block_cache(source: Source) -> rasterio.Env:
    """GDAL's cache for blocks with room for two rows of them: tiles on the border of two rows decode none twice.

    GDAL's own choice, a twentieth of the memory, would fill up with blocks that nobody asks for again.
    """
    row = source.block_shape[0] * source.width * source.count * source.dtype.itemsize
    return rasterio.Env(GDAL_CACHEMAX=min(max(_CACHE, 2 * row), _MAX_CACHE))


def _runs(bands: Sequence[Band]) -> Iterator[list[Band]]:
    """Bands that follow one another without a gap."""
    run: list[Band] = []
    for band in bands:
        if run and band.number != run[-1].number + 1:
            yield run
            run = []
        run.append(band)
    if run:
        yield run


def _compute_run(
    pipeline: _Pipeline,
    wanted: Wanted,
    task: Task,
    bands: list[Band],
    batch_size: int,
    tell: Callable[[int], None],
) -> Iterator[tuple[Band, Part]]:
    plan = wanted.plan
    group = plan.group(batch_size)
    first = bands[0].rows.start
    start = max(first - plan.halo, 0) // group * group
    merger = task.merger(wanted)
    last_rows = {band.rows.stop - 1: band for band in bands}
    pieces: list[Mapping[str, npt.NDArray[Any]]] = []
    counts = np.zeros((1, 2), dtype=np.int64)

    def settle(row: int) -> Iterator[tuple[Band, Part]]:
        nonlocal pieces, counts
        piece = merger.settle(row)
        if row < first:
            return
        pieces.append(piece)
        if row in last_rows:
            yield last_rows[row], {**join(pieces), COUNTS: counts}
            pieces, counts = [], np.zeros((1, 2), dtype=np.int64)

    row = start
    batches = _batches(wanted, range(start, bands[-1].rows.stop), group, batch_size)
    with closing(pipeline.run(batches)) as results:
        for tiles, owns, answers in results:
            for tile, own, answer in zip(tiles, owns, answers, strict=True):
                while row < tile.row:
                    yield from settle(row)
                    row += 1
                merger.add(tile, own, answer)
                if tile.row >= first:
                    counts += (1, answer is None)
            tell(sum(tile.row >= first for tile in tiles))
    while row < bands[-1].rows.stop:
        yield from settle(row)
        row += 1


def _batches(wanted: Wanted, rows: range, group: int, size: int) -> Iterator[list[Tile]]:
    """Tiles to look at, in reading order; a batch never crosses groups of rows."""
    for top in range(rows.start, rows.stop, group):
        tiles = [
            tile
            for row in range(top, min(top + group, rows.stop))
            for tile in wanted.plan.row(row, wanted.columns(row).tolist())
        ]
        for start in range(0, len(tiles), size):
            yield tiles[start : start + size]


_Result = tuple[list[Tile], list[npt.NDArray[np.bool_]], list[Answer | None]]


class _Pipeline:
    """Threads that read batches and threads that ask the model; results come out in the order of the batches."""

    def __init__(self, source: Source, task: Task, settings: Settings, columns: int) -> None:
        self._task = task
        # A file in strips as wide as itself would be decoded by every reader.
        readers = 1 if source.block_shape[1] >= source.width else settings.readers
        self._ahead = settings.workers + readers
        # So narrow that each reader has a share of what is under way, but no narrower: the blocks on the borders of
        # stripes are decoded twice.
        self._stripe = -(-min(settings.batch_size * self._ahead, columns) // readers)
        with ExitStack() as stack:
            self._sources = [stack.enter_context(closing(copy.copy(source))) for _ in range(readers)]
            self._stack = stack.pop_all()
        self._readers = [ThreadPoolExecutor(1, thread_name_prefix="read") for _ in self._sources]
        self._models = ThreadPoolExecutor(settings.workers, thread_name_prefix="model")

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in (self._models, *self._readers):
            pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def run(self, batches: Iterable[list[Tile]]) -> Generator[_Result, None, None]:
        """The batches with what the model says of them, a few of them under way at a time."""
        under_way: deque[Future[_Result]] = deque()
        try:
            for tiles in batches:
                under_way.append(self._submit(tiles))
                if len(under_way) > self._ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def _submit(self, tiles: list[Tile]) -> Future[_Result]:
        # By place in the row: a reader finds in its cache the blocks that it decoded for the row above.
        readers = np.array([tile.column for tile in tiles]) // self._stripe % len(self._readers)
        shares = [(reader, np.flatnonzero(readers == reader).tolist()) for reader in np.unique(readers).tolist()]
        reading = [
            (places, self._readers[reader].submit(self._read, self._sources[reader], [tiles[i] for i in places]))
            for reader, places in shares
        ]
        return self._models.submit(self._predict, tiles, reading)

    def _read(self, source: Source, tiles: list[Tile]) -> list[Cut]:
        return [self._task.cut(source, tile) for tile in tiles]

    def _predict(self, tiles: list[Tile], reading: list[tuple[list[int], Future[list[Cut]]]]) -> _Result:
        read = {i: cut for places, share in reading for i, cut in zip(places, share.result(), strict=True)}
        cuts = [read[i] for i in range(len(tiles))]
        full = [i for i, cut in enumerate(cuts) if cut.valid.any()]
        answers: list[Answer | None] = [None] * len(tiles)
        if full:
            images = np.stack([cuts[i].pixels for i in full])
            valid = np.stack([cuts[i].valid for i in full])
            answer = self._task.predict(images, valid)
            for place, i in enumerate(full):
                answers[i] = tuple(array[place] for array in answer)
        return tiles, [cut.own for cut in cuts], answers

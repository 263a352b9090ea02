from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiling.fakes import FakeSource
from torchgeo_debias.errors import Cancelled, RasterError
from torchgeo_debias.tiling.area import Area, Wanted
from torchgeo_debias.tiling.blend import PixelMerger
from torchgeo_debias.tiling.engine import COUNTS, Answer, Cut, Settings, compute_bands
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.plan import Band, Tile, TilePlan
from torchgeo_debias.tiling.source import Source

CLASSES = 3
Parts = dict[int, Part]


class FakeTask:
    """Scores of pixels that also hang on the other tiles of the batch, as rounding does.

    Attributes:
        calls: Sizes of the batches.
        seen: Tiles that were cut.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls: list[int] = []
        self.seen: list[Tile] = []
        self.threads = 0

    def use_threads(self, n: int) -> None:
        self.threads = n

    def cut(self, source: Source, tile: Tile) -> Cut:
        self.seen.append(tile)
        pixels, valid = source.read(*tile.window)
        return Cut(pixels, valid, valid[: tile.own.height, : tile.own.width])

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        self.calls.append(len(images))
        if not valid.any(axis=(1, 2)).all():
            raise AssertionError("a tile without data")
        together = np.float32(images.astype(np.int64).sum() % 97)
        places = np.arange(1, self.size**2 + 1, dtype=np.float32).reshape(self.size, self.size)
        return (
            np.concatenate([np.sin(images * n + places * n + together) / 3 for n in range(1, CLASSES + 1)], axis=1),
        )

    def merger(self, wanted: Wanted) -> PixelMerger:
        return PixelMerger(wanted, CLASSES, np.uint8, 255, 0.0, True)


def bands_of(plan: TilePlan, batch: int, cuts: Sequence[int]) -> list[Band]:
    """Bands that begin at some of the groups of rows."""
    group = plan.group(batch)
    starts = sorted({0, *(cut * group for cut in cuts if cut * group < plan.rows.tiles)})
    return [
        Band(index, range(first, end), plan.rows.own(first)[0], sum(plan.rows.own(end - 1)))
        for index, (first, end) in enumerate(itertools.pairwise([*starts, plan.rows.tiles]))
    ]


def nobody(tiles: int) -> None: ...


def compute(
    source: FakeSource,
    wanted: Wanted,
    bands: Sequence[Band],
    spread: Settings,
    tell: Callable[[int], None] = nobody,
    task: FakeTask | None = None,
) -> Parts:
    task = task or FakeTask(wanted.plan.rows.window)
    return {
        band.number: part for band, part in compute_bands(cast(Source, source), wanted, task, bands, spread, tell)
    }  # fmt: skip


def check(found: Parts, expected: Mapping[int, Part]) -> None:
    assert list(found) == list(expected)
    for index, part in expected.items():
        assert found[index].keys() == part.keys()
        for name, array in part.items():
            np.testing.assert_array_equal(found[index][name], array)
            assert found[index][name].dtype == array.dtype


def scene(height: int, width: int, gaps: int = 3, seed: int = 0) -> FakeSource:
    """Random pixels with rectangles without data."""
    rng = np.random.default_rng(seed)
    valid = np.ones((height, width), bool)
    for _ in range(gaps):
        top, left = rng.integers(0, height), rng.integers(0, width)
        valid[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = False
    return FakeSource(rng.integers(0, 256, (height, width), dtype=np.uint8), valid)


areas = st.none() | st.lists(
    st.builds(
        lambda x, y, w, h: shapely.box(x, y, x + w, y + h),
        st.integers(0, 40), st.integers(0, 40), st.integers(1, 25), st.integers(1, 25),
    ),
    max_size=3,
).map(shapely.union_all)  # fmt: skip


@settings(max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 25), window=st.integers(1, 9), overlap=st.floats(0, 0.85),
    batch=st.integers(1, 40), cuts=st.lists(st.integers(1, 12), max_size=6), area=areas, seed=st.integers(0, 99),
    data=st.data(),
)  # fmt: skip
def test_a_band_is_the_same_whatever_was_computed_before(
    height: int, width: int, window: int, overlap: float, batch: int, cuts: list[int], area: Any, seed: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    plan = TilePlan.of(width, height, window, overlap)
    wanted = Wanted(plan, Area(area))
    source = scene(height, width, seed=seed)
    bands = bands_of(plan, batch, cuts)
    task = FakeTask(window)
    told: list[int] = []
    whole = compute(source, wanted, bands, Settings(batch), told.append, task)

    assert [part["ids"].shape for part in whole.values()] == [(b.bottom - b.top, width) for b in bands]
    assert max(task.calls, default=0) <= batch
    # Each wanted tile is read once, and no other; tiles without data do not reach the model.
    expected = {tile for row in range(plan.rows.tiles) for tile in plan.row(row, wanted.columns(row).tolist())}
    assert Counter(task.seen) == Counter(expected)
    assert Counter(source.reads) == Counter(tile.window for tile in expected)
    empty = {
        tile
        for tile in expected
        if not source.valid[tile.window.row_off :, tile.window.col_off :][:window, :window].any()
    }
    assert sum(task.calls) == len(expected) - len(empty)
    assert sum(told) == len(expected)
    for band in bands:
        tiles = {tile for tile in expected if tile.row in band.rows}
        assert whole[band.number][COUNTS].tolist() == [[len(tiles), len(tiles & empty)]]

    some = [band for band in bands if data.draw(st.booleans())]
    told.clear()
    found = compute(source, wanted, some, Settings(batch, workers=2, readers=2), told.append)
    check(found, {band.number: whole[band.number] for band in some})
    assert sum(told) == sum(int(part[COUNTS][0, 0]) for part in found.values())


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_bands_of_the_plan_one_by_one_from_the_bottom(overlap: float) -> None:
    source = scene(1300, 20, gaps=6)
    plan = TilePlan.of(20, 1300, 10, overlap)
    wanted = Wanted(plan, Area())
    bands = plan.bands(256, 7)
    assert len(bands) == 3
    whole = compute(source, wanted, bands, Settings(7))
    single = [compute(source, wanted, [band], Settings(7)) for band in reversed(bands)]
    check({k: v for part in reversed(single) for k, v in part.items()}, whole)


@pytest.mark.parametrize(("workers", "readers"), [(1, 3), (3, 1), (4, 4), (2, 50)])
def test_threads_change_nothing(workers: int, readers: int) -> None:
    source = scene(60, 50)
    plan = TilePlan.of(50, 60, 8, 0.5)
    wanted = Wanted(plan, Area())
    bands = bands_of(plan, 5, [3, 4, 9])
    plain = compute(source, wanted, bands, Settings(5))
    source.copies.clear()
    task = FakeTask(8)
    check(compute(source, wanted, bands, Settings(5, workers, 7, readers), task=task), plain)
    assert task.threads == 7
    assert len(source.copies) == readers


class Watched(FakeTask):
    """Remembers which copy of the source read which column of a row of tiles."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.columns: dict[int, set[int]] = {}
        self.rows: dict[int, set[int]] = {}

    def cut(self, source: Source, tile: Tile) -> Cut:
        self.columns.setdefault(tile.column, set()).add(id(source))
        self.rows.setdefault(tile.row, set()).add(id(source))
        return super().cut(source, tile)


@pytest.mark.parametrize("batch", [3, 7, 11, 12, 40])
def test_readers_share_every_row_and_each_keeps_its_columns(batch: int) -> None:
    source = scene(60, 48, gaps=0)
    plan = TilePlan.of(48, 60, 8, 0.5)
    task = Watched(8)
    compute(source, Wanted(plan, Area()), bands_of(plan, batch, [4]), Settings(batch, readers=3), task=task)
    assert all(len(readers) == 1 for readers in task.columns.values())
    assert all(len(readers) == 3 for readers in task.rows.values())
    shares = Counter(reader for readers in task.columns.values() for reader in readers)
    assert max(shares.values()) <= len(task.columns) / 2


def test_readers_read_one_batch_together() -> None:
    source = scene(8, 48, gaps=0)
    plan = TilePlan.of(48, 8, 8)
    together = threading.Barrier(3, timeout=20)

    class Meeting(FakeTask):
        def cut(self, source: Source, tile: Tile) -> Cut:
            if tile.column % 2 == 0:
                together.wait()
            return super().cut(source, tile)

    task = Meeting(8)
    compute(source, Wanted(plan, Area()), plan.bands(512, 6), Settings(6, readers=3), task=task)
    assert task.calls == [6]


def test_one_reader_for_a_file_in_strips() -> None:
    source = scene(30, 20)
    source.block_shape = (1, 20)
    plan = TilePlan.of(20, 30, 8)
    compute(source, Wanted(plan, Area()), plan.bands(1, 2), Settings(2, readers=4))
    assert len(source.copies) == 1


def test_rows_without_any_tile() -> None:
    source = scene(60, 20, gaps=0)
    plan = TilePlan.of(20, 60, 10, 0.5)
    wanted = Wanted(plan, Area(shapely.box(3, 31, 9, 39)))
    task = FakeTask(10)
    parts = compute(source, wanted, bands_of(plan, 3, [2, 4, 6, 7, 8]), Settings(3), task=task)
    ids = np.concatenate([part["ids"] for part in parts.values()])
    found = np.zeros((60, 20), bool)
    found[31:39, 3:9] = True
    np.testing.assert_array_equal(ids != 255, found)
    assert {tile.row for tile in task.seen} == {5, 6, 7}
    assert parts[0][COUNTS].tolist() == [[0, 0]]


def test_nothing_to_do() -> None:
    plan = TilePlan.of(20, 20, 10)
    assert compute(scene(20, 20), Wanted(plan, Area()), [], Settings(3)) == {}
    nowhere = Wanted(plan, Area(shapely.box(50, 50, 60, 60)))
    task = FakeTask(10)
    (part,) = compute(scene(20, 20), nowhere, plan.bands(512, 3), Settings(3), task=task).values()
    assert (part["ids"] == 255).all()
    assert not task.seen


class Harmed(FakeTask):
    """Fails at one tile, or at one batch."""

    def __init__(self, size: int, tile: int = -1, batch: int = -1) -> None:
        super().__init__(size)
        self.tile, self.batch = tile, batch
        self.started = itertools.count()

    def cut(self, source: Source, tile: Tile) -> Cut:
        if tile.id == self.tile:
            raise RasterError("damaged")
        return super().cut(source, tile)

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Answer:
        if next(self.started) == self.batch:
            raise MemoryError("too large")
        time.sleep(0.001)
        return super().predict(images, valid)


def stop(tiles: int) -> None:
    raise Cancelled("stop")


@pytest.mark.parametrize("spread", [Settings(4), Settings(4, workers=3, readers=2)], ids=["one", "several"])
@pytest.mark.parametrize(
    ("harm", "tell", "error"),
    [
        ({"tile": 0}, nobody, RasterError("damaged")),
        ({"tile": 57}, nobody, RasterError("damaged")),
        ({"batch": 0}, nobody, MemoryError("too large")),
        ({"batch": 9}, nobody, MemoryError("too large")),
        ({}, stop, Cancelled("stop")),
    ],
    ids=["first tile", "tile", "first batch", "batch", "cancelled"],
)
def test_errors_come_out_as_they_are_and_nothing_stays_behind(
    harm: dict[str, int], tell: Callable[[int], None], error: Exception, spread: Settings
) -> None:
    source = scene(60, 50, gaps=0)
    plan = TilePlan.of(50, 60, 8, 0.5)
    with pytest.raises(type(error), match=str(error)):
        compute(source, Wanted(plan, Area()), bands_of(plan, 4, [3, 4]), spread, tell, Harmed(8, **harm))
    clean(source, spread.readers)


def clean(source: FakeSource, copies: int) -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "model"))]
    assert [copy.closed for copy in source.copies] == [True] * copies
    assert not source.closed


@pytest.mark.parametrize("spread", [Settings(4), Settings(4, workers=3, readers=2)], ids=["one", "several"])
def test_closing_early_stops_the_work(spread: Settings) -> None:
    source = scene(400, 50, gaps=0)
    plan = TilePlan.of(50, 400, 8)
    task = Harmed(8)
    results = compute_bands(
        cast(Source, source), Wanted(plan, Area()), task, bands_of(plan, 4, range(50)), spread, nobody
    )
    next(results)
    results.close()
    clean(source, spread.readers)
    assert len(task.seen) < 120  # of 350


def test_a_run_that_ends_well_leaves_nothing_either() -> None:
    source = scene(60, 50)
    plan = TilePlan.of(50, 60, 8)
    compute(source, Wanted(plan, Area()), plan.bands(512, 4), Settings(4, workers=2, readers=2))
    clean(source, 2)


class Scarce(FakeSource):
    """Can be opened twice."""

    def __copy__(self) -> FakeSource:
        if len(self.copies) == 2:
            raise RasterError("gone")
        return super().__copy__()


def test_copies_are_closed_where_one_more_cannot_be_made() -> None:
    plan = TilePlan.of(50, 60, 8)
    source = Scarce(np.zeros((60, 50), np.uint8))
    with pytest.raises(RasterError, match="gone"):
        compute(source, Wanted(plan, Area()), plan.bands(512, 4), Settings(4, readers=3))
    clean(source, 2)

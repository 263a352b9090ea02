"""The same bands on a Ray cluster: each one is a task that any worker can do, and do again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any

from torchgeo_debias.errors import ConfigError, EngineError
from torchgeo_debias.tiling.area import Wanted
from torchgeo_debias.tiling.engine import COUNTS, Results, Settings, Task, compute_bands
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.plan import Band
from torchgeo_debias.tiling.source import Source

_RETRIES = 3
_SPARE = 2
"""Bands under way for each that can run at a time, so that no worker waits for the next."""


def compute_bands_on_ray(
    source: Source,
    wanted: Wanted,
    task: Task,
    bands: Sequence[Band],
    settings: Settings,
    tell: Callable[[int], None],
    *,
    address: str | None = None,
) -> Results:
    """The engine of a Ray cluster; like :func:`~torchgeo_debias.tiling.engine.compute_bands` but in any order.

    Bands are independent: the rows of tiles that reach into one from above are computed with it, so a little is
    computed twice, and the result is the same. The raster and the model package must have the same path on every
    machine, and the machines the same versions of everything. A band whose worker is lost goes to another one. A
    worker takes ``workers * threads`` cores, or all of the largest machine where that has fewer.

    Args:
        source: Opened again by each worker.
        wanted: The tiles.
        task: What to do with them; its model is loaded once by each worker.
        bands: In any order.
        settings: Threads and batch size of one worker.
        tell: Called with the number of tiles of each finished band; may raise to stop.
        address: Of a running cluster, ``auto`` for the one of this machine; by default one is started here, and
            stopped at the end.

    Yields:
        Each band with its part.

    Raises:
        ConfigError: If Ray is not installed.
        EngineError: If the cluster cannot be reached, or loses the workers of a band again and again.
    """
    ray = _ray()
    started = _connect(ray, address)
    under_way: dict[Any, Band] = {}
    try:
        # As bytes, which workers read from shared memory, and unpack once instead of once a band.
        job = ray.put(ray.cloudpickle.dumps((source, wanted, task, settings)))
        cores = _cores(ray, settings.workers * settings.threads)
        compute = ray.remote(num_cpus=cores, max_retries=_RETRIES)(_compute)
        room = _SPARE * max(int(ray.cluster_resources().get("CPU", 1)) // cores, 1)
        todo = iter(bands)
        while True:
            while len(under_way) < room and (band := next(todo, None)) is not None:
                under_way[compute.remote([job], band)] = band
            if not under_way:
                return
            (done,), _ = ray.wait(list(under_way), num_returns=1)
            part = _get(ray, done, under_way[done])
            tell(int(part[COUNTS][0, 0]))
            yield under_way.pop(done), part
    finally:
        for reference in under_way:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _ray() -> Any:  # noqa: ANN401 - Ray is not always there
    # Ray would report how it is used to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("The engine ray needs Ray: install torchgeo-debias[scale].") from error
    return ray


def _connect(ray: Any, address: str | None) -> bool:  # noqa: ANN401 - the module
    """Whether a connection was made that did not exist before."""
    if ray.is_initialized():
        return False
    local = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(
            f"The Ray cluster {address or 'of this machine'} cannot be reached ({reason}); check its address."
        ) from error
    return True


def _cores(ray: Any, wanted: int) -> int:  # noqa: ANN401 - the module
    """How many cores to ask for: for more than any machine has, Ray would wait for ever, hoping for a larger one."""
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
    return max(min(wanted, largest), 1)


def _get(ray: Any, reference: Any, band: Band) -> Part:  # noqa: ANN401 - the module and what it hands out
    try:
        part: Part = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # What went wrong in the worker, without Ray's account of where.
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"The cluster lost the workers of rows {band.top} to {band.bottom} {_RETRIES + 1} times, perhaps for want "
            "of memory; give them less to do at a time (--batch-size, --workers) and run the same again."
        ) from error
    return part


def _compute(job: list[Any], band: Band) -> Part:
    source, wanted, task, settings = _unpacked(job[0])
    with closing(compute_bands(source, wanted, task, [band], settings, _nobody)) as results:
        ((_, part),) = results
    return part


@lru_cache(maxsize=1)
def _unpacked(reference: Any) -> tuple[Source, Wanted, Task, Settings]:  # noqa: ANN401 - a reference of Ray's
    import ray

    job: tuple[Source, Wanted, Task, Settings] = ray.cloudpickle.loads(ray.get(reference))
    return job


def _nobody(tiles: int) -> None:
    """Progress is told by the driver, band by band."""

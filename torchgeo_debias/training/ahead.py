"""Batches that are ready when the model asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader


class Ahead(DataLoader[Any]):
    """Makes the next batch while the model computes, in pinned memory where asked to.

    In a thread: worker processes would each keep data of their own, and hand over copies of what is in memory already.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = pool.submit(next, batches, None)
                yield batch

"""The workers of the plugin: one is kept warm, further ones live for a single job."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .client import Cancelled, WorkerClient

IDLE = 600.0
"""Seconds after which the warm worker is closed, since it holds memory."""
CLOSING = 5.0
"""Seconds that :meth:`Workers.close` takes at most."""

Key = tuple[str, str, frozenset[tuple[str, str]]]


class Workers:
    """Hands out workers; safe to use from several threads."""

    def __init__(self, *, warm: bool = True, idle: float = IDLE) -> None:
        """Nothing starts yet.

        Args:
            warm: Whether a worker is kept for the next job, which spares the seconds of importing torch.
            idle: Seconds until a kept worker that has nothing to do is closed.
        """
        self._warm = warm
        self._idle = idle
        self._lock = threading.Lock()
        self._closed = False
        self._kept: tuple[Key, WorkerClient] | None = None
        self._used: set[WorkerClient] = set()
        self._timer: threading.Timer | None = None

    @contextmanager
    def client(
        self, python: str, device: str = "auto", environment: Mapping[str, str] | None = None
    ) -> Iterator[WorkerClient]:
        """Lend a worker: the warm one if it is free, else one for this job alone.

        Args:
            python: Path of the interpreter.
            device: ``"auto"``, ``"cpu"`` or the number of a graphics card.
            environment: Variables to add, such as those of a proxy.

        Raises:
            Cancelled: The pool was closed.
            ValueError: Another device.
        """
        key = (python, device, frozenset((environment or {}).items()))
        client = self._take(key)
        try:
            yield client
        finally:
            self._give_back(key, client)

    def close(self) -> None:
        """Cancel what runs and end every worker, by force after 5 s; later requests are refused."""
        with self._lock:
            self._closed = True
            clients = [*self._used, *([self._kept[1]] if self._kept else [])]
            self._kept = None
            self._stop_timer()
        for client in clients:
            client.stop()
        deadline = time.monotonic() + CLOSING - 1  # the last second is for those that must be killed
        for client in clients:
            client.close(max(0.0, deadline - time.monotonic()))

    def _take(self, key: Key) -> WorkerClient:
        stale = None
        with self._lock:
            if self._closed:
                raise Cancelled("The plugin is being closed.")
            if self._kept is not None and self._kept[0] == key:
                client = self._kept[1]
            else:
                # Before the kept one is given up: an unknown device is refused here.
                client = WorkerClient(key[0], device=key[1], environment=dict(key[2]))
                stale = None if self._kept is None else self._kept[1]
            self._kept = None
            self._stop_timer()
            self._used.add(client)
        if stale is not None:
            stale.close()
        return client

    def _give_back(self, key: Key, client: WorkerClient) -> None:
        with self._lock:
            self._used.discard(client)
            if self._warm and not self._closed and self._kept is None and client.alive:
                self._kept = (key, client)
                self._timer = threading.Timer(self._idle, self._close_idle, [client])
                self._timer.daemon = True
                self._timer.start()
                return
        client.close()

    def _close_idle(self, client: WorkerClient) -> None:
        with self._lock:
            if self._kept is None or self._kept[1] is not client:
                return
            self._kept = None
        client.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

"""A worker: reads requests in one thread, runs one verb at a time in the main one, and ends when nobody listens."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NoReturn, TextIO

from torchgeo_debias.cli.app import verbs
from torchgeo_debias.worker import messages
from torchgeo_debias.worker.job import Job, free_memory
from torchgeo_debias.worker.messages import Cancel, Message, ProtocolError, Quit, Run

_GRACE = 2.5
"""Seconds that a run has to stop once the worker is to end."""


class Worker:
    """One end of the protocol.

    Args:
        descriptor: Where answers are written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writing = threading.RLock()
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._changing = threading.RLock()
        self._job: Job | None = None
        self._ending = False

    def serve(self, lines: Iterable[bytes]) -> None:
        """Greet, and run what ``lines`` ask for until they end or ask to quit."""
        self.send(messages.hello(verbs()))
        threading.Thread(target=self._listen, args=(lines,), name="requests", daemon=True).start()
        while (job := self._jobs.get()) is not None:
            ending = job.run()
            with self._changing:
                self._job = None  # before the answer: who has it may ask for the next run at once
            del job
            self.send(ending)
            free_memory()

    def send(self, message: Message) -> None:
        """Write a message as one line, from any thread; where nobody reads any more, end."""
        if os.getpid() != self._pid:
            return  # a process forked by the verb holds the descriptor, but is no worker
        line = messages.to_line(message)
        try:
            with self._writing:
                while line:
                    line = line[os.write(self._descriptor, line) :]
        except OSError:
            self.end()

    def log(self, level: str, text: str) -> None:
        """Send a remark on the run under way, or on none."""
        job = self._job
        self.send(messages.log(None if job is None else job.request.id, level, text))

    def end(self) -> None:
        """Stop the run under way, and end within three seconds in any case."""
        with self._changing:
            if self._ending:
                return
            self._ending = True
            if self._job is not None:
                self._job.cancel()
        self._jobs.put(None)
        threading.Thread(target=_exit_late, name="deadline", daemon=True).start()

    def _listen(self, lines: Iterable[bytes]) -> None:
        try:
            for line in lines:
                try:
                    request = messages.read_request(line)
                except ProtocolError as error:
                    self.send(messages.error(error.id, "protocol", str(error)))
                    continue
                match request:
                    case Run():
                        self._accept(request)
                    case Cancel(id):
                        self._cancel(id)
                    case Quit():
                        break
        finally:
            self.end()

    def _accept(self, request: Run) -> None:
        with self._changing:
            busy = self._job
            if busy is None:
                self._job = Job(request, self.send)
                self._jobs.put(self._job)
        if busy is not None:
            sentence = f"{busy.request.verb} is still running: wait for it, or cancel it."
            self.send(messages.error(request.id, "busy", sentence))

    def _cancel(self, id: int) -> None:
        with self._changing:
            # One that comes too late for its run is no error: the two messages crossed.
            if self._job is not None and self._job.request.id == id:
                self._job.cancel()


def main(input: int, output: int, arguments: Sequence[str]) -> NoReturn:
    """Serve on two descriptors, and end the process.

    Args:
        input: Where requests are read.
        output: Where answers are written.
        arguments: Of the command, without its name.
    """
    parser = argparse.ArgumentParser("python -I -m torchgeo_debias.worker", description=__doc__)
    parser.add_argument("--protocol", default=str(messages.PROTOCOL), help="version that the other side speaks")
    asked = parser.parse_args(arguments).protocol
    worker = Worker(output)
    if asked != str(messages.PROTOCOL):
        sentence = f"This worker speaks protocol {messages.PROTOCOL}, not {asked}: install versions that fit together."
        worker.send(messages.error(None, "protocol", sentence))
        _exit(2)
    faulthandler.enable()  # a crash of a native library leaves its place on stderr
    _tell(worker)
    _obey_signals(worker)
    worker.serve(messages.lines(input))
    _exit(0)


def _tell(worker: Worker) -> None:
    """Send what the library logs from warnings up, and what the packages below it warn of, as remarks."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            worker.log(record.levelname.lower(), self.format(record))

    log = logging.getLogger("torchgeo_debias")
    log.handlers = [Handler()]
    log.setLevel(logging.WARNING)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        # No warnings to a user, who can do nothing about them: the command line does not show them at all.
        worker.log("info", f"{category.__name__}: {message}")

    warnings.showwarning = show


def _obey_signals(worker: Worker) -> None:
    """Leave Ctrl+C to the program that started the worker, and end at SIGTERM as at the end of requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        return
    # A handler alone would wait for native code to return, and Lightning puts its own in the way while it trains;
    # the descriptor is written to at once, whatever the handler is.
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def forget() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)  # else it would be deaf, and pass its signals on

    def wait() -> None:
        while os.read(heard, 1)[0] != signal.SIGTERM:
            pass
        worker.end()

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _exit_late() -> None:
    time.sleep(_GRACE)
    _exit(1)


def _exit(code: int) -> NoReturn:
    """End now: neither pools that join at the end nor destructors of native libraries may hold it up."""
    with suppress(OSError, ValueError):  # nobody may read it any more
        sys.stderr.flush()
    os._exit(code)

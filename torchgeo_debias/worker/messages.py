"""The messages of protocol 1: what may be asked, and what is answered. One JSON object a line, UTF-8."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torchgeo_debias
from torchgeo_debias.progress import Progress

PROTOCOL = 1

Message = dict[str, Any]
Code = Literal["refused", "cancelled", "failed", "memory", "busy", "protocol"]

_CHUNK = 2**16
T = TypeVar("T")


class ProtocolError(Exception):
    """A line that is no request; ``str(error)`` is one sentence.

    Attributes:
        id: Of the request, where it could be read.
    """

    def __init__(self, sentence: str, id: int | None = None) -> None:
        super().__init__(sentence)
        self.id = id


@dataclass(frozen=True)
class Run:
    """Run a verb.

    Attributes:
        id: The asker's number, repeated in all that is answered.
        verb: Of the command line.
        arguments: As a shell would give them.
    """

    id: int
    verb: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Cancel:
    """Stop the run with this ``id``, if it is still under way."""

    id: int


@dataclass(frozen=True)
class Quit:
    """Stop what is under way, and end."""


def read_request(line: bytes) -> Run | Cancel | Quit:
    """Read a line; fields it should not have are ignored.

    Raises:
        ProtocolError: If it is no request of this protocol.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A line is no JSON in UTF-8: {line[:80]!r}.") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"A line is no JSON object: {line[:80]!r}.")
    kind = message.get("type")
    match kind:
        case "run":
            id = _field(message, "id", int)
            arguments = _field(message, "arguments", list)
            if not all(isinstance(argument, str) for argument in arguments):
                raise ProtocolError("The field 'arguments' of 'run' must be a list of strings.", id)
            return Run(id, _field(message, "verb", str), tuple(arguments))
        case "cancel":
            return Cancel(_field(message, "id", int))
        case "quit":
            return Quit()
    raise ProtocolError(f"There is no request of type {kind!r}: send run, cancel or quit.", _id(message))


def _field(message: Message, name: str, kind: type[T]) -> T:
    value = message.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        article = "an" if kind is int else "a"
        found = "is missing" if name not in message else f"must be {article} {kind.__name__}"
        raise ProtocolError(f"The field {name!r} of {message['type']!r} {found}.", _id(message))
    return value


def _id(message: Message) -> int | None:
    value = message.get("id")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def hello(verbs: Sequence[str]) -> Message:
    """The first message: who answers, and what can be run."""
    return {
        "type": "hello",
        "protocol": PROTOCOL,
        "library": torchgeo_debias.__version__,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "verbs": list(verbs),
    }


def progress(id: int, step: Progress) -> Message:
    """How far a stage of a run has come."""
    return {"type": "progress", "id": id, "stage": step.stage, "done": int(step.done), "total": int(step.total)}


def log(id: int | None, level: str, text: str) -> Message:
    """A remark, of a run or of none."""
    return {"type": "log", "id": id, "level": level, "text": text}


def done(id: int, result: Message) -> Message:
    """The end of a run, with what the verb prints with ``--json``."""
    return {"type": "done", "id": id, "result": result}


def error(id: int | None, code: Code, message: str, traceback: str | None = None) -> Message:
    """The end of a run that gives no result, or a request that is none; ``message`` becomes one line."""
    return {"type": "error", "id": id, "code": code, "message": " ".join(message.split()), "traceback": traceback}


def to_line(message: Message) -> bytes:
    """A message as it is sent.

    Characters beyond ASCII are escaped: names of files that are no text (lone surrogates) stay what they are.

    Raises:
        ValueError: If it holds NaN or infinity, which JSON does not know.
        TypeError: If it holds what is no JSON at all.
    """
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\n"


def lines(descriptor: int) -> Iterator[bytes]:
    """Whole lines as they come, until the other end is closed; what is left without an end of line is no message."""
    rest = b""
    while chunk := os.read(descriptor, _CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from filter(bytes.strip, whole)

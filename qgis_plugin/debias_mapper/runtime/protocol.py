"""The words that plugin and worker exchange: one JSON object a line, UTF-8, protocol number 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROTOCOL = 1
LINE_LIMIT = 64 * 1024 * 1024
"""Longest message in bytes that is read from a worker; results travel as files, so that a real one is far shorter."""


@dataclass(frozen=True)
class Hello:
    """A worker's first message.

    Attributes:
        protocol: Number of the protocol that it speaks.
        library: Version of the library.
        python: Version of its Python.
        pid: Number of its process.
        verbs: What it can be asked for.
    """

    protocol: int
    library: str
    python: str
    pid: int
    verbs: tuple[str, ...]


def encode(message: Mapping[str, Any]) -> bytes:
    """Write a message as one line; a line break within a text becomes an escape, so that none can split it."""
    # ASCII, so that lone surrogates (file names that are no UTF-8) travel as well.
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """Read one line; None where it is no JSON object with a ``type``, that is, no message of this protocol."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(message, dict) and isinstance(message.get("type"), str):
        return message
    return None


def parse_hello(message: Mapping[str, Any]) -> Hello:
    """Read a ``hello``; what is missing in it becomes empty, as only the protocol number decides."""
    verbs = message.get("verbs")
    return Hello(
        protocol=as_int(message.get("protocol")),
        library=str(message.get("library", "")),
        python=str(message.get("python", "")),
        pid=as_int(message.get("pid")),
        verbs=tuple(str(verb) for verb in verbs) if isinstance(verbs, list) else (),
    )


def run_request(number: int, verb: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The request for one run of a verb with the arguments of the command line."""
    return {"type": "run", "id": number, "verb": verb, "arguments": [str(argument) for argument in arguments]}


def as_int(value: object) -> int:
    """An integer of a message; 0 for everything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0

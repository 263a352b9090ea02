"""What the tests of the command line share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests import tiny


class Result(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout, of a command that succeeded."""
        assert self.code == 0, self.err
        value = json.loads(self.out, parse_constant=lambda name: 1 / 0)
        assert isinstance(value, dict)
        return value

    @property
    def sentence(self) -> str:
        """The one line on stderr of a command that was refused."""
        assert self.code == 2, self
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("Error: ")
        assert "Traceback" not in line
        return line.removeprefix("Error: ")


class Run(Protocol):
    def __call__(self, *args: object) -> Result: ...


def train_options(weights: Path) -> tuple[str, ...]:
    """Options that make a training small."""
    return (
        "--backbone", tiny.BACKBONE, "--weights", str(weights), "--chip-size", str(tiny.CHIP), "--epochs", "1",
        "--precision", "32", "--quiet",
    )  # fmt: skip


def map_options(model: Path, weights: Path) -> tuple[str, ...]:
    """Options that use a small model."""
    return "--model", str(model), "--weights", str(weights), "--precision", "32", "--quiet"

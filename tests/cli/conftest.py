"""Running verbs in this process."""

from __future__ import annotations

import sys

import pytest

from tests.cli.verbs import Result, Run
from torchgeo_debias.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command with arguments; gives its exit code, stdout and stderr."""

    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["torchgeo-debias", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return call

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from debias_mapper.runtime.commands import Command, option
from debias_mapper.runtime.protocol import decode, encode


def test_the_shell_line_gives_back_the_same_words() -> None:
    words = ["my ortho.tif", "--model", "it's", "--area", "-1.5,0,2,3", "ä地", "$HOME `x`", "two\nlines", ""]
    assert shlex.split(Command("detect", words).shell()) == ["torchgeo-debias", "detect", *words]


def test_on_windows_the_line_is_quoted_for_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    command = Command("info", ["C:\\my maps\\model.tgd", "--area=-1.5,0", "D:/größe.tif"])
    assert command.shell("debias.exe") == 'debias.exe info "C:\\my maps\\model.tgd" --area=-1.5,0 D:/größe.tif'


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("C:\\R&D\\x.tif", '"C:\\R&D\\x.tif"'),
        ("C:\\R&D\\", '"C:\\R&D\\\\"'),
        ("(a)|b>c;^", '"(a)|b>c;^"'),
        ('say "x"', '"say \\"x\\""'),
        ("", '""'),
    ],
)
def test_on_windows_no_word_is_read_as_a_second_command(
    word: str, quoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert Command("info", [word]).shell() == f"torchgeo-debias info {quoted}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, []),
        (False, []),
        (True, ["--x"]),
        (0, ["--x", "0"]),
        (0.25, ["--x", "0.25"]),
        ("", ["--x", ""]),
        (Path("a") / "b", ["--x", str(Path("a") / "b")]),
        (["one", None, "two"], ["--x", "one", "--x", "two"]),
    ],
)
def test_an_option_becomes_words(value: object, words: list[str]) -> None:
    assert option("--x", value) == words


@pytest.mark.parametrize("text", ["line\nbreak", "\r", " ", "\udcff", "\x00", "\U0001f600"])
def test_a_message_is_one_line_of_plain_bytes_and_comes_back(text: str) -> None:
    line = encode({"type": "run", "text": text})
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert decode(line) == {"type": "run", "text": text}

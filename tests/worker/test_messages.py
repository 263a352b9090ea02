"""Requests that are understood or refused, and answers that are always one line of valid JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_debias.progress import Progress
from torchgeo_debias.worker import messages
from torchgeo_debias.worker.messages import Cancel, ProtocolError, Quit, Run, read_request


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b'{"type": "run", "id": 7, "verb": "info", "arguments": ["a b"]}', Run(7, "info", ("a b",))),
        (b'{"type": "run", "id": -1, "verb": "", "arguments": [], "later": 1}\r', Run(-1, "", ())),
        ('{"type": "run", "id": 1, "verb": "info", "arguments": ["Köln\\n"]}'.encode(), Run(1, "info", ("Köln\n",))),
        (b'{"type": "cancel", "id": 7}', Cancel(7)),
        (b'{"type": "quit", "id": "x"}', Quit()),
    ],
)
def test_requests_are_read(line: bytes, request_: Run | Cancel | Quit) -> None:
    assert read_request(line) == request_


@pytest.mark.parametrize(
    ("line", "id", "sentence"),
    [
        (b"quit", None, "no JSON in UTF-8: b'quit'"),
        (b'{"type": "quit"', None, "no JSON"),
        (b'{"type": "\xff"}', None, "no JSON"),
        (b"[" * 100_000, None, "no JSON"),
        (b"9" * 10_000, None, "no JSON"),
        (b'["quit"]', None, "no JSON object"),
        (b"{}", None, "no request of type None"),
        (b'{"type": ["run"], "id": 3}', 3, "no request of type ['run']: send run, cancel or quit"),
        (b'{"type": "hello", "id": 3}', 3, "no request of type 'hello'"),
        (b'{"type": "cancel"}', None, "The field 'id' of 'cancel' is missing."),
        (b'{"type": "cancel", "id": true}', None, "The field 'id' of 'cancel' must be an int."),
        (b'{"type": "cancel", "id": 1.0}', None, "must be an int"),
        (b'{"type": "run", "verb": "info", "arguments": []}', None, "The field 'id' of 'run' is missing."),
        (b'{"type": "run", "id": 3, "arguments": []}', 3, "The field 'verb' of 'run' is missing."),
        (b'{"type": "run", "id": 3, "verb": null, "arguments": []}', 3, "'verb' of 'run' must be a str"),
        (b'{"type": "run", "id": 3, "verb": "info"}', 3, "The field 'arguments' of 'run' is missing."),
        (b'{"type": "run", "id": 3, "verb": "info", "arguments": "--help"}', 3, "must be a list"),
        (b'{"type": "run", "id": 3, "verb": "info", "arguments": ["a", 1]}', 3, "a list of strings"),
    ],
)
def test_what_is_no_request_is_refused_with_its_id(line: bytes, id: int | None, sentence: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        read_request(line)
    assert sentence in str(refused.value)
    assert refused.value.id == id


@given(st.binary())
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    try:
        assert isinstance(read_request(line), Run | Cancel | Quit)
    except ProtocolError:
        pass


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), anything, max_size=4))
def test_every_answer_is_one_line_that_reads_back_as_it_was(result: dict[str, Any]) -> None:
    message = messages.done(1, result)
    line = messages.to_line(message)
    assert line.count(b"\n") == 1
    assert json.loads(line) == message


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_names_of_files_that_are_no_text_survive(name: bytes) -> None:
    line = messages.to_line(messages.done(1, {"file": os.fsdecode(name)}))
    assert os.fsencode(json.loads(line.decode())["result"]["file"]) == name
    request = json.dumps({"type": "run", "id": 1, "verb": "info", "arguments": [os.fsdecode(name)]})
    again = read_request(request.encode())
    assert isinstance(again, Run)
    assert os.fsencode(again.arguments[0]) == name


@pytest.mark.parametrize("value", [math.nan, math.inf, {1}, Path("a")])
def test_what_is_no_json_is_not_sent(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        messages.to_line(messages.done(1, {"value": value}))


def test_a_sentence_is_one_line_and_a_step_plain_numbers() -> None:
    import numpy as np

    assert messages.error(1, "refused", "two\n lines")["message"] == "two lines"
    step = messages.progress(1, Progress("read", np.int64(3), 5))  # type: ignore[arg-type]
    assert json.loads(messages.to_line(step)) == {"type": "progress", "id": 1, "stage": "read", "done": 3, "total": 5}


@given(st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line and line.strip() != b"")), st.binary())
def test_lines_come_whole_however_they_were_cut(lines: list[bytes], rest: bytes) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as target:
        target.write(b"".join(line + b"\n" for line in lines) + b"\n \n" + rest.replace(b"\n", b""))
    before, messages._CHUNK = messages._CHUNK, 3
    try:
        assert list(messages.lines(reading)) == lines
    finally:
        messages._CHUNK = before
        os.close(reading)

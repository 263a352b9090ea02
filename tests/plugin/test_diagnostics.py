from __future__ import annotations

from pathlib import Path

import pytest
from debias_mapper.runtime.diagnostics import anonymous, diagnostics, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from http://me:s3cret@proxy:3128/simple", "from http://***@proxy:3128/simple"),
        ("https://me:p@ss@host/x and socks5h://u@h", "https://***@host/x and socks5h://***@h"),
        ("https://host/simple?token=abc&x=1", "https://host/simple?token=***&x=1"),
        ("https://host/x?access_token=abc&y=1", "https://host/x?access_token=***&y=1"),
        ("https://host/x?private_token=a-b.c", "https://host/x?private_token=***"),
        (
            "https://host/x?X-Amz-Credential=a/b&X-Amz-Signature=c",
            "https://host/x?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("AWS_SECRET_ACCESS_KEY=a/b+c client_secret=d", "AWS_SECRET_ACCESS_KEY=*** client_secret=***"),
        ("PASSWORD='two words' API_KEY=\"x\"", "PASSWORD=*** API_KEY=***"),
        ("my-token==1.0 and keys=2", "my-token==1.0 and keys=2"),
        ("https://host/a@b", "https://host/a@b"),
        ("torch==2.14.1", "torch==2.14.1"),
    ],
)
def test_logins_and_secrets_are_taken_out(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada lovelace/maps/x.tif", "~/maps/x.tif"),
        ("'/home/ada lovelace'", "'~'"),
        ("/home/ada lovelaces/x", "/home/user lovelaces/x"),
        ("/home/grace/x", "/home/user/x"),
        ("file:/Users/grace/x", "file:/Users/user/x"),
        ("C:\\Users\\grace\\AppData", "C:\\Users\\user\\AppData"),
        ('"C:\\\\Users\\\\grace\\\\AppData"', '"C:\\\\Users\\\\user\\\\AppData"'),
        ("C:\\Users\\Anna Maria\\AppData", "C:\\Users\\user\\AppData"),
        ("'c:/users/Anna Maria' is", "'c:/users/user' is"),
        ("C:\\Users\\grace and C:\\Users\\Anna Maria\\x", "C:\\Users\\user and C:\\Users\\user\\x"),
        ("/srv/home/grace", "/srv/home/grace"),
    ],
)
def test_nobody_is_named(monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada lovelace"))
    assert anonymous(text) == expected


def test_the_home_folder_is_known_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("D:\\Profile\\Ada"))
    assert anonymous("d:\\profile\\ADA\\x.tif and D:/Profile/ada") == "~\\x.tif and ~"


def test_diagnostics_hold_facts_and_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "ada")
    log = tmp_path / "ada" / "setup.log"
    log.parent.mkdir()
    log.write_text("".join(f"line {number}\n" for number in range(100)) + "get http://ada:pw@index/simple\n")
    text = diagnostics({"plugin": "0.3.0", "python": tmp_path / "ada" / "venv"}, log)
    assert "plugin: 0.3.0\npython: ~/venv\nsystem: " in text
    assert "line 99" in text
    assert "line 10\n" not in text
    assert "ada" not in text
    assert "pw" not in text


def test_a_log_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert "last lines" not in diagnostics({}, tmp_path / "none.log")

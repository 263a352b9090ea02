from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from debias_mapper.runtime import installing
from debias_mapper.runtime.installing import Installer, Registry, Source, WheelFolder, explain
from debias_mapper.runtime.pythons import Python, SetupError

BASE = Python("/usr/bin/python3", (3, 11, 2))


class FakePip:
    """Takes commands in place of running them; one that installs prints the given lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.version = "pip 24.2 from somewhere"
        self.lines: list[str] = []
        self.status = 0
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        monkeypatch.setattr(installing, "run_to_end", self.run)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None], **_: Any
    ) -> int:
        if "--version" in command:
            on_line(self.version)
            return 0 if self.version else 1
        self.command, self.environment = list(command), dict(environment)
        for line in self.lines:
            on_line(line)
        return self.status


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(monkeypatch)


def install(folder: Path, source: Source, steps: list[Any] | None = None, proxies: Mapping[str, str] = {}) -> str:
    heard: list[Any] = [] if steps is None else steps
    installer = Installer(folder / "log", proxies, lambda *step: heard.append(step), None, None)
    installer.install(BASE, folder / "venv", source, "torchgeo-debias==1", folder / "constraints.txt")
    return (folder / "log").read_text(encoding="utf-8")


def test_packages_come_from_the_users_own_index_at_the_pinned_versions(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    install(tmp_path, Registry())
    assert pip.command[-3:] == ["-c", str(tmp_path / "constraints.txt"), "torchgeo-debias==1"]
    assert not [word for word in pip.command if "index" in word]
    assert pip.environment["PIP_INDEX_URL"] == "https://mirror/simple"


def test_settings_that_would_send_packages_elsewhere_are_dropped(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PYTHONPATH"):
        monkeypatch.setenv(name, "/elsewhere")
    install(tmp_path, Registry())
    assert "/elsewhere" not in pip.environment.values()
    assert pip.environment["PIP_USER"] == "0"


def test_builds_of_torch_come_from_an_index_of_their_own_where_one_is_named(tmp_path: Path, pip: FakePip) -> None:
    log = install(tmp_path, Registry(torch_index_url="https://ada:s3cret@torch/cpu"))
    assert pip.environment["PIP_EXTRA_INDEX_URL"] == "https://ada:s3cret@torch/cpu"
    assert "PIP_INDEX_URL" not in pip.environment
    assert "s3cret" not in log + " ".join(pip.command)


def test_logins_reach_pip_but_neither_its_command_line_nor_the_log(tmp_path: Path, pip: FakePip) -> None:
    pip.lines = [
        "Looking in indexes: https://ada:s3cret@index/simple",
        "Collecting git+https://ada:s3cret@host",
        "  Downloading https://host/x.whl?access_token=s3cret (9 MB)",
    ]
    source = Registry(index_url="https://ada:s3cret@index/simple")
    steps: list[Any] = []
    log = install(tmp_path, source, steps, proxies={"HTTPS_PROXY": "http://ada:pa55@proxy:1"})
    assert pip.environment["PIP_INDEX_URL"] == "https://ada:s3cret@index/simple"
    assert pip.environment["HTTPS_PROXY"] == "http://ada:pa55@proxy:1"
    assert "Looking in indexes: https://***@index/simple" in log
    assert [stage for stage, _, _ in steps] == ["Collecting ***@host", "Downloading x.whl?access_token=***"]
    assert not re.search("s3cret|pa55", log + " ".join(pip.command))


def test_a_folder_of_wheels_is_the_only_source_of_what_it_holds(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/another/folder")
    install(tmp_path, WheelFolder(tmp_path / "my wheels"))
    assert pip.command[-4:] == ["--no-index", "--find-links", str(tmp_path / "my wheels"), "torchgeo-debias==1"]
    assert "-c" not in pip.command
    assert (pip.environment["PIP_CONFIG_FILE"], pip.environment["PIP_FIND_LINKS"]) == (os.devnull, "")


def test_progress_is_told_and_its_lines_stay_out_of_the_log(tmp_path: Path, pip: FakePip) -> None:
    pip.lines = [
        "Collecting torch==2.14.1",
        "  Downloading https://host/packages/torch-2.14.1-cp311.whl (900 MB)",
        "Progress 0 of 921600",
        "Progress 460800 of 921600",
        "Installing collected packages: torch, torchgeo-debias",
    ]
    steps: list[Any] = []
    log = install(tmp_path, Registry(), steps)
    assert steps == [
        ("Collecting torch==2.14.1", 0, 0),
        ("Downloading torch-2.14.1-cp311.whl", 0, 0),
        ("Downloading torch-2.14.1-cp311.whl", 0, 900),
        ("Downloading torch-2.14.1-cp311.whl", 450, 900),
        ("Installing packages", 0, 0),
    ]
    assert "Progress" not in log
    assert "--progress-bar raw" in log


def test_a_log_on_a_full_disk_leaves_the_word_to_pip(tmp_path: Path, pip: FakePip) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    pip.status, pip.lines = (
        1,
        ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
    )
    with pytest.raises(SetupError, match="the disk is full"):
        install(tmp_path, Registry())


def test_an_older_pip_prints_no_progress(tmp_path: Path, pip: FakePip) -> None:
    pip.version = "pip 23.0.1 from somewhere"
    install(tmp_path, Registry())
    assert pip.command[pip.command.index("--progress-bar") + 1] == "off"


def test_a_python_without_any_pip_says_what_to_install(tmp_path: Path, pip: FakePip) -> None:
    pip.version, pip.status = "", 1
    with pytest.raises(SetupError, match="/usr/bin/python3 has no pip: install python3-venv or python3-pip"):
        install(tmp_path, Registry())


def test_what_pip_cannot_do_becomes_a_sentence_that_names_the_log(tmp_path: Path, pip: FakePip) -> None:
    pip.status, pip.lines = 1, ["ERROR: No matching distribution found for small-thing>=1"]
    with pytest.raises(SetupError, match=r"small-thing>=1 is not on offer .* \(the log is .*log\)\.$"):
        install(tmp_path, Registry())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("OSError('Tunnel connection failed: 407 Proxy Authentication Required')", "proxy refused"),
        ("ERROR: Missing dependencies for SOCKS support.", "HTTP proxy"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "certificate"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: The repository located at host is not a trusted or secure host and is being ignored.", "https"),
        ("ERROR: HTTP error 403 while getting https://host/x.whl", "index refused"),
        ("NewConnectionError('<...>: Failed to establish a new connection: [Errno -2]')", "check the network"),
        ("ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\x'", "virus"),
        ("ERROR: ResolutionImpossible: for help visit https://pip", "do not fit together"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nERROR: Wheel 'x' located at /y is invalid.", "damaged"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "damaged"),
        ("WARNING: Retrying after 'Read timed out.'\nERROR: ResolutionImpossible: for help", "do not fit together"),
        ("WARNING: Retrying after 'Read timed out.'\nERROR: Something else.", "could not be reached"),
        (
            "WARNING: Retrying after 'NewConnectionError'\n"
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
            "ERROR: No matching distribution found for x",
            "could not be reached",
        ),
        (
            "WARNING: Retrying after 'Read timed out.'\n"
            "ERROR: Could not find a version that satisfies the requirement x>2 (from versions: 1.0, 2.0)\n"
            "ERROR: No matching distribution found for x>2",
            "x>2 is not on offer",
        ),
        ("noise\nERROR: Something else.", "pip says “Something else”"),
        ("noise", "without a reason"),
    ],
)
def test_pips_words_are_explained(line: str, words: str) -> None:
    assert words in explain(line.splitlines())

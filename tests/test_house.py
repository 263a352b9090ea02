"""Rules of the house that no linter knows: the way in, what is pinned, what is light, what is shipped."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import torchgeo_debias

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "torchgeo_debias"
HEAVY = {"torch", "torchvision", "torchgeo", "timm", "peft", "lightning", "rasterio", "geopandas", "numpy"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: what is committed cannot be told")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def declared(*extras: str) -> list[Requirement]:
    """The requirements in pyproject.toml, those of these extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in project["dependencies"] + own]


def with_dependencies(requirements: list[Requirement]) -> set[str]:
    """The names of these distributions and of all that they need in this environment, directly or not."""
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, parent_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": parent_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(line), extra) for line in metadata.requires(name) or []]
    return {name for name, _ in seen} - {"torchgeo-debias"}


def test_readme_has_exactly_two_commands_of_one_line() -> None:
    readme = (ROOT / "README.md").read_text()
    section = re.search(r"^## Two commands\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert blocks == [("bash", "python3 bootstrap.py demo\n"), ("bash", "python3 bootstrap.py test\n")]


@pytest.mark.skipif(os.name == "nt", reason="CI runs it with bash")
def test_ci_runs_the_second_command_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = Path(shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run"))
    assert os.access(script, os.X_OK)
    fence = "```"
    (tmp_path / "README.md").write_text(
        f"## Other\n{fence}bash\nexit 4\n{fence}\n## Two commands\n{fence}bash\nexit 5\n{fence}\n"
        f"{fence}bash\necho from $(basename $PWD); exit 6\n{fence}\n## More\n{fence}bash\nexit 7\n{fence}\n"
    )
    run = subprocess.run([script], cwd="/", capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (6, f"from {tmp_path.name}")


def test_no_machine_path_or_registry_host_is_committed() -> None:
    foreign = re.compile(
        r"(?<![\w.])/(?:work|root|tmp|opt|home|Users)/(?!(?:ada|grace|user|homebrew)\b)"  # which are nobody's
        r"|\b(?:pypi|npmjs|debian|pythonhosted)\.(?:org|com)\b|\bdownload\.pytorch\.org\b"
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in foreign.finditer(text)]
    assert not found


def test_constraints_are_names_versions_and_markers() -> None:
    assert len(pins()) > 100
    for pin in pins():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), pin
        assert not pin.extras, pin


def test_every_dependency_is_pinned_once() -> None:
    here = [canonicalize_name(pin.name) for pin in pins() if not pin.marker or pin.marker.evaluate()]
    assert len(here) == len(set(here))
    assert not with_dependencies(declared("clip", "demo", "diffusion", "export", "sam", "scale", "dev")) - set(here)


def test_every_import_of_the_package_is_declared() -> None:
    required = declared("clip", "demo", "diffusion", "export", "sam", "scale")
    files = [file for requirement in required for file in metadata.files(requirement.name) or []]
    provided = {file.parts[0].removesuffix(".py") for file in files}
    for path in python_files("torchgeo_debias"):
        foreign = set(imported_names(path)) - set(sys.stdlib_module_names) - {"torchgeo_debias"}
        assert foreign <= provided, f"{path.relative_to(ROOT)}: declare {foreign - provided} in pyproject.toml"


def test_files_stay_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in tracked_files() if path.suffix == ".py"}
    assert not {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length >= 600}


def test_the_package_never_prints() -> None:
    for path in python_files("torchgeo_debias"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import torchgeo_debias; "
        "print(time.process_time() - start, *sorted(name for name in sys.modules if '.' not in name))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = run.stdout.split()
    assert not HEAVY & set(modules)
    assert float(seconds) < 0.5


def test_the_version_is_the_installed_one() -> None:
    assert torchgeo_debias.__version__ == metadata.version("torchgeo-debias")


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("torchgeo_debias-*-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert "torchgeo_debias/py.typed" in names

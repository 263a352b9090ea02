"""The documentation says what the code does: links, options, settings, examples."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import torchgeo_debias
from torchgeo_debias.backbones import KINDS, AdapterSettings
from torchgeo_debias.backbones.adapters import OWN
from torchgeo_debias.backbones.registry import list_backbones
from torchgeo_debias.cli.app import app
from torchgeo_debias.data.objects import TileSpec
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.detection import DetectorConfig
from torchgeo_debias.evaluation import DetectionScores, Scores
from torchgeo_debias.evaluation.detection import ClassDetection
from torchgeo_debias.inference.box_rows import BOX_FIELDS
from torchgeo_debias.inference.results import FIELDS, RAW_FIELDS
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.detection import DETECT_METHODS, DetectConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
GROUP: Any = typer.main.get_command(app)
VERBS = sorted(GROUP.commands)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """Markdown without code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, made as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[2]


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the rows of tables whose first cell begins with code."""
    for line in re.findall(r"^\| *`.*\|$", text, re.MULTILINE):
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text()))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name_of(page)} links to {link}, which has no such heading"


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)", (DOCS / "index.md").read_text()))
    assert linked == {path.name for path in DOCS.glob("*.md")} - {"index.md"}


def test_version_of_readme_and_changelog() -> None:
    version = torchgeo_debias.__version__
    assert f"torchgeo_debias-{version}-py3-none-any.whl" in (ROOT / "README.md").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_command_page_has_every_verb() -> None:
    titles = re.findall(r"^## (.+)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert sorted(set(titles) - {"Exit codes"}) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_command_page_has_every_option_with_its_default(verb: str) -> None:
    written = {
        tuple(re.findall(r"`([^`]+)`", cells[0])): cells[1]
        for cells in rows(section((DOCS / "cli.md").read_text(), verb))
        if cells[0].startswith(("`--", *(f"`{p.name.upper()}`" for p in GROUP.commands[verb].params)))
    }
    real = {}
    for param in GROUP.commands[verb].params:
        named = param.param_type_name == "option"
        names = (*param.opts, *param.secondary_opts) if named else (param.name.upper(),)
        real[names] = "required" if param.required else _shown_default(param)
    assert written == real


def _shown_default(param: Any) -> str:
    shown = getattr(param, "show_default", None)
    if isinstance(shown, str):
        return shown
    return "" if param.default is None or isinstance(param.default, bool) else str(param.default)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_examples_are_understood(page: Path) -> None:
    for block in blocks(page.read_text(), "bash"):
        for line in block.splitlines():
            words = shlex.split(line)
            if words[:1] != ["torchgeo-debias"]:
                continue
            context = GROUP.make_context("torchgeo-debias", words[1:])
            name, command, rest = GROUP.resolve_command(context, words[1:])
            command.make_context(name, rest, parent=context)


def test_every_verb_has_an_example() -> None:
    text = (DOCS / "cli.md").read_text()
    for verb in VERBS:
        assert any(block.startswith(f"torchgeo-debias {verb} ") for block in blocks(section(text, verb), "bash"))


def test_json_of_evaluate_is_described() -> None:
    described = {name for cells in rows(section((DOCS / "cli.md").read_text(), "evaluate")) for name in _code(cells[0])}
    assert {field.name for field in fields(Scores)} <= described


def _code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_setting_is_described_with_its_default() -> None:
    written: dict[str, str] = {}
    for cells in rows(section((DOCS / "method.md").read_text(), "Every setting")):
        (name,) = _code(cells[0])
        assert name not in written
        written[name] = cells[1]
    assert written == {
        field.name: _json_default(field)
        for kind in (TrainConfig, DebiasSettings, AdapterSettings)
        for field in fields(kind)
    }


def test_every_kind_of_adapter_is_described() -> None:
    text = section((DOCS / "method.md").read_text(), "The kinds of adapters")
    assert [(_code(cells[0])[0], *cells[1:]) for cells in rows(text)] == [
        (kind, about.title, about.source, "no" if about.type in OWN else "yes") for kind, about in KINDS.items()
    ]


def test_every_setting_of_a_detector_is_described_with_its_default() -> None:
    text = section((DOCS / "detection.md").read_text(), "Every setting of a detector")
    written = [(_code(cells[0])[0], cells[1]) for cells in rows(text)]
    assert written == [
        (field.name, _json_default(field))
        for kind in (DetectConfig, DetectorConfig, TileSpec)
        for field in fields(kind)
    ]


def test_every_method_of_a_detector_is_described() -> None:
    text = section((DOCS / "detection.md").read_text(), "The methods")
    named = [name for cells in rows(text) for name in _code(cells[0])]
    assert named[: len(DETECT_METHODS) + 1] == ["--method", *DETECT_METHODS]


def test_attributes_of_found_objects_are_described() -> None:
    text = section((DOCS / "detection.md").read_text(), "Objects in rasters")
    assert [name for cells in rows(text) for name in _code(cells[0])] == list(BOX_FIELDS)


def test_json_of_evaluate_detector_is_described() -> None:
    text = section((DOCS / "cli.md").read_text(), "evaluate-detector")
    described = {name for cells in rows(text) for name in _code(cells[0])}
    assert {field.name for field in fields(DetectionScores)} - {"curves"} <= described
    (per_class,) = (cells[1] for cells in rows(text) if cells[0] == "`per_class`")
    assert set(_code(per_class)) == set(ClassDetection.__annotations__)


def _json_default(field: Field[Any]) -> str:
    if field.default is MISSING:  # nested settings have a table of their own
        return ""
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


def test_every_backbone_is_listed_with_its_licence() -> None:
    table = {
        _code(cells[0])[0]: (cells[1], cells[2])
        for cells in rows((DOCS / "backbones.md").read_text())
        if len(cells) == 4
    }
    assert table == {
        spec.name: (str(spec.patch) if spec.patch > 1 else "any", spec.licence) for spec in list_backbones()
    }


def test_attributes_of_the_maps_are_described() -> None:
    described = {name for cells in rows((DOCS / "mapping.md").read_text()) for name in _code(cells[0])}
    assert {*FIELDS, *RAW_FIELDS} <= described


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_call_what_exists(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        tree = ast.parse(block)
        names: dict[str, Any] = {}
        for node in tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.asname or alias.name: import_module(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = import_module(node.module)
                names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in calls:
            function = _resolve(call.func, names)
            if function is not None and function.__module__.startswith("torchgeo_debias"):
                given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
                inspect.signature(function).bind(*call.args, **given)


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What ``a.b.c`` stands for, None where ``a`` is a variable of the example."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None

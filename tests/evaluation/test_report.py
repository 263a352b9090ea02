from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from torchgeo_debias import evaluation
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.evaluation.figures import group_bars, map_picture
from torchgeo_debias.evaluation.metrics import Scores
from torchgeo_debias.evaluation.report import Card, Section, comparison_report, training_report, write_report

FACTS = {"Seed": "7", "torch": "2.14.1"}


class Page(HTMLParser):
    """What a browser would see: text, elements, links to elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"href", "src", "xlink:href"} and not (value or "").startswith(("#", "data:")):
                self.outside.append(f"{tag} {value}")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_comparison_holds_everything_in_one_small_file(
    tmp_path: Path, before: Scores, after: Scores, table: ClassTable, labels: npt.NDArray[np.int64]
) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(labels), 8))
    noise = rng.integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
    path = tmp_path / "report.html"
    comparison_report(
        path,
        title="Rare & <common>",
        before=before,
        after=after,
        table=table,
        facts=FACTS,
        names=("plain", "new"),
        features_before=features,
        features_after=features * 2,
        labels=labels,
        map_figure=map_picture(noise, rng.integers(0, 6, (30, 30)), table),
    )
    page = Page(path)
    assert path.stat().st_size < 5_000_000
    assert page.outside == []
    assert "script" not in page.tags
    assert page.tags.count("figure") == 6
    assert page.tags.count("img") == 1  # the noisy map alone is too large for a drawing
    assert "Rare & <common>" in page.text
    assert "b" not in page.tags
    assert "<b>bold</b>" in page.text
    for words in ("Seed 7", "torch 2.14.1", after.definition, "plain", "new", "between head-tail", "unseen"):
        assert words in page.text
    tail = f"{100 * before.f1['tail']:.1f} → {100 * after.f1['tail']:.1f}"
    assert tail in page.text.replace("→  ", "→ ")
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_report_gives_the_same_bytes(tmp_path: Path, before: Scores, after: Scores, table: ClassTable) -> None:
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    for path in (one, two):
        comparison_report(path, title="t", before=before, after=after, table=table, facts=FACTS)
    assert one.read_bytes() == two.read_bytes()


def test_clip_paths_of_different_figures_do_not_share_an_id(
    tmp_path: Path, before: Scores, after: Scores, table: ClassTable
) -> None:
    path = tmp_path / "report.html"
    comparison_report(path, title="t", before=before, after=after, table=table, facts=FACTS)
    clips = re.findall(r'<clipPath id="([^"]+)"', path.read_text(encoding="utf-8"))
    assert len(clips) >= 4
    assert len(clips) == len(set(clips))


def test_training_report_on_one_model(tmp_path: Path, after: Scores) -> None:
    path = tmp_path / "report.html"
    training_report(path, title="One model", scores=after, facts=FACTS)
    page = Page(path)
    assert page.tags.count("figure") == 3
    assert "→" not in page.text
    assert f"{100 * after.f1['tail']:.1f}" in page.text


def test_a_loss_is_not_dressed_up(tmp_path: Path, before: Scores, after: Scores, table: ClassTable) -> None:
    path = tmp_path / "report.html"
    comparison_report(path, title="t", before=after, after=before, table=table, facts={})
    html = path.read_text(encoding="utf-8")
    assert 'class="change bad"' in html
    assert 'class="change good"' not in html
    assert "About this run" not in html


def test_sections_of_ones_own(tmp_path: Path, before: Scores) -> None:
    path = tmp_path / "report.html"
    sections = [
        Section("Words", "One.\n\nTwo <i>."),
        Section("Table", table=(("name", "value"), [("x", "1,200"), ("y", "+0.5")])),
        Section("Figure", figures=[(group_bars(before), 'A "caption"')], cards=[Card("speed", "3 ms")]),
    ]
    write_report(path, "Own", sections, {})
    html = path.read_text(encoding="utf-8")
    assert html.count("<p>") == 2
    assert html.count('<td class="number">') == 2
    assert "3 ms" in Page(path).text
    assert "#1f2937" not in html.partition("</style>")[2]  # figures take the page's colours


def test_refusals_leave_nothing_behind(tmp_path: Path, before: Scores, table: ClassTable) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "missing" / "report.html", "t", [], {})
    folder = tmp_path / "report.html"
    folder.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(folder, "t", [], {})
    assert list(tmp_path.iterdir()) == [folder]
    other = ClassTable.from_counts({"a": 1, "b": 2, "c": 3})
    with pytest.raises(ConfigError, match="same classes"):
        comparison_report(folder, title="t", before=before, after=before, table=other, facts={})
    with pytest.raises(ConfigError, match="all three or none"):
        comparison_report(
            folder, title="t", before=before, after=before, table=table, facts={}, labels=np.zeros(3, np.int64)
        )


def test_the_room_opens_without_torch_or_matplotlib() -> None:
    code = (
        "import sys, torchgeo_debias.evaluation, torchgeo_debias.evaluation.report as r;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'jinja2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", evaluation.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(evaluation, name).__name__ == name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        evaluation.nonsense  # noqa: B018

from __future__ import annotations

import io
import sys
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation import figures
from torchgeo_debias.evaluation.metrics import Scores, score
from torchgeo_debias.tiling.palette import palette


def heights(figure: Figure) -> list[list[float]]:
    return [[bar.get_height() for bar in container] for container in figure.axes[0].containers]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def assert_draws_without_overlap(figure: Figure) -> None:
    """Tick labels of an axis must not run into each other."""
    figure.savefig(io.BytesIO(), format="png", dpi=60)
    for axes in figure.axes:
        for labels, side in ((axes.get_xticklabels(), "x"), (axes.get_yticklabels(), "y")):
            boxes = sorted(
                (t.get_window_extent() for t in labels if t.get_text()), key=lambda b: getattr(b, side + "0")
            )
            for one, next_ in pairwise(boxes):
                assert getattr(one, side + "1") <= getattr(next_, side + "0") + 1


def test_group_bars_show_both_models(before: Scores, after: Scores) -> None:
    figure = figures.group_bars(before, after, ("plain", "new"))
    shown = heights(figure)
    assert shown[0] == pytest.approx([before.f1[k] for k in ("head", "middle", "tail", "macro")])
    assert shown[1] == pytest.approx([after.f1[k] for k in ("head", "middle", "tail", "macro")])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["plain", "new"]
    assert_draws_without_overlap(figure)


def test_a_single_model_and_an_undefined_group(after: Scores) -> None:
    scores = Scores.from_json({**after.to_json(), "f1": {"head": 0.5, "middle": 0.5, "tail": None, "macro": 0.5}})
    figure = figures.group_bars(scores)
    assert len(heights(figure)) == 1
    assert "n/a" in texts(figure)
    assert not figure.legends


def test_class_bars_run_from_frequent_to_rare_and_say_so(before: Scores, after: Scores) -> None:
    figure = figures.class_bars(before, after)
    axes = figure.axes[0]
    counts = [int(label.get_text().rpartition("(")[2].strip(")")) for label in axes.get_yticklabels()]
    assert counts == [900, 80, 60, 9, 4, 2]
    assert axes.yaxis_inverted()
    assert {"head", "middle", "tail"} <= set(texts(figure))
    assert texts(figure).count("no test sample") == 2
    lengths = [bar.get_width() for bar in axes.containers[1]]
    assert lengths[4] == pytest.approx(after.per_class["storage tank"]["f1"])
    assert_draws_without_overlap(figure)


def test_confusion_matrix_rows_are_shares_in_order_of_frequency() -> None:
    table = ClassTable.from_counts({"rare": 1, "common": 9, "none": 5})
    figure = figures.confusion_matrix(score(np.array([0, 0, 1]), None, table, np.array([0, 1, 1])), "LoRA")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["common", "none", "rare"]
    shares: npt.NDArray[np.float64] = np.ma.filled(np.ma.asarray(axes.collections[0].get_array()), np.nan)
    np.testing.assert_allclose(shares, np.array([[1, 0, 0], [np.nan, np.nan, np.nan], [0.5, 0, 0.5]]))
    assert axes.get_title() == "LoRA"
    assert_draws_without_overlap(figure)


def test_twenty_one_long_names_fit() -> None:
    table = ClassTable.from_counts({f"medium residential {i}": 90 - i for i in range(21)})
    scores = score(np.arange(21), None, table, np.arange(21))
    for figure in (figures.class_bars(scores, scores), figures.confusion_matrix(scores)):
        assert_draws_without_overlap(figure)


def test_feature_plot_has_shared_axes_and_rare_classes_on_top(table: ClassTable, labels: npt.NDArray[np.int64]) -> None:
    before = np.random.default_rng(3).normal(size=(len(labels), 6)).astype(np.float32)
    figure = figures.feature_plot(before, before * 2 + 100, labels, table)
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    drawn = [c.get_label() for c in left.collections]
    assert drawn == ["head", "middle", "storage tank (4)", "unseen (2)"]
    # A shift of the whole cloud is taken out: the right panel is the left one, twice as wide.
    one, two = (np.asarray(axes.collections[0].get_offsets()) for axes in (left, right))
    np.testing.assert_allclose(two, 2 * one, atol=1e-3)
    colour = np.array(palette(6)[4]) / 255
    np.testing.assert_allclose(left.collections[2].get_facecolor()[0][:3], colour)


def test_map_picture_colours_classes_and_leaves_the_rest_clear() -> None:
    table = ClassTable.from_counts({"none": 50, "tree": 30, "roof": 9, "pad": 1}, background="none")
    class_map = np.array([[1, 1], [0, 255]], dtype=np.uint8)
    picture = np.full((40, 40, 3), 128, dtype=np.uint8)
    figure = figures.map_picture(picture, class_map, table, (500_000.0, 4_000_000.0, 500_040.0, 4_000_040.0))
    overlay = np.asarray(figure.axes[1].images[1].get_array())
    assert overlay[0, 0].tolist()[:3] == list(palette(4, 0)[1])
    assert overlay[..., 3].tolist() == [[165, 165], [0, 0]]
    assert tuple(figure.axes[1].images[1].get_extent()) == (500_000.0, 500_040.0, 4_000_000.0, 4_000_040.0)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["tree (66.7 %)"]
    assert_draws_without_overlap(figure)


def test_map_picture_without_any_class_and_of_a_large_image() -> None:
    table = ClassTable.from_counts({"a": 3, "b": 2, "c": 1})
    figure = figures.map_picture(np.zeros((10, 5000, 3), np.uint8), np.full((2, 2), -1), table)
    assert not figure.legends
    assert max(np.asarray(figure.axes[0].images[0].get_array()).shape) <= 2048


@pytest.mark.parametrize(
    ("rgb", "class_map", "extent"),
    [
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.int64), None),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.int64), None),
        (np.zeros((4, 4, 3), np.uint8), np.zeros(4, np.int64), None),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int64), (0.0, 4.0, 0.0, 4.0)),
    ],
)
def test_map_picture_refusals(rgb: Any, class_map: Any, extent: Any, table: ClassTable) -> None:
    with pytest.raises(DataError, match="map picture"):
        figures.map_picture(rgb, class_map, table, extent)


def test_feature_plot_refusal(table: ClassTable) -> None:
    with pytest.raises(DataError, match="two equal sets"):
        figures.feature_plot(np.zeros((4, 2)), np.zeros((4, 3)), np.zeros(4, np.int64), table)


def test_no_global_state_is_touched(before: Scores, after: Scores) -> None:
    settings = dict(mpl.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    figures.group_bars(before, after)
    figures.confusion_matrix(before)
    assert dict(mpl.rcParams) == settings
    assert ("matplotlib.pyplot" in sys.modules) == loaded

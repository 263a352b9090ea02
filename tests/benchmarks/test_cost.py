"""The cost of the methods: what is counted, and that only equal trainings are compared."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.cost import NAMES, Record, check_equal, measured, ratios_at, settings_of, summary
from tests.training.conftest import configure, toy_chips  # noqa: F401 - a fixture
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.training import TrainConfig


def record(cpu: float, steps: dict[str, int], tail: float = 0.5) -> Record:
    return {
        "chips": "abc", "count": 45, "steps": steps, "trained_parameters": 10, "backbone_parameters": 1000,
        "wall_s": 2 * cpu, "cpu_s": cpu, "stages": {"adapt": {"wall_s": cpu, "cpu_s": cpu / 2}},
        "peak_mb": 100.0, "f1": dict.fromkeys(("head", "middle", "tail", "macro"), tail),
    }  # fmt: skip


def repeat(lora: float, deblora: float) -> dict[str, Record]:
    return {"lora": record(lora, {"adapt": 12}), "deblora": record(deblora, {"adapt": 12, "align": 12})}


def test_ratios_are_taken_within_a_repeat() -> None:
    found = summary([repeat(1.0, 2.0), repeat(10.0, 21.0), repeat(2.0, 5.0)])
    assert found["lora"]["ratio_cpu"] == 1
    assert found["deblora"]["ratio_cpu"] == 2.1  # of 2, 2.1 and 2.5; the medians of the two alone would give 2.5
    assert found["deblora"]["cpu_s"] == 5.0
    assert found["deblora"]["wall_s"] == 10.0
    assert found["deblora"]["share_of_backbone"] == 0.01
    assert found["deblora"]["stages"]["adapt"]["share_cpu"] == 0.5


def test_ratios_at_other_epochs_scale_what_trains_alone() -> None:
    def stages(**cpu: float) -> Record:
        return {"stages": {name: {"cpu_s": seconds} for name, seconds in cpu.items()}}

    records = {
        "lora": stages(adapt=10.0, rest=1.0),
        "deblora": stages(adapt=10.0, features=3.0, align=11.0, rest=2.0),
        "deblora, adapted": stages(adapt=10.0, features=3.0, align=6.0, rest=2.0),
        "finetune": stages(finetune=20.0, rest=1.0),
        "probe": stages(features=2.0, rest=1.0),
    }
    found = ratios_at(records, Namespace(epochs=2, align_epochs=1))  # to 10 epochs, and 2 of them
    assert found == {
        name: round(seconds / 51, 3)
        for name, seconds in {
            "lora": 51, "deblora": 50 + 3 + 55 + 2, "deblora, adapted": 50 + 3 + 12 + 2, "finetune": 101, "probe": 3,
        }.items()
    }  # fmt: skip


def test_scores_are_means_and_may_be_missing() -> None:
    one, two = repeat(1.0, 2.0), repeat(1.0, 2.0)
    two["lora"] = record(1.0, {"adapt": 12}, tail=0.7)
    assert summary([one, two])["lora"]["f1"]["tail"] == pytest.approx(0.6)
    for records in (one, two):
        for entry in records.values():
            entry["f1"] = None
    assert summary([one, two])["lora"]["f1"] is None


def test_only_equal_trainings_are_compared() -> None:
    records = repeat(1.0, 2.0) | {"deblora, adapted": record(1.3, {"adapt": 12, "align": 6}), "probe": record(0.1, {})}
    check_equal(records, epochs=2, align_epochs=1)
    records["deblora"]["steps"]["align"] = 11
    with pytest.raises(AssertionError, match="deblora took"):
        check_equal(records, epochs=2, align_epochs=1)
    records = repeat(1.0, 2.0)
    records["deblora"]["chips"] = "other"
    with pytest.raises(AssertionError, match="deblora saw other chips than lora"):
        check_equal(records, epochs=2, align_epochs=1)


def test_names_stand_for_the_settings_of_the_library() -> None:
    options = Namespace(epochs=10, align_epochs=2, repeat=3, backbone="timm:test_vit", weights="random")
    found = {name: settings_of(name, options) for name in NAMES}
    assert {name: config.method for name, config in found.items()} == {
        "probe": "probe", "lora": "lora", "finetune": "finetune", "deblora": "deblora", "deblora, adapted": "deblora",
    }  # fmt: skip
    assert (found["deblora"].align_start, found["deblora"].align_epochs) == ("fresh", None)
    assert (found["deblora, adapted"].align_start, found["deblora, adapted"].align_epochs) == ("adapted", 2)
    assert {(config.seed, config.epochs) for config in found.values()} == {(3, 10)}


@pytest.mark.parametrize(
    ("fields", "stages", "steps"),
    [
        ({"method": "probe"}, {"features", "rest"}, {}),
        ({"method": "lora"}, {"adapt", "rest"}, {"adapt": 12}),
        ({"method": "finetune"}, {"finetune", "rest"}, {"finetune": 12}),
        (
            {"method": "deblora", "align_start": "adapted", "align_epochs": 1},
            {"adapt", "features", "debias", "align", "rest"},
            {"adapt": 12, "align": 6},
        ),
    ],
)
def test_every_stage_is_on_the_clock(
    fields: dict[str, Any],
    stages: set[str],
    steps: dict[str, int],
    configure: Callable[..., TrainConfig],  # noqa: F811
) -> None:
    config = configure(epochs=2, debias=DebiasSettings(n_clusters=4), **fields)
    found = measured(fields["method"], toy_chips(), toy_chips((4, 4, 4, 4), seed=1), config)
    assert set(found["stages"]) == stages
    assert found["steps"] == steps
    for key in ("wall_s", "cpu_s"):
        assert sum(times[key] for times in found["stages"].values()) == pytest.approx(found[key])
        assert all(times[key] >= 0 for times in found["stages"].values())
    assert 0 <= found["f1"]["tail"] <= 1
    head = 4 * (128 + 1)
    whole = found["backbone_parameters"]
    expected = {"probe": head, "finetune": head + whole}.get(fields["method"])
    assert found["trained_parameters"] == expected or (expected is None and head < found["trained_parameters"] < whole)

"""What a model package says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = {
    "deblora": "debLoRA (de-biased LoRA)",
    "lora": "plain LoRA",
    "finetune": "fine-tuning",
    "probe": "linear probe",
}
DETECTION = "detection"
CLASSIFICATION = "classification"


@dataclass(frozen=True)
class ClassEntry:
    """A class of a model.

    Attributes:
        name: As features carry it.
        count: Training examples.
        group: ``head``, ``middle``, ``tail`` or ``background``.
    """

    name: str
    count: int
    group: str


@dataclass(frozen=True)
class Model:
    """A model package.

    Attributes:
        path: A folder or a ``.tgd`` file.
        task: ``classification`` or ``detection``.
        classes: In the order of the model.
        facts: Name and text of what else a person wants to know.
        twin: Whether the plain LoRA was kept for comparison.
    """

    path: str
    task: str
    classes: tuple[ClassEntry, ...]
    facts: tuple[tuple[str, str], ...]
    twin: bool

    @classmethod
    def of(cls, path: str, info: Mapping[str, Any]) -> Model:
        """Read the answer of the library's ``info --json``.

        Raises:
            ValueError: It is none.
        """
        try:
            twin = any(name.startswith("raw/") for name in info["files"])
            return cls(
                path=path,
                task=str(info["task"]),
                classes=tuple(ClassEntry(str(c["name"]), int(c["count"]), str(c["group"])) for c in info["classes"]),
                facts=tuple(_facts(info, twin)),
                twin=twin,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The library describes the model in a way that this plugin does not know ({error}): update the plugin."
            ) from error

    def can_show_plain_apart(self) -> bool:
        """Whether the plain LoRA's result is a run of its own; classifiers write both into the same features."""
        return self.twin and self.task == DETECTION


def _facts(info: Mapping[str, Any], twin: bool) -> list[tuple[str, str]]:
    given = info["input"]
    method, backbone = str(info["method"].get("method", "")), info["backbone"]
    if info["task"] == DETECTION:
        boxes = "oriented boxes" if info["detector"]["oriented"] else "horizontal boxes"
        task, spec, side = f"Detector, {boxes}", given["tile"], "tile"
    else:
        task, spec, side = "Classifier", given["chip"], "chip"
    gsd = f"{spec['gsd']:g} m per pixel" if spec.get("gsd") else "unknown"
    licences = sorted({str(value) for value in info.get("licences", {}).values() if value})
    return [
        ("Task", task),
        ("Method", METHODS.get(method, method) + (", plain LoRA kept" if twin else "")),
        ("Resolution", f"{gsd}, {side} of {spec['size']} px"),
        ("Bands", f"{', '.join(map(str, given['bands']))} ({given['dtype']})"),
        ("Backbone", str(backbone["name"])),
        ("Licence", ", ".join(licences) or "not stated"),
    ]

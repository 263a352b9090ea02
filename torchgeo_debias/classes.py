"""The class table: names, training counts and the head, middle and tail groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError, DataError

Group = Literal["head", "middle", "tail", "background"]
GROUPS: tuple[Group, ...] = ("head", "middle", "tail")


@dataclass(frozen=True)
class ClassTable:
    """The classes of a task, in the order of their ids.

    Attributes:
        names: One unique name per class; the position is the class id.
        counts: Training samples of each class.
        groups: Group of each class. Thirds of the classes sorted by falling count unless given; a background
            class, if there is one, is in the group ``"background"`` and outside the thirds.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("No class found: the data need at least one labelled class.")
        checked_names(self.names)
        if not len(self.names) == len(self.counts) == len(self.groups):
            raise ConfigError(
                f"A class table needs one count and one group a class; received {len(self.names)} names, "
                f"{len(self.counts)} counts and {len(self.groups)} groups."
            )

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        groups: Mapping[str, Group] | None = None,
        background: str | None = None,
    ) -> ClassTable:
        """Make a table from a mapping of class name to training count.

        Args:
            counts: Training samples by class name; the order of the mapping gives the class ids.
            groups: Group by class name; where left out, thirds of the classes sorted by falling count
                (ties keep the order of ``counts``).
            background: Name of the class that stands for "none of the objects", if there is one.

        Raises:
            ConfigError: If ``background`` or a name in ``groups`` is not a class.
        """
        names = tuple(counts)
        if background is not None and background not in counts:
            raise ConfigError(f"The background class {background!r} is not among the classes {', '.join(names)}.")
        given = dict(groups) if groups is not None else _thirds(counts, background)
        if background is not None:
            given[background] = "background"
        if set(given) != set(names):
            raise ConfigError(f"Groups must name every class once; odd ones: {sorted(set(given) ^ set(names))}.")
        return cls(names, tuple(int(counts[n]) for n in names), tuple(given[n] for n in names))

    @classmethod
    def from_labels(
        cls, labels: npt.NDArray[np.int64], names: Sequence[str], background: str | None = None
    ) -> ClassTable:
        """Count class ids ``labels`` of shape (N,) into a table of the classes ``names``.

        Raises:
            ConfigError: If a name stands more than once: two classes of one name would become one.
        """
        names = checked_names(names)
        counts = np.bincount(labels, minlength=len(names))
        return cls.from_counts(dict(zip(names, counts.tolist(), strict=True)), background=background)

    @property
    def background(self) -> int | None:
        """Class id of the background, None where the task has none."""
        return self.groups.index("background") if "background" in self.groups else None

    @property
    def objects(self) -> npt.NDArray[np.bool_]:
        """Which classes are objects and not background, shape (C,)."""
        return np.array([group != "background" for group in self.groups])

    @property
    def imbalance_ratios(self) -> npt.NDArray[np.float64]:
        """Largest count over each class's own count, shape (C,); infinite where a class has no sample.

        The largest is that of an object class: how much background was sampled says nothing about rareness.
        """
        counts = np.asarray(self.counts, dtype=np.float64)
        with np.errstate(divide="ignore"):
            ratios: npt.NDArray[np.float64] = counts.max(where=self.objects, initial=1.0) / counts
        return ratios

    @property
    def priors(self) -> npt.NDArray[np.float64]:
        """Share of each class among the training samples, shape (C,), summing to 1.

        A class without a sample counts as one, so that the logarithm of a prior is always finite.
        """
        counts = np.maximum(np.asarray(self.counts, dtype=np.float64), 1.0)
        priors: npt.NDArray[np.float64] = counts / counts.sum()
        return priors

    def of_group(self, group: Group) -> list[int]:
        """Class ids of one group, ascending."""
        return [i for i, g in enumerate(self.groups) if g == group]

    def with_counts(self, labels: npt.NDArray[np.int64]) -> ClassTable:
        """The same classes with counts taken anew from class ids ``labels`` of shape (N,).

        Groups follow the new counts, unless they were given and are not the thirds of the old ones.
        """
        background = None if self.background is None else self.names[self.background]
        table = ClassTable.from_labels(labels, self.names, background)
        thirds = ClassTable.from_counts(dict(zip(self.names, self.counts, strict=True)), background=background)
        return table if self.groups == thirds.groups else replace(table, groups=self.groups)

    def with_groups(self, groups: Mapping[str, Group]) -> ClassTable:
        """The same classes and counts in given groups.

        Args:
            groups: Group of each class by its name; a background class may be left out.

        Raises:
            ConfigError: If a class has no group, a group no class, or there is no such group.
        """
        if odd := [group for group in groups.values() if group not in GROUPS]:
            raise ConfigError(f"There is no group {odd[0]!r}: choose among {', '.join(GROUPS)}.")
        background = None if self.background is None else self.names[self.background]
        return ClassTable.from_counts(dict(zip(self.names, self.counts, strict=True)), groups, background)

    def to_json(self) -> list[dict[str, Any]]:
        """The table as a list of objects with ``name``, ``count`` and ``group``, in the order of class ids."""
        return [
            {"name": n, "count": c, "group": g} for n, c, g in zip(self.names, self.counts, self.groups, strict=True)
        ]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> ClassTable:
        """Read what :meth:`to_json` wrote."""
        rows = list(rows)
        return cls(
            tuple(str(r["name"]) for r in rows), tuple(int(r["count"]) for r in rows), tuple(r["group"] for r in rows)
        )


def checked_names(names: Sequence[str], where: str = "The class names") -> list[str]:
    """The names of classes as a list.

    Args:
        names: In the order of the class ids.
        where: What they are, for the sentence of an error.

    Raises:
        ConfigError: If they are one text, are not all text, or are not unique.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} must be a list of texts, one for each class; received {names!r}.")
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise ConfigError(f"{where} must be unique, but {', '.join(twice)} stands more than once.")
    return list(names)


def _thirds(counts: Mapping[str, int], background: str | None) -> dict[str, Group]:
    objects = sorted((n for n in counts if n != background), key=lambda n: -counts[n])
    return {str(name): group for group, part in zip(GROUPS, np.array_split(objects, 3), strict=True) for name in part}

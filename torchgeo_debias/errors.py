"""Exceptions that say in one sentence what is wrong, where, and what to do about it.

Every refusal of user input raises a subclass of :class:`DebiasError`, so that a door (command line,
worker, notebook) can show the sentence alone and stop with exit code 2.
"""

from __future__ import annotations


class DebiasError(Exception):
    """Base class of all refusals; ``str(error)`` is one sentence for a person."""


class ConfigError(DebiasError):
    """An option, or a combination of options, that cannot be carried out."""


class DataError(DebiasError):
    """Training or test data that cannot be used: missing, empty, corrupt or too few samples."""


class RasterError(DebiasError):
    """A raster that cannot be read or placed on the earth."""


class LabelError(DebiasError):
    """A vector layer that cannot serve as labels."""


class PackageError(DebiasError):
    """A model package that is damaged, foreign or does not fit the data."""


class WeightsError(DebiasError):
    """Backbone weights that are missing, changed or of another architecture."""


class OutputError(DebiasError):
    """A result that cannot be written."""


class EngineError(DebiasError):
    """A cluster that cannot be reached, or that loses its workers again and again."""


class Cancelled(DebiasError):
    """Raised by a progress callback to stop a long run; nothing is left half-written."""

"""What ``--bands`` may say."""

from __future__ import annotations

from torchgeo_debias.errors import ConfigError


def parse_bands(text: str | None) -> list[int | str] | None:
    """``1,2,3`` or ``red,green,nir`` as a list, None where nothing was given.

    Raises:
        ConfigError: If there is nothing before, between or after the commas.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ConfigError(
            f"--bands takes numbers counted from 1, or names, with one comma between two of them, such as 1,2,3; "
            f"received {text!r}."
        )
    return [int(part) if part.removeprefix("-").isdecimal() else part for part in parts]


def band_numbers(text: str | None) -> list[int] | None:
    """The same for images of scene folders, whose bands have no names of their own.

    Raises:
        ConfigError: If there is a name.
    """
    bands = parse_bands(text)
    if bands is None:
        return None
    numbers = [band for band in bands if isinstance(band, int)]
    if len(numbers) < len(bands):
        raise ConfigError(
            f"With a scene folder, --bands takes numbers counted from 1, such as 1,2,3; received {text!r}."
        )
    return numbers

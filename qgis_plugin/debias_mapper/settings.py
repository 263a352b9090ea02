"""What the plugin keeps in QGIS's settings, and what it takes from them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from qgis.core import QgsSettings

from .runtime.environment import default_folder, python_of

ENVIRONMENT_VARIABLE = "TORCHGEO_DEBIAS_PYTHON"

_PYTHON = "debias_mapper/python"
_FOLDER = "debias_mapper/folder"
_DEVICE = "debias_mapper/device"


def python_path() -> str | None:
    """The worker's Python: of the environment variable, else the one chosen, else the one set up; None for none.

    A file that is named but missing is returned as well, so that the sentence about it can name it.
    """
    made = Path(folder() or default_folder())
    return os.environ.get(ENVIRONMENT_VARIABLE) or _text(_PYTHON) or python_of(made)


def set_python_path(path: str | None) -> None:
    """Remember the worker's Python; None forgets it."""
    _remember(_PYTHON, path)


def folder() -> str | None:
    """Where the user wants environments to be made; None for the usual place."""
    return _text(_FOLDER)


def set_folder(path: str | None) -> None:
    """Remember where environments are made; None for the usual place."""
    _remember(_FOLDER, path)


def device() -> str:
    """Where models run unless an algorithm is told otherwise: ``"auto"``, ``"cpu"`` or ``"cuda:0"``."""
    return _text(_DEVICE) or "auto"


def set_device(name: str) -> None:
    """Remember where models run."""
    _remember(_DEVICE, name)


def proxy_variables() -> dict[str, str]:
    """QGIS's proxy as the variables that Python's tools read; empty where QGIS uses none.

    "DefaultProxy" leaves the choice to the system, whose variables a child inherits anyway.
    """
    settings = QgsSettings()
    kind = settings.value("proxy/proxyType", "", str)
    host = settings.value("proxy/proxyHost", "", str)
    if not settings.value("proxy/proxyEnabled", False, bool) or not host or kind not in ("HttpProxy", "Socks5Proxy"):
        return {}
    scheme = "http" if kind == "HttpProxy" else "socks5h"
    user = settings.value("proxy/proxyUser", "", str)
    secret = settings.value("proxy/proxyPassword", "", str)
    login = f"{quote(user, safe='')}:{quote(secret, safe='')}@" if user else ""
    port = settings.value("proxy/proxyPort", "", str)
    address = f"{scheme}://{login}{host}{':' + port if port else ''}"
    variables = {"HTTP_PROXY": address, "HTTPS_PROXY": address, "http_proxy": address, "https_proxy": address}
    excluded = settings.value("proxy/noProxyUrls", []) or []
    if isinstance(excluded, str):  # Qt reads a list of one entry from its file as a text
        excluded = [excluded]
    if excluded:
        text = ",".join((entry.partition("://")[2] or entry).rstrip("/") for entry in excluded)
        variables.update({"NO_PROXY": text, "no_proxy": text})
    return variables


def _text(key: str) -> str | None:
    return QgsSettings().value(key, "", str) or None


def _remember(key: str, value: str | None) -> None:
    if value:
        QgsSettings().setValue(key, value)
    else:
        QgsSettings().remove(key)

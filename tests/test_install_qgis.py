"""Where QGIS comes from on a machine whose own sources carry an older one."""

from __future__ import annotations

import install_qgis
import pytest

MODERN = """\
# a comment
Types: deb deb-src
URIs: https://mirror.example/debian
# another one
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_backports_keep_address_and_key_and_change_the_suite() -> None:
    assert install_qgis.backports(install_qgis.read_sources(MODERN), "bookworm") == (
        "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n contrib\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_sources_of_one_line_are_read_too() -> None:
    text = (
        "# deb https://old.example bookworm main\n"
        "deb-src https://mirror.example/debian bookworm main\n"
        "deb https://mirror.example/debian-security bookworm-security main\n"
        "deb [signed-by=/a/key.gpg arch=amd64] https://mirror.example/debian bookworm main contrib # why not\n"
    )
    assert install_qgis.backports(install_qgis.read_list(text), "bookworm") == (
        "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm-backports\nComponents: main contrib\n"
        "Signed-By: /a/key.gpg\nArchitectures: amd64\n"
    )


def test_a_release_without_a_source_is_refused() -> None:
    with pytest.raises(install_qgis.InstallError, match="None of apt's sources has the release trixie"):
        install_qgis.backports(install_qgis.read_sources(MODERN), "trixie")

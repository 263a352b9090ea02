"""What QGIS loads, and what it lets go of."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication

from . import jobs
from .provider import DebiasProvider


class DebiasPlugin:
    """The plugin.

    ``qgis_process`` calls :meth:`initProcessing` alone, so nothing there may need a window.

    Attributes:
        iface: QGIS's interface, None in ``qgis_process``.
        provider: Of the toolbox, while the plugin is loaded.
    """

    def __init__(self, iface: Any) -> None:  # noqa: ANN401 - QgisInterface or None
        self.iface = iface
        self.provider: DebiasProvider | None = None
        self._desktop: Any = None

    def initProcessing(self) -> None:
        """Add the algorithms to the toolbox."""
        if self.provider is None:
            self.provider = DebiasProvider()
            QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Add the algorithms and the dock; from here on a worker is kept warm."""
        from .dock.desktop import Desktop  # needs widgets, which qgis_process has not

        jobs.open_workers(warm=True)
        self.initProcessing()
        self._desktop = Desktop(self.iface)

    def unload(self) -> None:
        """Cancel what runs, end the workers, take away the dock and the algorithms."""
        if self._desktop is not None:
            self._desktop.close_down()
            self._desktop = None
        jobs.close_workers()
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None

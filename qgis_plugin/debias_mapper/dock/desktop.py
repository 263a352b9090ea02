"""The plugin's place in QGIS's window."""

from __future__ import annotations

from qgis.gui import QgisInterface
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QAction

from .. import jobs
from ..icons import icon
from .dock import TITLE, DebiasDock
from .tasks import wait_for

PATIENCE = 8.0
"""Seconds that unloading waits at most for what it cancelled."""


class Desktop:
    """The dock, with the action that shows it in the plugins' toolbar and the raster menu.

    Attributes:
        dock: The dock.
        action: The action.
    """

    def __init__(self, iface: QgisInterface) -> None:
        self._iface = iface
        self.dock = DebiasDock(iface)
        iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
        self.action = QAction(icon("debias"), TITLE, iface.mainWindow())
        self.action.setObjectName("DebiasMapperAction")
        self.action.setCheckable(True)
        self.action.setToolTip("Show or hide the dock of Debias Mapper")
        self.dock.setToggleVisibilityAction(self.action)
        iface.addToolBarIcon(self.action)
        iface.addPluginToRasterMenu(TITLE, self.action)

    def close_down(self) -> None:
        """Cancel what runs, wait for it, and take everything away."""
        tasks = self.dock.close_down()
        jobs.close_workers()
        wait_for(tasks, PATIENCE)
        self._iface.removePluginRasterMenu(TITLE, self.action)
        self._iface.removeToolBarIcon(self.action)
        self._iface.removeDockWidget(self.dock)
        self.action.deleteLater()
        self.dock.deleteLater()

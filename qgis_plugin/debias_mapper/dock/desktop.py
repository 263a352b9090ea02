"""The plugin's place in QGIS's window."""

from __future__ import annotations

from qgis.core import QgsApplication, QgsProcessingAlgRunnerTask
from qgis.gui import QgisInterface
from qgis.PyQt.QtCore import QCoreApplication, Qt
from qgis.PyQt.QtWidgets import QAction

from .. import jobs
from ..icons import icon
from .dock import TITLE, DebiasDock
from .run_panel import PROVIDER
from .tasks import QgisTask, wait_for

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
        tasks = [*self.dock.close_down(), *toolbox_tasks()]
        for task in tasks:
            task.cancel()
        jobs.close_workers()
        wait_for(tasks, PATIENCE)
        self._iface.removePluginRasterMenu(TITLE, self.action)
        self._iface.removeToolBarIcon(self.action)
        self._iface.removeDockWidget(self.dock)
        self.action.deleteLater()
        self.dock.deleteLater()


def toolbox_tasks() -> list[QgisTask]:
    """Runs of this plugin's algorithms that the toolbox started.

    QGIS tells no algorithm of a task; its kind and its whole title, in the user's language, are what there is.
    """
    provider = QgsApplication.processingRegistry().providerById(PROVIDER)
    pattern = QCoreApplication.translate("QgsProcessingAlgRunnerTask", "Executing “%1”")
    titles = {pattern.replace("%1", each.displayName()) for each in provider.algorithms()} if provider else set()
    active = QgsApplication.taskManager().activeTasks()
    return [
        QgisTask(task)
        for task in active
        if isinstance(task, QgsProcessingAlgRunnerTask) and task.description() in titles
    ]

"""Run inside QGIS (`qgis --code`): show the demo's part of the scene, save the window as a picture, and quit."""

import os

from qgis.core import (
    QgsContrastEnhancement,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QDockWidget, QToolBar
from qgis.utils import iface

SIZE = (1100, 660)
KEPT = {"Layers"}
"""Title of the panel that stays open."""


def show():
    """Arrange window and layers; the picture is taken when the map has been drawn."""
    window = iface.mainWindow()
    for panel in window.findChildren(QDockWidget):
        panel.setVisible(panel.windowTitle() in KEPT)
    for bar in window.findChildren(QToolBar):
        bar.setVisible(bar.objectName() in ("mFileToolBar", "mMapNavToolBar", "mAttributesToolBar"))
    window.statusBar().hide()
    window.setGeometry(0, 0, *SIZE)
    demo, project = os.environ["VIEW_DEMO"], QgsProject.instance()
    scene = QgsRasterLayer(f"{demo}/town.tif", "town")
    scene.setContrastEnhancement(QgsContrastEnhancement.StretchToMinimumMaximum, QgsRasterMinMaxOrigin.CumulativeCut)
    polygons = QgsVectorLayer(f"{demo}/town/polygons.gpkg|layername=polygons", "polygons")
    for layer in (scene, polygons):
        project.addMapLayer(layer)
    QTimer.singleShot(4_000, zoom)


def zoom():
    """Look at the part; QGIS itself has shown the whole first layer before."""
    iface.layerTreeView().expandAllNodes()
    iface.mapCanvas().setExtent(QgsRectangle(*map(float, os.environ["VIEW_EXTENT"].split(","))))
    iface.mapCanvas().refresh()
    QTimer.singleShot(10_000, save)


def save():
    """Write the window and end QGIS at once, without its questions about an unsaved project."""
    iface.mainWindow().grab().save(os.environ["VIEW_OUT"])
    os._exit(0)


QTimer.singleShot(4_000, show)

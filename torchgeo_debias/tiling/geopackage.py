"""The parts of a GeoPackage that GDAL leaves to others: the style with which QGIS opens a layer of classes."""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import OutputError
from torchgeo_debias.tiling.palette import Colour, palette

_SYMBOLS = {
    "Point": ("marker", "SimpleMarker"),
    "LineString": ("line", "SimpleLine"),
    "Polygon": ("fill", "SimpleFill"),
}

# The table as QGIS itself makes it: https://docs.qgis.org, "Saving and sharing layer properties".
_LAYER_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256),
    styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30),
    ui TEXT(30), update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""


def class_style(table: ClassTable, geometry_type: str, field: str = "class") -> str | None:
    """A QGIS style (QML) that colours features by class.

    Args:
        table: The classes, coloured by :func:`~torchgeo_debias.tiling.palette.palette`.
        geometry_type: OGR name such as ``Polygon`` or ``MultiPoint Z``.
        field: Attribute that holds the class name.

    Returns:
        The style; None for geometry types that no one symbol fits, such as ``Unknown``.
    """
    symbol_type = _SYMBOLS.get(geometry_type.split()[0].removeprefix("Multi"))
    if symbol_type is None:
        return None
    kind, layer = symbol_type
    qgis = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ET.SubElement(qgis, "renderer-v2", type="categorizedSymbol", attr=field, symbollevels="0")
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for index, (name, colour) in enumerate(zip(table.names, palette(len(table.names), table.background), strict=True)):
        ET.SubElement(categories, "category", render="true", symbol=str(index), value=name, label=name, type="string")
        symbol = ET.SubElement(symbols, "symbol", type=kind, name=str(index), alpha="0.7", clip_to_extent="1")
        properties = ET.SubElement(ET.SubElement(symbol, "layer", attrib={"class": layer, "enabled": "1"}), "Option")
        properties.set("type", "Map")
        for key, value in _look(kind, colour).items():
            ET.SubElement(properties, "Option", name=key, value=value, type="QString")
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(qgis, encoding="unicode")


def add_default_style(geopackage: Path, layer: str, qml: str) -> None:
    """Store a style in a GeoPackage so that QGIS opens ``layer`` with it.

    Args:
        geopackage: A GeoPackage that has no styles yet.
        layer: Name of a layer in it.
        qml: The style.
    """
    with closing(sqlite3.connect(geopackage)) as database, database:
        (column,) = database.execute(
            "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
        ).fetchone()
        database.execute(_LAYER_STYLES)
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, useAsDefault, description) VALUES ('', '', ?, ?, 'classes', ?, 1, 'Classes of the model')",
            (layer, column, qml),
        )
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', 0)"
        )


def check_closed(geopackage: Path) -> None:
    """Refuse to replace a GeoPackage of which a part waits in a file beside it: SQLite would put it into the new one.

    Args:
        geopackage: Not a link, for SQLite keeps its files beside what a link leads to; it need not exist.

    Raises:
        OutputError: If there is such a part.
    """
    waiting = geopackage.with_name(f"{geopackage.name}-wal")
    if waiting.exists() and waiting.stat().st_size:
        raise OutputError(
            f"Cannot write {geopackage}: it is open in another program, such as QGIS; close it there first (or, where "
            f"that program crashed, open and close the file once more, or delete {waiting.name})."
        )


def remove_journals(geopackage: Path) -> None:
    """Remove what SQLite left beside a GeoPackage that is about to be replaced and would take for the new one's."""
    for ending in ("-wal", "-shm", "-journal"):
        geopackage.with_name(f"{geopackage.name}{ending}").unlink(missing_ok=True)


def has_table(geopackage: Path, name: str) -> bool:
    """Whether a GeoPackage holds a table, be it a layer or one of its own."""
    with closing(sqlite3.connect(geopackage)) as database:
        found = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return found is not None


def count_rows(geopackage: Path, name: str) -> int | None:
    """Rows of a table of a GeoPackage, be it a layer or one of its own; None where there is none of that name."""
    if not has_table(geopackage, name):
        return None
    quoted = name.replace('"', '""')
    with closing(sqlite3.connect(geopackage)) as database:
        (rows,) = database.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()
    return int(rows)


def _look(kind: str, colour: Colour) -> dict[str, str]:
    rgba = ",".join(map(str, (*colour, 255)))
    if kind == "line":
        return {"line_color": rgba, "line_width": "0.6", "line_width_unit": "MM"}
    outline = {"outline_color": "35,35,35,255", "outline_width": "0.1", "outline_width_unit": "MM"}
    return {"color": rgba, "style": "solid", **outline} if kind == "fill" else {"color": rgba, "size": "2.4", **outline}

"""A Sphinx extension: figures scroll in a frame, captions end with links to the function and their tables, code comes later.

What a caption links to is read from the figure's own SVG file, into which `flashspec.study.style` writes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes

STATUS, API, FIGURES = "notebooks/90_status", "api", "flashspec.study."
FACTS = ("identifier", "relation", "coverage")
TABLE = re.compile(r"<th>(\w+)/(\w+)</th>")


def facts(text: str) -> list[str] | None:
    """Function, tables and machines that an SVG file names; None where it names no function."""
    found = [re.search(f"<dc:{name}>(.*?)</dc:{name}>", text, re.DOTALL) for name in FACTS]
    return [match[1] if match else "" for match in found] if found[0] else None


def line(function: str, tables: str, machines: str, addresses: tuple[str, str]) -> nodes.legend:
    """The source line of a caption: a link to the function, one to each table, and the machines."""
    api, status = addresses
    place = f"{api}#{FIGURES}{function}"
    text = nodes.paragraph("", "Source: ", nodes.reference("", "", nodes.literal("", function), internal=True, refuri=place))
    for name in tables.split():
        goal = f"{status}#{name.replace('/', '-')}"
        text += [nodes.Text(", " if len(text) > 2 else " of "), nodes.reference("", name, internal=True, refuri=goal)]
    text += nodes.Text(f"; {machines}." if machines else ".")
    return nodes.legend("", text, classes=["source"])


def add_sources(app: Any, doctree: nodes.document, page: str) -> None:
    """Give every figure of a page its frame and its source line."""
    addresses = tuple(app.builder.get_relative_uri(page, goal) for goal in (API, STATUS))
    for figure in list(doctree.findall(nodes.figure)):
        for image in list(figure.findall(nodes.image)):
            path = Path(app.srcdir) / image["uri"]
            found = facts(path.read_text(encoding="utf-8")) if path.suffix == ".svg" else None
            if found:
                figure += line(*found, addresses)
            frame = [nodes.raw("", text, format="html") for text in ('<div class="frame" tabindex="0">', "</div>")]
            image.parent.insert(image.parent.index(image) + 1, frame[1])
            image.parent.insert(image.parent.index(image), frame[0])


def name_tables(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Make the lines of the status page places that a link can lead to."""
    if "body" in context:
        context["body"] = TABLE.sub(r'<th id="\1-\2">\1/\2</th>', context["body"])


def show_first(app: Any, doctree: nodes.document) -> None:
    """Move the code above a page's first picture or table below it, since a reader wants the answer first."""
    cells = [each for each in doctree.findall(nodes.container) if "cell" in each["classes"]]
    shows = [any("cell_output" in part["classes"] for part in each.findall(nodes.container)) for each in cells]
    place = cells[shows.index(True)] if any(shows) else None
    for cell in reversed(cells[: cells.index(place)] if place else []):
        cell.parent.remove(cell)
        place.parent.insert(place.parent.index(place) + 1, cell)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("doctree-read", show_first)
    app.connect("doctree-resolved", add_sources)
    app.connect("html-page-context", name_tables)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

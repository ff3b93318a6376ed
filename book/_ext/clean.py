"""A Sphinx extension for notebooks and pages that others wrote: their HTML is shown, and nothing in it runs or loads."""

from __future__ import annotations

import re
from typing import Any

import nh3
from docutils import nodes

from flashspec.study import timeline

DRAWING = "svg g path use defs clippath clipPath rect circle ellipse line polyline polygon text tspan title metadata style"
SHOWN = "class id style title role width height x y x1 y1 x2 y2 cx cy r rx ry d points transform clip-path"
SHOWN += " viewBox version fill stroke stroke-width text-anchor font-size opacity href xlink:href border type scoped name open"
SHOWN += " tabindex min value visibility stroke-dasharray stroke-opacity"
TAGS = nh3.ALLOWED_TAGS | set(f"{DRAWING} details summary figure figcaption section main button input output".split())
LOADING = re.compile(r"url\s*\(\s*['\"]?(?!#)|@import|\\", re.IGNORECASE)
OUTSIDE = re.compile(r"\s*(?:[a-z][\w+.-]*:|[/\\]{2})", re.IGNORECASE)
DATA = re.compile(r'<script type="application/json" id="[\w-]+">[^<]*</script>')
TAG = re.compile(r'\s*</?(\w+)(?: (?:class|id|tabindex|title)="[^"<>]*")*>\s*')  # one end of an element of a text
SHEET = re.compile(r"<style\b[^>]*>(.*?)</style>", re.IGNORECASE | re.DOTALL)


def kept(tag: str, name: str, value: str) -> str | None:
    """An attribute's value; None where a browser would run it, or fetch something for it from elsewhere."""
    if name.endswith(("href", "src")):
        wanted = ("http:", "https:", "mailto:") if tag == "a" else ("data:image/",)
        return value if value.startswith(wanted) or not OUTSIDE.match(value) else None
    return None if name in ("style", "fill", "stroke", "clip-path") and LOADING.search(value) else value


def clean(html: str) -> str:
    """The same HTML without frames, forms, handlers and whatever loads from elsewhere, and with no script but ours.

    A script of data, which does not run, stays, and so does that of timelines, if every letter is as the package writes
    it.
    """
    ours = [*DATA.findall(html), *filter(html.__contains__, [timeline.script()])]
    marks = [f'<span data-kept="{number}"></span>' for number in range(len(ours))]
    for mark, script in zip(marks, ours, strict=True):
        html = html.replace(script, mark)
    found = nh3.clean(
        html,
        tags=TAGS,
        attributes={**nh3.ALLOWED_ATTRIBUTES, "*": set(SHOWN.split())},
        attribute_filter=kept,
        clean_content_tags={"script"},
        generic_attribute_prefixes={"aria-", "data-"},
        url_schemes={"http", "https", "mailto", "data"},
        link_rel=None,
    )
    found = SHEET.sub(lambda sheet: "" if LOADING.search(sheet[1]) else sheet[0], found)
    for mark, script in zip(marks, ours, strict=True):
        found = found.replace(mark, script)
    return found


def clean_page(app: Any, doctree: Any, page: str) -> None:
    """Clean every piece of raw HTML of a page, whichever cell, output or line of text it is from."""
    for raw in list(doctree.findall(nodes.raw)):
        end = TAG.fullmatch(raw.astext())
        if "html" in raw["format"].split() and not (end and end[1] in TAGS):
            raw.replace_self(nodes.raw("", clean(raw.astext()), format="html"))


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx, before what our own extensions add."""
    app.connect("doctree-resolved", clean_page, priority=10)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

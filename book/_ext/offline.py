"""A Sphinx extension that keeps the built book off the network: no page loads thebe, and none loads a script twice."""

from __future__ import annotations

from typing import Any


def script_name(script: Any) -> str:
    """What a page would load: the address of a script, or its body when it is written into the page."""
    attributes = getattr(script, "attributes", {})
    return str(getattr(script, "filename", script) or "") + str(attributes.get("body") or "")


def keep_local(scripts: list[Any]) -> list[Any]:
    """The scripts in order, without thebe and without repetition."""
    first_of_each = {script_name(script): script for script in reversed(scripts)}
    wanted = [name for name in dict.fromkeys(map(script_name, scripts)) if "thebe" not in name.lower()]
    return [first_of_each[name] for name in wanted]


def clean_page(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Drop the scripts that a page does not need."""
    if "script_files" in context:
        context["script_files"] = keep_local(list(context["script_files"]))


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx, after every other extension has added its scripts."""
    app.connect("html-page-context", clean_page, priority=990)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

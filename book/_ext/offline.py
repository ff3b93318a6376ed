"""A Sphinx extension for a book that needs no network: no page loads thebe or a script twice, and each brings its notebook."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

LAB = "http://localhost:8888/lab/tree/"  # where `make lab` serves the folder of notebooks


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


def bring_notebook(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the notebook that a page was made of beside it, as the repository has it, and links to it under the title."""
    source, beside = Path(app.srcdir).parent / f"{page}.ipynb", Path(app.outdir) / f"{page}.ipynb"
    if source.is_file() and "body" in context:
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, beside)
        context["body"] = context["body"].replace("</h1>", f"</h1>{links_to(source.name)}", 1)


def links_to(name: str) -> str:
    """A line of HTML that offers a notebook: to download, and to open while JupyterLab runs."""
    links = f'<a href="{name}" download>download it</a>, or <a href="{LAB}{name}">open it in JupyterLab</a>'
    return f'<p class="notebook">This page is a notebook: {links} while <code>make lab</code> runs.</p>'


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx, after every other extension has added its scripts."""
    app.connect("html-page-context", clean_page, priority=990)
    app.connect("html-page-context", bring_notebook)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

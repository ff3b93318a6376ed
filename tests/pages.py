"""A notebook's code cells run in this process, as a kernel runs them, with other values for its parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGES = int(os.environ.get("FLASHSPEC_PAGES", "12"))  # parameter sets drawn for a notebook; 40 take some minutes a chapter
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def page(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The names that a notebook's cells leave behind; a cell's error is raised here."""
    scope: dict[str, Any] = {}
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), scope)
            scope.update(values if "parameters" in cell["metadata"].get("tags", ()) else {})
    return scope

"""Recompute a table and compare it with the stored one: what is a function of the source must not move."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashspec.study.experiment import Experiment, run


def check(experiment: Experiment, params: Any, root: Path | None = None, tolerance: float = 1e-6) -> list[str]:
    """Measure afresh in a temporary folder and say, one sentence each, how the table differs from the stored one.

    A wall-clock table only has to come out whole; so does one of which nothing is stored. Numbers may differ by
    `tolerance`, relative.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = run(experiment, params, root=Path(scratch))
    if not found.rows:
        return [f"{experiment.name}: the run gave no rows"]
    stored = experiment.shelf.read(experiment.place(params, root), experiment.columns)
    if experiment.measured or stored is None:
        return []
    return [f"{experiment.name}: {text}" for text in differences(stored.rows, found.rows, experiment.columns.names, tolerance)]


def differences(stored: Sequence[Any], found: Sequence[Any], names: Sequence[str], tolerance: float) -> list[str]:
    """Sentences on rows or cells that differ, at most five."""
    if len(stored) != len(found):
        return [f"{len(stored)} rows are stored, {len(found)} came out"]
    cells = (
        (i, name, getattr(a, name), getattr(b, name))
        for i, (a, b) in enumerate(zip(stored, found, strict=True))
        for name in names
    )
    return [f"row {i}, {name}: {a!r} is stored, {b!r} came out" for i, name, a, b in cells if not _same(a, b, tolerance)][:5]


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance) or (math.isnan(a) and math.isnan(b))
    return a == b

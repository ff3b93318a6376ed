"""Recompute a table and compare it with the stored one: what is a function of the source must not move."""

from __future__ import annotations

import math
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from flashspec.study.experiment import Experiment


def check(experiment: Experiment, params: Any, root: Path | None = None, tolerance: float = 1e-6) -> list[str]:
    """Measure afresh in a temporary folder and say, one sentence each, how the table differs from the stored one, five at most.

    A wall-clock table only has to come out whole; so does one of which nothing is stored. Numbers may differ by
    `tolerance`, relative.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = experiment.run(params, root=Path(scratch)).rows
    table = None if experiment.measured else experiment.stored(params, root)
    if table is None:
        return []
    if len(table.rows) != len(found):
        return [f"{experiment.name}: {len(table.rows)} rows are stored, {len(found)} came out"]
    pairs = ((number, vars(a), vars(b)) for number, (a, b) in enumerate(zip(table.rows, found, strict=True)))
    differences = (
        f"{experiment.name}: row {number}, {name}: {a[name]!r} is stored, {b[name]!r} came out"
        for number, a, b in pairs
        for name in a
        if not _same(a[name], b[name], tolerance)
    )
    return list(islice(differences, 5))


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance) or (math.isnan(a) and math.isnan(b))
    return a == b

"""Stored tables checked against their origin, the source and one another, with one sentence per fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashspec.study import tables
from flashspec.study.frames import DataFrame, framed
from flashspec.study.parameters import Refused, canonical
from flashspec.study.registry import EXPERIMENTS

NEAR = 1e-4  # relative, of numbers computed again on another machine or with another number of threads


def consistent(path: Path) -> tuple[Any, dict[str, Any]]:
    """Table and origin of a file; Refused where they are damaged, or the origin is about another file."""
    table, facts = tables.opened(path)
    found = {"rows": table.num_rows, "columns": table.column_names, "experiment": path.parent.name}
    for name, value in {**found, "key": path.stem.partition("-")[0]}.items():
        if (said := facts.get(name, value)) != value:
            raise Refused(
                f"table {path.name} in {path.parent.name} says {name} {said!r:.80} of itself, and here it is {value!r:.80}: "
                "put it back where it was made, or restore it"
            )
    return table, facts


def again(path: Path) -> str | None:
    """Compute a table again where all of it, or all but the columns of a clock, is a function of source and models.

    Nothing said where it agrees, else why it cannot be computed here, None for an observation; Refused where it differs.
    """
    table, facts = consistent(path)
    try:
        experiment = EXPERIMENTS[facts["experiment"]]
        if "converted_from" in facts or (facts["measured"] and not experiment.timed):
            return None
        params = experiment.parse(facts["params"])
        here, there = experiment.digests(params), facts["models"]
    except (LookupError, OSError, ValueError) as error:
        return f"its experiment, parameters or models are not here ({error})"
    same = {name: there.get(name) for name in here} == here
    if not same or (experiment.version, canonical(params)) != (facts["version"], facts["params"]):
        return f"{experiment.name} has another version, other parameters or other models now"
    rows = [tables.cells(row, experiment.row) for point in experiment.split(params) for row in experiment.function(point)]
    kept = [name for name in table.column_names if name not in experiment.timed]
    if found := list(unlike_rows(table.to_pandas()[kept], framed(rows)[kept], NEAR)):
        raise Refused(
            f"table {path.name} in {path.parent.name} (A) is not what the source computes here (B): {'; '.join(found)}; "
            "find what changed, or measure it afresh (--fresh)"
        )
    return ""


def unlike_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each parameter and each fact of the origin that two tables, A and B, do not share."""
    import pandas

    flat = [pandas.json_normalize(dict(facts)).to_dict("records")[0] for facts in (one, other)]
    for name in sorted({*flat[0], *flat[1]}):
        if flat[0].get(name, flat) != flat[1].get(name, flat):
            here, there = (f"{facts[name]!r:.200}" if name in facts else "not said" for facts in flat)
            what = f"parameter {name[7:]}" if name.startswith("params.") else f"origin: {name}"
            yield f"{what} is {here} in A and {there} in B"


def unlike_rows(one: DataFrame, other: DataFrame, near: float = 0.0) -> Iterator[str]:
    """One sentence for each difference between two tables' rows; numbers are equal within `near`, relative."""
    for name, here, there in (("A", one, other), ("B", other, one)):
        if alone := [column for column in here if column not in there]:
            yield f"{name} alone has the columns {', '.join(alone)}"
    shared = [column for column in one if column in other]
    if len(one) != len(other):
        words = one[shared].select_dtypes(exclude="floating").columns  # what no clock moves
        mine, theirs = (Counter(map(tuple, frame[words].astype(str).to_numpy())) for frame in (one, other))
        alone = f"{(mine - theirs).total()} rows are in A alone, {(theirs - mine).total()} rows are in B alone"
        yield f"A has {len(one)} rows and B has {len(other)}: {alone}"
        return
    for column in shared:
        here, there = one[column].to_numpy(), other[column].to_numpy()
        like = (here == there) | (one[column].isna() & other[column].isna()).to_numpy()
        if near and here.dtype.kind == there.dtype.kind == "f":
            like |= np.isclose(here, there, rtol=near, atol=0)
        if len(rows := np.flatnonzero(~like)):
            said = f"first in row {rows[0]}, {here[rows[0]]} in A and {there[rows[0]]} in B"
            yield f"{column} differs in {len(rows)} of {len(one)} rows, {said}"

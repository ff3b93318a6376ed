"""Stored tables checked against their own origin, against the source, and against one another, with one sentence per fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashspec.provenance import short_hash
from flashspec.study import tables
from flashspec.study.experiment import Experiment
from flashspec.study.frames import DataFrame, framed
from flashspec.study.parameters import Refused, canonical
from flashspec.study.registry import EXPERIMENTS

NEAR = 1e-4  # relative, of numbers computed again on another machine or with another number of threads


def consistent(path: Path) -> tuple[Any, dict[str, Any]]:
    """Table and origin of a file whose origin is about this file; Refused where either is not as it was written."""
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
    if "converted_from" in facts:
        return None if facts["measured"] else f"carried over from {facts['converted_from'].get('experiment')} of an older release"
    if (name := str(facts.get("experiment"))) not in EXPERIMENTS:
        return f"this release has no experiment {name}"
    experiment = EXPERIMENTS[name]
    if facts["measured"] and not experiment.timed:
        return None
    try:
        params = experiment.parse(facts["params"])
        here = experiment.digests(params)
    except (OSError, ValueError) as error:
        return f"its models or parameters are not here ({error})"
    if (experiment.version, canonical(params)) != (facts["version"], facts["params"]):
        return f"{name} has another version or other parameters now"
    if other := [model for model, digests in here.items() if facts["models"].get(model) != digests]:
        return f"it is about another {', '.join(other)} than the one here"
    _compare(path, table, experiment, params)
    return ""


def _compare(path: Path, table: Any, experiment: Experiment, params: Any) -> None:
    rows = [tables.cells(row, experiment.row) for point in experiment.split(params) for row in experiment.function(point)]
    kept = [name for name in table.column_names if name not in experiment.timed]
    if found := list(unlike_rows(table.to_pandas(use_threads=False)[kept], framed(rows)[kept], NEAR)):
        raise Refused(
            f"table {path.name} in {path.parent.name} (A) is not what the source computes here (B): {'; '.join(found)}; "
            "find what changed, or measure it afresh (--fresh)"
        )


def unlike_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each parameter and each fact of the origin that two tables, A and B, do not share."""
    flat = [dict(_flat("", facts)) for facts in (one, other)]
    for name in sorted(flat[0].keys() | flat[1].keys()):
        if flat[0].get(name, flat) != flat[1].get(name, flat):
            here, there = (f"{facts[name]!r:.200}" if name in facts else "not said" for facts in flat)
            what = name.replace("params.", "parameter ", 1) if name.startswith("params.") else f"origin: {name}"
            yield f"{what} is {here} in A and {there} in B"


def unlike_rows(one: DataFrame, other: DataFrame, near: float = 0.0) -> Iterator[str]:
    """One sentence for each way in which the rows of two tables differ; numbers are equal within `near`, relative."""
    for name, here, there in (("A", one, other), ("B", other, one)):
        if alone := [column for column in here if column not in there]:
            yield f"{name} alone has the columns {', '.join(alone)}"
    shared = [column for column in one if column in other]
    one, other = one[shared], other[shared]
    if len(one) != len(other):
        yield from _alone(one, other)
        return
    for column in shared:
        here, there = one[column].to_numpy(), other[column].to_numpy()
        like = (here == there) | (one[column].isna() & other[column].isna()).to_numpy()
        if near and here.dtype.kind == there.dtype.kind == "f":
            like |= np.isclose(here, there, rtol=near, atol=0)
        if len(rows := np.flatnonzero(~like)):
            said = f"first in row {rows[0]}, {here[rows[0]]} in A and {there[rows[0]]} in B"
            yield f"{column} differs in {len(rows)} of {len(one)} rows, {said}"


def _alone(one: DataFrame, other: DataFrame) -> Iterator[str]:
    """How many rows of tables of different lengths are in one of them alone, by the columns that hold no fractions."""
    words = [column for column in one if "f" not in one[column].dtype.kind + other[column].dtype.kind]
    counted = [Counter(map(tuple, frame[words].astype(str).to_numpy())) for frame in (one, other)]
    yield f"A has {len(one)} rows and B has {len(other)}"
    for name, alone in (("A", counted[0] - counted[1]), ("B", counted[1] - counted[0])):
        if alone:
            first = ", ".join(f"{word} {value}" for word, value in zip(words, next(iter(alone)), strict=True))
            yield f"{alone.total()} rows are in {name} alone, the first with {first:.200}"


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Facts by dotted names, the files of one model as one fact."""
    if isinstance(value, Mapping) and value and not name.startswith("models."):
        for key, each in value.items():
            yield from _flat(f"{name}.{key}".lstrip("."), each)
    else:
        yield name, short_hash(value) if isinstance(value, Mapping) else value

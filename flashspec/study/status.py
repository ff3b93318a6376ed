"""What the study holds: one line for every stored table, with its origin and how long it took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashspec.study.store import default_root

if TYPE_CHECKING:
    from pandas import DataFrame


def origins(root: Path | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every complete table of a results folder and its origin, in the order of their names."""
    for path in sorted(Path(root or default_root()).glob("*/*.json")):
        yield path, json.loads(path.read_text(encoding="utf-8"))


def tables(root: Path | None = None) -> DataFrame:
    """One line a table: what it is, where and when it was made, from which code, in how many seconds."""
    import pandas

    lines = [line(path, facts) for path, facts in origins(root)]
    columns = ["experiment", "table", "rows", "kind", "machine", "day", "commit", "seconds"]
    return pandas.DataFrame(lines, columns=columns).set_index(["experiment", "table"])


def line(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts about one table that fit on one line."""
    box = facts["machine"]
    return {
        "experiment": facts["experiment"],
        "table": path.stem,
        "rows": facts["rows"],
        "kind": "measured" if facts["measured"] else "function of the source",
        "machine": f"{box['cpu']}, {box['cores']} cores" if box["device"] == "cpu" else box["device"],
        "day": facts["date"][:10],
        "commit": commit(facts),
        "seconds": round(facts["duration_s"]),
    }


def commit(facts: dict[str, Any]) -> str:
    """The commit a table was made from, marked where files differed from it."""
    if not facts.get("commit"):
        return "unknown"
    return facts["commit"][:8] + (" and changes" if facts.get("dirty") else "")


def versions(root: Path | None = None) -> DataFrame:
    """One line a package, one column a table: the versions that the tables were made with."""
    import pandas

    return pandas.DataFrame({f"{facts['experiment']}/{path.stem}": facts["versions"] for path, facts in origins(root)}).fillna("")


def minutes(root: Path | None = None) -> float:
    """How long all stored tables took together."""
    return sum(facts["duration_s"] for _, facts in origins(root)) / 60

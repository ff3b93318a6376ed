"""What the study holds: one line for every stored table, with its origin and how long it took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashspec import provenance
from flashspec.study.tables import default_root, opened

if TYPE_CHECKING:
    from pandas import DataFrame


def tables(root: Path | None = None) -> DataFrame:
    """One line a table: what it is, where and when it was made, from which code, in how many seconds."""
    import pandas

    columns, lines = ["table", "rows", "kind", "origin", "commit", "seconds"], []
    for path in sorted((root or default_root()).glob("*/*.parquet")):
        facts = opened(path)[1]
        kind = "measured" if facts["measured"] else "function of the source"
        commit = (facts.get("commit") or "unknown")[:8] + (" and changes" if facts.get("dirty") else "")
        made = (provenance.describe(facts), commit, round(facts["duration_s"]))
        lines.append((f"{path.parent.name}/{path.stem}", facts["rows"], kind, *made))
    return pandas.DataFrame(lines, columns=columns).set_index("table")


def minutes(root: Path | None = None) -> float:
    """How long all stored tables took together."""
    return float(tables(root)["seconds"].sum()) / 60

"""Screening of schedules: one short decode of each, acceptance pooled over those of the same exits, costs from whole decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashspec.study.depths import least, tiers
from flashspec.study.heights import SCHEDULE
from flashspec.study.hierarchies import SCREENED
from flashspec.study.readings import where
from flashspec.theory.depth import Prices, rate

if TYPE_CHECKING:
    from pandas import DataFrame

FAMILIES = ("self_speculation", "hispec")
NUMBERS = ["method", "draft_exit", "verify_exit", "n_d", "n_i"]
LEAST = 1e-9


def prices(frame: DataFrame, layers: int) -> Prices:
    """What a layer and a head cost for a call and for a row: least squares of whole decodes over what they computed.

    A fifth term stands for what a decode costs whatever it drafts, the prompt's reading before all.
    """
    own = frame[frame["draft_exit"] > 0]
    terms = [[*_work(row, layers), 1.0] for row in own.itertuples()]
    return Prices(*(max(LEAST, cost) for cost in least(terms, list(own["seconds"]))[:4]))


def _work(row: Any, layers: int) -> list[float]:
    """Layers called, layers times rows, heads called and rows scored, over all actions of a decode."""
    drafted, first, second = ((row.drafted,) * 2, *(_calls(row, level) for level in (1, 2)))
    low, high = row.draft_exit, row.verify_exit or layers
    spans = zip((low, high - low, layers - high), (drafted, first, second), strict=True)
    layered = [(span * calls, span * rows) for span, (calls, rows) in spans]
    heads = [sum(part) for part in zip(drafted, first, second, strict=True)]
    return [*(float(sum(part)) for part in zip(*layered, strict=True)), *map(float, heads)]


def _calls(row: Any, level: int) -> tuple[int, int]:
    """Actions of a level, and the rows they read: what waited, and the newest token."""
    actions = getattr(row, f"actions_{level}")
    return actions, getattr(row, f"waiting_{level}") + actions


def foretold(frame: DataFrame, layers: int) -> DataFrame:
    """One line a screened schedule of one temperature and rule, with the `rate` that pooled acceptance and prices foretell."""
    import pandas

    screen = where(frame, stage=SCREENED)
    cost = prices(screen, layers)
    lines = {name: where(screen, method=name).drop_duplicates(SCHEDULE) for name in FAMILIES}
    parts = [rows.assign(rate=[rate(t, layers, cost) for t in tiers(screen, name, layers)]) for name, rows in lines.items()]
    return pandas.concat(parts)[[*SCHEDULE, "rate"]]


def finalists(table: DataFrame, keep: int) -> set[tuple]:
    """The `keep` schedules of each family that are foretold to be fastest, and every burst at HiSpec's best exits."""
    best = table.sort_values("rate", ascending=False)
    top = where(best, method="hispec").iloc[0]
    bursts = where(table, method="hispec", draft_exit=top["draft_exit"], verify_exit=top["verify_exit"])
    rows = (best.groupby("method").head(keep), bursts)
    return {cells for part in rows for cells in part[NUMBERS].itertuples(index=False, name=None)}

"""Readings of schedules by depth: prices of layers and heads, measured acceptance, and what a deeper model would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.study.heights import SCHEDULE, rates
from flashspec.study.readings import Missing, where
from flashspec.theory import Level, flip, nested
from flashspec.theory.depth import Prices, Tiers, advantage, first_depth

if TYPE_CHECKING:
    from pandas import DataFrame

DEPTHS = (16, 24, 32, 48, 64, 96, 128, 256, 512)
CHECKS = 2000
EXITS = ["draft_exit", "verify_exit"]


class Timed(NamedTuple):
    """One measured action: layers passed, rows read, seconds."""

    span: float
    rows: float
    seconds: float


def actions(frame: DataFrame, layers: int) -> Iterator[Timed]:
    """Every action whose cost a table of hierarchies over a model of `layers` layers holds: drafted tokens and checks."""
    own = frame[(frame["draft_exit"] > 0) & (frame["head"] == "dense") & (frame["stage"] == "timed")]
    for row in own.drop_duplicates([*SCHEDULE, "temperature", "rule"]).itertuples():
        yield Timed(row.draft_exit, 1, row.draft_seconds)
        yield Timed((row.verify_exit or layers) - row.draft_exit, _rows(row.waiting_1, row.actions_1), row.check_1_seconds)
        if row.verify_exit:
            yield Timed(layers - row.verify_exit, _rows(row.waiting_2, row.actions_2), row.check_2_seconds)


def _rows(waiting: int, actions_done: int) -> float:
    """Rows of a mean check: what waits and the newest token, as costs were taken."""
    return max(1, round(waiting / max(actions_done, 1))) + 1


def prices(frame: DataFrame, layers: int) -> Prices:
    """What a layer and a head cost for a call and for a row: least squares over the table's actions, none below 0."""
    found = list(actions(frame, layers))
    if not found:
        raise Missing("the table has no hierarchy over the target's exits; run the experiment with self_speculation or hispec")
    return Prices(*least([(a.span, a.span * a.rows, 1.0, a.rows) for a in found], [a.seconds for a in found]))


def least(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """What each term costs, by least squares, none below 0."""
    import numpy

    found = numpy.linalg.lstsq(numpy.array(terms, dtype=float), numpy.array(seconds, dtype=float), rcond=None)[0]
    return [max(0.0, float(value)) for value in found]


def tiers(frame: DataFrame, method: str, layers: int) -> list[Tiers]:
    """Every schedule of a method with the acceptance of its exits, pooled over schedules and kinds of prompt."""
    rows = where(frame, method=method, head="dense")
    sums = rows.groupby(["draft_exit", "verify_exit"])[["kept_1", "decided_1", "kept_2", "decided_2"]].sum()
    found = []
    for each in rows.drop_duplicates(SCHEDULE).itertuples():
        pool, deep = sums.loc[(each.draft_exit, each.verify_exit)], bool(each.verify_exit)
        exits = (each.draft_exit, each.verify_exit)[: 1 + deep]
        alphas = tuple(float(pool[f"kept_{i}"] / max(pool[f"decided_{i}"], 1)) for i in range(1, 2 + deep))
        found.append(Tiers(tuple(e / layers for e in exits), alphas, (each.n_d, each.n_i)[: 1 + deep]))
    return found


def advantages(frame: DataFrame, layers: int, flat: bool = False, depths: Sequence[int] = DEPTHS) -> list[tuple[int, float]]:
    """HiSpec over self-speculation, both tuned, on models of several depths; `frame` is of one temperature and rule.

    With `flat` a check costs what one row costs, as where memory alone is the limit.
    """
    cost = prices(frame, layers)
    cost = Prices(cost.layer + cost.layer_row, 0.0, cost.head + cost.head_row, 0.0) if flat else cost
    above, below = (tiers(frame, method, layers) for method in ("hispec", "self_speculation"))
    return [(depth, advantage(above, below, depth, cost)) for depth in depths]


def needed(ratios: Sequence[tuple[int, float]], goal: float) -> str:
    """The least depth that reaches a goal, in words."""
    depth = first_depth(ratios, goal)
    if depth is not None:
        return f"{depth} layers"
    return f"no depth up to {max(d for d, _ in ratios)} layers (at most {max(r for _, r in ratios):.2f}×)"


def three_ways(frame: DataFrame, method: str = "hispec", **setting: Any) -> DataFrame:
    """Tokens per second of a method by N_d and N_i: measured, by the closed form, and by coin flips.

    At the exits of which most bursts were timed, the fastest of those. The prompt's reading is taken out of the measured time;
    acceptance and costs are each schedule's own.
    """
    import pandas

    exits = {name: int(value) for name, value in zip(EXITS, widest(frame, method, **setting), strict=True)}
    rows = where(frame, method=method, stage="timed", **exits, **setting)
    table = pandas.DataFrame([_three(group) for _, group in rows.groupby(["n_d", "n_i"])])
    return table.assign(**exits)


def widest(frame: DataFrame, method: str, **setting: Any) -> tuple[int, int]:
    """The draft and verify exit of which most bursts were timed; among several, those with the fastest."""
    table = where(rates(where(frame, **setting)), method=method).groupby(EXITS)["rate"].agg(["size", "max"])
    return table.sort_values(["size", "max"]).index[-1]


def _three(rows: DataFrame) -> dict[str, float]:
    first, seconds = rows.iloc[0], rows["seconds"] - rows["prompts"] * rows["prefill_seconds"]
    bursts = (int(first["n_d"]), int(first["n_i"]))
    shares = [rows[f"kept_{i}"].sum() / max(rows[f"decided_{i}"].sum(), 1) for i in (1, 2)]
    levels = [Level(a, n, first[f"check_{i}_seconds"]) for i, (a, n) in enumerate(zip(shares, bursts, strict=True), start=1)]
    tally = flip(first["draft_seconds"], levels, CHECKS)
    return {
        "n_d": bursts[0],
        "n_i": bursts[1],
        "measured": rows["emitted"].sum() / seconds.sum(),
        "closed": nested(first["draft_seconds"], levels).throughput,
        "flipped": tally.tokens / tally.clock,
    }

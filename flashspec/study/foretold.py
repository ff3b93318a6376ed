"""Runs against the throughput model: parts that were timed alone, acceptance on prompts that no run used, nothing else."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flashspec.measure.costs import name_of
from flashspec.study import readings
from flashspec.study.bars import at_least, at_most
from flashspec.study.pairs import drafting
from flashspec.study.readings import Missing, where
from flashspec.study.trials import POOLED
from flashspec.theory import interpolated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame

WRITER = ["draft", "digest", "method", "probes", "k", "temperature", "rule"]
COUNTS = ["rounds", "drafted", "emitted"]
MEDIAN, MOST, UNSEEN = 5.0, 10.0, 30.0  # percent asked for: error of half the runs, of 95 % of them; share of unseen settings
TOKENS, PROMPTS = 256, 4  # what a run must have at least


def parts_of(results: Any, **setting: Any) -> DataFrame:
    """The tables of `draft_parts` that the runs of a setting name, one under another with the column `table`.

    Missing where one is lost.
    """
    import pandas

    names = sorted(set(where(results.frame, **setting)["parts"]))
    files = {name: results.path.parent.parent / "draft_parts" / f"{name}.csv" for name in names}
    lost = [name for name, file in files.items() if not file.exists()]
    if lost:
        raise Missing(f"the parts of these runs, table draft_parts/{lost[0]}, are not stored; run the experiment afresh")
    return pandas.concat([pandas.read_csv(file).assign(table=name) for name, file in files.items()], ignore_index=True)


def predictions(frame: DataFrame, parts: DataFrame, counts: DataFrame) -> DataFrame:
    """Every run of a draft with the seconds foretold for it; runs whose draft or setting was not replayed are left out.

    set-up for every prompt + rounds x (burst + check + overhead): the round time of Yan et al. 2024 (section 3), with rounds and
    drafted tokens for each token emitted from other prompts of the same kind ("all": of every kind, weighted equally).
    """
    table = frame[frame["k"] > 0].merge(shares(counts), on=[*WRITER, "kind"], how="inner")
    if table.empty:
        raise Missing("no run has a draft and a setting that were replayed; run predicted_vs_measured with the same drafts")
    return _timed(table, parts)


def in_hindsight(table: DataFrame, parts: DataFrame) -> DataFrame:
    """Predicted runs, predicted again with their own counts: the error that is left is that of the parts."""
    own = {f"{name}_share": table[name] / table["emitted"] for name in ("rounds", "drafted")}
    return _timed(table.assign(**own), parts)


def _timed(table: DataFrame, parts: DataFrame) -> DataFrame:
    times = Times(parts)
    return table.assign(predicted=[seconds_of(row, times) for row in table.itertuples()])


def shares(counts: DataFrame) -> DataFrame:
    """Rounds and drafted tokens for each token emitted, by writer, setting and kind of prompt, and their means over all kinds."""
    import pandas

    sums = counts.groupby([*WRITER, "kind"])[COUNTS].sum()
    shared = sums[["rounds", "drafted"]].div(sums["emitted"], axis=0).add_suffix("_share").reset_index()
    means = shared.groupby(WRITER)[["rounds_share", "drafted_share"]].mean().reset_index()
    return pandas.concat([shared, means.assign(kind=POOLED)], ignore_index=True)


class Times:
    """Seconds of the parts of a draft beside the prompts of one kind: means over the turns of the table that a run names."""

    def __init__(self, parts: DataFrame) -> None:
        self.parts = parts
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, table: str, draft: str, kind: str) -> dict[str, float]:
        mine = self.parts[(self.parts["table"] == table) & (self.parts["draft"] == draft)]
        found = mine if kind == POOLED else mine[mine["kind"] == kind]
        if found.empty:
            raise Missing(f"table {table} of draft_parts has nothing on {draft}, kind {kind}; run the experiment afresh")
        return found.groupby("part")["seconds"].mean().to_dict()


def seconds_of(row: Any, times: Times) -> float:
    """Seconds foretold for one run; a round drafts what its rounds draft on average, fewer than k where a text ends."""
    found, writer = times.of(row.parts, row.draft, row.kind), name_of(drafting(row.method, row.probes or None))
    block = max(1.0, row.drafted_share / row.rounds_share)
    burst, check = at_block(found, rf"burst (\d+) {re.escape(writer)}", block), at_block(found, r"check (\d+)", block)
    a_round = burst + check + found["overhead"]
    return row.prompts * found["prefill"] + row.emitted * row.rounds_share * a_round


def at_block(found: Mapping[str, float], pattern: str, block: float) -> float:
    """A part at a draft length that need not be whole, from those that were timed; the pattern's group is the length."""
    known = {int(match[1]): seconds for part, seconds in found.items() if (match := re.fullmatch(pattern, part))}
    return interpolated(known)(block)


def of_study(frame: DataFrame, counts: DataFrame) -> DataFrame:
    """Runs of `end_to_end` with the seconds foretold for them, kinds summed: one line a setting and repeat.

    Parts are those that this table timed in the same turns, counts a token come from other prompts; heads, rules and lengths
    that were not replayed are left out.
    """
    keys = [*(name for name in WRITER if name != "digest"), "kind"]
    table = frame[frame["k"] > 0].merge(shares(counts).drop(columns="digest"), on=keys)
    if table.empty:
        raise Missing("no run of end_to_end has a setting that was replayed; run predicted_vs_measured with the same drafts")
    expected = {name: table["emitted"] * table[f"{name}_share"] for name in ("rounds", "drafted")}
    return readings.predictions(table.assign(**expected))


def over_kinds(table: DataFrame) -> DataFrame:
    """Predictions with the kinds of prompt summed: one longer run a draft, setting and repeat."""
    keys = [*WRITER, "repeat"]
    return table.groupby(keys)[["seconds", "predicted", "emitted", "prompts"]].sum().reset_index()


def whole(table: DataFrame) -> DataFrame:
    """Predictions with kinds of prompt and turns summed: one run a draft and setting, on all its prompts."""
    return table.groupby(WRITER)[["seconds", "predicted", "emitted", "prompts"]].sum().reset_index()


def errors(table: DataFrame) -> Any:
    """Predicted over measured seconds, less 1, a run."""
    return table["predicted"] / table["seconds"] - 1


def error_at(table: DataFrame, share: float) -> float:
    """The absolute error that this share of the runs does not exceed, in percent: 0.5 gives the median."""
    return float(100 * errors(table).abs().quantile(share))


def within(table: DataFrame, percent: float) -> float:
    """Percent of the runs whose absolute error is at most this many percent."""
    return float(100 * (100 * errors(table).abs() <= percent).mean())


def unseen_share(table: DataFrame) -> float:
    """Percent of the runs whose k, head and temperature the model was not built on: none of the end-to-end study's own."""
    from flashspec.study.experiments.end_to_end import Params

    known = Params()
    seen = table["k"].isin(known.ks) & table["method"].isin(known.methods) & table["temperature"].isin(known.temperatures)
    return float(100 * (~seen).mean())


def smallest_run(table: DataFrame) -> tuple[int, int]:
    """Tokens and prompts of the smallest run."""
    return int(table["emitted"].min()), int(table["prompts"].min())


def scores(tables: Mapping[str, DataFrame]) -> DataFrame:
    """One line a set of predicted runs: how many they are, and their absolute errors in percent."""
    import pandas

    lines = {
        name: {
            "runs": len(table),
            "median error, %": round(error_at(table, 0.5), 1),
            "95 % of the runs within, %": round(error_at(table, 0.95), 1),
            "runs within 10 %, %": round(within(table, MOST)),
            "median signed error, %": round(float(100 * errors(table).median()), 1),
        }
        for name, table in tables.items()
    }
    return pandas.DataFrame.from_dict(lines, orient="index")


def verdict(table: DataFrame) -> str:
    """Whether the errors of predicted runs are as small as was asked for, in words."""
    half, most = at_most(error_at(table, 0.5), MEDIAN), at_most(error_at(table, 0.95), MOST)
    return f"median absolute error {half}; 95 % of the runs within {most}"


def size_verdict(table: DataFrame) -> str:
    """Whether the smallest run is large enough to count as one, in words."""
    tokens, prompts = smallest_run(table)
    return f"{at_least(tokens, TOKENS, ' tokens')}, behind {at_least(prompts, PROMPTS, ' prompts')}"


def apart(counts: Any, *runs: Any) -> str:
    """Which prompts the runs use and which the counts come from, in words; Missing where they share one."""
    told, used = counts.origin["params"], [each.origin["params"] for each in runs]
    most = max(params["per_kind"] for params in used)
    if most > told["skip"] or {params["prompts"] for params in used} != {told["prompts"]}:
        raise Missing(
            f"the runs use the first {most} prompts of each kind and the counts come from those behind the first "
            f"{told['skip']}; run predicted_vs_measured with a larger skip, on the same prompts file"
        )
    return f"runs use the first {most} prompts of each kind at most, acceptance comes from those behind the first {told['skip']}"

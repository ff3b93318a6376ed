"""Runs against the throughput model: parts that were timed alone, acceptance on prompts that no run used, nothing else."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flashspec.measure.costs import name_of
from flashspec.study import readings
from flashspec.study.bars import at_least, at_most
from flashspec.study.pairs import drafting
from flashspec.study.readings import Missing, where
from flashspec.study.trials import POOLED

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

    names = sorted({name for joined in set(where(results.frame, **setting)["parts"]) for name in joined.split("+")})
    files = {name: results.path.parent.parent / "draft_parts" / f"{name}.csv" for name in names}
    lost = [name for name, file in files.items() if not file.exists()]
    if lost:
        raise Missing(f"the parts of these runs, table draft_parts/{lost[0]}, are not stored; run the experiment afresh")
    return pandas.concat([pandas.read_csv(file).assign(table=name) for name, file in files.items()], ignore_index=True)


def predictions(frame: DataFrame, parts: DataFrame, counts: DataFrame) -> DataFrame:
    """Every run of a draft with the seconds foretold for it; runs whose draft or setting was not replayed are left out.

    set-up for every prompt + emitted x (drafted a token x draft step + rounds a token x (check + overhead)): the round time of
    Yan et al. 2024 (section 3), with counts a token from other prompts of the same kind ("all": of every kind).
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
    """Rounds and drafted tokens for each token emitted, by writer, setting and kind of prompt, and over all kinds."""
    import pandas

    both = pandas.concat([counts, counts.assign(kind=POOLED)])
    sums = both.groupby([*WRITER, "kind"])[COUNTS].sum().reset_index()
    rounds, drafted = sums["rounds"] / sums["emitted"], sums["drafted"] / sums["emitted"]
    return sums.assign(rounds_share=rounds, drafted_share=drafted).drop(columns=COUNTS)


class Times:
    """Median seconds of the parts of a draft, over all turns of the tables that a run names."""

    def __init__(self, parts: DataFrame) -> None:
        self.parts = parts
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, tables: str, draft: str) -> dict[str, float]:
        mine = self.parts[self.parts["table"].isin(tables.split("+")) & (self.parts["draft"] == draft)]
        found = mine.groupby("part")["seconds"].median().to_dict()
        if not found:
            raise Missing(f"the tables {tables} of draft_parts have nothing on {draft}; run the experiment afresh")
        reads = [seconds for part, seconds in found.items() if part.startswith("prefill ")]
        return {**found, f"prefill {POOLED}": sum(reads) / max(1, len(reads))}


def seconds_of(row: Any, times: Times) -> float:
    """Seconds foretold for one run."""
    found = times.of(row.parts, row.draft)
    writer = name_of(drafting(row.method, row.probes or None))
    a_round = found[f"check {row.k}"] + found["overhead"]
    token = row.drafted_share * found[f"draft {writer}"] + row.rounds_share * a_round
    return row.prompts * found[f"prefill {row.kind}"] + row.emitted * token


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

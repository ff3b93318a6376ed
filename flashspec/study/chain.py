"""From the projection to the text: tables of chapters 2 to 4 over whatever a race and its pieces hold."""

from __future__ import annotations

import numpy as np

from flashspec.study import compare
from flashspec.study.compare import CONTEXT, SETTING, SIDE, WHO, over, sampled
from flashspec.study.frames import DataFrame, framed, groups, joined, pivoted
from flashspec.study.stages import predicted_seconds

STAGES = ("projection", "draft step", "text, eager", "text, deferred")
SHAPES = {  # shapes of named models, and what a race calls the drafts among them
    "reference-draft": "main", "reference-shallow": "shallow", "qwen-draft": "qwen", "qwen": "qwen, the target",
}  # fmt: skip
PLACE = ["shape", "layers", "piece"]
SIZE = ["head", "format", "probes", "shortlist"]
SHARE = 0.1  # of the rows of a head that a FlashHead in the chain scores, as nearly as the table allows


def faster(frame: DataFrame) -> DataFrame:
    """How many times faster each head is than the dense one, piece by piece, paired by turn.

    The dense head has the same number format where the table holds it, else the one that `over` names: a head in int8 or int4
    has a line of its own. `limit` is the ratio of their bytes, `share` that of the rows they score.
    """
    rows = frame[frame["piece"] != "body"]
    dense = rows["head"] == "dense"
    both = rows[~dense].merge(rows[dense], on=[*PLACE, "turn"], suffixes=("", "_below"))
    both = both.assign(
        over=both["format_below"],
        other=both["format"] != both["format_below"],
        limit=both["bytes_below"] / both["bytes"],
        share=both["rows_scored"] / both["rows_scored_below"],
    )
    both = both.sort_values(["other", "over"], kind="stable")
    first = both.groupby([*PLACE, *SIZE], dropna=False)["over"].transform("first")
    facts = [*PLACE, *SIZE, "over", "limit", "share"]
    found = groups(both[both["over"] == first], facts)
    lines = [{**who, **over(mine["seconds_below"], mine["seconds"], np.median)} for who, mine in found]
    return framed(lines, [*facts, "ratio", "low", "high", "verdict"])


def head_share(frame: DataFrame, shape: str) -> float:
    """The head's share of a dense draft step, of head plus body or else of the step; NaN where they were not timed."""
    dense = frame[(frame["shape"] == shape) & (frame["head"] == "dense")].groupby("piece")["seconds"].median()
    head, body, projection, step = dense.reindex(["head", "body", "projection", "step"])
    return float(projection / step if np.isnan(head) else head / (head + body))


def chain(race: DataFrame, pieces: DataFrame) -> DataFrame:
    """FlashHead over the dense head of the same format at every stage: one line per name, stage and sampling.

    Projection and step come from pieces of the same shape, text from the race. A piece has no sampling; its number of probes is
    the one that scores nearest to a tenth of the vocabulary.
    """
    steps = faster(pieces)
    steps = steps.assign(far=(steps["share"] - SHARE).abs(), name=steps["shape"].replace(SHAPES), sampling="")
    steps["stage"] = steps["piece"].map({"projection": "projection", "step": "draft step"})
    steps = steps[(steps["over"] == steps["format"]) & steps["stage"].notna() & steps["head"].str.startswith("flash")]
    steps = steps.sort_values("far", kind="stable").drop_duplicates([*PLACE, "format"]).sort_index()
    texts = sampled(compare.like_for_like(race))
    texts = texts.assign(name=texts["draft"].where(texts["draft"] != "", texts["method"]), stage="text, " + texts["finalize"])
    texts = texts[texts["head"].str.startswith("flash")]
    columns = ["name", "sampling", "stage", "head", "format", "probes", "limit", "ratio", "low", "high", "verdict"]
    return joined(each for each in (steps, texts) if len(each)).reindex(columns=columns)


def links(chained: DataFrame) -> DataFrame:
    """The chain as a table: a line per name, head and sampling, a column per stage; pieces are in every line of their name."""
    keys = ["name", "head", "sampling"]
    table = pivoted(chained, keys, "stage", "verdict").sort_values(keys)
    stages = [name for name in STAGES if name in table]
    alone = ~table.duplicated(keys[:2], keep=False)
    table[stages] = table.groupby(keys[:2])[stages].ffill()
    return table.loc[alone | (table["sampling"] != ""), [*keys, *stages]].fillna("")


def samplings(frame: DataFrame) -> tuple[str, str]:
    """The warmest and the coldest sampling of a race as text, under the first rule."""
    found = sampled(frame.drop_duplicates(CONTEXT)).sort_values("temperature", kind="stable")
    warmest = found[found["temperature"] == found["temperature"].max()]
    return str(warmest["sampling"].iloc[0]), str(found["sampling"].iloc[0])


def rates(frame: DataFrame) -> DataFrame:
    """Tokens per second, acceptance, tokens per check and speedup over plain decoding of every method at its best setting."""
    sums = compare.best(frame, SIDE).groupby(SIDE, dropna=False)[["emitted", "seconds", "accepted", "drafted", "rounds"]].sum()
    table = sums.assign(
        rate=sums["emitted"] / sums["seconds"],
        acceptance=sums["accepted"] / sums["drafted"].where(sums["drafted"] > 0),
        tokens_a_check=sums["emitted"] / sums["rounds"].where(sums["rounds"] > 0),
    )
    gains = compare.speedups(frame, [*WHO, "finalize"])[[*SIDE, *SETTING[:-1], "ratio", "low", "high", "verdict"]]
    return sampled(table.reset_index().merge(gains, on=SIDE, how="left"))


def deferral(frame: DataFrame) -> DataFrame:
    """Deferred over eager final token of every method, each at its best setting, with what the timed parts predict."""
    keys, found = [*CONTEXT, *WHO], []
    for seconds in (frame["seconds"], predicted_seconds(frame)):
        rows = frame.assign(seconds=seconds)[seconds.notna()]
        found.append(compare.gain(rows, {"finalize": "eager"}, keys, ["finalize"]))
    predicted = found[1][[*keys, "ratio"]].rename(columns={"ratio": "predicted"})
    return sampled(found[0].merge(predicted, on=keys, how="left"))


def checks(frame: DataFrame) -> DataFrame:
    """What a check of n rows costs in each format: median milliseconds, and the ratio to a check of one row."""
    keys = ["shape", "format", "rows"]
    rows = frame[frame["piece"] == "check"]
    table = 1e3 * rows.groupby(keys, dropna=False)["seconds"].median().rename("ms")
    one = table[table.index.get_level_values("rows") == 1].droplevel("rows")
    found = table.reset_index().join(one.rename("one"), on=keys[:2])
    return found.assign(ratio=found["ms"] / found["one"])


def peers(frame: DataFrame, other: str = "transformers") -> DataFrame:
    """flashspec over another engine on the same prompts: plain, with the draft at each one's best k, and each at its fastest."""
    rows = frame[(frame["head"] == "dense") & frame["method"].isin(["baseline", "draft_model"])]
    mode = np.where(rows["method"] == "baseline", "plain", "with the draft")
    way = frame["draft"] + " " + frame["method"] + " " + frame["head"]
    rows = joined([rows.assign(mode=mode), frame.assign(mode="each at its fastest", exits=way)])
    rows = rows.assign(side=rows["engine"], engine="", method="")
    return compare.gain(rows, {"side": other}, [*CONTEXT, "mode"], ["side"])

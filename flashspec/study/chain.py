"""From the projection to the text: what heads cover, cost and gain alone, in a step and in whole texts; and what checks cost."""

from __future__ import annotations

import numpy as np

from flashspec.study import compare
from flashspec.study.compare import CONTEXT, SETTING, SIDE, WHO, best, like_for_like, sampled
from flashspec.study.frames import DataFrame, having, joined, pivoted
from flashspec.study.quote import named
from flashspec.study.recall import TIMED
from flashspec.study.stages import predicted_seconds
from flashspec.theory import amdahl

STAGES = ("projection", "draft step", "text, eager", "text, deferred")
SHAPES = {  # shapes of named models, and what a race calls the drafts among them
    "reference-draft": "main", "reference-shallow": "shallow", "qwen-draft": "qwen", "qwen": "qwen, the target",
}  # fmt: skip
PLACE = ["shape", "layers", "body", "piece", "k"]
SIZE = ["head", "format", "probes", "shortlist"]
CLUSTERING = ["metric", "homes", "cluster_size"]
USUAL = 16  # ids a cluster
PAIR = [*CONTEXT, "draft", "method", "finalize"]
SHARE = 0.1  # of the rows of a head that a FlashHead in the chain scores, as nearly as the table allows


def faster(frame: DataFrame) -> DataFrame:
    """How many times faster each head is than the dense one, piece by piece, paired by turn.

    The dense head has the same number format where the table holds it, else the one that `over` names: a head in int8 or int4
    has a line of its own. `limit` is the ratio of their bytes, `share` that of the rows they score.
    """
    rows = frame[frame["piece"] != "body"]
    dense = rows["head"] == "dense"
    both = rows[~dense].merge(rows[dense], on=[*PLACE, "turn"], suffixes=("", "_below"))
    facts = {"over": both["format_below"], "other": both["format"] != both["format_below"]}
    shares = {"limit": both["bytes_below"] / both["bytes"], "share": both["rows_scored"] / both["rows_scored_below"]}
    both = both.assign(**facts, **shares).sort_values([*PLACE, *SIZE, "other", "over"], kind="stable")
    first = both.groupby([*PLACE, *SIZE], dropna=False)["over"].transform("first")
    return compare.ratios(both[both["over"] == first], [*PLACE, *SIZE, "over", *shares], np.median)


def head_shares(frame: DataFrame) -> DataFrame:
    """The head's `part` of a dense draft step by shape: of head plus body, or else of the step, where these were timed."""
    dense = frame[frame["head"] == "dense"]
    times = dense.pivot_table("seconds", ["shape", "layers", "format"], "piece", aggfunc="median")
    times = times.reindex(columns=["head", "body", "projection", "step"])
    part = times["head"] / (times["head"] + times["body"])
    return part.fillna(times["projection"] / times["step"]).dropna().rename("part").reset_index()


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
    texts = sampled(like_for_like(race))
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
    table = compare.totals(best(frame, SIDE), SIDE)
    checks, drafted = (table[name].where(table[name] > 0) for name in ("rounds", "drafted"))
    table = table.assign(acceptance=table["accepted"] / drafted, tokens_a_check=table["emitted"] / checks)
    gains = compare.speedups(frame, [*WHO, "finalize"])[[*SIDE, *SETTING[:-1], "ratio", "low", "high", "verdict"]]
    return sampled(table.merge(gains, on=SIDE, how="left"))


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
    place = ["shape", "format"]
    seconds = frame[frame["piece"] == "check"].groupby([*place, "rows"], dropna=False)["seconds"].median()
    table = seconds.mul(1e3).rename("ms").reset_index()
    found = table.merge(table.loc[table["rows"] == 1, [*place, "ms"]], "left", on=place, suffixes=("", "_one"))
    return found.assign(ratio=found["ms"] / found["ms_one"])


def peers(frame: DataFrame, other: str = "transformers") -> DataFrame:
    """flashspec over another engine on the same prompts: plain, with a draft at each one's best k, and each at its fastest."""
    rows = frame[(frame["head"] == "dense") & frame["method"].isin(["baseline", "draft_model"])]
    mode = np.where(rows["method"] == "baseline", "plain", "with the draft")
    way = frame["draft"] + " " + frame["method"] + " " + frame["head"]
    rows = joined([rows.assign(mode=mode), frame.assign(mode="each at its fastest", exits=way, draft="")])
    rows = rows.assign(side=rows["engine"], engine="", method="")
    return compare.gain(rows, {"side": other}, [*CONTEXT, "mode", "draft"], ["side"])


def recalls(frame: DataFrame, *by: str) -> DataFrame:
    """One line per draft, head and plan for each value of `by`: what it reads, how often it agrees, what it covers."""
    table = frame[frame["kind"] != ""].assign(calibrated=frame["always"] > 0, megabytes=frame["bytes"] / 1e6)
    table["share"] = 100 * table["rows_scored"] / table["vocab"]
    table["name"] = table["head"] + table["calibrated"].map({True: ", calibrated", False: ""})
    keys = ["target", "draft", "head", "name", *CLUSTERING, "calibrated", "plan", "probes", "share", "megabytes", *by]
    found = table.groupby(keys, sort=False)[["positions", "agreed", "covered"]].sum().reset_index()
    shares = {"agreement": found["agreed"], "coverage": found["covered"]}
    return found.assign(**{name: 100 * counts / found["positions"] for name, counts in shares.items()})


def usual(table: DataFrame) -> DataFrame:
    """The lines of heads at their defaults and of FlashHeads of one clustering: the first, at about 16 ids per cluster."""
    flash = table[table["head"] == "flash"]
    if flash.empty:
        return table
    near = flash.assign(far=np.log2(flash["cluster_size"] / USUAL).abs()).sort_values("far", kind="stable").iloc[0]
    return table[(table["head"] != "flash") | having(table, near[CLUSTERING])]


def by_kind(frame: DataFrame) -> DataFrame:
    """The usual heads at their own probes: rows and megabytes they read, agreement on each kind of text, and coverage."""
    whole, kinds = (usual(recalls(frame[frame["plan"] == "default"], *by)) for by in ((), ("kind",)))
    table = whole[["draft", "name", "share", "megabytes", "agreement", "coverage"]]
    apart = pivoted(kinds, ["draft", "name"], "kind", "agreement")
    return table.merge(apart, how="left") if len(apart.columns) > 3 else table


def costs(frame: DataFrame) -> DataFrame:
    """One line per piece and head: median milliseconds, megabytes, percentage of the memory's speed, and its gain over dense.

    `setting` is what the head is called with its number of probes or the length of its list.
    """
    keys = [*PLACE, *SIZE]
    table = frame.groupby([*keys, "bytes", "bandwidth"], dropna=False, sort=False)["seconds"].median().reset_index()
    names = table["head"].map(named).astype(str)
    for letter, column in (("P", "probes"), ("N", "shortlist")):
        sizes = table[column].map(f", {letter} = {{:g}}".format).astype(str)
        names = names + sizes.where(table[column] > 0, "")
    table = table.assign(ms=1e3 * table["seconds"], megabytes=table["bytes"] / 1e6, setting=names)
    table["speed"] = 100 * table["bytes"] / table["bandwidth"] / table["seconds"]
    return table.merge(faster(frame), on=keys, how="left")


def by_shape(table: DataFrame) -> DataFrame:
    """FlashHead with the most probes over the dense head of its format, times faster: ids down, widths across."""
    rows = table[(table["head"] == "flash") & (table["probes"] == table["probes"].max())]
    sides = rows["shape"].str.split("x", expand=True).reindex(columns=[0, 1]).astype(int)
    return pivoted(rows.assign(ids=sides[0], width=sides[1]), ["ids"], "width", "ratio")


def depths(frame: DataFrame) -> DataFrame:
    """One line per depth and head: the head's share of a dense step, the step's measured gain, and Amdahl's prediction."""
    lines, place = faster(frame), ["shape", "layers", *SIZE, "over"]
    cheaper = lines[lines["piece"] == "head"].set_index(place)["ratio"].rename("cheaper")
    parts = head_shares(frame).rename(columns={"format": "over"})
    lines = lines[lines["piece"] == "step"].join(cheaper, on=place).merge(parts, "left", on=["shape", "layers", "over"])
    pairs = zip(lines["part"], lines["cheaper"], strict=True)
    predicted = [amdahl(*pair) if np.isfinite(pair).all() else np.nan for pair in pairs]
    return lines.assign(share=100 * lines["part"], predicted=predicted)


def builds(frame: DataFrame) -> DataFrame:
    """One line per timed clustering: the median minutes of its build."""
    keys = ["draft", "vocab", "hidden", "metric", "cluster_size"]
    seconds = frame[list(TIMED[:3])].sum(axis=1, skipna=False)
    rows = frame.assign(minutes=seconds / 60).dropna(subset="minutes").drop_duplicates([*keys, "minutes"])
    return rows.groupby(keys, sort=False)["minutes"].median().reset_index()


def by_share(frame: DataFrame) -> DataFrame:
    """One line per place that drafts with FlashHead: its gain over the dense head of its format, each at its best setting.

    `share` is the percentage of the dense side's time spent in the dense head while drafting; NaN where parts were not timed or
    tokens not counted.
    """
    rows = frame[(frame["method"] != "baseline") & frame["head"].isin(["dense", "flash"])]
    place = [*PAIR, "format", "exits"]
    dense = best(rows[rows["head"] == "dense"], place)
    scoring = dense.assign(scoring=100 * dense["drafted"] * dense["head_seconds"])
    sums = scoring.groupby(place)[["scoring", "seconds"]].sum(min_count=1)
    return like_for_like(rows, place).join((sums["scoring"] / sums["seconds"]).rename("share"), on=place)

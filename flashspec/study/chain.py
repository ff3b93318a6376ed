"""From the projection to the text, and inside a round: tables of chapters 2 to 4 over whatever a race and its pieces hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flashspec.study import compare
from flashspec.study.compare import CONTEXT, WHO, Estimate

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = ("projection", "draft step", "text, eager", "text, deferred")
SHAPES = {"reference-draft": "main", "reference-shallow": "shallow"}  # shapes that are shipped drafts
PIECES = {"projection": "projection", "step": "draft step"}
SAME = ["shape", "piece", "format", "layers", "device"]
SHARE = 0.1  # of the rows of a head that a FlashHead in the chain scores, as nearly as the table allows
PARTS = ("prompt", "plain steps", "drafting", "check", "final token", "loop")


def sampling(row: Any) -> str:
    """How a line of a table samples, in words."""
    return f"T = {row['temperature']:g}, {row['rule']}" if row["temperature"] else "greedy"


def sampled(table: DataFrame) -> DataFrame:
    """A table with a column that says how its lines sample."""
    return table.assign(sampling=[sampling(row) for _, row in table.iterrows()])


def samplings(frame: DataFrame) -> tuple[str, str]:
    """How the warmest and the coldest rows of a race sample, in words, under the first rule."""
    ordered = frame.sort_values("temperature", kind="stable")
    warmest = ordered[ordered["temperature"] == ordered["temperature"].max()]
    return sampling(warmest.iloc[0]), sampling(ordered.iloc[0])


def of_pieces(frame: DataFrame) -> DataFrame:
    """How many times faster each piece is with FlashHead than with the dense head of the same format, paired by turn."""
    import pandas

    lines: list[dict[str, Any]] = []
    for values, rows in frame[frame["piece"].isin([*PIECES, "head"])].groupby(SAME, dropna=False):
        dense = rows[rows["head"].isin(compare.DENSE)]
        flash = rows[rows["head"].str.startswith("flash")]
        for (head, probes), mine in flash.groupby(["head", "probes"]) if len(dense) else ():
            both = mine.merge(dense, on="turn", suffixes=("", "_dense"))
            found = medians(both["seconds_dense"], both["seconds"])
            share = both["rows_scored"].iloc[0] / both["rows_scored_dense"].iloc[0]
            facts: dict[str, Any] = {"head": head, "probes": probes, "share": share}
            facts["bytes"] = both["bytes_dense"].iloc[0] / both["bytes"].iloc[0]
            enough, words = len(both) >= compare.FEWEST, f"{found.value:.2f}× ({found.low:.2f} to {found.high:.2f})"
            facts |= {**estimate(found), "verdict": words if enough else "too few turns"}
            lines.append({**dict(zip(SAME, values, strict=True)), **facts})
    return pandas.DataFrame(lines, columns=[*SAME, "head", "probes", "share", "bytes", "ratio", "low", "high", "verdict"])


def medians(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Ratio of the medians of paired samples, with its interval over the pairs."""
    return compare.bootstrapped(lambda a, b, axis: np.median(a, axis) / np.median(b, axis), (above, below))


def estimate(found: Estimate) -> dict[str, float]:
    """The three numbers of an estimate by column."""
    return dict(zip(("ratio", "low", "high"), found, strict=True))


def head_share(frame: DataFrame, shape: str) -> float:
    """Share of a dense draft step's two parts that its head takes; NaN where the pieces were not timed."""
    dense = frame[(frame["shape"] == shape) & (frame["head"] == "dense")].groupby("piece")["seconds"].median()
    return float(dense.get("head", np.nan) / (dense.get("head", np.nan) + dense.get("body", np.nan)))


def chain(race: DataFrame, pieces: DataFrame) -> DataFrame:
    """FlashHead over the dense head of the same format at every stage: one line a name, stage and sampling.

    Projection and step come from pieces of the same shape, text from the race; a piece has no sampling and shows the number
    of probes that scores nearest to a tenth of the vocabulary.
    """
    import pandas

    found = of_pieces(pieces)
    near = found.assign(far=(found["share"] - SHARE).abs()).sort_values("far", kind="stable").drop_duplicates(SAME)
    near = near[near["piece"].isin(PIECES)]
    steps = near.assign(name=near["shape"].replace(SHAPES), stage=near["piece"].map(PIECES), sampling="")
    texts = compare.like_for_like(race)
    texts = sampled(texts[texts["head"].astype(str).str.startswith("flash")])
    texts = texts.assign(name=texts["draft"].where(texts["draft"] != "", texts["method"]), stage="text, " + texts["finalize"])
    columns = ["name", "sampling", "stage", "head", "format", "probes", "bytes", "ratio", "low", "high", "verdict"]
    texts = texts.assign(bytes=np.nan)
    return pandas.concat([steps[columns], texts[columns]], ignore_index=True) if len(steps) or len(texts) else texts[columns]


def links(chained: DataFrame) -> DataFrame:
    """The chain as a table: one line a name, head and sampling, one column a stage."""
    table = chained.pivot_table(index=["name", "sampling", "head"], columns="stage", values="verdict", aggfunc="first")
    return table.reindex(columns=[stage for stage in STAGES if stage in table.columns]).fillna("").reset_index()


def rates(frame: DataFrame) -> DataFrame:
    """Tokens a second, acceptance, tokens a check and speedup over plain decoding of every method at its best setting."""
    by, counts = [*CONTEXT, *WHO, "finalize"], ["emitted", "seconds", "accepted", "drafted", "rounds"]
    timed = frame[frame["seconds"].notna()]
    sums = compare.best(timed, by).groupby(by, dropna=False)[counts].sum()
    table = sums.assign(
        rate=sums["emitted"] / sums["seconds"],
        acceptance=sums["accepted"] / sums["drafted"].where(sums["drafted"] > 0),
        tokens_a_check=sums["emitted"] / sums["rounds"].where(sums["rounds"] > 0),
    )
    gains = compare.gain(timed, {"method": "baseline"}, CONTEXT, [*WHO, "finalize"])
    wanted = [*by, "k", "probes", "ratio", "low", "high", "verdict"]
    return sampled(table.reset_index().merge(gains[wanted], on=by, how="left"))


def deferral(frame: DataFrame) -> DataFrame:
    """Deferred over eager final token of every method, each at its best setting, with what the timed parts predict."""
    timed = frame[frame["seconds"].notna()]
    found, sides = [], (timed["seconds"], compare.predicted_seconds(timed))
    for seconds in sides:
        rows = timed.assign(seconds=seconds)
        found.append(compare.gain(rows[seconds.notna()], {"finalize": "eager"}, [*CONTEXT, *WHO], ["finalize"]))
    measured, predicted = found
    keys = [*CONTEXT, *WHO]
    return sampled(measured.merge(predicted[[*keys, "ratio"]].rename(columns={"ratio": "predicted"}), on=keys, how="left"))


def inside(frame: DataFrame) -> DataFrame:
    """Predicted milliseconds a token by part and measured ones, of every method at its best setting; no line without parts."""
    by = [*CONTEXT, *WHO, "finalize"]
    rows = compare.best(frame[frame["seconds"].notna() & compare.predicted_seconds(frame).notna()], by)
    parts = compare.seconds_by_part(rows)
    sums = rows[[*by, "emitted", "seconds"]].assign(**parts).groupby(by, dropna=False).sum()
    table = sums[list(PARTS)].mul(1e3).div(sums["emitted"], axis=0)
    table["measured"] = 1e3 * sums["seconds"] / sums["emitted"]
    table["explained"] = sums[list(PARTS)].sum(axis=1) / sums["seconds"]
    return sampled(table.reset_index())


def checks(frame: DataFrame) -> DataFrame:
    """What a check of n rows costs in each format: median milliseconds, and how many times a check of one row."""
    rows = frame[frame["piece"] == "check"]
    table = rows.groupby(["shape", "format", "rows"], dropna=False)["seconds"].median().mul(1e3).rename("ms").reset_index()
    one = table[table["rows"] == 1].set_index(["shape", "format"])["ms"].rename("one")
    table = table.join(one, on=["shape", "format"])
    return table.assign(ratio=table["ms"] / table["one"]).drop(columns="one")


def peers(frame: DataFrame) -> DataFrame:
    """flashspec over transformers on the same prompts, plain and with the draft, each engine at its best k."""
    rows = frame.assign(side=frame["engine"], mode=np.where(frame["method"] == "baseline", "plain", "with the draft"), engine="")
    wanted = rows[(rows["head"] == "dense") & rows["method"].isin(["baseline", "draft_model"])].assign(method="")
    return compare.gain(wanted, {"side": "transformers"}, [*CONTEXT, "mode"], ["side"])


def engine_rates(frame: DataFrame) -> DataFrame:
    """Tokens a second of each engine at its best k, prompt by prompt."""
    rows = compare.best(frame[frame["head"] == "dense"], [*CONTEXT, "method"])
    rows = rows.assign(mode=np.where(rows["method"] == "baseline", "plain", "with the draft"))
    sums = rows.groupby([*CONTEXT, "mode", "kind", "prompt"], dropna=False)[["emitted", "seconds"]].sum().reset_index()
    return sums.assign(rate=sums["emitted"] / sums["seconds"])


def shown(table: DataFrame, *columns: str) -> Any:
    """A table for a page: the columns asked for and those of who and how in which its lines differ, two digits, no index."""
    varied = [name for name in (*WHO, "sampling", "finalize", "k", "probes", "dtype", "mode", "name", "shape", "rows")
              if name in table.columns and table[name].nunique(dropna=False) > 1]  # fmt: skip
    chosen = table[[*varied, *(name for name in columns if name not in varied)]]
    return chosen.style.hide(axis="index").format(precision=2, na_rep="")

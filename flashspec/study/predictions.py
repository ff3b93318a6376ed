"""The throughput model against measured runs: each half of the prompts predicted with what the other half says of acceptance."""

from __future__ import annotations

from typing import Any

from flashspec.study.compare import CONTEXT, SETTING, WHO, predicted_seconds, rated
from flashspec.study.frames import DataFrame, framed

RUN = [*CONTEXT, *WHO, *SETTING]
COUNTS = ["rounds", "drafted", "actions_1", "actions_2"]
SUMS = ["seconds", "emitted", "prompts", "predicted"]


def predictions(frame: DataFrame) -> DataFrame:
    """One line a setting and half of its prompts: seconds measured, and predicted from the other half's counts.

    Prompts are dealt to the halves in turns, kind after kind; parts are those timed between the runs. Settings on a single
    prompt, and runs whose parts were not timed, are left out.
    """
    rows = frame[~frame["screened"] & (frame["method"] != "baseline")]
    rows = rows[rows[["burst_seconds", "check_1_seconds", "rounds"]].notna().all(axis=1)]
    place = rows.groupby(["kind", "prompt"]).ngroup()
    dealt = place.groupby([rows[name] for name in RUN], dropna=False).rank("dense")
    rows = rows.assign(half=dealt.astype(int) % 2)
    sums = rows.groupby([*RUN, "half"], dropna=False)[[*COUNTS, "emitted"]].sum(min_count=1).reset_index()
    other = sums.assign(half=1 - sums["half"]).rename(columns={name: f"{name}_other" for name in (*COUNTS, "emitted")})
    rows = rows.merge(other, on=[*RUN, "half"])
    expected = {name: rows["emitted"] * rows[f"{name}_other"] / rows["emitted_other"] for name in COUNTS}
    rows = rows.assign(predicted=predicted_seconds(rows.assign(**expected)))
    return rows.groupby([*RUN, "half"], dropna=False)[SUMS].sum().reset_index()


def errors(table: DataFrame) -> DataFrame:
    """How far predictions are off, in percent of the measured seconds, over all runs and at each temperature."""
    lines = []
    for name, rows in [("all runs", table), *table.groupby("temperature")]:
        off = 100 * (rows["predicted"] / rows["seconds"] - 1)
        most = {"median": off.abs().median(), "most": off.abs().quantile(0.95), "bias": off.median()}
        lines.append({"runs of": name if rows is table else f"temperature = {name}", "runs": len(rows), **most})
    return framed(lines, ["runs of", "runs", "median", "most", "bias"])


def losses(table: DataFrame) -> Any:
    """What the model's k loses of the fastest k's tokens a second, in percent, by draft and head: the mean of both halves."""
    keys = [name for name in RUN if name != "k"]
    table = table.assign(rate=table["emitted"] / table["seconds"], cost=table["predicted"] / table["emitted"])
    halves = table.groupby([*keys, "half"], dropna=False)
    table = table.assign(loss=100 * (1 - table["rate"] / halves["rate"].transform("max")))
    return table.loc[halves["cost"].idxmin()].groupby(keys, dropna=False)["loss"].mean()


def paying(frame: DataFrame) -> float:
    """Percent of the speculative runs that are faster than plain decoding of the same prompts in the same turn."""
    rows = rated(frame)
    speedup = rows.loc[rows["method"] != "baseline", "speedup"].dropna()
    return float(100 * (speedup > 1).mean())

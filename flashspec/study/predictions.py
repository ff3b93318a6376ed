"""The throughput model against measured runs: each half of the prompts predicted with what the other half says of acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from flashspec.study.compare import CONTEXT, SETTING, WHO, groups, predicted_seconds, rated

if TYPE_CHECKING:
    from pandas import DataFrame

RUN = [*CONTEXT, *WHO, *SETTING]
COUNTS = ["rounds", "drafted", "actions_1", "actions_2"]
SUMS = ["seconds", "emitted", "prompts", "predicted", "hindsight"]
KNOWN = {"predicted": "other prompts", "hindsight": "its own prompts"}


def predictions(frame: DataFrame) -> DataFrame:
    """One line a setting and half of its prompts: seconds measured, predicted from the other half's counts, and from its own.

    Prompts are dealt to the halves in turns, kind after kind; parts are those timed between the runs. Settings on a single
    prompt, and runs whose parts were not timed, are left out.
    """
    rows = frame[~frame["screened"] & (frame["method"] != "baseline")]
    rows = rows[rows[["burst_seconds", "check_1_seconds", "rounds"]].notna().all(axis=1)]
    rows = rows.assign(half=_halves(rows), hindsight=predicted_seconds(rows))
    sums = rows.groupby([*RUN, "half"], dropna=False)[[*COUNTS, "emitted"]].sum(min_count=1).reset_index()
    other = sums.assign(half=1 - sums["half"]).rename(columns={name: f"{name}_other" for name in (*COUNTS, "emitted")})
    rows = rows.merge(other, on=[*RUN, "half"])
    expected = {name: rows["emitted"] * rows[f"{name}_other"] / rows["emitted_other"] for name in COUNTS}
    rows = rows.assign(predicted=predicted_seconds(rows.assign(**expected)))
    return rows.groupby([*RUN, "half"], dropna=False)[SUMS].sum().reset_index()


def _halves(rows: DataFrame) -> Any:
    """0 or 1 for every run: the prompts of its setting, in order of kind and number, in turns."""
    place = rows.groupby(["kind", "prompt"]).ngroup()
    return place.groupby([rows[name] for name in RUN], dropna=False).rank("dense").astype(int) % 2


def errors(table: DataFrame, by: Sequence[str] = ("temperature",)) -> DataFrame:
    """How far predictions are off, in percent of the measured seconds, over all runs and for each value of `by`."""
    import pandas

    sides = [("all runs", table)] + [(f"{n} = {value}", rows) for n in by for value, rows in table.groupby(n)]
    lines = []
    for (name, rows), (column, source) in product(sides, KNOWN.items()):
        off = off_by(rows, column)
        most = {"median": off.abs().median(), "most": off.abs().quantile(0.95), "within": 100 * (off.abs() <= 10).mean()}
        lines.append({"runs of": name, "runs": len(rows), "counts from": source, **most, "bias": off.median()})
    return pandas.DataFrame(lines, columns=["runs of", "runs", "counts from", "median", "most", "within", "bias"])


def off_by(table: DataFrame, column: str = "predicted") -> Any:
    """Predicted over measured seconds, less 1, in percent."""
    return 100 * (table[column] / table["seconds"] - 1)


def planned(table: DataFrame) -> DataFrame:
    """The k that the model picks for every draft and head, beside the k that was the fastest on the half it did not see.

    `loss` is what the pick loses of the fastest one's tokens a second, in percent, the mean of both halves.
    """
    import pandas

    keys = [name for name in RUN if name != "k"]
    lines = []
    for facts, rows in groups(table, keys):
        picks, fastest, losses = zip(*(_pick(half) for _, half in rows.groupby("half")), strict=True)
        names = {side: " or ".join(map(str, sorted(set(ks)))) for side, ks in (("picked", picks), ("fastest", fastest))}
        lines.append({**facts, "lengths": rows["k"].nunique(), **names, "loss": float(np.mean(losses))})
    return pandas.DataFrame(lines, columns=[*keys, "lengths", "picked", "fastest", "loss"])


def _pick(half: DataFrame) -> tuple[int, int, float]:
    cost = {name: (half[name] / half["emitted"]).set_axis(half["k"]) for name in ("predicted", "seconds")}
    pick, fastest = (int(each.idxmin()) for each in cost.values())
    return pick, fastest, float(100 * (1 - cost["seconds"][fastest] / cost["seconds"][pick]))


def beside_plain(frame: DataFrame) -> DataFrame:
    """The rated speculative runs that have plain decoding of the same prompts in the same turn beside them."""
    rows = rated(frame)
    return rows[(rows["method"] != "baseline") & rows["speedup"].notna()]


def curves(frame: DataFrame) -> DataFrame:
    """Speedup over plain decoding of the same prompts in the same turns at every setting, prompts summed."""
    rows = beside_plain(frame)
    sums = rows.assign(plain=rows["seconds"] * rows["speedup"]).groupby(RUN, dropna=False)[["plain", "seconds"]].sum()
    return sums.assign(speedup=sums["plain"] / sums["seconds"]).reset_index()


def paying(frame: DataFrame) -> float:
    """Percent of the speculative runs that are faster than plain decoding of the same prompts in the same turn."""
    return float(100 * (beside_plain(frame)["speedup"] > 1).mean())

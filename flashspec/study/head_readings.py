"""Tables about draft heads to numbers: what they miss, what they cost, and which of them wins where."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flashspec.measure.bench import Interval
from flashspec.study.readings import Missing, by_repeat, ratio, step_gain, where, words
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from pandas import DataFrame, Series

CLUSTERING = ["head", "metric", "homes", "cluster_size"]
JUDGED = [*CLUSTERING, "calibrated", "plan", "probes"]
SHIPPED = {"metric": "spherical", "homes": 1, "cluster_size": 16}
WRITER = ["head", "probes", "shortlist"]
NOWHERE = "nowhere in this table"
PERCENTILES = (50, 90, 99)


def recalls(frame: DataFrame) -> DataFrame:
    """One line a head and plan, bands summed: share of rows scored, bytes, agreement, misses, and covered probability."""
    table = frame.assign(calibrated=frame["always"] > 0, share=frame["rows_scored"] / frame["vocab"])
    keys = [*JUDGED, "share", "bytes"]
    found = table.groupby(keys, dropna=False)[["positions", "agreed", "covered"]].sum().reset_index()
    found["agreement"] = found["agreed"] / found["positions"]
    found["coverage"] = found["covered"] / found["positions"]
    return found.assign(missed=found["positions"] - found["agreed"])


def agreement_of(frame: DataFrame, head: str) -> float:
    """Agreement of a head other than FlashHead, which stands in the table once."""
    return float(where(recalls(frame), head=head)["agreement"].iloc[0])


def bands(frame: DataFrame, **setting: Any) -> DataFrame:
    """One line a band of frequency, the most frequent first: positions, agreement, and probes needed for 50, 90 and 99 %."""
    rows = where(frame.assign(calibrated=frame["always"] > 0), **setting)
    counts = ["positions", "agreed", *(f"required_{percent}" for percent in PERCENTILES)]
    table = rows.astype(dict.fromkeys(counts, float)).groupby("band", sort=False)[counts].sum(min_count=1).reset_index()
    return table.assign(agreement=table["agreed"] / table["positions"].where(table["positions"] > 0))


def misses_left(frame: DataFrame, **clustering: Any) -> float:
    """Misses of the calibrated FlashHead over those of the plain one, both at the default probes; nan where there are none."""
    rows = where(recalls(frame), head="flash", plan="default", **{**SHIPPED, **clustering})
    plain, ready = (int(where(rows, calibrated=each)["missed"].sum()) for each in (False, True))
    return ready / plain if plain else math.nan


def best_within(frame: DataFrame, share: float) -> Series:
    """The FlashHead with the highest agreement that scores at most this share of the rows, centroids included."""
    rows = where(recalls(frame), head="flash")
    rows = rows[rows["share"] <= share]
    if rows.empty:
        raise Missing(f"the table has no FlashHead that scores at most {share:.0%} of the rows; run it with smaller shares")
    return rows.loc[rows["agreement"].idxmax()]


def reached(frame: DataFrame, wanted: float, share: float) -> str:
    """Whether some FlashHead agrees so often on so few rows, in words."""
    found = best_within(frame, share)
    word = "reached" if found["agreement"] >= wanted else "not reached"
    return f"{word}: {found['agreement']:.4f} at {100 * found['share']:.1f} % of the rows"


def metrics_apart(frame: DataFrame, plan: str = "default") -> float:
    """Agreement with spherical less that with euclidean clusters, mean over what both have at this plan."""
    rows = where(recalls(frame), head="flash", plan=plan)
    table = rows.pivot_table(index=["homes", "cluster_size", "calibrated"], columns="metric", values="agreement").dropna()
    return float((table["spherical"] - table["euclidean"]).mean())


def costs(frame: DataFrame) -> DataFrame:
    """One line a shape, head and size: median seconds, the least seconds that the bytes allow, and the fraction of that limit."""
    rows = frame[frame["note"].fillna("") == ""]
    keys = ["vocab", "hidden", "head", "size", "rows_scored", "bytes", "bandwidth"]
    table = rows.groupby(keys)["seconds"].median().reset_index()
    table["floor"] = table["bytes"] / table["bandwidth"]
    return table.assign(fraction=table["floor"] / table["seconds"])


def calls(frame: DataFrame) -> DataFrame:
    """One line a head: `fixed` seconds of any call, and `pace`, what its bytes take over what the bandwidth allows.

    The line seconds = fixed + pace * bytes / bandwidth with the least squared relative errors over all shapes and sizes.
    """
    import numpy
    import pandas

    lines = []
    for head, rows in costs(frame).groupby("head"):
        sides = numpy.stack([1 / rows["seconds"], rows["fraction"]], axis=1)
        lines.append((head, *numpy.linalg.lstsq(sides, numpy.ones(len(rows)))[0]))
    return pandas.DataFrame(lines, columns=["head", "fixed", "pace"])


def fixed_of(frame: DataFrame, head: str, **place: Any) -> str:
    """How much of a head's time any call of it takes, whatever it reads, in words."""
    fixed = float(where(calls(frame), head=head)["fixed"].iloc[0])
    seconds = float(where(costs(frame), head=head, **place)["seconds"].iloc[0])
    return f"{1000 * fixed:.2f} of {1000 * seconds:.2f} ms"


def speed_of(frame: DataFrame, head: str, below: str = "dense") -> float:
    """The speed at which a head reads in percent of another's, the fixed time of a call apart."""
    pace = calls(frame).set_index("head")["pace"]
    return float(100 * pace[below] / pace[head])


def left_out(frame: DataFrame) -> str:
    """The shapes that did not fit the memory, in words."""
    rows = frame[frame["note"].fillna("") != ""]
    return ", ".join(f"{row.vocab} x {row.hidden}" for row in rows.itertuples()) or "none"


def cost_gain(frame: DataFrame, head: str, below: str = "dense", **place: Any) -> Interval:
    """Seconds of one head over those of another, paired by repeat; `place` names the shape and the faster head's size."""
    shape = {name: place[name] for name in ("vocab", "hidden")}
    return ratio(by_repeat(where(frame, head=below, **shape), "seconds"), by_repeat(where(frame, head=head, **place), "seconds"))


def byte_limit(frame: DataFrame, head: str, **place: Any) -> float:
    """Bytes of the dense head over those of another: how many times faster memory alone would let it be."""
    shape = {name: place[name] for name in ("vocab", "hidden")}
    return float(where(frame, head="dense", **shape)["bytes"].iloc[0] / where(frame, head=head, **place)["bytes"].iloc[0])


def beside_limit(frame: DataFrame, head: str, **place: Any) -> str:
    """The measured gain of a head over the dense one as a share of what the bytes allow, in words."""
    limit = byte_limit(frame, head, **place)
    return f"{100 * cost_gain(frame, head, **place).value / limit:.0f} % of {limit:.1f}×"


PARTS = ("clustering", "balancing", "permutation")


def builds(frame: DataFrame) -> DataFrame:
    """One line a shape and cluster size: median seconds of every part of a build, and of the whole."""
    columns = [f"{part}_seconds" for part in PARTS]
    table = frame.assign(seconds=frame[columns].sum(axis=1))
    return table.groupby(["vocab", "hidden", "cluster_size"])[[*columns, "seconds"]].median().reset_index()


def build_of(frame: DataFrame, vocab: int, hidden: int, cluster_size: int) -> Series:
    """The line of one build."""
    return where(builds(frame), vocab=vocab, hidden=hidden, cluster_size=cluster_size).iloc[0]


def cheapest(frame: DataFrame, probes: int) -> DataFrame:
    """The fastest head of each shape among those that score every id and FlashHeads with at least so many probes."""
    table = costs(frame)
    full = table["head"].isin(["dense", "int8", "int4"])
    rows = table[full | (table["head"].str.startswith("flash") & (table["size"] >= probes))]
    return rows.loc[rows.groupby(["vocab", "hidden"])["seconds"].idxmin()].reset_index(drop=True)


def cheapest_words(frame: DataFrame, head: str, probes: int) -> str:
    """The shapes at which this head is the cheapest of these, in words."""
    rows = cheapest(frame, probes)
    rows = rows[rows["head"] == head]
    return ", ".join(f"{row.vocab} x {row.hidden}" for row in rows.itertuples()) or NOWHERE


def writers(frame: DataFrame) -> DataFrame:
    """One line a head, probes, shortlist and temperature: median tokens per second, TAR, agreement and coverage."""
    keys = [*WRITER, "temperature"]
    whole = frame.groupby([*keys, "repeat"])[["emitted", "rounds", "seconds"]].sum().reset_index()
    whole["throughput"] = whole["emitted"] / whole["seconds"]
    whole["tar"] = whole["emitted"] / whole["rounds"].where(whole["rounds"] > 0)
    table = whole.groupby(keys)[["throughput", "tar"]].median().reset_index()
    seen = frame.groupby(WRITER)[["positions", "agreed", "covered"]].first().reset_index()
    seen = seen.assign(agreement=seen["agreed"] / seen["positions"], coverage=seen["covered"] / seen["positions"])
    return table.merge(seen[[*WRITER, "agreement", "coverage"]], on=WRITER)


def best_writers(frame: DataFrame, temperature: float) -> DataFrame:
    """One line a head, the fastest first: the probes or shortlist with the highest median tokens per second."""
    table = where(writers(frame), temperature=temperature)
    return table.loc[table.groupby("head")["throughput"].idxmax()].sort_values("throughput", ascending=False)


def title(line: Any) -> str:
    """A writer in words: its head, and its probes or shortlist."""
    sizes = {"P": int(line["probes"]), "N": int(line["shortlist"])}
    return ", ".join([str(line["head"]), *(f"{name} = {size}" for name, size in sizes.items() if size)])


def winner(frame: DataFrame, temperature: float) -> str:
    """The fastest writer at a temperature, with its lead over the second in words."""
    first, second = (line for _, line in best_writers(frame, temperature).head(2).iterrows())
    gain = ratio(seconds_of(frame, second, temperature), seconds_of(frame, first, temperature))
    return f"{title(first)}; over {title(second)}: {words(gain)}"


def lead_over(frame: DataFrame, head: str, temperature: float) -> str:
    """The lead of the fastest writer at a temperature over this head at its best size, in words."""
    table = best_writers(frame, temperature)
    first, mine = table.iloc[0], where(table, head=head).iloc[0]
    if first["head"] == head:
        return "it is the fastest"
    return words(ratio(seconds_of(frame, mine, temperature), seconds_of(frame, first, temperature)))


def wins_of(frame: DataFrame, *heads: str) -> str:
    """The temperatures at which one of these heads writes the most tokens per second of all, in words."""
    found = [t for t in sorted(frame["temperature"].unique()) if best_writers(frame, t)["head"].iloc[0] in heads]
    return ", ".join(f"T = {t:g}" for t in found) or NOWHERE


def slower_than(frame: DataFrame, head: str, temperature: float) -> str:
    """What writes fewer tokens per second than this head at a temperature, each at its best size, plain decoding included."""
    names = list(best_writers(frame, temperature)["head"])
    return ", ".join("plain decoding" if name == "baseline" else name for name in names[names.index(head) + 1 :]) or "none"


def winners_by_kind(frame: DataFrame, temperature: float) -> str:
    """The fastest writer on each kind of text at a temperature, in words."""
    found = {kind: best_writers(rows, temperature).iloc[0] for kind, rows in frame.groupby("kind")}
    return "; ".join(f"{kind}: {title(line)}" for kind, line in found.items())


def beside_default(frame: DataFrame, default: int, head: str = "flash") -> str:
    """The probes with the most tokens per second, all temperatures of the table together, beside the default ones, in words."""
    sums = where(frame, head=head).groupby(["probes", "repeat"])[["seconds", "emitted"]].sum()
    paces = (sums["seconds"] / sums["emitted"]).unstack("probes")
    if default not in paces:
        return f"the default, P = {default}, is not in this table"
    best, *others = paces.median().sort_values().index
    if best != default:
        return f"P = {best} is the fastest; over the default: {words(ratio(paces[default], paces[best]))}"
    lead = f"; over P = {others[0]}: {words(ratio(paces[others[0]], paces[best]))}" if others else ""
    return f"the default is the fastest{lead}"


def seconds_of(frame: DataFrame, line: Any, temperature: float) -> Series:
    """Seconds a token by repeat of one writer."""
    rows = where(frame, temperature=temperature, **{name: line[name] for name in WRITER})
    return by_repeat(rows, "seconds") / by_repeat(rows, "emitted")


def choices(frame: DataFrame, temperature: float, wanted: float, head: str = "flash") -> tuple[Any, Any]:
    """A FlashHead's line with the most tokens per second, and that with the fewest probes that agree at least so often.

    Where none agrees so often, the second has the most probes.
    """
    table = where(writers(frame), head=head, temperature=temperature).sort_values("probes")
    agreeing = table[table["agreement"] >= wanted]
    return table.loc[table["throughput"].idxmax()], (table.iloc[-1] if agreeing.empty else agreeing.iloc[0])


def choice_gain(frame: DataFrame, temperature: float, wanted: float, head: str = "flash") -> Interval:
    """Tokens per second at the probes that throughput chooses over those at the probes that agreement chooses."""
    fast, agreeing = choices(frame, temperature, wanted, head)
    return ratio(seconds_of(frame, agreeing, temperature), seconds_of(frame, fast, temperature))


def depth_gains(frame: DataFrame) -> DataFrame:
    """One line a depth: the head's share of a dense step, the step's measured gain, and Amdahl's prediction from the parts."""
    import pandas

    lines = []
    for layers, rows in frame.groupby("layers"):
        cheap = where(rows, head="flash")
        parts = {head: where(rows, head=head)[["head_seconds", "body_seconds"]].median() for head in ("dense", "flash")}
        share = float(parts["dense"]["head_seconds"] / parts["dense"].sum())
        gain = float(parts["dense"]["head_seconds"] / parts["flash"]["head_seconds"])
        measured = step_gain(rows, str(rows["shape"].iloc[0]), int(cheap["probes"].iloc[0]))
        lines.append((layers, share, *measured[:3], amdahl(share, gain)))
    return pandas.DataFrame(lines, columns=["layers", "share", "measured", "low", "high", "predicted"])


def off_amdahl(frame: DataFrame) -> float:
    """The largest relative distance between a measured gain and its prediction over all depths."""
    table = depth_gains(frame)
    return float((table["measured"] / table["predicted"] - 1).abs().max())


def gain_at(frame: DataFrame, layers: int) -> Interval:
    """The measured gain of a step at one depth."""
    rows = where(frame, layers=layers)
    return step_gain(rows, str(rows["shape"].iloc[0]), int(rows["probes"].max()))

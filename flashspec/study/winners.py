"""Readings of the draft study: which draft is the fastest, by measurement and by the model, and against which it is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.measure.bench import Interval
from flashspec.study.bars import at_least
from flashspec.study.drafts import point_of_designed
from flashspec.study.readings import Missing, by_repeat, ratio, where, words
from flashspec.theory import Optimum, Relation, acceptance_for, best_design, fitted, interpolated
from flashspec.train.family import CAPABILITY, FAMILY, TOLERANCE
from flashspec.train.shipping import DESIGNED

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SETTING = ["temperature", "rule"]
SHAPE = ["draft", "layers", "body", "head_bytes"]
RUN = [*SHAPE, "method", "probes", "k", *SETTING]
OVER_DEEPEST = 1.2  # what the designed draft was to gain over the deepest of its size


def rates(frame: DataFrame) -> DataFrame:
    """Tokens per second and TAR of every draft, head, k and setting, all kinds and turns together."""
    sums = frame.groupby(RUN)[["emitted", "rounds", "seconds"]].sum().reset_index()
    return sums.assign(rate=sums["emitted"] / sums["seconds"], tar=sums["emitted"] / sums["rounds"])


def best(frame: DataFrame, temperature: float) -> DataFrame:
    """One line a draft, the fastest first: its best head and k, tokens per second, TAR and speedup over plain decoding."""
    table = where(rates(frame), temperature=temperature)
    plain = where(table, method="baseline").set_index("draft")["rate"]
    found = table[table["k"] > 0]
    found = found.loc[found.groupby("draft")["rate"].idxmax()]
    beside = found["draft"].map(plain).fillna(plain.median())
    return found.assign(speedup=found["rate"] / beside).sort_values("rate", ascending=False).set_index("draft")


def winner(frame: DataFrame, temperature: float) -> str:
    """The draft that is the fastest by measurement."""
    return str(best(frame, temperature).index[0])


def foretold_rates(table: DataFrame, temperature: float) -> Series:
    """Predicted tokens per second of every draft at the k that the model gives it, the fastest first."""
    sums = where(table, temperature=temperature).groupby(["draft", "k"])[["emitted", "predicted"]].sum()
    return (sums["emitted"] / sums["predicted"]).groupby("draft").max().sort_values(ascending=False)


def winner_by_model(table: DataFrame, temperature: float) -> str:
    """The draft that the model predicts to be the fastest."""
    return str(foretold_rates(table, temperature).index[0])


def designed(frame: DataFrame, temperature: float) -> str:
    """The draft called "designed", or the point that ships under this name; without them the fastest one of the family."""
    known = set(frame["draft"])
    named = next((name for name in (DESIGNED, point_of_designed()) if name in known), None)
    return named or winner(of_family(frame), temperature)


def of_family(frame: DataFrame) -> DataFrame:
    """The runs of the family and of the designed draft, its own point once; all drafts' where the table has no family."""
    names = set(frame[frame["k"] > 0]["draft"])
    mine = names & {DESIGNED, *FAMILY}
    found = mine - {point_of_designed()} if DESIGNED in mine else mine
    return frame[(frame["k"] == 0) | frame["draft"].isin(found or names)]


def family_verdict(frame: DataFrame, temperature: float) -> str:
    """Whether the designed draft is the fastest of the family by measurement, in words."""
    mine, name = of_family(frame), designed(frame, temperature)
    order = [str(draft) for draft in best(mine, temperature).index]
    others = [draft for draft in order if draft != name]
    if not others:
        return f"{name} has no rival in the table"
    if order[0] == name:
        ahead = words(gain(frame, name, others[0], temperature))
        return f"{name} is the fastest of {len(order)}, as asked for; over {others[0]}, the next: {ahead}"
    behind = words(gain(frame, order[0], name, temperature))
    return f"{name} is not the fastest of {len(order)}, as was asked for; {order[0]} over {name}: {behind}"


def twin_words(frame: DataFrame, temperature: float) -> str:
    """How far two runs of the same weights are apart, the designed draft and its point in the family, each at its best k."""
    point = point_of_designed()
    if not {DESIGNED, point} <= set(frame["draft"]):
        return "the table has not both of them"
    return words(gain(frame, DESIGNED, str(point), temperature))


def matched_deepest(frame: DataFrame, name: str) -> str:
    """The deepest draft whose body has as many parameters as this one's, within 5 %; Missing where it is alone."""
    drafts = frame[frame["k"] > 0].drop_duplicates("draft")
    mine = where(drafts, draft=name).iloc[0]
    others = drafts[((drafts["body"] / mine["body"] - 1).abs() <= TOLERANCE) & (drafts["layers"] > mine["layers"])]
    if others.empty:
        raise Missing(f"the table has no draft as large as {name} and deeper; run the experiment with the family's drafts")
    return str(others.loc[others["layers"].idxmax(), "draft"])


def rows_at_best(frame: DataFrame, name: str, temperature: float) -> DataFrame:
    """The rows of a draft at its best head and k."""
    choice = best(frame, temperature).loc[name]
    return where(frame, draft=name, method=choice["method"], probes=choice["probes"], k=choice["k"], temperature=temperature)


def gain(frame: DataFrame, above: str, below: str, temperature: float) -> Interval:
    """Tokens per second of one draft over another's, each at its best k, paired by repeat."""
    return ratio(*(pace(rows_at_best(frame, name, temperature)) for name in (above, below)))


def pace(rows: DataFrame) -> Series:
    """Tokens per second by repeat."""
    return by_repeat(rows, "emitted") / by_repeat(rows, "seconds")


def over_plain(frame: DataFrame, name: str, temperature: float) -> Interval:
    """Tokens per second of a draft at its best k over plain decoding's, its own where the table has that, else the shared one."""
    plain = where(frame, method="baseline", temperature=temperature)
    own = plain[plain["draft"] == name]
    return ratio(pace(rows_at_best(frame, name, temperature)), pace(plain if own.empty else own))


def depth_verdict(frame: DataFrame, temperature: float) -> str:
    """The designed draft over the deepest one of equal size, in words, or why there is no such number."""
    name = designed(frame, temperature)
    try:
        other = matched_deepest(frame, name)
    except Missing as error:
        return str(error)
    found = gain(frame, name, other, temperature)
    return f"{name} over {other}: {words(found)}; {at_least(found.value, OVER_DEEPEST, '×')}"


class Paced(NamedTuple):
    """A draft at its best k: tokens a check, and milliseconds of a burst and of all else in a round, from its parts."""

    name: str
    tar: float
    burst: float
    rest: float

    @property
    def words(self) -> str:
        """The numbers, in words."""
        whole = self.burst + self.rest
        return f"{self.name} settles {self.tar:.2f} tokens a round of {whole:.2f} ms, {self.burst:.2f} ms of it drafting"


def paced(frame: DataFrame, parts: DataFrame, name: str, temperature: float) -> Paced:
    """A draft at its best k between the prompts; `parts` are those of this temperature."""
    choice = best(frame, temperature).loc[name]
    ms = 1e3 * where(parts, draft=name).groupby("part")["seconds"].mean()
    burst = float(ms[f"burst {choice['k']} {choice['method']}"])
    return Paced(name, float(choice["tar"]), burst, float(ms[f"check {choice['k']}"] + ms["overhead"]))


def depth_limit_words(frame: DataFrame, parts: DataFrame, temperature: float) -> str:
    """What the designed draft gains over the deepest one of its size is made of, and what it would be with bursts for nothing."""
    name = designed(frame, temperature)
    try:
        mine, other = (paced(frame, parts, draft, temperature) for draft in (name, matched_deepest(frame, name)))
    except Missing as error:
        return str(error)
    free = mine.tar / mine.rest / (other.tar / (other.burst + other.rest))
    return f"{mine.words}; {other.words}; with bursts for nothing {name} would be {free:.2f}× as fast, reading prompts apart"


def same_text(frame: DataFrame) -> float:
    """Percent of the runs whose text is plain decoding's, token by token."""
    keys = [*SETTING, "kind", "repeat"]
    plain = where(frame, method="baseline").drop_duplicates(keys).set_index(keys)["text_digest"]
    runs = frame[frame["k"] > 0].set_index(keys)["text_digest"]
    return float(100 * (runs == plain.reindex(runs.index)).mean())


def paying_share(frame: DataFrame) -> float:
    """Percent of the runs that are faster than plain decoding of the same prompts in the same turn."""
    keys = ["draft", *SETTING, "kind", "repeat"]
    plain = where(frame, method="baseline").set_index(keys)["seconds"]
    runs = frame[frame["k"] > 0].set_index(keys)["seconds"]
    return float(100 * (runs < plain.reindex(runs.index)).mean())


def slowest_words(frame: DataFrame) -> str:
    """The setting that is worst against plain decoding beside the same draft, kinds summed, in words."""
    table, keys = rates(frame), ["draft", *SETTING]
    plain = where(table, method="baseline").set_index(keys)["rate"].rename("plain")
    runs = table[table["k"] > 0].join(plain, on=keys)
    gains = runs["rate"] / runs["plain"]
    worst = runs.loc[gains.idxmin()]
    setting = f"{worst['draft']} with the {worst['method']} head at k = {worst['k']}, T = {worst['temperature']:g}"
    return f"{setting}: {gains.min():.2f}× plain decoding"


def by_kind_words(frame: DataFrame, name: str, temperature: float) -> str:
    """A draft at its best over plain decoding, by kind of prompt, in words; medians over repeats."""
    mine = rows_at_best(frame, name, temperature).set_index(["kind", "repeat"])
    plain = where(frame, method="baseline", draft=name, temperature=temperature).set_index(["kind", "repeat"])
    gains = (plain["seconds"] / mine["seconds"]).groupby("kind").median()
    return ", ".join(f"{kind} {gain:.2f}×" for kind, gain in gains.items())


class Space(NamedTuple):
    """The design space at one temperature: fitted relations, the target's checks, and the grid that the drafts span."""

    draft: dict[int, Relation]
    acceptance: dict[int, Relation]
    check: Any
    layers: list[int]
    bodies: list[float]
    drafts: list[str]

    @property
    def optimum(self) -> Optimum:
        """The draft of the grid with the highest predicted throughput."""
        return best_design(self.draft, self.acceptance, self.check, self.layers, self.bodies)


def alike(frame: DataFrame) -> DataFrame:
    """The drafts that were trained equally long, the largest such group; those that do not tell are a group too.

    Points of the family that differ in their training, not in their shape, are left out.
    """
    mine = of_family(frame)
    drafts = mine[(mine["k"] > 0) & ~mine["draft"].isin(set(CAPABILITY))]
    drafts = drafts.assign(steps=drafts["steps"].fillna(-1))
    groups = drafts.drop_duplicates("draft").groupby("steps")["draft"].count()
    return drafts[drafts["steps"] == groups.idxmax()]


def space(frame: DataFrame, parts: DataFrame, counts: DataFrame, temperature: float) -> Space:
    """Fit seconds of a burst to parts, acceptance to unseen prompts; ValueError where the drafts are too few."""
    drafts = alike(frame).drop_duplicates("draft").set_index("draft")[["layers", "body"]]
    seconds = parts.groupby(["draft", "part"])["seconds"].median()
    sums = where(counts, temperature=temperature, method="dense").groupby(["draft", "k"])[["emitted", "rounds"]].sum()
    tars = (sums["emitted"] / sums["rounds"]).unstack("k")
    known = {int(part.split()[1]) for _, part in seconds.index if part.startswith("check ")}
    relations = {
        int(k): fitted(
            [(*drafts.loc[n], acceptance_for(tars.loc[n, k], int(k))) for n in drafts.index if n in tars.index], "share"
        )
        for k in tars.columns
        if int(k) in known
    }
    bursts = {k: fitted([(*drafts.loc[n], seconds[n, f"burst {k} dense"]) for n in drafts.index]) for k in relations}
    checks = {k: seconds[:, f"check {k}"].median() + seconds[:, "overhead"].median() for k in sorted(known)}
    depths, low, high = drafts["layers"], float(drafts["body"].min()), float(drafts["body"].max())
    bodies = [low + (high - low) * step / 8 for step in range(9)]
    return Space(
        bursts, relations, interpolated(checks), list(range(int(depths.min()), int(depths.max()) + 1)), bodies,
        list(drafts.index),
    )  # fmt: skip


def nearest(frame: DataFrame, found: Space) -> str:
    """The draft that was built closest to the optimum, in the logarithms of depth and size."""
    import numpy

    drafts = frame[frame["draft"].isin(found.drafts)].drop_duplicates("draft").set_index("draft")
    best = found.optimum
    apart = numpy.log(drafts["layers"] / best.layers) ** 2 + numpy.log(drafts["body"] / best.body) ** 2
    return str(apart.idxmin())


def optimum_words(frame: DataFrame, parts: DataFrame, counts: DataFrame, temperature: float) -> str:
    """The optimum, and whether the drafts that were built confirm it, in words; or why there is none."""
    try:
        found = space(frame, parts, counts, temperature)
        built = nearest(frame, found)
        mine = frame[frame["draft"].isin([*found.drafts, *where(frame, method="baseline")["draft"]])]
        fastest = str(next(name for name in best(mine, temperature).index if name in found.drafts))
        said = verdict(mine, (built, fastest), temperature)
    except (Missing, ValueError) as error:
        return str(error)
    layers, body, k, rate = found.optimum
    return f"{layers} layers with {body / 1e6:.2f} million body parameters at k = {k}, predicted {rate:.0f} tokens/s; {said}"


def verdict(frame: DataFrame, drafts: tuple[str, str], temperature: float) -> str:
    """Whether the built draft nearest to the optimum is the fastest, or not shown to be slower than the fastest."""
    built, fastest = drafts
    if built == fastest:
        return f"the family confirms it: {built}, the nearest draft that was built, is the fastest"
    found = gain(frame, fastest, built, temperature)
    word = "refutes" if found.shows_difference else "does not refute"
    return f"the family {word} it: {fastest} over {built}, the nearest draft that was built, is {words(found)}"

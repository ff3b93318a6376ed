"""Readings for designing a draft: what a step costs by depth and size, the paper's drafts at these costs, and the best shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flashspec.measure.costs import Cut
from flashspec.models.family import CAPABILITY, TOLERANCE
from flashspec.study import papers
from flashspec.study.compare import CONTEXT, MANY, groups, over_sums, verdict
from flashspec.study.drafting import against, drafted, pace
from flashspec.theory import Costs, Optimum, Relation, acceptance_for, amdahl, best_design, fitted, interpolated, throughput
from flashspec.theory.designs import predicted

if TYPE_CHECKING:
    from pandas import DataFrame

SAME = ["base", "head", "format", "probes", "shortlist", "past", "device"]  # what shapes on one line share
SHAPE = [*SAME, "shape", "layers", "hidden", "body"]
STEPS = 9  # sizes of the grid in which the optimum is sought


def timed_steps(frame: DataFrame) -> DataFrame:
    """The timed steps, with the name of what their shapes are compared within: a group, or the shape that was spread."""
    return frame[frame["piece"] == "step"].assign(base=frame["group"].where(frame["group"] != "", frame["shape"]))


def steps(frame: DataFrame) -> DataFrame:
    """One line a shape and head: the median seconds and milliseconds of a step, and the bytes that it reads."""
    table = timed_steps(frame).groupby(SHAPE, dropna=False, sort=False)[["seconds", "bytes"]].median().reset_index()
    return table.assign(ms=1e3 * table["seconds"])


def depth_gains(frame: DataFrame) -> DataFrame:
    """Seconds of the deepest shape over those of the shallowest with as many parameters in its layers, paired by turn."""
    import pandas

    lines = []
    for facts, mine in groups(timed_steps(frame), SAME, sort=False):
        deep = mine[mine["layers"] == mine["layers"].max()]
        alike = mine[(mine["body"] / deep["body"].iloc[0] - 1).abs() <= TOLERANCE]
        shallow = alike[alike["layers"] == alike["layers"].min()]
        depths = {"deep": int(deep["layers"].iloc[0]), "shallow": int(shallow["layers"].iloc[0])}
        if depths["shallow"] < depths["deep"]:
            pair = shallow.merge(deep, on="turn", suffixes=("", "_deep"))
            found = over_sums(pair["seconds_deep"], pair["seconds"])
            told = {"turns": len(pair), "verdict": verdict(found, len(pair), MANY)}
            lines.append({**facts, **depths, **found.columns, **told})
    return pandas.DataFrame(lines, columns=[*SAME, "deep", "shallow", "ratio", "low", "high", "turns", "verdict"])


class Fit(NamedTuple):
    """A step as layers x `per_layer` seconds + bytes / `bandwidth`; `share` is what the layers take of a median step."""

    per_layer: float
    bandwidth: float
    share: float

    @property
    def border(self) -> float:
        """Bytes of a layer that take as long to read as the layer costs whatever its width."""
        return self.per_layer * self.bandwidth


def fit(frame: DataFrame) -> Fit:
    """Least squares over all shapes, each weighed by its own time; NaN for fewer than three shapes."""
    table = steps(frame)
    if len(table) < 3:
        return Fit(np.nan, np.nan, np.nan)
    sides = table[["layers", "bytes"]].to_numpy(dtype=float)
    scale = sides.max(axis=0)
    found = np.linalg.lstsq(sides / scale / table[["seconds"]].to_numpy(), np.ones(len(table)), rcond=None)[0] / scale
    per_layer, per_byte = (max(0.0, float(value)) for value in found)
    share = (per_layer * table["layers"] / table["seconds"]).clip(upper=1.0).median()
    return Fit(per_layer, 1 / per_byte if per_byte else np.inf, float(share))


def at_papers_shapes(frame: DataFrame) -> DataFrame:
    """The paper's two drafts, a step of each as printed and as timed here, and the speedup that these costs predict.

    Empty where the table has no steps of both or no checks of the paper's target at two depths or in full.
    """
    import pandas

    table = steps(frame).drop_duplicates("shape").set_index("shape")
    checks = frame[(frame["piece"] == "check") & (frame["shape"] == papers.YAN_TARGET)]
    drafts = [draft for draft in (papers.YAN_DEEP, papers.YAN_WIDE) if draft.shape in table.index]
    if len(drafts) < 2 or checks.empty or not (checks["rows"] == 1).any():
        return pandas.DataFrame()
    block = int(checks["rows"].max()) - 1
    check, plain = (check_seconds(checks[checks["rows"] == rows]) for rows in (block + 1, 1))
    lines = []
    for draft in drafts:
        step, size = table.loc[draft.shape, ["seconds", "bytes"]]
        rate = throughput(draft.tar, Costs(step, check), block)
        printed = {"printed_layer": draft.step_ms / draft.layers, "printed_pace": size / draft.step_ms / 1e6}
        here = {"here_layer": 1e3 * step / draft.layers, "here_pace": size / step / 1e9}
        found = {"share": block * step / (block * step + check), "rate": rate, "speedup": rate * plain}
        lines.append({"draft": draft.shape, "layers": draft.layers, "tar": draft.tar, **printed, **here, **found})
    return pandas.DataFrame(lines)


def check_seconds(checks: DataFrame) -> float:
    """Median seconds of checks, each turn stretched from the depths that were timed to the true one."""
    known = checks.pivot_table(index="turn", columns="layers", values="seconds")
    low, high = int(known.columns.min()), int(known.columns.max())
    cut = Cut("", int(checks["depth"].iloc[0]), (low, high))
    return float(np.median([cut.stretched(*pair) for pair in zip(known[low], known[high], strict=True)]))


def gain_at(share: float) -> float:
    """The paper's wide over its deep draft where drafting takes this share of the deep one's round; steps as printed."""
    deep, wide = papers.YAN_DEEP, papers.YAN_WIDE
    return wide.tar / deep.tar * amdahl(share, deep.step_ms / wide.step_ms)


class Space(NamedTuple):
    """Relations fitted to the drafts of one context, the grid that they span, and seconds a token spent on reading prompts."""

    burst: dict[int, Relation]
    acceptance: dict[int, Relation]
    check: Any
    layers: list[int]
    bodies: list[float]
    prefill: float

    def at(self, layers: int, body: float) -> float:
        """Predicted tokens a second of a draft of this shape at its best k, prompts read."""
        found = predicted(self.burst, self.acceptance, self.check, layers, body)
        return 1 / (1 / found.throughput + self.prefill)

    @property
    def optimum(self) -> Optimum:
        """The best place of the grid."""
        found = best_design(self.burst, self.acceptance, self.check, self.layers, self.bodies)
        return found._replace(throughput=1 / (1 / found.throughput + self.prefill))


def alike(frame: DataFrame) -> DataFrame:
    """The runs of drafts that were trained equally long and differ in shape alone, the largest such group."""
    rows = drafted(frame)
    rows = rows[~rows["draft"].isin(set(CAPABILITY)) & (rows["head"] == "dense")].assign(steps=rows["steps"].fillna(-1))
    groups = rows.groupby("steps")["draft"].nunique()
    return rows[rows["steps"] == groups.idxmax()] if len(groups) else rows


def space(rows: DataFrame) -> Space:
    """Fit seconds of a burst and acceptance over depth and size, for each k; ValueError where the drafts do not span both."""
    shape = rows.groupby("draft")[["layers", "body"]].first()
    sums = rows.groupby(["draft", "k"]).agg(kept=("accepted", "sum"), rounds=("rounds", "sum"), burst=("burst_seconds", "median"))
    bursts, relations = {}, {}
    for k, lines in sums.dropna().reset_index().groupby("k"):
        shapes = [tuple(shape.loc[draft]) for draft in lines["draft"]]
        alphas = [acceptance_for(1 + kept, k) for kept in lines["kept"] / lines["rounds"]]
        bursts[int(k)] = fitted([(*place, burst) for place, burst in zip(shapes, lines["burst"], strict=True)])
        relations[int(k)] = fitted([(*place, alpha) for place, alpha in zip(shapes, alphas, strict=True)], "share")
    if not bursts:
        raise ValueError("the runs have no timed parts; run the race with parts above 0")
    checks = (rows["check_1_seconds"] + rows["overhead_seconds"]).groupby(rows["k"]).median()
    prefill = float((rows["prompts"] * rows["prefill_seconds"]).sum() / rows["emitted"].sum())
    low, high = float(shape["body"].min()), float(shape["body"].max())
    layers = range(int(shape["layers"].min()), int(shape["layers"].max()) + 1)
    return Space(bursts, relations, interpolated(dict(checks)), list(layers), list(np.linspace(low, high, STEPS)), prefill)


def spaces(frame: DataFrame) -> Iterator[tuple[dict[str, Any], DataFrame, Space | str]]:
    """Every context of a race: its facts, the runs of its drafts, and the space that they span, or why there is none."""
    for facts, rows in groups(alike(frame), CONTEXT):
        try:
            yield facts, rows, space(rows)
        except ValueError as error:
            yield facts, rows, str(error)


def optima(frame: DataFrame) -> DataFrame:
    """The best shape of every context by the fitted model, the draft built nearest to it, and the fastest draft over that one."""
    import pandas

    lines = []
    for facts, rows, found in spaces(frame):
        if isinstance(found, str):
            lines.append({**facts, "verdict": found})
            continue
        table, best = pace(rows).set_index("draft"), found.optimum
        apart = np.log(table["layers"] / best.layers) ** 2 + np.log(table["body"] / best.body) ** 2
        nearest, fastest = str(apart.idxmin()), str(table["rate"].idxmax())
        built = table.loc[nearest]
        pair = against(rows[rows["draft"].isin([nearest, fastest])], fastest)
        shape = {"layers": best.layers, "body": best.body / 1e6, "k": best.block, "predicted": best.throughput}
        near = {"nearest": nearest, "fitted": found.at(built["layers"], built["body"]), "measured": built["rate"]}
        words = pair["verdict"].iloc[0] if len(pair) else "it is the fastest"
        lines.append({**facts, **shape, **near, "fastest": fastest, "verdict": words})
    names = ["layers", "body", "k", "predicted", "nearest", "fitted", "measured", "fastest", "verdict"]
    return pandas.DataFrame(lines, columns=[*CONTEXT, *names])

"""Readings for designing a draft: what a step costs by depth and size, and the paper's drafts at these costs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flashspec.measure.costs import Cut
from flashspec.models.family import TOLERANCE
from flashspec.study import papers
from flashspec.study.compare import over
from flashspec.study.frames import DataFrame, framed, groups
from flashspec.theory import Costs, throughput

SAME = ["base", "head", "format", "probes", "shortlist", "past", "device"]  # what shapes on one line share
SHAPE = [*SAME, "shape", "layers", "hidden", "body"]


def timed_steps(frame: DataFrame) -> DataFrame:
    """The timed steps, with the name of what their shapes are compared within: a group, or the shape that was spread."""
    return frame[frame["piece"] == "step"].assign(base=frame["group"].where(frame["group"] != "", frame["shape"]))


def steps(frame: DataFrame) -> DataFrame:
    """One line a shape and head: the median seconds and milliseconds of a step, and the bytes that it reads."""
    table = timed_steps(frame).groupby(SHAPE, dropna=False, sort=False)[["seconds", "bytes"]].median().reset_index()
    return table.assign(ms=1e3 * table["seconds"])


def depth_gains(frame: DataFrame) -> DataFrame:
    """Seconds of the deepest shape over those of the shallowest with as many parameters in its layers, paired by turn."""
    lines = []
    for facts, mine in groups(timed_steps(frame), SAME, sort=False):
        deep = mine[mine["layers"] == mine["layers"].max()]
        alike = mine[(mine["body"] / deep["body"].iloc[0] - 1).abs() <= TOLERANCE]
        shallow = alike[alike["layers"] == alike["layers"].min()]
        depths = {"deep": int(deep["layers"].iloc[0]), "shallow": int(shallow["layers"].iloc[0])}
        if depths["shallow"] < depths["deep"]:
            pair = shallow.merge(deep, on="turn", suffixes=("", "_deep"))
            lines.append({**facts, **depths, "turns": len(pair), **over(pair["seconds_deep"], pair["seconds"])})
    return framed(lines, [*SAME, "deep", "shallow", "ratio", "low", "high", "turns", "verdict"])


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
    table = steps(frame).drop_duplicates("shape").set_index("shape")
    checks = frame[(frame["piece"] == "check") & (frame["shape"] == papers.YAN_TARGET)]
    drafts = [draft for draft in (papers.YAN_DEEP, papers.YAN_WIDE) if draft.shape in table.index]
    if len(drafts) < 2 or checks.empty or not (checks["rows"] == 1).any():
        return framed([])
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
    return framed(lines)


def check_seconds(checks: DataFrame) -> float:
    """Median seconds of checks, each turn stretched from the depths that were timed to the true one."""
    known = checks.pivot_table(index="turn", columns="layers", values="seconds")
    low, high = int(known.columns.min()), int(known.columns.max())
    cut = Cut("", int(checks["depth"].iloc[0]), (low, high))
    return float(np.median([cut.stretched(*pair) for pair in zip(known[low], known[high], strict=True)]))

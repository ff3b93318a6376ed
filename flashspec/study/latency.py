"""Readings of what a draft's step costs by depth and size, and of what the paper's drafts would give with these costs."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from flashspec.measure.bench import Interval
from flashspec.measure.depths import Cut
from flashspec.study import papers
from flashspec.study.readings import Missing, by_repeat, ratio, where
from flashspec.theory import Costs, amdahl, throughput

if TYPE_CHECKING:
    from pandas import DataFrame

FACTS = ["group", "shape", "layers", "hidden", "heads", "ffn", "body", "head"]


def steps(frame: DataFrame) -> DataFrame:
    """One line a draft shape: median milliseconds of a step, and bytes that it reads."""
    rows = where(frame, what="step")
    table = rows.groupby(FACTS, sort=False)[["seconds", "bytes", "bandwidth"]].median().reset_index()
    return table.assign(ms=1e3 * table["seconds"], floor_ms=1e3 * table["bytes"] / table["bandwidth"])


def depth_gain(frame: DataFrame, group: str) -> Interval:
    """A step of a group's deepest shape over one of its shallowest, paired by repeat: what width saves at fixed parameters."""
    rows = where(frame, group=group, what="step")
    ends = (rows["layers"].max(), rows["layers"].min())
    return ratio(*(by_repeat(where(rows, layers=layers), "seconds") for layers in ends))


class Fit(NamedTuple):
    """A step as layers x `per_layer` seconds + bytes / `bandwidth`, and the share of a median step that the layers take."""

    per_layer: float
    bandwidth: float
    share: float


def fit(frame: DataFrame) -> Fit:
    """Least squares over all draft shapes, each weighed by its own time; Missing for fewer than three shapes."""
    import numpy

    table = steps(frame)
    if len(table) < 3:
        raise Missing(f"two costs need at least 3 shapes, the table has {len(table)}; name more shapes")
    sides = table[["layers", "bytes"]].to_numpy(dtype=float)
    scale = sides.max(axis=0)
    relative = sides / scale / table[["seconds"]].to_numpy()
    found = numpy.linalg.lstsq(relative, numpy.ones(len(table)), rcond=None)[0] / scale
    per_layer, per_byte = (max(0.0, float(value)) for value in found)
    share = (per_layer * table["layers"] / table["seconds"]).clip(upper=1.0).median()
    return Fit(per_layer, 1 / per_byte if per_byte else float("inf"), float(share))


def turning_bytes(found: Fit) -> float:
    """Bytes of a layer whose reading takes as long as the layer costs whatever its width; infinite where bytes cost nothing."""
    return found.per_layer * found.bandwidth


def layer_bytes(frame: DataFrame) -> tuple[float, float]:
    """Bytes of a layer in the shape with the smallest and in the one with the largest layers; weights of two bytes."""
    sizes = 2 * steps(frame)["body"] / steps(frame)["layers"]
    return float(sizes.min()), float(sizes.max())


def places(frame: DataFrame) -> DataFrame:
    """The paper's two drafts, a step of each where the paper ran and here: milliseconds a layer and gigabytes a second.

    Where layers set the pace the milliseconds a layer are equal, where memory does the gigabytes a second are. Bytes are this
    table's; the paper's weights have two bytes as well.
    """
    import pandas

    table, lines = steps(frame).set_index("shape"), {}
    for draft in (papers.YAN_DEEP, papers.YAN_WIDE):
        if draft.shape not in table.index:
            raise Missing(f"the table has no step of {draft.shape}; run the experiment with the paper's drafts")
        here, size = float(table.loc[draft.shape, "ms"]), float(table.loc[draft.shape, "bytes"])
        lines[draft.shape] = {
            "layers": draft.layers,
            "GB read": size / 1e9,
            "paper, ms a layer": draft.step_ms / draft.layers,
            "paper, GB/s": size / draft.step_ms / 1e6,
            "here, ms a layer": here / draft.layers,
            "here, GB/s": size / here / 1e6,
        }
    return pandas.DataFrame.from_dict(lines, orient="index")


def wide_over_deep(frame: DataFrame, column: str) -> float:
    """One column of `places`, the wide draft's value over the deep one's: 1 where this is what sets the pace."""
    table = places(frame)[column]
    return float(table[papers.YAN_WIDE.shape] / table[papers.YAN_DEEP.shape])


def check_seconds(frame: DataFrame, rows: int) -> float:
    """Median seconds of the target reading this many tokens, stretched to its true depth where fewer layers were timed.

    The two depths of one repeat were timed one behind the other, so each repeat is stretched by itself.
    """
    table = where(frame, group="target", rows=rows)
    known = table.pivot_table(index="repeat", columns="timed", values="seconds")
    low, high = int(known.columns.min()), int(known.columns.max())
    cut = Cut(str(table["shape"].iloc[0]), int(table["layers"].iloc[0]), (low, high))
    return float(median([cut.stretched(*pair) for pair in zip(known[low], known[high], strict=True)]))


def rate_here(frame: DataFrame, draft: papers.PublishedDraft) -> float:
    """Predicted tokens a second of a printed draft: its TAR, with steps and checks as this table measured them."""
    rows = int(where(frame, group="target")["rows"].max())
    step = where(frame, shape=draft.shape, what="step")["seconds"].median()
    return throughput(draft.tar, Costs(float(step), check_seconds(frame, rows)), rows - 1)


def gain_here(frame: DataFrame) -> float:
    """Predicted gain of the paper's wide draft over its deep one with this table's costs."""
    return rate_here(frame, papers.YAN_WIDE) / rate_here(frame, papers.YAN_DEEP)


def gain_printed() -> float:
    """The same gain from the milliseconds that the paper printed."""
    k, check = papers.implied_round()
    deep, wide = (throughput(d.tar, Costs(d.step_ms, check), k) for d in (papers.YAN_DEEP, papers.YAN_WIDE))
    return wide / deep


def speedup_here(frame: DataFrame, draft: papers.PublishedDraft) -> float:
    """Predicted speedup of a printed draft over plain decoding with this table's costs."""
    return rate_here(frame, draft) * check_seconds(frame, 1)


def draft_share(frame: DataFrame, draft: papers.PublishedDraft) -> float:
    """Share of a round that the draft's steps take with this table's costs."""
    rows = int(where(frame, group="target")["rows"].max())
    step = (rows - 1) * float(where(frame, shape=draft.shape, what="step")["seconds"].median())
    return step / (step + check_seconds(frame, rows))


def share_needed(gain: float) -> float:
    """Share of the deep draft's round that drafting must take for the wide one to gain this much at half the step.

    Amdahl's law with the paper's TARs: gain = TAR ratio x 1 / (1 - s + s step ratio), solved for s; above 1 it is impossible.
    """
    kept, step = papers.YAN_WIDE.tar / papers.YAN_DEEP.tar, papers.YAN_WIDE.step_ms / papers.YAN_DEEP.step_ms
    return (1 - kept / gain) / (1 - step)


def gain_at(share: float) -> float:
    """The wide draft's gain where drafting takes this share of the deep draft's round, steps in the paper's ratio."""
    kept, step = papers.YAN_WIDE.tar / papers.YAN_DEEP.tar, papers.YAN_DEEP.step_ms / papers.YAN_WIDE.step_ms
    return kept * amdahl(share, step)


def headline_words(frame: DataFrame) -> str:
    """The paper's headline beside the prediction with these costs, or why there is none; predicted, never measured."""
    wanted = papers.YAN["headline"].value
    try:
        found = gain_here(frame)
    except Missing as error:
        return str(error)
    reached = "reaches" if found >= wanted else "does not reach"
    return f"predicted {found:.2f}×, which {reached} the paper's {wanted:.2f}×"

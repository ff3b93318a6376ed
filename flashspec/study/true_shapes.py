"""True shapes on pages: what was measured on a GPU where a table exists, and what the cost model predicts beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flashspec.models.memory import Form, weight_bytes
from flashspec.models.synthetic import GROUP, is_awq, shape
from flashspec.study.experiment import Results, stored
from flashspec.study.experiments.real_shapes import PARTS, SMOKE, Params
from flashspec.theory import Devices, Weights, round_time, speedup, split_costs, tokens_from_curve

if TYPE_CHECKING:
    from pandas import DataFrame

NOT_YET = "not yet observed on a GPU"
NOTHING = "no table is stored"
STAND_INS = ("correctness", "projection", "draft_step", "end_to_end", "verify", "spans")


class Link(NamedTuple):
    """What is assumed of the devices: bytes a second each of them reads, and seconds of one all-reduce among them."""

    bandwidth: float
    all_reduce: float


def found(base: Params, root: Path | None = None, parts: Sequence[str] = PARTS) -> dict[str, Results]:
    """The stored tables of these parameters, by part; nothing is measured."""
    tables = {part: stored("real_shapes", root, replace(base, part=part)) for part in parts}
    return {part: table for part, table in tables.items() if table is not None}


def observed(tables: dict[str, Results]) -> str:
    """Where the tables were measured, in words; NOT_YET where there is none."""
    machines = dict.fromkeys(table.machine for table in tables.values())
    return f"measured on {'; '.join(machines)}" if machines else NOT_YET


def costs(tables: dict[str, Results], none: str = NOT_YET) -> DataFrame:
    """One line for each timed call: its median and roofline in milliseconds, and the share of the roofline that it reaches.

    `none` is said where there is no table.
    """
    import pandas

    rows = [row for table in tables.values() for row in table.rows if row.agrees < 0]
    names = ["part", "shape", "what", "graphs", "rows", "tokens"]
    if not rows:
        return pandas.DataFrame({"part": [none]}).set_index("part")
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    lines = [{**dict(zip(names, key, strict=True)), **timing(group)} for key, group in groups.items()]
    return pandas.DataFrame(lines).set_index("part")


def timing(rows: Sequence[Any]) -> dict[str, Any]:
    """Median, roofline and share of repeats of one call; the last two are empty where no bytes are counted."""
    middle = median([row.seconds for row in rows])
    floor = rows[0].bytes / rows[0].bandwidth
    return {
        "ms": round(1e3 * middle, 4),
        "roofline ms": round(1e3 * floor, 4) if floor else None,
        "of roofline": round(floor / middle, 3) if floor else None,
    }


def agreements(tables: dict[str, Results]) -> DataFrame:
    """What was compared before anything was timed, and whether it agreed."""
    import pandas

    rows = [row for table in tables.values() for row in table.rows if row.agrees >= 0]
    lines = [{"what": row.what, "shape": row.shape, "graphs": row.graphs, "agrees": bool(row.agrees)} for row in rows]
    return pandas.DataFrame(lines or [{"what": NOT_YET}]).set_index("what")


def weights(name: str) -> Weights:
    """Bytes that one pass over a shape reads, layers and head, and its layers; layers in 4 bits where the name says AWQ."""
    config, form = shape(name), Form(torch.bfloat16, GROUP if is_awq(name) else 0)
    return Weights(config.body_parameters * form.body_bytes + config.head_parameters * form.dtype.itemsize, config.layers)


def predicted(params: Params, link: Link, counts: Sequence[int]) -> DataFrame:
    """Predicted, for each number of devices: passes in milliseconds, and plain and speculative tokens a second."""
    import pandas

    return pandas.DataFrame([_predicted(params, link, count) for count in counts]).set_index("devices")


def _predicted(params: Params, link: Link, count: int) -> dict[str, Any]:
    costs, step = split_costs(weights(params.target), weights(params.draft), Devices(count, link.bandwidth, link.all_reduce))
    curve = (*params.curve, *params.curve[-1:] * params.k)[: params.k]
    tar = tokens_from_curve(curve)
    return {
        "devices": count,
        "predicted target pass, ms": round(1e3 * step, 3),
        "predicted draft pass, ms": round(1e3 * costs.burst(1), 3),
        "predicted plain tokens/s": round(1 / step, 1),
        "predicted speculative tokens/s": round(tar / round_time(costs, params.k), 1),
        "predicted speedup": round(speedup(tar, costs, params.k, step), 2),
    }


def stand_ins(root: Path | None = None) -> dict[str, Results]:
    """Stored tables of the same parts at small shapes on a CPU, which show that everything runs."""
    return found(SMOKE, root, STAND_INS)


def peak_share(tables: dict[str, Results], part: str, what: str, mode: str) -> str:
    """The share of the roofline that one call reaches, in words; NOT_YET where it was not timed."""
    return next((f"{100 * share:.0f} %" for share in _shares(tables, part, (what, mode))), NOT_YET)


def _shares(tables: dict[str, Results], part: str, call: tuple[str, str]) -> Iterator[float]:
    rows = [row for row in tables[part].rows if (row.what, row.graphs) == call] if part in tables else []
    if rows:
        yield rows[0].bytes / rows[0].bandwidth / median([row.seconds for row in rows])


def memory(names: Sequence[str]) -> DataFrame:
    """Computed from shapes: gigabytes of weights in bfloat16 and with layers in 4 bits, and of the cache of 1000 tokens."""
    import pandas

    lines = []
    for name in names:
        config = shape(name)
        forms = {"bfloat16": Form(torch.bfloat16), "4 bits": Form(torch.bfloat16, GROUP)}
        sizes = {kind: weight_bytes(config, form) for kind, form in forms.items()}
        sizes["cache of 1000 tokens"] = 1000 * config.kv_bytes_per_token(torch.bfloat16.itemsize)
        lines.append({"shape": name, **{f"{what}, GB": round(size / 1e9, 2) for what, size in sizes.items()}})
    return pandas.DataFrame(lines).set_index("shape")


def loads(results: Results | None) -> DataFrame:
    """Loading in a fresh process: gigabytes of files, of anonymous memory at its peak, and their ratio, the worst repeat."""
    import pandas

    if results is None:
        return pandas.DataFrame({"format": [NOTHING]}).set_index("format")
    frame = results.frame
    frame = frame.assign(taken=frame["peak"] - frame["before"])
    worst = frame.loc[frame.groupby("format")["taken"].idxmax()]
    return pandas.DataFrame({
        "format": worst["format"], "files, GB": (worst["checkpoint_bytes"] / 1e9).round(2),
        "peak, GB": (worst["taken"] / 1e9).round(2), "peak over files": (worst["taken"] / worst["checkpoint_bytes"]).round(3),
        "seconds": worst["seconds"].round(1),
    }).set_index("format")  # fmt: skip


def worst_load(results: Results | None) -> str:
    """The largest ratio of peak to files, in words; NOTHING without a table."""
    if results is None:
        return NOTHING
    return f"{max((row.peak - row.before) / row.checkpoint_bytes for row in results.rows):.2f}"

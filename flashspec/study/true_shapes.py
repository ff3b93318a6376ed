"""True shapes on pages: what was measured on a GPU where a table exists, and what the cost model predicts beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flashspec.models.memory import Form, weight_bytes
from flashspec.models.synthetic import GROUP, is_awq, shape
from flashspec.study.real_shapes import EXPERIMENT, PARTS, Params
from flashspec.study.tables import Results
from flashspec.theory import Devices, Weights, round_time, speedup, split_costs, tokens_from_curve

if TYPE_CHECKING:
    from pandas import DataFrame

NOT_YET = "not yet observed on a GPU"
NOTHING = "no table is stored"
CALL = ["part", "shape", "what", "graphs", "rows", "k"]


def found(base: Params, root: Path | None = None) -> dict[str, Results]:
    """The stored tables of these parameters, by part; nothing is measured."""
    tables = {part: EXPERIMENT.stored(replace(base, part=part), root) for part in PARTS}
    return {part: table for part, table in tables.items() if table is not None}


def costs(tables: dict[str, Results]) -> DataFrame:
    """One line for each timed call: its median and roofline in milliseconds, and the share of the roofline that it reaches."""
    import pandas

    frames = [table.frame for part, table in tables.items() if part != "correctness"]
    if not frames:
        return pandas.DataFrame({"part": [NOT_YET]}).set_index("part")
    frame = pandas.concat(frames)
    probes = frame["probes"].astype(str).where(frame["probes"] > 0, "")
    what = (frame["head"] + " " + probes + " " + frame["finalize"] + frame["group"]).str.split().str.join(" ")
    frame = frame.assign(part=frame["piece"], what=what, floor=frame["bytes"] / frame["bandwidth"])
    lines = frame.groupby(CALL, sort=False)[["seconds", "floor"]].median().reset_index().set_index("part")
    share = (lines["floor"] / lines["seconds"]).round(3)
    middle, floor = (1e3 * lines.pop(name) for name in ("seconds", "floor"))
    return lines.assign(**{"ms": middle.round(4), "roofline ms": floor.round(4), "of roofline": share})


def agreements(tables: dict[str, Results]) -> DataFrame:
    """What was compared before anything was timed, and whether it agreed."""
    import pandas

    if "correctness" not in tables:
        return pandas.DataFrame({"what": [NOT_YET]}).set_index("what")
    return tables["correctness"].frame.rename(columns={"group": "what"}).set_index("what")[["shape", "graphs", "agrees"]]


def weights(name: str) -> Weights:
    """Bytes that one pass over a shape reads, layers and head, and its layers; layers in 4 bits where the name says AWQ."""
    config, form = shape(name), Form(torch.bfloat16, GROUP if is_awq(name) else 0)
    return Weights(config.body_parameters * form.body_bytes + config.head_parameters * form.dtype.itemsize, config.layers)


def predicted(params: Params, bandwidth: float, all_reduce: float, counts: Sequence[int]) -> DataFrame:
    """Predicted, for each number of devices: passes in milliseconds, and plain and speculative tokens a second.

    Each device reads `bandwidth` bytes a second, and one all-reduce among them takes `all_reduce` seconds.
    """
    import pandas

    tar, lines = tokens_from_curve((*params.curve, *params.curve[-1:] * params.k)[: params.k]), []
    for count in counts:
        costs, step = split_costs(weights(params.target), weights(params.draft), Devices(count, bandwidth, all_reduce))
        lines.append({
            "predicted target pass, ms": round(1e3 * step, 3),
            "predicted draft pass, ms": round(1e3 * costs.burst(1), 3),
            "predicted plain tokens/s": round(1 / step, 1),
            "predicted speculative tokens/s": round(tar / round_time(costs, params.k), 1),
            "predicted speedup": round(speedup(tar, costs, params.k, step), 2),
        })  # fmt: skip
    return pandas.DataFrame(lines, pandas.Index(counts, name="devices"))


def memory(names: Sequence[str]) -> DataFrame:
    """Computed from shapes: gigabytes of weights in bfloat16 and with layers in 4 bits, and of the cache of 1000 tokens."""
    import pandas

    lines = []
    for config in map(shape, names):
        sizes = [weight_bytes(config, Form(torch.bfloat16, group)) for group in (0, GROUP)]
        lines.append([size / 1e9 for size in (*sizes, 1000 * config.kv_bytes_per_token(torch.bfloat16.itemsize))])
    columns = ["bfloat16, GB", "4 bits, GB", "cache of 1000 tokens, GB"]
    return pandas.DataFrame(lines, pandas.Index(names, name="shape"), columns).round(2)


def loads(results: Results | None) -> DataFrame:
    """Loading in a fresh process: gigabytes of files, of anonymous memory at its peak, and their ratio, the worst repeat."""
    import pandas

    if results is None:
        return pandas.DataFrame({"format": [NOTHING]}).set_index("format")
    frame = results.frame
    frame = frame.assign(taken=frame["peak"] - frame["before"])
    worst = frame.loc[frame.groupby("format")["taken"].idxmax()].set_index("format")
    return pandas.DataFrame({
        "files, GB": (worst["checkpoint_bytes"] / 1e9).round(2), "peak, GB": (worst["taken"] / 1e9).round(2),
        "peak over files": (worst["taken"] / worst["checkpoint_bytes"]).round(3), "seconds": worst["seconds"].round(1),
    })  # fmt: skip


def worst_load(results: Results | None) -> str:
    """The largest ratio of peak to files, in words; NOTHING without a table."""
    return NOTHING if results is None else f"{loads(results)['peak over files'].max():.2f}"

"""True shapes on the device they are meant for: costs of every part, weights random, acceptance scripted.

Costs are measured; texts mean nothing; rounds keep as many tokens as a given curve says (simulated acceptance).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flashspec.decoding.cascade import decode
from flashspec.decoding.rules import rule_for
from flashspec.decoding.scripted import scripted
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits
from flashspec.decoding.ways import fastest
from flashspec.heads.base import Head
from flashspec.heads.dense import DenseHead
from flashspec.heads.registry import Origin
from flashspec.kernels.pages import Shelf
from flashspec.measure import clock
from flashspec.measure.pieces import Ready, flag
from flashspec.measure.runs import stored_bytes
from flashspec.models import graphs
from flashspec.models.awq import dequantise, layer
from flashspec.models.config import ModelConfig
from flashspec.models.memory import Form, weight_bytes
from flashspec.models.reader import SpanReader
from flashspec.models.synthetic import GROUP, is_awq, random_int4, shape, synthetic
from flashspec.models.transformer import Transformer
from flashspec.sampling import GREEDY
from flashspec.study import parts
from flashspec.study.experiment import Experiment
from flashspec.study.frames import DataFrame, framed, joined
from flashspec.study.parameters import among, at_least, presets_of
from flashspec.study.tables import Results
from flashspec.theory import Devices, Weights, round_time, speedup, split_costs, tokens_from_curve

PARTS = ("correctness", "projection", "draft_step", "end_to_end", "verify", "spans")
HEADS = ("dense", "flash")
NOT_YET = "not yet observed on a GPU"
CALL = ["part", "shape", "what", "graphs", "rows", "k"]
TINY = ModelConfig(
    family="qwen3", vocab_size=512, hidden=128, ffn=256, layers=4, heads=4, kv_heads=2, head_dim=32, context=256, tied=False
)


@dataclass(frozen=True)
class Params:
    """Which part to measure, at which shapes, on which device."""

    part: str = "correctness"  # one of the parts, in their order
    target: str = "Qwen3-32B-AWQ"  # shape of the target
    draft: str = "Qwen3-0.6B"  # shape of the draft
    spans: str = "Llama-3.1-8B"  # shape whose early exits are read
    device: str = "cuda"  # where to measure
    graphs: tuple[str, ...] = ("auto", "0")  # values of FLASHSPEC_GRAPHS
    probes: tuple[int, ...] = (256, 512)  # clusters a FlashHead scores
    k: int = 5  # tokens a verification
    curve: tuple[float, ...] = (0.8, 0.75, 0.7, 0.65, 0.6)  # acceptance by place in the burst
    past: int = 256  # tokens already in the cache
    new_tokens: int = 128  # tokens to write
    repeats: int = 10  # kept repeats

    def __post_init__(self) -> None:
        among("part", (self.part,), PARTS)
        among("graphs", self.graphs, graphs.CHOICES)
        at_least(self, probes=1, k=1, past=1, new_tokens=1, repeats=1)
        for name in (self.target, self.draft, self.spans):
            shape(name)


@dataclass(frozen=True)
class Row(parts.Row):
    """One timed call, or one comparison, which `agrees` or not and takes no time; `tokens` are those that a call wrote."""

    graphs: str = ""
    finalize: str = ""
    tokens: int | None = None
    agrees: bool | None = None


def measure(params: Params) -> Iterator[Row]:
    """Time one part of a round at true shapes, weights random and acceptance simulated."""
    if params.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; run this on a machine with one, or take the preset smoke")
    if params.part == "correctness":
        yield from correctness(params)
        return
    function = {"end_to_end": end_to_end, "spans": spans}.get(params.part, pieces)
    for mode in ("auto",) if params.part == "projection" else params.graphs:
        with flag(mode):
            rows = [Row(**facts, graphs=mode) for facts in function(params)]
        yield from rows


def pieces(params: Params) -> Iterator[dict[str, Any]]:
    """What `parts` times of the draft, or of the target checks of every length and its body, an eager final token."""
    asked: dict[str, dict[str, Any]] = {
        "projection": {"piece": ("projection",)},
        "draft_step": {"piece": ("body", "burst")},
        "verify": {"piece": ("body", "check"), "head": ("dense",), "rows": tuple(range(1, params.k + 2))},
    }
    name = params.target if params.part == "verify" else params.draft
    layers = {"shape": (name[:-4],), "format": ("int4",)} if is_awq(name) else {"shape": (name,)}
    place = {"past": params.past, "device": params.device, "repeats": params.repeats, "cold_megabytes": 0, "k": (params.k,)}
    known = {**layers, **place, "probes": params.probes, "head": HEADS, **asked[params.part]}
    yield from map(vars, parts.measure(parts.Params(**known)))


def timed(found: list[parts.Piece], params: Params, repeats: int) -> Iterator[dict[str, Any]]:
    """`parts.timed` with the columns that every piece of this study has."""
    own = {"head": "", "format": "bfloat16", "past": params.past, "bandwidth": clock.roof(params.device)}
    yield from ({**own, **facts} for facts in parts.timed(found, clock.Plan(repeats, 1, device=params.device)))


def end_to_end(params: Params) -> Iterator[dict[str, Any]]:
    """Whole texts: plain decoding, and drafts with every head and both final tokens."""
    draft, target = (synthetic(name, device=params.device) for name in (params.draft, params.target))
    prompt, found = [i % draft.config.vocab_size for i in range(params.past)], []
    for named, head in [({}, None), *heads_of(draft, params)]:
        stages = stages_of((draft, target), head, params)
        for finalize in ("deferred", "eager") if head else ("deferred",):
            call = partial(text_of, stages, prompt, Limits(params.new_tokens, (), finalize))
            facts = {"piece": "text", "shape": params.target, "k": params.k if head else 0, "finalize": finalize}
            found.append(parts.Piece({**facts, **named, "tokens": len(call())}, call))
    yield from timed(found, params, max(1, params.repeats // 3))


def heads_of(model: Transformer, params: Params) -> list[tuple[dict[str, Any], Head]]:
    """The dense head and a stand-in FlashHead at each number of probes, with their columns."""
    asked = parts.Params(head=HEADS, probes=params.probes, device=params.device)
    return list(parts.heads_over(Origin(model.head_weight, model.norm), asked))


def stages_of(models: tuple[Transformer, Transformer], head: Head | None, params: Params) -> list[Stage]:
    """Plain decoding without a head; else a draft with this head below the target, acceptance scripted."""
    (draft, target), rule = models, rule_for(GREEDY, models[1].config.vocab_size)
    context = params.past + params.new_tokens + params.k + 1
    top = Stage(SpanReader(target, context=context), DenseHead(target.norm, target.head_weight), rule, params.k, way=fastest)
    if head is None:
        return [top._replace(every=1)]
    return scripted([Stage(SpanReader(draft, context=context), head, rule, way=fastest), top], params.curve)


def text_of(stages: list[Stage], prompt: list[int], limits: Limits) -> list[int]:
    """The tokens of one decode, prompt reading included; its last transfer waits for the device."""
    return [token for step in decode(stages, prompt, limits) for token in step.tokens]


def spans(params: Params) -> Iterator[dict[str, Any]]:
    """The layers up to an eighth, from there to a quarter, and from there to the top, each behind the one below."""
    model = synthetic(params.spans, device=params.device)
    layers, found, below = model.config.layers, [], None
    tokens = torch.arange(params.past + 1, device=params.device) % model.config.vocab_size
    for stop in sorted({max(1, layers // 8), max(1, layers // 4), layers}):
        below = SpanReader(model, stop, below, params.past + 2)
        where = {"shape": params.spans, "group": f"layers {below.start}-{stop}"}
        facts = {"piece": "span", "bytes": stored_bytes(*model.blocks[below.start : stop]), **where}
        found.append(parts.Piece(facts, partial(Ready(below, tokens).read, 1)))
    found[-1].call()
    yield from timed(found, params, params.repeats)


def correctness(params: Params) -> Iterator[Row]:
    """Texts on recorded and eager fixed shapes against the torch engine, and products against a reference."""
    model, place = synthetic(TINY, torch.float32, device=params.device), params.device
    small = replace(params, probes=(8,), past=8, new_tokens=40, k=3)
    checks = list[tuple[str, str, str, bool]]()
    for name, head in [("baseline", None), *((named["head"], head) for named, head in heads_of(model, small))]:
        texts = {mode: _text(model, head, small, mode) for mode in dict.fromkeys(("0", *params.graphs))}
        checks += [("tiny", f"{name} text", mode, texts[mode] == texts["0"]) for mode in params.graphs]
    dice = torch.Generator(place).manual_seed(0)
    for outputs, inputs in ((640, 384), (1024, 5120)):
        weight = random_int4((outputs, inputs), dice)
        x = torch.randn(5, inputs, generator=dice, device=place).bfloat16()
        reference = x.float() @ dequantise(weight, torch.empty(outputs, inputs, device=place)).t()
        gap = float((layer(weight, None, Shelf())(x).float() - reference).norm() / reference.norm())
        checks.append((f"{outputs} x {inputs}", "int4 product", "", gap < 2e-2))
    for where, what, mode, agrees in checks:
        yield Row("correctness", where, "", "", 0.0, 0, group=what, graphs=mode, agrees=agrees)


def _text(model: Transformer, head: Head | None, params: Params, mode: str) -> list[int]:
    """A text of one small model, drafting for itself with this head; nothing is scripted."""
    with flag(mode):
        stages = stages_of((model, model), head, params)
        stages = [stage._replace(rule=rule_for(GREEDY, model.config.vocab_size)) for stage in stages]
        return text_of(stages, [3, 1, 4, 1, 5, 9, 2, 6], Limits(params.new_tokens))


def found(base: Params, root: Path | None = None) -> dict[str, Results]:
    """The stored tables of these parameters, by part; nothing is measured."""
    tables = {part: EXPERIMENT.stored(replace(base, part=part), root) for part in PARTS}
    return {part: table for part, table in tables.items() if table is not None}


def costs(tables: dict[str, Results]) -> DataFrame:
    """One line a timed call: its median and roofline in milliseconds, and the share of the roofline it reaches."""
    frame = joined(table.frame for part, table in tables.items() if part != "correctness")
    if frame.empty:
        return framed({"part": [NOT_YET]}).set_index("part")
    probes = frame["probes"].astype(str).where(frame["probes"] > 0, "")
    what = (frame["head"] + " " + probes + " " + frame["finalize"] + frame["group"]).str.split().str.join(" ")
    frame = frame.assign(part=frame["piece"], what=what, floor=frame["bytes"] / frame["bandwidth"])
    lines = frame.groupby(CALL, sort=False)[["seconds", "floor"]].median().reset_index().set_index("part")
    share = (lines["floor"] / lines["seconds"]).round(3)
    middle, floor = (1e3 * lines.pop(name) for name in ("seconds", "floor"))
    return lines.assign(**{"ms": middle.round(4), "roofline ms": floor.round(4), "of roofline": share})


def agreements(tables: dict[str, Results]) -> DataFrame:
    """What was compared before anything was timed, and whether it agreed."""
    if "correctness" not in tables:
        return framed({"what": [NOT_YET]}).set_index("what")
    return tables["correctness"].frame.rename(columns={"group": "what"}).set_index("what")[["shape", "graphs", "agrees"]]


def weights(name: str) -> Weights:
    """Bytes that one pass over a shape reads, and its layers, which are in 4 bits where the name says AWQ."""
    config, form = shape(name), Form(torch.bfloat16, GROUP if is_awq(name) else 0)
    return Weights(config.body_parameters * form.body_bytes + config.head_parameters * form.dtype.itemsize, config.layers)


@dataclass(frozen=True)
class Split:
    """Devices that share a target, as stated."""

    devices: tuple[int, ...] = (1,)  # numbers of devices
    bandwidth: float = 4.0e12  # bytes a second that each device reads
    all_reduce: float = 15e-6  # seconds of one all-reduce among them


def predicted(params: Params, split: Split) -> DataFrame:
    """Predicted for each number of devices: passes in milliseconds, plain and speculative tokens a second."""
    tar, lines = tokens_from_curve((*params.curve, *params.curve[-1:] * params.k)[: params.k]), []
    for count in split.devices:
        devices = Devices(count, split.bandwidth, split.all_reduce)
        costs, step = split_costs(weights(params.target), weights(params.draft), devices)
        lines.append({
            "devices": count,
            "predicted target pass, ms": round(1e3 * step, 3),
            "predicted draft pass, ms": round(1e3 * costs.burst(1), 3),
            "predicted plain tokens/s": round(1 / step, 1),
            "predicted speculative tokens/s": round(tar / round_time(costs, params.k), 1),
            "predicted speedup": round(speedup(tar, costs, params.k, step), 2),
        })  # fmt: skip
    return framed(lines).set_index("devices")


def memory(names: Sequence[str]) -> DataFrame:
    """Computed gigabytes of weights in bfloat16 and with layers in 4 bits, and of the cache of 1000 tokens."""
    lines = []
    for name, config in zip(names, map(shape, names), strict=True):
        sizes = [weight_bytes(config, Form(torch.bfloat16, group)) for group in (0, GROUP)]
        sizes.append(1000 * config.kv_bytes_per_token(torch.bfloat16.itemsize))
        lines.append([name, *(size / 1e9 for size in sizes)])
    columns = ["shape", "bfloat16, GB", "4 bits, GB", "cache of 1000 tokens, GB"]
    return framed(lines, columns).set_index("shape").round(2)


PRESETS = presets_of("real_shapes", Params)
EXPERIMENT = Experiment("real_shapes", Params, Row, measure, presets=PRESETS)

"""True shapes on their intended device: the cost of every part, with random weights and scripted acceptance.

Costs are measured; texts are meaningless; rounds accept as many tokens as a given curve says (simulated acceptance).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from flashspec.decoding.cascade import Limits, decode
from flashspec.decoding.method import METHODS, build
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage, scripted
from flashspec.heads.base import Head
from flashspec.heads.registry import Origin
from flashspec.measure import clock
from flashspec.models.engine import CHOICES, FLAG
from flashspec.models.memory import Form, weight_bytes
from flashspec.models.synthetic import GROUP, is_awq, shape, synthetic
from flashspec.parameters import presets_of
from flashspec.study import parts
from flashspec.study.experiment import Experiment, by
from flashspec.study.frames import DataFrame, framed
from flashspec.study.tables import Results
from flashspec.typed import among, at_least

PARTS = ("projection", "draft_step", "end_to_end", "verify")
HEADS = ("dense", "flash")
NOT_YET = "not yet observed on a GPU"
CALL = ["part", "shape", "what", "graphs", "rows", "k"]


@dataclass(frozen=True)
class Params:
    """Which parts to measure, at which shapes, on which device."""

    part: tuple[str, ...] = PARTS  # run in this order
    target: str = "Qwen3-32B-AWQ"  # shape of the target
    draft: str = "Qwen3-0.6B"  # shape of the draft
    device: str = "cuda"  # where to measure
    graphs: tuple[str, ...] = ("auto", "0")  # values of FLASHSPEC_GRAPHS: auto, eager, 0
    probes: tuple[int, ...] = (256, 512)  # clusters that a FlashHead scores
    k: int = 5  # drafted tokens per check
    curve: tuple[float, ...] = (0.8, 0.75, 0.7, 0.65, 0.6)  # acceptance at each place of a burst
    past: int = 256  # tokens already in the cache
    new_tokens: int = 128  # tokens to write
    repeats: int = 10  # repeats, after discarded warm-up

    def __post_init__(self) -> None:
        among(self, part=PARTS, graphs=CHOICES)
        at_least(self, probes=1, k=1, past=1, new_tokens=1, repeats=1)
        for name in (self.target, self.draft):
            shape(name)


@dataclass(frozen=True)
class Row(parts.Row):
    """One timed call; `tokens` are those that it wrote."""

    graphs: str = ""
    finalize: str = ""
    tokens: int | None = None


def measure(params: Params) -> Iterator[Row]:
    """Time a round part by part at true shapes, with random weights and simulated acceptance. A stopped run continues."""
    if params.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; run this on a machine with one, or take the preset smoke")
    gc.collect()  # readers of the part before and what they recorded hold one another until then
    (part,) = params.part
    for mode in ("auto",) if part == "projection" else params.graphs:
        with patch.dict(os.environ, {FLAG: mode}):
            rows = [Row(**facts, graphs=mode) for facts in (end_to_end if part == "end_to_end" else pieces)(params)]
        yield from rows


def pieces(params: Params) -> Iterator[dict[str, Any]]:
    """What `parts` times of the draft, or of the target checks of every length and its body, an eager final token."""
    asked: dict[str, dict[str, Any]] = {
        "projection": {"piece": ("projection",)},
        "draft_step": {"piece": ("body", "burst")},
        "verify": {"piece": ("body", "check"), "head": ("dense",), "rows": tuple(range(1, params.k + 2))},
    }
    name = params.target if params.part == ("verify",) else params.draft
    layers = {"shape": (name[:-4],), "format": ("int4",)} if is_awq(name) else {"shape": (name,)}
    place = {"past": params.past, "device": params.device, "repeats": params.repeats, "cold_megabytes": 0, "k": (params.k,)}
    known = {**layers, **place, "probes": params.probes, "head": HEADS, **asked[params.part[0]]}
    yield from map(vars, parts.measure(parts.Params(**known)))


def end_to_end(params: Params) -> Iterator[dict[str, Any]]:
    """Whole texts: plain decoding, and drafts with every head and both final tokens."""
    draft, target = (synthetic(name, device=params.device) for name in (params.draft, params.target))
    models, found = Models(target, draft), list[parts.Piece]()
    prompt = [i % draft.config.vocab_size for i in range(params.past)]
    asked = parts.Params(head=HEADS, probes=params.probes, device=params.device)
    for named, head in [({}, None), *parts.heads_over(Origin(draft.head_weight, draft.norm), asked)]:
        stages = stages_of(models, head, params)
        for finalize in ("deferred", "eager") if head else ("deferred",):
            call = partial(text_of, stages, prompt, Limits(params.new_tokens, (), finalize))
            facts = {"piece": "text", "shape": params.target, "k": params.k if head else 0, "finalize": finalize}
            found.append(parts.Piece({**facts, **named, "tokens": len(call())}, call))
    own = {"head": "", "format": "bfloat16", "past": params.past, "bandwidth": clock.roof(params.device)}
    timed = parts.timed(found, max(1, params.repeats // 3), 1, params.device)
    yield from ({**own, **facts} for facts in timed)


def stages_of(models: Models, head: Head | None, params: Params) -> list[Stage]:
    """Plain decoding without a head; else a draft with this head below the target, acceptance scripted."""
    context = params.past + params.new_tokens + params.k + 1
    if head is None:
        return build(METHODS["baseline"], models, context=context)
    draft, target = build(METHODS["dense"], models, context=context)
    return scripted([draft._replace(head=head), target._replace(every=params.k)], params.curve)


def text_of(stages: list[Stage], prompt: list[int], limits: Limits) -> list[int]:
    """The tokens of one decode, prompt reading included; its last transfer waits for the device."""
    return [token for step in decode(stages, prompt, limits) for token in step.tokens]


def costs(results: Results | None) -> DataFrame:
    """One line per timed call: its median and roofline in milliseconds, and the share of the roofline it reaches."""
    if results is None:
        return framed({"part": [NOT_YET]}).set_index("part")
    frame = results.frame
    probes = frame["probes"].astype(str).where(frame["probes"] > 0, "")
    what = (frame["head"] + " " + probes + " " + frame["finalize"]).str.split().str.join(" ")
    frame = frame.assign(part=frame["piece"], what=what, floor=frame["bytes"] / frame["bandwidth"])
    lines = frame.groupby(CALL, sort=False)[["seconds", "floor"]].median().reset_index().set_index("part")
    share = (lines["floor"] / lines["seconds"]).round(3)
    middle, floor = (1e3 * lines.pop(name) for name in ("seconds", "floor"))
    return lines.assign(**{"ms": middle.round(4), "roofline ms": floor.round(4), "of roofline": share})


def memory(names: Sequence[str]) -> DataFrame:
    """Computed gigabytes of weights in bfloat16 and with layers in 4 bits, and of the cache of 1000 tokens."""
    lines = []
    for name, config in zip(names, map(shape, names), strict=True):
        sizes = [weight_bytes(config, Form(torch.bfloat16, group)) for group in (0, GROUP)]
        sizes.append(1000 * 2 * config.layers * config.qkv_rows[1] * torch.bfloat16.itemsize)
        lines.append([name, *(size / 1e9 for size in sizes)])
    columns = ["shape", "bfloat16, GB", "4 bits, GB", "cache of 1000 tokens, GB"]
    return framed(lines, columns).set_index("shape").round(2)


EXPERIMENT = Experiment("real_shapes", Params, Row, measure, split=by("part"), presets=presets_of("real_shapes", Params))

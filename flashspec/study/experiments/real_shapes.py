"""True shapes on the device they are meant for: what each part costs, with weights that are random and acceptance scripted.

Costs are measured; texts mean nothing; rounds keep as many tokens as a given curve says (simulated acceptance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from flashspec.decoding.cascade import decode
from flashspec.decoding.rules import rule_for
from flashspec.decoding.scripted import scripted
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Limits
from flashspec.decoding.ways import fastest
from flashspec.heads.base import Head
from flashspec.heads.dense import DenseHead
from flashspec.measure import clock
from flashspec.measure.pieces import Ahead, Ready, checked, flag, one_token, ready
from flashspec.measure.roofline import roof, stored_bytes
from flashspec.measure.stand_ins import stand_in_flash
from flashspec.models import graphs
from flashspec.models.awq import Int4Linear, dequantise
from flashspec.models.config import ModelConfig, to_hf
from flashspec.models.memory import Form, free_bytes, weight_bytes
from flashspec.models.reader import SpanReader
from flashspec.models.synthetic import random_int4, shape, synthetic
from flashspec.models.transformer import Transformer
from flashspec.sampling import GREEDY
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among, at_least

PARTS = ("correctness", "projection", "draft_step", "end_to_end", "verify", "spans", "transformers")
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


class Row(NamedTuple):
    """One timed call; `agrees` is 1 or 0 where something was compared and -1 where nothing was."""

    part: str
    shape: str
    what: str
    graphs: str
    rows: int
    tokens: int
    bytes: int
    seconds: float
    repeat: int
    bandwidth: float
    agrees: int = -1


def heads_of(model: Transformer, params: Params) -> dict[str, Head]:
    """The dense head and a stand-in FlashHead at each number of probes, in the weight's own type, that names its best id."""
    flash = stand_in_flash(model.head_weight, model.norm, 1).with_plan(best=True)
    clusters = -(-model.config.vocab_size // 16)
    found = {f"flash {p}": flash.with_probes(p) for p in params.probes if p <= clusters}
    return {"dense": DenseHead(model.norm, model.head_weight), **found}


def timed(calls: dict[str, Callable[[], object]], params: Params) -> Iterator[tuple[str, int, float]]:
    """Name, repeat and seconds of every call, in turns."""
    with torch.inference_mode():
        raw = clock.interleaved_seconds(calls, clock.Plan(params.repeats, 3, device=params.device))
    for name, seconds in raw.items():
        yield from ((name, repeat, s) for repeat, s in enumerate(seconds))


def projection(params: Params) -> Iterator[Row]:
    model, speed = synthetic(params.draft, depth=1, device=params.device), roof(params.device)
    row = torch.randn(1, model.config.hidden, device=params.device)
    heads = heads_of(model, params)
    for name, repeat, s in timed({n: partial(one_token, h, row) for n, h in heads.items()}, params):
        yield Row("projection", params.draft, name, "", 1, 1, heads[name].bytes_read(1), s, repeat, speed)


def draft_step(params: Params) -> Iterator[Row]:
    model, speed = synthetic(params.draft, device=params.device), roof(params.device)
    heads, body = heads_of(model, params), stored_bytes(model.layers)
    for mode in params.graphs:
        draft = ready(model, params.past, params.k, mode)
        calls: dict[str, Callable[[], object]] = {"body": partial(draft.read, 1)}
        calls |= {name: Ahead(draft, head, params.k) for name, head in heads.items()}
        for name, repeat, s in timed(calls, params):
            tokens = params.k if name in heads else 1
            size = tokens * (body + (heads[name].bytes_read(1) if name in heads else 0))
            yield Row("draft_step", params.draft, name, mode, 1, tokens, size, s, repeat, speed)


def verify(params: Params) -> Iterator[Row]:
    model, speed = synthetic(params.target, device=params.device), roof(params.device)
    head, size = DenseHead(model.norm, model.head_weight), stored_bytes(model.layers)
    for mode in params.graphs:
        for rows in range(1, params.k + 2):
            target = ready(model, params.past, params.k, mode, rows)
            calls: dict[str, Callable[[], object]] = {"verify": partial(checked, head, target, rows)}
            calls |= {"finalize": partial(target.read, 1)} if rows == 1 else {}
            for name, repeat, s in timed(calls, params):
                read = size + (head.bytes_read(rows) if name == "verify" else 0)
                yield Row("verify", params.target, name, mode, rows, rows, read, s, repeat, speed)


def stages_of(models: tuple[Transformer, Transformer], head: Head | None, params: Params, mode: str) -> list[Stage]:
    """Plain decoding without a head; else a draft with this head below the target, acceptance scripted."""
    (draft, target), rule = models, rule_for(GREEDY, models[1].config.vocab_size)
    context = params.past + params.new_tokens + params.k + 1
    with flag(mode):
        dense = DenseHead(target.norm, target.head_weight)
        top = Stage(SpanReader(target, context=context), dense, rule, params.k, way=fastest)
        if head is None:
            return [top._replace(every=1)]
        return scripted([Stage(SpanReader(draft, context=context), head, rule, way=fastest), top], params.curve)


def end_to_end(params: Params) -> Iterator[Row]:
    draft, target = (synthetic(name, device=params.device) for name in (params.draft, params.target))
    prompt, speed = [i % draft.config.vocab_size for i in range(params.past)], roof(params.device)
    for mode in params.graphs:
        heads: dict[str, Head | None] = {"baseline": None, **heads_of(draft, params)}
        for name, head in heads.items():
            stages = stages_of((draft, target), head, params, mode)
            for finalize in ("deferred",) if head is None else ("deferred", "eager"):
                limits = Limits(params.new_tokens, (), finalize)
                run = partial(_written, stages, prompt, limits)
                run()
                for repeat in range(max(1, params.repeats // 3)):
                    start = clock.now()
                    tokens = run()
                    seconds, label = clock.now() - start, f"{name} {finalize}"
                    yield Row("end_to_end", params.target, label, mode, params.k, tokens, 0, seconds, repeat, speed)


def _written(stages: list[Stage], prompt: list[int], limits: Limits) -> int:
    """Tokens of one decode, prompt reading included; its last transfer waits for the device."""
    return sum(len(step.tokens) for step in decode(stages, prompt, limits))


def spans(params: Params) -> Iterator[Row]:
    model, speed = synthetic(params.spans, device=params.device), roof(params.device)
    layers = model.config.layers
    stops = sorted({max(1, layers // 8), max(1, layers // 4), layers})
    for mode in params.graphs:
        tokens = torch.arange(params.past + 1, device=params.device) % model.config.vocab_size
        chain: list[SpanReader] = []
        with flag(mode):
            for stop in stops:
                chain.append(SpanReader(model, stop, chain[-1] if chain else None, params.past + 2))
        chain[-1].read(tokens[:-1])
        for reader in chain:
            reader.read(tokens)
            calls: dict[str, Callable[[], object]] = {
                f"layers {reader.start}-{reader.stop}": partial(Ready(reader, tokens).read, 1)
            }
            size = stored_bytes(*model.blocks[reader.start : reader.stop])
            for name, repeat, s in timed(calls, params):
                yield Row("spans", params.spans, name, mode, 1, 1, size, s, repeat, speed)


def peers(params: Params) -> Iterator[Row]:
    """transformers' greedy generation in bfloat16, at each of the shapes that fits the device."""
    speed = roof(params.device)
    for name in dict.fromkeys((params.draft, params.spans, params.target.removesuffix("-AWQ"))):
        config, room = shape(name), free_bytes(torch.device(params.device))
        if room is not None and 1.1 * weight_bytes(config, Form(torch.bfloat16)) > room:
            continue
        model, generate = _peer(config, params)
        for _, repeat, s in timed({"generate": generate}, replace(params, repeats=max(1, params.repeats // 3))):
            size = params.new_tokens * stored_bytes(model)
            yield Row("transformers", name, "generate", "", 1, params.new_tokens, size, s, repeat, speed)
        del model, generate


def _peer(config: ModelConfig, params: Params) -> tuple[Any, Callable[[], object]]:
    """transformers' own model of a shape with random weights, and a call that writes new tokens behind the past."""
    from transformers import AutoConfig, AutoModelForCausalLM

    table = to_hf(config)
    own = AutoConfig.for_model(table.pop("model_type"), **table)
    with torch.device(params.device):
        model = AutoModelForCausalLM.from_config(own, dtype=torch.bfloat16).eval()
    ids = torch.arange(params.past, device=params.device)[None] % config.vocab_size
    length = {"max_new_tokens": params.new_tokens, "eos_token_id": None, "pad_token_id": 0}
    settings = {**length, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    return model, partial(model.generate, ids, **settings)


def correctness(params: Params) -> Iterator[Row]:
    """Texts on recorded and eager fixed shapes against the torch engine, and two products against their references."""
    model = synthetic(TINY, torch.float32, device=params.device)
    heads = {"baseline": None, **heads_of(model, replace(params, probes=(8,)))}
    for name, head in heads.items():
        texts = {mode: _text(_pair(model, head, params, mode)) for mode in ("0", *params.graphs)}
        for mode in params.graphs:
            yield _compared("tiny", f"{name} text", mode, 40, texts[mode] == texts["0"])
    dice = torch.Generator(params.device).manual_seed(0)
    for outputs, inputs in ((640, 384), (1024, 5120)):
        weight = random_int4((outputs, inputs), dice)
        x = torch.randn(5, inputs, generator=dice, device=params.device).bfloat16()
        reference = x.float() @ dequantise(weight, torch.empty(outputs, inputs, device=params.device)).t()
        gap = float((Int4Linear(weight)(x).float() - reference).norm() / reference.norm())
        yield _compared(f"{outputs} x {inputs}", "int4 product", "", 5, gap < 5e-3)
    yield _compared("512 x 128", "best of the probed blocks", "", 5, _best_agrees(model, params))


def _compared(shape: str, what: str, mode: str, tokens: int, agrees: bool) -> Row:
    return Row("correctness", shape, what, mode, 5, tokens, 0, 0.0, 0, 0.0, int(agrees))


def _best_agrees(model: Transformer, params: Params) -> bool:
    """Whether the fused kernel names the ids that scoring every probed row does."""
    flash = stand_in_flash(model.head_weight, model.norm, 8)
    rows = torch.randn(5, model.config.hidden, generator=torch.Generator().manual_seed(0)).to(params.device)
    scores, best = flash(rows), flash.with_plan(best=True)(rows)
    return bool((scores.pick(scores.logits.argmax(-1)) == best.pick(best.logits.argmax(-1))).all())


def _pair(model: Transformer, head: Head | None, params: Params, mode: str) -> list[Stage]:
    """Stages over one small model, drafting for itself with this head; nothing is scripted."""
    small = replace(params, past=8, new_tokens=40, k=3)
    stages = stages_of((model, model), head, small, mode)
    return [stage._replace(rule=rule_for(GREEDY, model.config.vocab_size)) for stage in stages]


def _text(stages: list[Stage]) -> list[int]:
    return [token for step in decode(stages, [3, 1, 4, 1, 5, 9, 2, 6], Limits(40)) for token in step.tokens]


MEASURES: dict[str, Callable[[Params], Iterator[Row]]] = {
    "correctness": correctness,
    "projection": projection,
    "draft_step": draft_step,
    "end_to_end": end_to_end,
    "verify": verify,
    "spans": spans,
    "transformers": peers,
}


def measure(params: Params) -> Iterator[Row]:
    """Time one part of a round at true shapes, weights random and acceptance simulated."""
    if params.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; run this on a machine with one, or take the preset smoke")
    yield from MEASURES[params.part](params)


SMOKE = Params(
    target="reference-target-AWQ", draft="reference-shallow", spans="reference-target", device="cpu", graphs=("eager", "0"),
    probes=(8,), k=2, curve=(0.5,), past=8, new_tokens=6, repeats=1,
)  # fmt: skip
EXPERIMENT = Experiment("real_shapes", Params, Row, measure, presets={"smoke": SMOKE})

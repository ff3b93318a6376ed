"""The race: models, methods, samplings and prompts in turns, beside plain decoding, parts timed in between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from flashspec.heads.registry import HEADS
from flashspec.measure.certificate import certify, first_difference, target_scorer
from flashspec.measure.parts import loop_overhead
from flashspec.measure.prompts import Prompt, numbered
from flashspec.measure.runs import Run, Text, repeated_share, text_digest
from flashspec.parameters import presets_of
from flashspec.study.drafts import folders, prompts_of
from flashspec.study.experiment import Experiment, by
from flashspec.study.racers import BASES, DRAFT_MODEL, SHORT, Racer, racers, samplings
from flashspec.typed import among, at_least


@dataclass(frozen=True)
class Params:
    """Who runs, on which prompts, how often. A list also takes a single value; plain decoding always runs."""

    target: tuple[str, ...] = ("reference",)  # targets: shipped or published names, or folders
    draft: tuple[str, ...] = ("main",)  # drafts: names or folders, A+B for a cascade; empty: all shipped
    method: tuple[str, ...] = (
        DRAFT_MODEL,
    )  # among draft_model, dense, flash, cascade, lookup, self_speculation, hispec, hispec_flash, hispec_typical, hispec_adaptive
    head: tuple[str, ...] = ("dense",)  # vocabulary heads of the draft or exit that drafts
    k: tuple[int, ...] = (4,)  # drafted tokens per check
    probes: tuple[int, ...] = (64,)  # clusters that a FlashHead scores
    shortlist: tuple[int, ...] = (2048,)  # ids that a head with a shortlist scores exactly
    exit: tuple[int, ...] = (2,)  # layers below the exit that drafts
    verify_exit: tuple[int, ...] = (4,)  # layers below the exit that verifies in a hierarchy
    interval: tuple[int, ...] = (8,)  # waiting tokens before the full model of a hierarchy checks
    finalize: tuple[str, ...] = ("deferred",)  # when the target reads its final token: deferred or eager
    temperature: tuple[float, ...] = (0.0, 1.0)  # temperatures of sampling; 0 is greedy
    rule: tuple[str, ...] = ("coupling",)  # rules: coupling, speculative, typical; greedy only the first
    engine: tuple[str, ...] = ("flashspec",)  # engines: flashspec; greedy also transformers, llama.cpp
    weights: str = "dense"  # weights of the target: dense (widened), int4, or auto for the file's own bits
    dtype: tuple[str, ...] = ("bfloat16",)  # number formats: bfloat16, float32, or auto for the file's own
    prompts: str = ""  # prompts file; empty means the shipped one
    kind: tuple[str, ...] = ()  # kinds of prompts; empty means all
    per_kind: int = 1  # prompts of each kind, the first ones
    new_tokens: int = 64  # tokens per prompt; stop tokens are ignored
    repeats: int = 3  # turns; in each, every method decodes every prompt once
    screen: int = 0  # schedules per method and head that run, the fastest on one prompt; 0 means all
    parts: int = 4  # prompts between two timings of the parts of a round; 0 means no timing
    twins: int = 0  # prompts of each kind that are decoded in float32 too, to explain differing texts
    seed: int = 0  # seed of sampling

    def __post_init__(self) -> None:
        among(self, method=(*BASES, *SHORT), head=HEADS, engine=("flashspec", "transformers", "llama.cpp"))
        among(self, dtype=("auto", "bfloat16", "float32"), finalize=("deferred", "eager"))
        at_least(self, k=1, probes=1, shortlist=1, exit=1, verify_exit=1, interval=1, per_kind=1, new_tokens=2, repeats=1)
        at_least(self, screen=0, parts=0, twins=0)
        samplings(self)
        if set(self.engine) - {"flashspec"} and set(self.temperature) != {0.0}:
            raise ValueError("other engines are compared greedily: with them, temperature must be 0 alone")


@dataclass(frozen=True, kw_only=True)
class Who:
    """Who decoded which prompt."""

    target: str
    draft: str = ""
    method: str
    head: str
    k: int
    probes: int = 0
    exits: str = ""
    interval: int = 0
    finalize: str
    temperature: float
    rule: str
    kind: str
    prompt: int


@dataclass(frozen=True, kw_only=True)
class Row(Who):
    """One run on one prompt in one turn (rows of older tables sum `prompts` of them), with the latest timing of the parts, made
    after this prompt or an earlier one.

    `format` is that of the rows that the drafting head scores. `judged` tokens were checked by the last stage; the lowest
    verifier accepted `kept_1` of the `decided_1` that it decided on. `twin_digest` is the same text in float32 ("" where none
    was written). `divergence_at` is the first token that is not plain decoding's; `gap` and `noise` explain it where a
    certificate was made. A burst is k tokens, a step one token of plain decoding, `finalize_seconds` the reading of one token.
    `layer_tokens` are rows times layers; `bytes` and `flops` are of older tables.
    """

    format: str
    emitted: int
    seconds: float
    turn: int
    prompts: int = 1
    target_digest: str = ""
    draft_digest: str = ""
    layers: int | None = None
    body: int | None = None
    head_bytes: int | None = None
    steps: int | None = None
    shortlist: int = 0
    weights: str = "dense"
    dtype: str = "bfloat16"
    engine: str = "flashspec"
    screened: bool = False
    rounds: int | None = None
    drafted: int | None = None
    judged: int | None = None
    accepted: int | None = None
    forwards: int | None = None
    layer_tokens: int | None = None
    bytes: int | None = None
    flops: int | None = None
    actions_1: int | None = None
    waiting_1: int | None = None
    kept_1: int | None = None
    decided_1: int | None = None
    actions_2: int | None = None
    waiting_2: int | None = None
    kept_2: int | None = None
    decided_2: int | None = None
    repeated_4: float | None = None
    text_digest: str = ""
    twin_digest: str = ""
    divergence_at: int | None = None
    gap: float | None = None
    noise: float | None = None
    step_seconds: float | None = None
    burst_seconds: float | None = None
    check_1_seconds: float | None = None
    check_2_seconds: float | None = None
    finalize_seconds: float | None = None
    head_seconds: float | None = None
    prefill_seconds: float | None = None
    overhead_seconds: float | None = None


def measure(params: Params) -> Iterator[Row]:
    """Decode the same prompts with every method in turns, beside plain decoding.

    A warm-up comes first, and the first method changes from prompt to prompt.
    """
    from tqdm import tqdm

    plain, *_ = field = racers(params)
    prompts = prompts_of(params, params.per_kind, plain.models)
    parts, explained = dict[str, dict[str, float]](), set[str]()
    for racer in field:
        racer.run(prompts[0], params.new_tokens)
    if params.screen:
        screening = {racer.name: racer.run(prompts[0], params.new_tokens) for racer in field}
        yield from (_row(racer, prompts[0].kind, screening[racer.name], turn=-1, prompt=0, screened=True) for racer in field)
        field = _fastest(field, screening, params.screen)
    twins = twin_digests(field, prompts, params)
    title = f"race, {plain.who['target']}, T={plain.who['temperature']}"
    work = list(product(range(params.repeats), enumerate(prompts)))
    for turn, (number, prompt) in tqdm(work, desc=title, unit="prompt", delay=2, leave=False):
        start = (turn + number) % len(field)
        runs = {racer.name: racer.run(prompt, params.new_tokens) for racer in (*field[start:], *field[:start])}
        if params.parts and number % params.parts == 0:
            parts = _parts(field, prompt, runs)
        for racer in field:
            twin = {"turn": turn, "prompt": number, "twin_digest": twins.get((racer.name, number), "")}
            parted = _divergence(racer, prompt, runs[plain.name].tokens, runs[racer.name].tokens, explained)
            yield _row(racer, prompt.kind, runs[racer.name], **parts.get(racer.name, {}), **twin, **parted)


def points(params: Params) -> list[Params]:
    """One point per target, dtype and sampling, so that a killed race can continue."""
    several = by("target", "dtype")(params)
    return [replace(one, temperature=(s.temperature,), rule=(s.rule,)) for one in several for s in samplings(params)]


def twin_digests(field: Sequence[Racer], prompts: Sequence[Prompt], params: Params) -> dict[tuple[str, int], str]:
    """Digests of float32 texts of the first prompts of each kind, where the rule promises equal texts."""
    if not params.twins or not field[0].owes_the_text:
        return {}
    names, found = {racer.name for racer in field}, {}
    twins = racers(replace(params, dtype=("float32",), weights="dense"))
    for number, (before, prompt) in enumerate(numbered(prompts)):
        for racer in twins if before < params.twins else ():
            if racer.name in names:
                found[racer.name, number] = text_digest(racer.run(prompt, params.new_tokens).tokens)
    return found


def _divergence(racer: Racer, prompt: Prompt, plain: Text, text: Text, explained: set[str]) -> dict[str, Any]:
    """Where a text that must be plain decoding's differs, with one certificate per racer and kind."""
    at = first_difference(plain, text) if racer.owes_the_text else None
    if at is None:
        return {}
    name = f"{racer.name} {prompt.kind}"
    if name in explained or racer.who.get("engine") == "llama.cpp" or at >= min(len(plain), len(text)):
        return {"divergence_at": at}
    explained.add(name)
    scorer = racer.theirs.score if racer.theirs else target_scorer(racer.models.target, racer.sampling)
    certificate = certify(plain, text, prompt.ids, scorer)
    return {"divergence_at": at, "gap": certificate and certificate.gap, "noise": certificate and certificate.noise}


def _parts(field: Sequence[Racer], prompt: Prompt, runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Parts of every racer, timed now, beside a step of plain decoding and the loop's overhead."""
    found = {racer.name: racer.parts(prompt, runs[racer.name]) for racer in field if not racer.theirs}
    plain, loops = field[0].name, (loop_overhead(2), loop_overhead(1))
    step = found[plain]["step_seconds"]
    return {name: {**own, "step_seconds": step, "overhead_seconds": loops[name == plain]} for name, own in found.items()}


def _fastest(field: Sequence[Racer], runs: Mapping[str, Run], keep: int) -> list[Racer]:
    """The fastest of each method, draft, head and final token, in order; plain decoding stays."""
    groups = defaultdict[tuple[Any, ...], list[str]](list)
    for racer in sorted(field, key=lambda racer: runs[racer.name].seconds):
        groups[tuple(racer.who.get(name) for name in ("method", "draft", "head", "finalize", "engine"))].append(racer.name)
    best = {name for names in groups.values() for name in names[:keep]}
    return [racer for racer in field if racer.name in best]


def _row(racer: Racer, kind: str, run: Run, **more: Any) -> Row:
    text = {"text_digest": text_digest(run.tokens), "repeated_4": repeated_share(run.tokens, 4)}
    return Row(**{**racer.who, **run.counts, **text, **more, "kind": kind, "seconds": run.seconds})


EXPERIMENT = Experiment("race", Params, Row, measure, split=points, models=folders, presets=presets_of("race", Params))

"""Whether to speculate, and how: costs and tokens per check, combined into forecasts with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise, product
from typing import NamedTuple

from msgspec import structs

from flashspec import theory
from flashspec.decoding.generate import request
from flashspec.decoding.method import Method
from flashspec.decoding.models import Models, check_pair
from flashspec.heads.registry import HEADS
from flashspec.measure import clock
from flashspec.measure.costs import PairCosts, Say, Turn, name_of, parts_of, pass_bytes, timed_turn
from flashspec.measure.prompts import Prompt
from flashspec.measure.trace import replay_heads, told_of
from flashspec.models.synthetic import shape
from flashspec.sampling import Sampling
from flashspec.theory import Counts, Shares
from flashspec.typed import at_least, check_positive

TIMED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BEFORE = 24  # tokens of text that parts are timed behind: each part's readers read them first
LONGER = 2.5  # times as long as the one before may growing take: it writes up to twice as many tokens
FEWEST = 3  # turns and texts that an interval needs


@dataclass(frozen=True)
class Question:
    """What may be recommended, and how much evidence to gather for it."""

    head: tuple[str, ...] = ("dense", "flash")  # vocabulary heads of the draft
    probes: tuple[int, ...] = ()  # clusters that heads with clusters score; empty means the head's own default
    shortlist: tuple[int, ...] = ()  # ids that heads with a shortlist score; empty means the head's own default
    finalize: tuple[str, ...] = ("deferred", "eager")  # when the target reads its own final token
    max_k: int = 12  # largest k considered
    temperature: float = 0.0  # temperature of sampling; 0 is greedy
    rule: str = "speculative"  # acceptance rule; ignored at temperature 0
    new_tokens: int = 96  # tokens that the target writes for each prompt
    per_kind: int = 1  # prompts of each kind
    repeats: int = 9  # most turns in which the parts are timed
    seconds: float = 60.0  # seconds until the answer, loading included
    seed: int = 0  # seed of sampling

    def __post_init__(self) -> None:
        at_least(self, max_k=1, new_tokens=2, per_kind=1, repeats=FEWEST, seconds=0)
        if self.max_k > 1024:
            raise ValueError(f"max_k must be at most 1024, got {self.max_k}")
        if not self.head or not self.finalize:
            raise ValueError("a plan needs at least one head and one way to finalise")
        _ = self.sampling, self.methods  # which refuse what they cannot be

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, seed=self.seed, rule=self.rule if self.temperature else "coupling")

    @property
    def writers(self) -> list[Method]:
        """One method per head, number of probes and length of shortlist, of those that the head takes."""
        found = []
        for head in self.head:
            takes = HEADS[head].options if head in HEADS else ()
            probes, shortlists = self.probes if "probes" in takes else (), self.shortlist if "shortlist" in takes else ()
            pairs = product(probes or (None,), shortlists or (None,))
            found += [Method("model", head, probes=scored, shortlist=listed) for scored, listed in pairs]
        return found

    @property
    def methods(self) -> list[Method]:
        """Everything that may be recommended."""
        wanted = product(self.writers, self.finalize, range(1, self.max_k + 1))
        return [replace(writer, finalize=finalize, k=k) for writer, finalize, k in wanted]

    @property
    def timed(self) -> tuple[int, ...]:
        """Draft lengths that are timed; others are interpolated."""
        return tuple(sorted({*(k for k in TIMED if k < self.max_k), self.max_k}))


Texts = Mapping[str, Sequence[Shares]]  # each writer's chance of drafting each token of known texts of one length
Acceptance = Callable[[Method], list[Counts]]  # where tokens per check come from


def replayed_on(texts: Texts) -> Acceptance:
    """One count per text."""
    return lambda method: [theory.replayed([text], method.k) for text in texts[name_of(method)]]


def stated_rates(rates: tuple[float, ...]) -> Acceptance:
    """Acceptance that the user states: one rate, or one per position; it applies to every head.

    The same expected count, repeated as often as an interval needs; beyond the curve its last rate applies.
    """
    if not rates:
        raise ValueError("acceptance needs one rate, or one for each position of the draft")
    theory.tokens_from_curve(rates)

    def counts(method: Method) -> list[Counts]:
        tar = theory.tokens_from_curve((*rates, *rates[-1:] * method.k)[: method.k])
        return [Counts(1.0 / tar, method.k / tar, 1.0 - 1.0 / tar, 1)] * FEWEST

    return counts


class Forecast(NamedTuple):
    """One method's predicted speedup over plain decoding, and everything it is computed from; times in seconds."""

    method: Method
    tar: float
    speedup: theory.Interval
    parts: Mapping[str, float]
    step: float
    needs: theory.BreakEven

    @property
    def rate(self) -> float:
        """Predicted tokens per second."""
        return self.speedup.value / self.step


def tar_of(counts: Sequence[Counts]) -> float:
    """Tokens per check over all items."""
    return sum(c.emitted for c in counts) / sum(c.rounds for c in counts)


def predicted(pair: PairCosts, method: Method, counts: Sequence[Counts], turns: Sequence[Turn] | None = None) -> float:
    """A method's speedup from these counts and the parts of these turns, or of all."""
    costs, step = pair.costs(method, turns)
    return theory.speedup(tar_of(counts), costs, method.k, step)


def forecast(pair: PairCosts, acceptance: Acceptance, method: Method) -> Forecast:
    """A method's speedup with an interval over texts and turns, resampled independently."""
    counts, (costs, step) = acceptance(method), pair.costs(method)
    interval = theory.bootstrap([counts, pair.turns], partial(predicted, pair, method), 400)
    tar, parts = tar_of(counts), theory.round_parts(costs, method.k)
    return Forecast(method, tar, interval, parts, step, theory.break_even(tar, costs, method.k, step))


def ranked(pair: PairCosts, acceptance: Acceptance, methods: Sequence[Method]) -> list[tuple[Method, float]]:
    """The fastest method for every head and final token with its predicted speedup, best first."""
    speeds = {method: predicted(pair, method, acceptance(method)) for method in methods}
    fastest = dict[tuple[str, str], Method]()
    for method in sorted(methods, key=lambda method: -speeds[method]):
        fastest.setdefault((name_of(method), method.finalize), method)
    return [(method, speeds[method]) for method in fastest.values()]


def advise(pair: PairCosts, acceptance: Acceptance, methods: Sequence[Method]) -> list[Forecast]:
    """Forecasts of the fastest method for every head and final token, best first."""
    return [forecast(pair, acceptance, method) for method, _ in ranked(pair, acceptance, methods)]


def written(models: Models, question: Question, prompts: Sequence[Prompt], say: Say) -> Iterator[tuple[tuple[int, ...], Texts]]:
    """The first text with its prompt, and the writers' chances on the texts: on the start of the first one, then on
    that of all, on a half and on the whole."""
    options = {"max_new_tokens": question.new_tokens, "stop": ()}
    live = [request(models, list(prompt.ids), Method(), question.sampling, options).steps() for prompt in prompts]
    grown, length = list(prompts), question.new_tokens
    ends = (-(-length // 6), -(-length // 2), length)
    chances = {writer: [list[float]() for _ in prompts] for writer in question.writers}

    def found() -> tuple[tuple[int, ...], Texts]:
        begun = {name_of(writer): [each for each in of if each] for writer, of in chances.items()}
        return grown[0].ids, {name: tuple(map(tuple, of)) for name, of in begun.items()}

    for start, end in pairwise((0, *ends)):
        for number, prompt in enumerate(grown if end > start else ()):
            say(f"text {number + 1} of {len(grown)} ({prompt.kind}): {end - start} tokens more")
            tokens = [token for step in islice(live[number], end - start) for token in step.tokens]
            told = told_of(models, prompt, tokens, question.sampling)
            grown[number] = structs.replace(prompt, ids=(*prompt.ids, *tokens))
            replayed = replay_heads(told, models, [*chances], question.sampling)
            for of, new in zip(chances.values(), replayed, strict=True):
                of[number] += new
            if not number and not start:
                yield found()
        yield found()


def observe(
    models: Models, question: Question, prompts: Sequence[Prompt], until: float = math.inf, say: Say = print
) -> Iterator[tuple[PairCosts, Texts]]:
    """Costs of a pair on this machine, and its writers' chances on the target's texts, turn after turn.

    A turn times every part once. The first, cold one serves a first estimate from one text and is then forgotten; before later
    ones the texts grow where that leaves time for the turns that an interval needs. `say` reports each piece until then, and
    each text. Ends after the question's repeats, before a turn beyond those needed that would end after `until`, or within
    a turn at that time, by `clock.now`.
    """
    turns, device = list[Turn](), str(models.target.device)

    def tick(line: str, heard: bool = True) -> None:
        if clock.now() > until:
            raise TimeoutError
        if heard:
            say(line)

    with suppress(TimeoutError):
        growing = written(models, question, prompts, tick)
        text, texts = next(growing)
        groups = parts_of(models, question.writers, question.timed, text[-BEFORE:], question.sampling)
        yield PairCosts((timed_turn(groups, device, tick),), question.timed), texts
        start = clock.now()
        _, texts = next(growing)
        wrote = clock.now() - start
        for _ in range(question.repeats):
            start = clock.now()
            turns.append(timed_turn(groups, device, partial(tick, heard=False)))
            now = clock.now()
            yield PairCosts(tuple(turns), question.timed), texts
            spare = until - now - (now - start) * max(1, FEWEST - len(turns))
            if spare < 0 and len(turns) >= FEWEST:
                return
            if spare > LONGER * wrote:
                start = clock.now()
                _, texts = next(growing, (text, texts))
                wrote = clock.now() - start


def stated_costs(times: Mapping[str, float]) -> PairCosts:
    """Costs that the user states: step, draft and check, optionally finalize and overhead; none may be 0."""
    known = ("step", "draft", "check", "finalize", "overhead")
    wrong = [f"lack {name}" for name in known[:3] if name not in times]
    wrong += [f"have no part {name!r}" for name in times if name not in known]
    if wrong:
        raise ValueError(f"the times {wrong[0]}; give step, draft and check, and perhaps finalize and overhead")
    for name, value in times.items():
        check_positive(f"the time of {name}", value)
    turn = {"finalize": times["step"], "overhead": 0.0, **times}
    ks = (1, TIMED[-1])
    turn |= {f"check {k}": turn["check"] for k in ks}
    return PairCosts(({**turn, **{f"burst {k} dense": k * turn["draft"] for k in ks}},) * 3, ks)


def shape_costs(target: str, draft: str, bandwidth: float) -> PairCosts:
    """Costs of a pair of published shapes at this memory bandwidth: each pass reads its weights once, a check costs a step."""
    check_pair(shape(draft), shape(target))
    step, token = (pass_bytes(name) / bandwidth for name in (target, draft))
    return stated_costs({"step": step, "draft": token, "check": step})


class HeadCase(NamedTuple):
    """One head on one draft at one k: the share of the dense head's TAR that it keeps, and the share it must keep to pay.

    `seconds` is the time of a drafted token, body and head, in a burst of k; `nu` that over a dense one's; `kappa` the dense
    drafts' time over the rest of a round.
    """

    method: Method
    seconds: float
    kappa: float
    nu: float
    kept: float
    gate: float
    gain: float

    @property
    def pays(self) -> bool:
        """Whether it keeps enough."""
        return self.kept > self.gate


def head_cases(pair: PairCosts, acceptance: Acceptance, writers: Sequence[Method], k: int) -> list[HeadCase]:
    """Every writer against the dense one at k, the largest predicted gain first (SlimSpec)."""
    dense = Method("model", k=k)
    ledger, full = theory.round_parts(pair.costs(dense)[0], k), tar_of(acceptance(dense))
    drafts = check_positive("the dense head's burst", ledger["draft"])
    kappa = drafts / check_positive("a round without its drafts", sum(ledger.values()) - drafts)
    cases = []
    for method in (replace(writer, k=k) for writer in writers):
        burst, kept = pair.costs(method)[0].burst(k), tar_of(acceptance(method)) / full
        nu = burst / drafts
        gate = theory.cheap_head_gate(kappa, nu)
        cases.append(HeadCase(method, burst / k, kappa, nu, kept, gate, kept / gate))
    return sorted(cases, key=lambda case: -case.gain)

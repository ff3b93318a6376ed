"""What one pair spends on this machine: every part of a round timed alone, in turns, for every draft length of interest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.cascade import Limits, Stage, decode
from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.decoding.rules import rule_for
from flashspec.measure import clock
from flashspec.measure.parts import Bench, prepare
from flashspec.scores import GREEDY, Dice, Sampling, Scores
from flashspec.theory import Costs, interpolated

BURST = 4
Turn = Mapping[str, float]


def name_of(method: Method) -> str:
    """What a table calls a writer: its head, the clusters it probes and the ids it lists."""
    options = {"P": method.probes, "N": method.shortlist}
    return " ".join([method.head, *(f"{name}={value}" for name, value in options.items() if value is not None)])


class Place(NamedTuple):
    """Where costs are measured: behind this prompt and text, under this sampling."""

    prompt: Sequence[int]
    text: Sequence[int]
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class PairCosts:
    """Seconds of each part in each turn, and the draft lengths whose check was timed.

    Parts: "step" (a token of plain decoding), "finalize" (a one-token read), "overhead" (what the loop adds to a round),
    "check K", "eager K" (a one-token read and the check after it, which has one token less to read), "draft NAME" (a drafted
    token) and "head NAME" (its head alone).
    """

    turns: tuple[Turn, ...]
    ks: tuple[int, ...]

    def medians(self, turns: Sequence[Turn] | None = None) -> dict[str, float]:
        """The middle value of every part over these turns, or over all."""
        chosen = self.turns if turns is None else turns
        return {name: clock.median([turn[name] for turn in chosen]) for name in chosen[0]}

    def costs(self, method: Method, turns: Sequence[Turn] | None = None) -> tuple[Costs, float]:
        """What a round of this method spends, and the step of plain decoding it is compared with."""
        found = self.medians(turns)
        eager = method.finalize == "eager"
        finalize = found["finalize"] if eager else 0.0
        checks = {k: found[f"eager {k}"] - finalize if eager else found[f"check {k}"] for k in self.ks}
        verify = interpolated({k: max(0.0, seconds) for k, seconds in checks.items()})
        return Costs(found[f"draft {name_of(method)}"], verify, finalize, found["overhead"]), found["step"]


def measure_costs(models: Models, writers: Sequence[Method], ks: Sequence[int], place: Place, plan: clock.Plan) -> PairCosts:
    """Time every part of a round in turns A B A B, un-instrumented; no end-to-end number is used."""
    if not writers or not ks or min(ks) < 1:
        raise ValueError("costs need at least one writer and draft lengths of at least 1")
    with torch.inference_mode():
        raw = clock.interleaved_seconds(_calls(models, writers, sorted(set(ks)), place), plan)
    turns = (dict(zip(raw, values, strict=True)) for values in zip(*raw.values(), strict=True))
    return PairCosts(tuple(_per_token(turn) for turn in turns), tuple(sorted(set(ks))))


def _calls(models: Models, writers: Sequence[Method], ks: Sequence[int], place: Place) -> dict[str, Callable[[], object]]:
    def bench(method: Method) -> Bench:
        context = len(place.prompt) + len(place.text) + method.k
        return prepare(lambda: build(method, models, place.sampling, context), place.prompt, place.text)

    drafts = {name_of(writer): bench(replace(writer, k=BURST)) for writer in writers}
    checks = {k: bench(replace(writers[0], k=k)) for k in ks}
    first = next(iter(drafts.values()))
    calls: dict[str, Callable[[], object]] = {"step": bench(Method()).burst, "finalize": first.step}
    for k, one in checks.items():
        calls |= {f"check {k}": one.check, f"eager {k}": partial(finalized_check, one)}
    calls |= {f"draft {name}": one.burst for name, one in drafts.items()}
    calls |= {f"head {name}": head_call(one) for name, one in drafts.items()}
    return calls | loop_calls()


def head_call(bench: Bench) -> Callable[[], Scores]:
    """One projection by the writer's head, on its newest row."""
    stage, at = bench.stages[0], bench.start - 1
    row = stage.reader.rows[at - 1 : at].clone()
    return lambda: stage.head(row, torch.tensor([at]), Dice(stage.rule.sampling.seed))


def finalized_check(bench: Bench) -> None:
    """Read the newest token, then judge the burst: what eager finalisation spends on a round."""
    bench.stages[-1].reader.read(bench.tokens[: bench.start])
    bench.check()


def _per_token(turn: Turn) -> Turn:
    """A turn's calls as parts: bursts by the token, and the loop less the parts that it runs."""
    found = {name: seconds / BURST if name.startswith("draft ") else seconds for name, seconds in turn.items()}
    loop = {name: found.pop(f"loop {name}") for name in ("round", "burst", "check", "token", "write")}
    found["overhead"] = max(0.0, loop["round"] / LOOPS - loop["burst"] - loop["check"])
    found["step"] += max(0.0, loop["token"] / LOOPS - loop["write"])
    return found


class Instant:
    """A reader that costs nothing: its rows never change."""

    def __init__(self, context: int) -> None:
        self.rows = torch.zeros(context, 8)
        self.context, self.seen, self.rows_read = context, 0, 0

    def read(self, tokens: Tensor) -> Tensor:
        """Count what is missing."""
        self.rows_read += max(0, len(tokens) - self.seen)
        self.seen = max(self.seen, len(tokens))
        return self.rows[: len(tokens)]

    def rewind(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self.seen = min(self.seen, n)


class Constant:
    """A head that costs nothing and always says the same."""

    vocab_size = 8

    def __call__(self, rows: Tensor, positions: Tensor, dice: Dice) -> Scores:
        return Scores(None, rows)

    def bytes_read(self, rows: int) -> int:
        """Nothing is read."""
        return 0


LOOPS = 8


def instant_stages(count: int) -> list[Stage]:
    """Stages whose readers and heads cost nothing, so that running them shows what the loop costs."""
    rule, context = rule_for(GREEDY, Constant.vocab_size), 2 + LOOPS * (BURST + 1)
    return [Stage(Instant(context), Constant(), rule, BURST if i else 1) for i in range(count)]


def loop_calls() -> dict[str, Callable[[], object]]:
    """The loop with readers and heads that cost nothing, a round and a plain token, and the same parts without the loop."""
    pair, alone = (prepare(partial(instant_stages, count), [0], [1]) for count in (2, 1))
    return {
        "loop round": _Loop(2, LOOPS * (BURST + 1)),
        "loop burst": pair.burst,
        "loop check": pair.check,
        "loop token": _Loop(1, LOOPS),
        "loop write": alone.burst,
    }


class _Loop:
    """A short decode over instant stages."""

    def __init__(self, stages: int, tokens: int) -> None:
        self.stages, self.limits = instant_stages(stages), Limits(tokens)

    def __call__(self) -> None:
        for _ in decode(self.stages, [0], self.limits):
            pass

"""Parts of a round measured alone, un-instrumented: what a prediction may use that has not seen the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from flashspec.decoding.cascade import Cascade, Limits, Stage, decode
from flashspec.decoding.generate import Stats
from flashspec.measure import clock

PROMPTS = 3


class Parts(NamedTuple):
    """Median seconds of the parts of a decode.

    `draft`: one token by stage 0; `check`: a check of k tokens; `step`: a one-token target read; `prefill`: what a text costs
    besides its rounds (making the stages, reading the prompt); `overhead`: what the loop adds to a round (`loop_overhead`).
    Plain decoding has no check, so its `check` and `step` are 0.
    """

    draft: float
    check: float
    step: float
    prefill: float
    overhead: float = 0.0


class Bench(NamedTuple):
    """A one- or two-stage decode held before one and the same round, behind `start` tokens, the first `prompt` of them given.

    The loop's own actions are timed, in the order of a round, so that each finds the caches as the one before it leaves them:
    burst, check, and step last; with an eager final token burst, step, check.
    """

    make: Callable[[], list[Stage]]
    cascade: Cascade
    prompt: int
    start: int

    @property
    def stages(self) -> list[Stage]:
        """The stages of the decode."""
        return self.cascade.stages

    @property
    def actions(self) -> dict[str, Callable[[], None]]:
        """What a round does, in its order."""
        return {"burst": self.burst, "check": self.check} if len(self.stages) > 1 else {"burst": self.burst}

    @property
    def block(self) -> int:
        """Tokens of a burst."""
        return self.cascade.burst

    def burst(self) -> None:
        """Go back to the start of the round and write k tokens."""
        cascade = self.cascade
        cascade.length, cascade.marks = self.start, [self.start] * len(self.stages)
        for stage in self.stages:
            stage.reader.rewind(self.start - 1)
        cascade.draft()

    def check(self) -> None:
        """Judge the burst just written."""
        self.cascade.check(1)

    def step(self) -> None:
        """Read one token with the target, as eager finalisation does; a check after it has one token less to read."""
        reader = self.stages[-1].reader
        reader.rewind(self.start - 1)
        reader.read(self.cascade.tokens[: self.start])

    def first(self) -> None:
        """Make fresh stages and decode the prompt's first round."""
        limits = Limits(self.block + len(self.stages) - 1)
        next(decode(self.make(), self.cascade.tokens[: self.prompt].tolist(), limits))


def prepare(make: Callable[[], list[Stage]], prompt: Sequence[int], text: Sequence[int]) -> Bench:
    """A bench behind prompt and text, for the stages that `make` makes. Raises ValueError for more than two stages.

    The stages' context must hold prompt, text, a burst and the verifier's own token.
    """
    stages = make()
    if len(stages) > 2:
        raise ValueError(f"parts are measured for a draft and a target, got {len(stages)} stages")
    ids = [*prompt, *text]
    bench = Bench(make, Cascade(stages, ids, Limits(stages[-1].every + 1)), len(prompt), len(ids))
    with torch.inference_mode():
        for action in bench.actions.values():
            action()
    return bench


def prepare_each(
    make: Callable[[], list[Stage]], prompt: Sequence[int], text: Sequence[int], ks: Sequence[int]
) -> dict[int, Bench]:
    """Benches of a draft and a target at several draft lengths. They share their readers, so the prompt is read once.

    The stages' context must hold prompt, text, the longest burst and the verifier's own token.
    """
    stages, ids = make(), [*prompt, *text]
    if len(stages) != 2:
        raise ValueError(f"draft lengths are compared for a draft and a target, got {len(stages)} stages")
    blocks = {k: [stages[0], stages[1]._replace(every=k)] for k in ks}
    benches = {k: Bench(make, Cascade(pair, ids, Limits(k + 1)), len(prompt), len(ids)) for k, pair in blocks.items()}
    with torch.inference_mode():
        for bench in benches.values():
            for action in bench.actions.values():
                action()
    return benches


def measure_parts(bench: Bench, plan: clock.Plan, eager: bool = False) -> Parts:
    """Median seconds of each part but the overhead, in turns; a prompt is long enough to be timed PROMPTS times at most."""
    calls = bench.actions
    if len(bench.stages) > 1:
        calls = {"burst": bench.burst, "step": bench.step, "check": bench.check} if eager else {**calls, "step": bench.step}
    with torch.inference_mode():
        raw = clock.interleaved_seconds(calls, plan)
        few = replace(plan, repeats=min(PROMPTS, plan.repeats), warmup=1)
        first = clock.interleaved_seconds({"first": bench.first}, few)
    found = {name: clock.median(seconds) for name, seconds in (raw | first).items()}
    check = found.get("check", 0.0)
    prefill = max(0.0, found["first"] - found["burst"] - check)
    return Parts(found["burst"] / bench.block, check, found.get("step", 0.0), prefill)


def predicted_seconds(parts: Parts, stats: Stats, decodes: int, eager: bool) -> float:
    """Seconds that parts and counts foretell for `decodes` runs: no part of the whole run's clock is used.

    prefill + tokens of stage 0 x draft + rounds x (check, overhead, and a one-token read if eager), as in `theory.round_time`.
    A round of plain decoding is one token and has no check.
    """
    if not stats.drafted:
        return decodes * parts.prefill + stats.emitted * (parts.draft + parts.overhead)
    per_round = parts.check + parts.overhead + (parts.step if eager else 0.0)
    return decodes * parts.prefill + stats.drafted * parts.draft + stats.rounds * per_round

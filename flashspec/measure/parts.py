"""Parts of a round measured alone, un-instrumented: what a prediction may use that has not seen the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.cascade import check, decode, draft
from flashspec.decoding.generate import Stats
from flashspec.decoding.rules import Drawn
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event, Limits, State
from flashspec.measure import clock
from flashspec.scores import Dice, Scores

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


@dataclass(eq=False)
class Bench:
    """A decode held behind the first `start` tokens of a text, before one and the same action of any stage.

    The loop's own actions are timed, in the order of a decode, so that each finds the caches as the one before it leaves them:
    burst, check, and step last; with an eager final token burst, step, check. `behind` are tokens of the text that can wait for
    a check, drawn as `proposal` tells; `prompt` tokens of the text were given.
    """

    make: Callable[[], list[Stage]]
    state: State
    prompt: int
    behind: Tensor
    proposal: Drawn

    def __post_init__(self) -> None:
        self.start = self.state.length

    @property
    def stages(self) -> list[Stage]:
        """The stages of the decode."""
        return self.state.stages

    @property
    def actions(self) -> dict[str, Callable[[], object]]:
        """What a round of one or two stages does, in its order."""
        return {"burst": self.burst, "check": self.check} if len(self.stages) > 1 else {"burst": self.burst}

    @property
    def block(self) -> int:
        """Tokens of a burst."""
        return self.stages[min(1, len(self.stages) - 1)].every

    def hold(self, level: int = 0, wait: int = 0) -> None:
        """Let `wait` tokens of the text wait for a level; what lies below has read all but the newest, as it has in the loop."""
        tokens, length = self.state.tokens, self.start + wait
        tokens[self.start : length] = self.behind[:wait]
        self.state = State.at(self.stages, tokens, length, level, [self.proposal] * wait)
        for number, stage in enumerate(self.stages):
            stage.reader.rewind(self.start - 1)
            if number < level:
                stage.reader.read(tokens[: length - 1])

    def burst(self) -> list[Event]:
        """Go back to the start of the round and write a burst."""
        self.hold()
        return draft(self.state)

    def check(self, level: int = 1) -> list[Event]:
        """Judge what waits for a level: the burst just written, or what is held before it."""
        return check(self.state, level)

    def step(self) -> None:
        """Read one token with the target, as eager finalisation does; a check after it has one token less to read."""
        reader = self.stages[-1].reader
        reader.rewind(self.start - 1)
        reader.read(self.state.tokens[: self.start])

    def finalized(self) -> None:
        """Read the newest token, then judge the burst: what eager finalisation spends on a round."""
        self.step()
        self.check()

    def project(self) -> Scores:
        """Project the newest row with the writer's head."""
        stage, at = self.stages[0], self.start - 1
        return stage.head(stage.reader.rows[at - 1 : at], torch.tensor([at]), Dice(stage.rule.sampling.seed))

    def first(self) -> None:
        """Make fresh stages and decode the prompt's first round."""
        limits = Limits(self.block + len(self.stages) - 1)
        next(decode(self.make(), self.state.tokens[: self.prompt].tolist(), limits))


def held(make: Callable[[], list[Stage]], text: Sequence[int], prompt: int, behind: Sequence[int] = (), room: int = 0) -> Bench:
    """Stages behind a text of which `prompt` tokens were given, ready for every action; the context must hold `room` tokens
    more, without `room` a burst and the verifier's own."""
    stages = make()
    state = State.start(stages, list(text), Limits(room or stages[-1].every + 1))
    ids = torch.tensor(list(behind) or [0], device=state.tokens.device)
    own = Scores(ids[:1, None], torch.zeros(1, 1, device=ids.device))
    bench = Bench(make, state, prompt, ids, Drawn(ids[:1], own, torch.ones(1, dtype=torch.bool, device=ids.device)))
    with torch.inference_mode():
        for stage in stages:
            stage.reader.read(state.tokens[: bench.start - 1])
        bench.burst()
        bench.proposal = next(iter(bench.state.waiting), bench.proposal)
    return bench


def prepare(make: Callable[[], list[Stage]], prompt: Sequence[int], text: Sequence[int]) -> Bench:
    """A bench behind prompt and text, for the one or two stages that `make` makes. Raises ValueError for more.

    The stages' context must hold prompt, text, a burst and the verifier's own token.
    """
    bench = held(make, [*prompt, *text], len(prompt))
    if len(bench.stages) > 2:
        raise ValueError(f"parts are measured for a draft and a target, got {len(bench.stages)} stages")
    return bench


def prepare_each(
    make: Callable[[], list[Stage]], prompt: Sequence[int], text: Sequence[int], ks: Sequence[int]
) -> dict[int, Bench]:
    """Benches of a draft and a target at several draft lengths. They share their readers, so the prompt is read once.

    The stages' context must hold prompt, text, the longest burst and the verifier's own token.
    """
    whole = prepare(make, prompt, text)
    if len(whole.stages) != 2:
        raise ValueError(f"draft lengths are compared for a draft and a target, got {len(whole.stages)} stages")
    draft, target = whole.stages
    states = {k: State.at([draft, target._replace(every=k)], whole.state.tokens.clone(), whole.start) for k in ks}
    return {k: replace(whole, state=state) for k, state in states.items()}


def measure_parts(bench: Bench, plan: clock.Plan, eager: bool = False) -> Parts:
    """Median seconds of each part but the overhead, in turns; a prompt is long enough to be timed PROMPTS times at most."""
    calls = bench.actions
    if len(bench.stages) > 1:
        calls = {"burst": bench.burst, "step": bench.step, "check": bench.check} if eager else {**calls, "step": bench.step}
    few = replace(plan, repeats=min(PROMPTS, plan.repeats), warmup=1)
    found = clock.medians(calls, plan) | clock.medians({"first": bench.first}, few)
    check = found.get("check", 0.0)
    prefill = max(0.0, found["first"] - found["burst"] - check)
    return Parts(found["burst"] / bench.block, check, found.get("step", 0.0), prefill)


def predicted_seconds(parts: Parts, stats: Stats, decodes: int, eager: bool) -> float:
    """Seconds that parts and counts predict for `decodes` runs: no part of the whole run's clock is used.

    prefill + tokens of stage 0 x draft + rounds x (check, overhead, and a one-token read if eager), as in `theory.round_time`.
    A round of plain decoding is one token and has no check.
    """
    if not stats.drafted:
        return decodes * parts.prefill + stats.emitted * (parts.draft + parts.overhead)
    per_round = parts.check + parts.overhead + (parts.step if eager else 0.0)
    return decodes * parts.prefill + stats.drafted * parts.draft + stats.rounds * per_round

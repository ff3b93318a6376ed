"""Parts of a round measured alone, un-instrumented: what a prediction may use that has not seen the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashspec.decoding.cascade import check, draft
from flashspec.decoding.rules import Drawn
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event, Limits, State
from flashspec.sampling import Dice, Scores


@dataclass(eq=False)
class Bench:
    """A decode held behind the first `start` tokens of a text, before one and the same action of any stage.

    The loop's own actions are timed, in the order of a decode, so that each finds the caches as the one before it leaves them:
    burst, check, and step last; with an eager final token burst, step, check. `behind` are tokens of the text that can wait for
    a check, drawn as `proposal` tells.
    """

    state: State
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


def held(make: Callable[[], list[Stage]], text: Sequence[int], behind: Sequence[int] = (), room: int = 0) -> Bench:
    """Stages behind a text, ready for every action; the context must hold `room` tokens
    more, without `room` a burst and the verifier's own."""
    stages = make()
    state = State.start(stages, list(text), Limits(room or stages[-1].every + 1))
    ids = torch.tensor(list(behind) or [0], device=state.tokens.device)
    own = Scores(ids[:1, None], torch.zeros(1, 1, device=ids.device))
    bench = Bench(state, ids, Drawn(ids[:1], own, torch.ones(1, dtype=torch.bool, device=ids.device)))
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
    bench = held(make, [*prompt, *text])
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

"""Parts of a round measured alone, un-instrumented: what a prediction may use that has not seen the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.cascade import Stage
from flashspec.decoding.rules import Waiting
from flashspec.measure import clock
from flashspec.scores import Dice, Scores


class Parts(NamedTuple):
    """Median seconds: a draft step, a check of k tokens, a one-token target read, and reading the prompt (all readers)."""

    draft: float
    check: float
    step: float
    prefill: float


class Bench(NamedTuple):
    """A two-stage method standing behind `start` tokens with a burst of k tokens written."""

    stages: list[Stage]
    tokens: Tensor
    start: int
    proposals: list[Scores]

    @property
    def block(self) -> int:
        """Drafted tokens of a burst."""
        return self.stages[1].every

    def burst(self) -> list[Scores]:
        """Write k tokens as the loop does, then forget them; their proposals."""
        stage, found = self.stages[0], []
        for position in range(self.start, self.start + self.block):
            rows = stage.reader.read(self.tokens[:position])[position - 1 :]
            drawn = stage.rule.draw(stage.head(rows, torch.tensor([position]), _dice(stage)), position, 0)
            self.tokens[position] = drawn.token[0]
            found.append(drawn.scores)
        stage.reader.rewind(self.start - 1)
        return found

    def check(self) -> None:
        """Judge the burst as the loop does, then forget it."""
        stage, stop = self.stages[1], self.start + self.block
        rows = stage.reader.read(self.tokens[:stop])[self.start - 1 :]
        scores = stage.head(rows, torch.arange(self.start, stop + 1), _dice(stage))
        stage.rule.verify(scores, Waiting(self.tokens[self.start : stop].tolist(), self.proposals, self.start, 1))
        stage.reader.rewind(self.start - 1)

    def step(self) -> None:
        """Read one token with the target, as eager finalisation does."""
        reader = self.stages[1].reader
        reader.read(self.tokens[: self.start])
        reader.rewind(self.start - 1)

    def prefill(self) -> None:
        """Read all but the newest token with every reader, from nothing."""
        for stage in self.stages:
            stage.reader.rewind(0)
            stage.reader.read(self.tokens[: self.start - 1])


def prepare(stages: list[Stage], prompt: list[int]) -> Bench:
    """A bench with the prompt read and one burst written. Raises ValueError for methods without exactly two stages."""
    if len(stages) != 2:
        raise ValueError(f"parts are measured for a draft and a target, got {len(stages)} stages")
    tokens = torch.zeros(len(prompt) + stages[1].every, dtype=torch.int64, device=stages[0].reader.rows.device)
    tokens[: len(prompt)] = torch.tensor(prompt)
    bench = Bench(stages, tokens, len(prompt), [])
    with torch.inference_mode():
        bench.prefill()
        bench.proposals.extend(bench.burst())
    return bench


def measure_parts(bench: Bench, plan: clock.Plan = clock.Plan(5, 1)) -> Parts:
    """Median seconds of each part, in turns."""
    calls: dict[str, Callable[[], object]] = {
        "burst": bench.burst, "check": bench.check, "step": bench.step, "prefill": bench.prefill,
    }  # fmt: skip
    with torch.inference_mode():
        raw = clock.interleaved_seconds(calls, plan)
    burst, check, step, prefill = (clock.median(raw[name]) for name in calls)
    return Parts(burst / bench.block, check, step, prefill)


def _dice(stage: Stage) -> Dice:
    return Dice(stage.rule.sampling.seed)

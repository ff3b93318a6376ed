"""Parts of a round measured alone, un-instrumented: what a prediction may use that has not seen the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.cascade import Stage
from flashspec.decoding.generate import Stats
from flashspec.decoding.rules import Waiting
from flashspec.measure import clock
from flashspec.scores import Dice, Scores

PROMPTS = 3


class Parts(NamedTuple):
    """Median seconds: one token by stage 0, a check of k tokens, a one-token target read, and set-up with the prompt read.

    Plain decoding has no check, so its `check` and `step` are 0.
    """

    draft: float
    check: float
    step: float
    prefill: float


class Bench(NamedTuple):
    """A one- or two-stage method whose readers have read all but the newest of `start` tokens, with a burst of k written."""

    make: Callable[[], list[Stage]]
    stages: list[Stage]
    tokens: Tensor
    prompt: int
    start: int
    proposals: list[Scores]

    @property
    def block(self) -> int:
        """Tokens of a burst."""
        return self.stages[-1].every

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
        stage, stop = self.stages[-1], self.start + self.block
        rows = stage.reader.read(self.tokens[:stop])[self.start - 1 :]
        scores = stage.head(rows, torch.arange(self.start, stop + 1), _dice(stage))
        stage.rule.verify(scores, Waiting(self.tokens[self.start : stop].tolist(), self.proposals, self.start, 1))
        stage.reader.rewind(self.start - 1)

    def step(self) -> None:
        """Read one token with the target, as eager finalisation does."""
        reader = self.stages[-1].reader
        reader.read(self.tokens[: self.start])
        reader.rewind(self.start - 1)

    def prefill(self) -> None:
        """Make fresh stages and read all but the newest token of the prompt with each."""
        for stage in self.make():
            stage.reader.read(self.tokens[: self.prompt - 1])

    def ready(self) -> None:
        """Read what lies before the newest token."""
        for stage in self.stages:
            stage.reader.read(self.tokens[: self.start - 1])


def prepare(make: Callable[[], list[Stage]], prompt: Sequence[int], text: Sequence[int]) -> Bench:
    """A bench behind prompt and text, for the stages that `make` makes. Raises ValueError for more than two stages."""
    stages = make()
    if len(stages) > 2:
        raise ValueError(f"parts are measured for a draft and a target, got {len(stages)} stages")
    start = len(prompt) + len(text)
    tokens = torch.zeros(start + stages[-1].every, dtype=torch.int64, device=stages[0].reader.rows.device)
    tokens[:start] = torch.tensor([*prompt, *text])
    bench = Bench(make, stages, tokens, len(prompt), start, [])
    with torch.inference_mode():
        bench.ready()
        bench.proposals.extend(bench.burst())
    return bench


def measure_parts(bench: Bench, plan: clock.Plan) -> Parts:
    """Median seconds of each part, in turns; reading a whole prompt is long enough to be timed PROMPTS times at most."""
    calls: dict[str, Callable[[], object]] = {"burst": bench.burst}
    if len(bench.stages) > 1:
        calls |= {"check": bench.check, "step": bench.step}
    with torch.inference_mode():
        raw = clock.interleaved_seconds(calls, plan)
        few = replace(plan, repeats=min(PROMPTS, plan.repeats), warmup=1)
        prefill = clock.interleaved_seconds({"prefill": bench.prefill}, few)
    found = {name: clock.median(seconds) for name, seconds in (raw | prefill).items()}
    return Parts(found["burst"] / bench.block, found.get("check", 0.0), found.get("step", 0.0), found["prefill"])


def predicted_seconds(parts: Parts, stats: Stats, decodes: int, eager: bool) -> float:
    """Seconds that parts and counts foretell for `decodes` runs: no part of the whole run's clock is used.

    prefill + tokens of stage 0 x draft + rounds x (check, and a one-token read if eager), as in `theory.round_time`.
    """
    written = stats.drafted or stats.emitted
    per_round = parts.check + (parts.step if eager else 0.0)
    return decodes * parts.prefill + written * parts.draft + (stats.rounds if stats.drafted else 0) * per_round


def _dice(stage: Stage) -> Dice:
    return Dice(stage.rule.sampling.seed)

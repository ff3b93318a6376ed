"""What one pair spends on this machine: every part of a round timed alone, in turns, for every draft length of interest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.measure import clock
from flashspec.measure.overhead import loop_overhead
from flashspec.measure.parts import Bench, prepare
from flashspec.scores import GREEDY, Dice, Sampling, Scores
from flashspec.theory import Costs, interpolated

BURST, UNUSED = 4, "behind"
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

    Parts: "step" (a token of plain decoding), "finalize" (a one-token read), "overhead" (what the loop adds to a round, see
    `measure.overhead`), "check K", "eager K" (a one-token read and the check after it, which has one token less to read),
    "draft NAME" (a drafted token) and "head NAME" (its head alone).
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
    """Every part behind what comes before it in a decode: a burst behind a check, a check behind its burst."""

    def bench(method: Method) -> Bench:
        context = min(models.context, len(place.prompt) + len(place.text) + method.k + 1)
        return prepare(lambda: build(method, models, place.sampling, context), place.prompt, place.text)

    drafts = {name_of(writer): bench(replace(writer, k=BURST)) for writer in writers}
    checks = {k: bench(replace(writers[0], k=k)) for k in ks}
    calls: dict[str, Callable[[], object]] = {"step": bench(Method()).burst, "finalize": next(iter(drafts.values())).step}
    for k, one in checks.items():
        calls |= {f"{UNUSED} check {k}": one.burst, f"check {k}": one.check}
        calls |= {f"{UNUSED} eager {k}": one.burst, f"eager {k}": partial(finalized_check, one)}
    for name, one in drafts.items():
        calls |= {f"draft {name}": one.burst, f"{UNUSED} {name}": one.check}
    return calls | {f"head {name}": head_call(one) for name, one in drafts.items()}


def head_call(bench: Bench) -> Callable[[], Scores]:
    """One projection by the writer's head, on its newest row."""
    stage, at = bench.stages[0], bench.start - 1
    row = stage.reader.rows[at - 1 : at].clone()
    return lambda: stage.head(row, torch.tensor([at]), Dice(stage.rule.sampling.seed))


def finalized_check(bench: Bench) -> None:
    """Read the newest token, then judge the burst: what eager finalisation spends on a round."""
    bench.step()
    bench.check()


def _per_token(turn: Turn) -> Turn:
    """A turn's calls as parts: bursts by the token, and beside them what the loop adds to a round and to a plain token."""
    used = {name: seconds for name, seconds in turn.items() if not name.startswith(UNUSED)}
    found = {name: seconds / BURST if name.startswith("draft ") else seconds for name, seconds in used.items()}
    return {**found, "step": found["step"] + loop_overhead(1), "overhead": loop_overhead(2)}

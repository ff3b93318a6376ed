"""The costs of a pair on this machine: every part of a round timed alone, in turns.

Shapes without weights are not timed: the cost of a pass follows from the bytes that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.measure import clock
from flashspec.measure.parts import Bench, held, loop_overhead
from flashspec.models.memory import Form
from flashspec.models.synthetic import GROUP, is_awq, shape
from flashspec.sampling import GREEDY, Sampling
from flashspec.theory import Costs, interpolated

SETTLING = 8  # tokens of plain decoding until the caches have settled; a round with a draft needs one
Turn = Mapping[str, float]
Say = Callable[[str], object]


def name_of(method: Method) -> str:
    """A writer's name in tables: its head, the clusters it probes and the ids it lists."""
    options = {"P": method.probes, "N": method.shortlist}
    return " ".join([method.head, *(f"{name}={value}" for name, value in options.items() if value is not None)])


@dataclass(frozen=True)
class PairCosts:
    """Seconds of each part in each turn, and the draft lengths that were timed.

    Parts: "step" (a token of plain decoding), "finalize" (a one-token read), "overhead" (`loop_overhead`), "burst K NAME"
    (drafting K tokens) and "check K" (K drafted tokens and the verifier's own).
    """

    turns: tuple[Turn, ...]
    ks: tuple[int, ...]

    @property
    def spread(self) -> float:
        """Slowest minus fastest plain step, as a share of the median; 0 before the first turn."""
        steps = [turn["step"] for turn in self.turns]
        return (max(steps) - min(steps)) / median(steps) if steps else 0.0

    def medians(self, turns: Sequence[Turn] | None = None) -> dict[str, float]:
        """The median of every part over these turns, or over all."""
        chosen = self.turns if turns is None else turns
        return {name: median([turn[name] for turn in chosen]) for name in chosen[0]}

    def costs(self, method: Method, turns: Sequence[Turn] | None = None) -> tuple[Costs, float]:
        """The costs of a round of this method, and the step of plain decoding that it is compared with."""
        found, name, eager = self.medians(turns), name_of(method), method.finalize == "eager"
        checks = {k + eager: found[f"check {k}"] for k in self.ks}
        verify = interpolated({int(eager): found["step"], **checks})  # an eager check of k tokens reads one row less
        draft = interpolated({k: found[f"burst {k} {name}"] for k in self.ks})
        return Costs(draft, verify, found["finalize"] if eager else 0.0, found["overhead"]), found["step"]


def timed_turn(groups: Sequence[clock.Calls], device: str, say: Say) -> Turn:
    """Seconds of every part and of the loop's overhead; caches are as in a decode, because groups follow one another.

    A first turn is cold: what a call does for the first time takes longer.
    """
    found = dict[str, float]()
    for group in groups:
        part = clock.medians(group, 1, SETTLING if "step" in group else 0, device)
        say(", ".join(f"{name}: {1000 * seconds:.3g} ms" for name, seconds in part.items()))
        found |= part
    return found | {"step": found["step"] + loop_overhead(1), "overhead": loop_overhead(2)}


def parts_of(
    models: Models, writers: Sequence[Method], ks: Sequence[int], text: Sequence[int], sampling: Sampling = GREEDY
) -> list[clock.Calls]:
    """The parts of a pair's rounds after a text, in groups of calls that follow each other as in a decode."""
    context = len(text) + max(ks) + 1
    if context > models.context:
        room = f"a text of {len(text)} tokens leaves no room for {max(ks)} drafted ones in a context of {models.context}"
        raise ValueError(f"{room}; give shorter prompts, fewer new tokens or a smaller k")

    def bench(method: Method) -> Bench:
        return held(build(method, models, sampling, context), text)

    groups: list[clock.Calls] = [{"step": bench(Method()).burst}]
    for number, writer in enumerate(writers):
        longest = bench(replace(writer, k=max(ks)))
        found, name = {k: longest.with_bursts(k) for k in ks}, name_of(writer)
        if not number:
            groups.append({"finalize": found[ks[0]].read})
        for k, one in found.items():
            check = f"{clock.UNUSED} check {k}" if number else f"check {k}"
            groups.append({f"burst {k} {name}": one.burst, check: one.check})
    return groups


def pass_bytes(name: str) -> float:
    """Bytes that one pass over a published shape reads; "AWQ" in the name means layers in 4 bits."""
    config, form = shape(name), Form(torch.bfloat16, GROUP if is_awq(name) else 0)
    return config.body_parameters * form.body_bytes + config.head_parameters * form.dtype.itemsize

"""What one pair spends on this machine: every part of a round timed alone, in turns, for every draft length of interest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.measure import clock
from flashspec.measure.overhead import loop_overhead
from flashspec.measure.parts import Bench, prepare, prepare_each
from flashspec.sampling import GREEDY, Sampling
from flashspec.theory import Costs, interpolated

SETTLING = 8  # tokens of plain decoding until the caches hold what the next one profits from; beside a draft one round does
Turn = Mapping[str, float]


def name_of(method: Method) -> str:
    """What a table calls a writer: its head, the clusters it probes and the ids it lists."""
    options = {"P": method.probes, "N": method.shortlist}
    return " ".join([method.head, *(f"{name}={value}" for name, value in options.items() if value is not None)])


class Setting(NamedTuple):
    """Where costs are measured: behind this prompt and text, under this sampling."""

    prompt: Sequence[int]
    text: Sequence[int]
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class PairCosts:
    """Seconds of each part in each turn, and the draft lengths that were timed.

    Parts: "step" (a token of plain decoding), "finalize" (a one-token read), "overhead" (what the loop adds to a round, see
    `measure.overhead`), "burst K NAME" (drafting K tokens), "check K", "eager K" (a one-token read and the check after it, which
    has one token less to read) and "head NAME" (a writer's head alone, on one row).
    """

    turns: tuple[Turn, ...]
    ks: tuple[int, ...]

    def medians(self, turns: Sequence[Turn] | None = None) -> dict[str, float]:
        """The middle value of every part over these turns, or over all."""
        chosen = self.turns if turns is None else turns
        return {name: clock.median([turn[name] for turn in chosen]) for name in chosen[0]}

    def costs(self, method: Method, turns: Sequence[Turn] | None = None) -> tuple[Costs, float]:
        """What a round of this method spends, and the step of plain decoding it is compared with."""
        found, name = self.medians(turns), name_of(method)
        eager = method.finalize == "eager"
        finalize = found["finalize"] if eager else 0.0
        checks = {k: found[f"eager {k}"] - finalize if eager else found[f"check {k}"] for k in self.ks}
        verify = interpolated({k: max(0.0, seconds) for k, seconds in checks.items()})
        draft = interpolated({k: found[f"burst {k} {name}"] for k in self.ks})
        return Costs(draft, verify, finalize, found["overhead"]), found["step"]


@dataclass(frozen=True)
class PairParts:
    """The parts of a pair's rounds, ready to be timed, in groups: the calls of a group follow each other as in a decode."""

    groups: tuple[Mapping[str, Callable[[], object]], ...]
    ks: tuple[int, ...]
    device: str = "cpu"

    def turn(self, times: int = 1, warmup: int = 1) -> Turn:
        """Seconds of every part, the middle of so many rounds; what the loop adds is left out (`turns_of`).

        Every group goes round by itself, `warmup` rounds more than count (plain decoding SETTLING times as many), so that its
        calls find the caches as in a decode; models that no cache holds need none.
        """
        found = dict[str, float]()
        for group in self.groups:
            before = warmup * (SETTLING if "step" in group else 1)
            found |= clock.medians(group, clock.Plan(times, before, device=self.device))
        return found


def parts_of(models: Models, writers: Sequence[Method], ks: Sequence[int], setting: Setting, eager: bool = True) -> PairParts:
    """Make every part ready; `eager` adds the parts of eager finalisation. Raises ValueError without writers or lengths."""
    if not writers or not ks or min(ks) < 1:
        raise ValueError("costs need at least one writer and draft lengths of at least 1")
    blocks = tuple(sorted(set(ks)))
    context = min(models.context, len(setting.prompt) + len(setting.text) + blocks[-1] + 1)

    def benches(writer: Method) -> dict[int, Bench]:
        longest = replace(writer, k=blocks[-1])
        return prepare_each(lambda: build(longest, models, setting.sampling, context), setting.prompt, setting.text, blocks)

    plain = prepare(lambda: build(Method(), models, setting.sampling, context), setting.prompt, setting.text)
    drafts = {name_of(writer): benches(writer) for writer in writers}
    first, *_ = (benches[blocks[0]] for benches in drafts.values())
    groups: list[dict[str, Callable[[], object]]] = [{"step": plain.burst}, {"finalize": first.step}]
    for number, (name, found) in enumerate(drafts.items()):
        groups += _rounds(found, name, number == 0, number == 0 and eager)
        groups.append({f"head {name}": found[blocks[0]].project})
    return PairParts(tuple(groups), blocks, str(models.target.device))


def _rounds(benches: Mapping[int, Bench], name: str, checked: bool, eager: bool) -> list[dict[str, Callable[[], object]]]:
    """Burst and check of every length; whether the checks count, and whether eager ones are timed."""
    groups: list[dict[str, Callable[[], object]]] = []
    for k, one in benches.items():
        groups.append({f"burst {k} {name}": one.burst, f"check {k}" if checked else f"{clock.UNUSED} check {k}": one.check})
        if eager:
            groups.append({f"{clock.UNUSED} burst {k}": one.burst, f"eager {k}": one.finalized})
    return groups


def turns_of(turn: Callable[[], Turn], plan: clock.Plan) -> tuple[Turn, ...]:
    """Turns with what the loop adds to a plain token and to a round; the plan's warm-up turns are discarded."""
    found = list[Turn]()
    for _ in range(plan.warmup + plan.repeats):
        each, plain = turn(), loop_overhead(1)
        found.append({**each, "step": each["step"] + plain, "overhead": loop_overhead(2)})
    return tuple(found[plan.warmup :])


def measure_costs(models: Models, writers: Sequence[Method], ks: Sequence[int], setting: Setting, plan: clock.Plan) -> PairCosts:
    """Time every part of a round, turn after turn, un-instrumented; no end-to-end number is used."""
    parts = parts_of(models, writers, ks, setting)
    return PairCosts(turns_of(parts.turn, plan), parts.ks)

"""What a pair spends on this machine: every part of a round timed alone, in turns.

Models too large for this machine are measured at two depths and stretched in a straight line to the true one, every part of
the shallow one right before that of the deep one, so that a machine that changes its speed changes it for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median
from typing import NamedTuple

import torch

from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models, check_pair
from flashspec.heads.base import Head
from flashspec.measure import clock
from flashspec.measure.parts import Bench, held, loop_overhead
from flashspec.measure.pieces import stand_in_flash
from flashspec.models.memory import Form, free_bytes, weight_bytes
from flashspec.models.synthetic import is_awq, shape, synthetic
from flashspec.models.transformer import Transformer
from flashspec.sampling import GREEDY, Sampling
from flashspec.theory import Costs, interpolated

SETTLING = 8  # tokens of plain decoding until the caches have settled; a round with a draft needs one
ONCE = clock.Plan(1, 0)
SHORT = (1, 4)  # depths at which a stretched model is timed
SHARE = 0.4  # of the free memory, for each model
PAST = 128
FEW = (1, 2, 4, 8)
Turn = Mapping[str, float]
Say = Callable[[str], None]


def unsaid(line: str) -> None:
    """Progress that nobody waits for."""


def name_of(method: Method) -> str:
    """What a table calls a writer: its head, the clusters it probes and the ids it lists."""
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
        """Slowest less fastest plain step, as a share of the median; 0 before the first turn."""
        steps = [turn["step"] for turn in self.turns]
        return (max(steps) - min(steps)) / median(steps) if steps else 0.0

    def medians(self, turns: Sequence[Turn] | None = None) -> dict[str, float]:
        """The middle value of every part over these turns, or over all."""
        chosen = self.turns if turns is None else turns
        return {name: median([turn[name] for turn in chosen]) for name in chosen[0]}

    def costs(self, method: Method, turns: Sequence[Turn] | None = None) -> tuple[Costs, float]:
        """What a round of this method spends, and the step of plain decoding it is compared with."""
        found, name, eager = self.medians(turns), name_of(method), method.finalize == "eager"
        checks = {k + eager: found[f"check {k}"] for k in self.ks}
        verify = interpolated({int(eager): found["step"], **checks})  # an eager check of k tokens reads one row less
        draft = interpolated({k: found[f"burst {k} {name}"] for k in self.ks})
        return Costs(draft, verify, found["finalize"] if eager else 0.0, found["overhead"]), found["step"]


def turns_of(turn: Callable[[], Turn]) -> Iterator[Turn]:
    """Turns without end, each with what the loop adds to a plain token and to a round."""
    while True:
        each, plain = turn(), loop_overhead(1)
        yield {**each, "step": each["step"] + plain, "overhead": loop_overhead(2)}


def settled_turn(groups: Sequence[clock.Calls], device: str = "cpu", say: Say = unsaid) -> Turn:
    """Seconds of every part; a group goes round before, until its caches are as in a decode."""
    found = dict[str, float]()
    for group in groups:
        part = clock.medians(group, clock.Plan(1, SETTLING if "step" in group else 1, device=device))
        say(", ".join(f"{name}: {1000 * seconds:.3g} ms" for name, seconds in part.items()))
        found |= part
    return found


def parts_of(
    models: Models, writers: Sequence[Method], ks: Sequence[int], text: Sequence[int], sampling: Sampling = GREEDY
) -> list[clock.Calls]:
    """The parts of a pair's rounds behind a text, in groups of calls that follow each other as in a decode."""
    context = min(models.context, len(text) + max(ks) + 1)

    def bench(method: Method) -> Bench:
        return held(build(method, models, sampling, context), text)

    groups: list[clock.Calls] = [{"step": bench(Method()).burst}]
    for number, writer in enumerate(writers):
        longest = bench(replace(writer, k=max(ks)))
        found, name = {k: longest.with_bursts(k) for k in ks}, name_of(writer)
        if not number:
            groups.append({"finalize": found[ks[0]].step})
        for k, one in found.items():
            check = f"{clock.UNUSED} check {k}" if number else f"check {k}"
            groups.append({f"burst {k} {name}": one.burst, check: one.check})
    return groups


class Cut(NamedTuple):
    """A shape by name, its true depth, and the two at which it is measured."""

    name: str
    layers: int
    depths: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether the model is measured as it is."""
        return self.depths == (self.layers, self.layers)

    def stretched(self, low: float, high: float) -> float:
        """A time at the true depth from times at the two depths; never less than at the lower one."""
        if self.whole:
            return low
        slope = (high - low) / (self.depths[1] - self.depths[0])
        return low + max(0.0, slope) * (self.layers - self.depths[0])

    @property
    def label(self) -> str:
        """How its times came about."""
        low, high = self.depths
        return self.name if self.whole else f"{self.name} (timed at {low} and {high} of {self.layers} layers)"


def cut_of(name: str, memory: float) -> Cut:
    """A shape whole where its weights fit `memory` bytes, else at two small depths."""
    config = shape(name)
    form = Form(torch.bfloat16, 128 if is_awq(name) else 0)
    fits = weight_bytes(config, form) <= memory or config.layers <= SHORT[1]
    return Cut(name, config.layers, (config.layers, config.layers) if fits else SHORT)


def cuts_of(target: str, draft: str) -> tuple[Cut, Cut]:
    """How a pair of shapes is measured here; each model may take a share of the free memory."""
    check_pair(shape(draft), shape(target))
    memory = SHARE * (free_bytes(torch.device("cpu")) or 8e9)
    return cut_of(target, memory), cut_of(draft, memory)


def shape_costs(cuts: tuple[Cut, Cut], writers: Sequence[Method], ks: Sequence[int], repeats: int) -> PairCosts:
    """Costs of a pair of shapes with random weights; of a stretched pair, few lengths are timed."""
    deep = _pair(cuts, writers)
    text = [number % deep.target.config.vocab_size for number in range(min(PAST, deep.context // 2))]
    if all(cut.whole for cut in cuts):
        groups = parts_of(deep, writers, ks, text)
        return PairCosts(tuple(islice(turns_of(lambda: settled_turn(groups)), repeats)), tuple(ks))
    ks = sorted({min(ks), max(ks), *(k for k in ks if k in FEW)})
    depths = [parts_of(models, writers, ks, text) for models in (shallow(deep, cuts), deep)]
    turns = turns_of(lambda: stretched_turn(cuts, *depths))
    return PairCosts(tuple(islice(turns, 1, 1 + repeats)), tuple(ks))  # the first warms up


def stretched_turn(cuts: tuple[Cut, Cut], low: Sequence[clock.Calls], high: Sequence[clock.Calls]) -> Turn:
    """Seconds of every part at the true depths, each stretched by the model that does it."""
    found = dict[str, float]()
    for one, two in zip(low, high, strict=True):
        few, many = clock.medians(one, ONCE), clock.medians(two, ONCE)
        for name, seconds in many.items():
            cut = cuts[1] if name.startswith("burst ") else cuts[0]
            found[name] = cut.stretched(few[name], seconds)
    return found


def shallow(deep: Models, cuts: tuple[Cut, Cut]) -> Models:
    """The pair at the lower of its two depths; weights, and the draft's head, are shared."""
    pairs = zip((deep.target, deep.model("draft")), cuts, strict=True)
    target, draft = (model.with_layers(model.layers[: cut.depths[0]]) for model, cut in pairs)
    return _paired(target, draft, deep.heads)


def _pair(cuts: tuple[Cut, Cut], writers: Sequence[Method]) -> Models:
    """Both models at the deeper of their two depths, with the heads that the writers need."""
    target, draft = (synthetic(cut.name, depth=cut.depths[1]) for cut in cuts)
    heads = dict[tuple[str, str], Head]()
    if any(writer.head.startswith("flash") for writer in writers):
        heads["draft", "flash"] = stand_in_flash(draft.head_weight, draft.norm, draft.config.vocab_size // 16 // 16)
    return _paired(target, draft, heads)


def _paired(target: Transformer, draft: Transformer, heads: Mapping[tuple[str, str], Head]) -> Models:
    """A target and its draft by their true shapes, whichever has more layers here."""
    found = Models(target)
    found.draft = draft
    found.heads.update(heads)
    return found

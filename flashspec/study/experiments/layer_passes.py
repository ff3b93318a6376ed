"""Tokens times layers computed for each final token, with and without shared caches: the view that no machine changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.decoding.hierarchy import hispec, self_speculation
from flashspec.decoding.method import METHODS, Method
from flashspec.decoding.models import Models
from flashspec.measure.contest import Entry, Turns
from flashspec.measure.levels import Climb, climb, climbs_by_kind
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.study.experiment import Experiment
from flashspec.study.hierarchies import Stacked, pairs_of
from flashspec.study.pairs import at_least, folders, models_of, samplings
from flashspec.study.rows import Decoded, points
from flashspec.theory import Level, layer_tokens_per_token


@dataclass(frozen=True)
class Params(Decoded):
    """Which hierarchies to count; counts only, no clock."""

    draft: str = "main"  # draft model that is loaded beside it
    draft_exits: tuple[int, ...] = (1, 2)  # exits that draft
    verify_exits: tuple[int, ...] = (4,)  # HiSpec's intermediate verifiers
    n_ds: tuple[int, ...] = (1, 2, 3, 4)  # tokens drafted before the verifier above acts
    n_is: tuple[int, ...] = (4,)  # tokens that wait before the whole model acts
    rules: tuple[str, ...] = ("speculative",)  # acceptance rules
    per_kind: int = 2  # prompts of each kind
    new_tokens: int = 64  # tokens emitted a prompt

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, draft_exits=1, verify_exits=1, n_ds=1, n_is=1)
        pairs_of(self.draft_exits, self.verify_exits)


@dataclass(frozen=True)
class Shared:
    """What drafts, and whether its stages share caches and rows."""

    method: str
    reuse: bool


@dataclass(frozen=True)
class Row(Stacked, Shared):
    """Counts of one method on all prompts of one kind.

    `layer_tokens` include the prompt's reading, `prompt_layer_tokens` of them; `expected` is the closed form's mean for each
    final token at the acceptance of these very prompts.
    """

    kind: str
    prompts: int
    emitted: int
    rounds: int
    drafted: int
    layer_tokens: int
    prompt_layer_tokens: int
    kept_1: int
    decided_1: int
    kept_2: int
    decided_2: int
    expected: float


def measure(params: Params) -> Iterator[Row]:
    """Count layer-tokens of self-speculation and HiSpec with and without reuse, beside plain decoding."""
    models = models_of(params.target, params.draft, "bfloat16", "dense")
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    for sampling in samplings(params.temperatures, params.rules, params.seed):
        for name, method in methods_of(params):
            yield from rows_of(models, Entry(name, method, sampling), prompts, params.new_tokens)


def methods_of(params: Params) -> list[tuple[str, Method]]:
    """Every hierarchy with and without reuse, and plain decoding."""
    found = [("self_speculation", self_speculation(e, k)) for e in params.draft_exits for k in params.n_ds]
    pairs = pairs_of(params.draft_exits, params.verify_exits)
    found += [("hispec", hispec(d, v, n_d, n_i)) for d, v in pairs for n_d in params.n_ds for n_i in params.n_is]
    both = [(name, replace(method, reuse=reuse)) for name, method in found for reuse in (True, False)]
    return [("baseline", METHODS["baseline"]), *both]


def rows_of(models: Models, entry: Entry, prompts: list[Prompt], new_tokens: int) -> Iterator[Row]:
    """One method's counts by kind of prompt."""
    climbs = list(climb(models, [entry], prompts, Turns(new_tokens, 1, 0)))
    lengths = {kind: [len(p.ids) for p in prompts if p.kind == kind] for kind in {p.kind for p in prompts}}
    for each in climbs_by_kind(climbs):
        yield _row(each, entry, lengths[each.record.kind], models.target.config.layers)


def _row(each: Climb, entry: Entry, lengths: list[int], layers: int) -> Row:
    method, record, stops = entry.method, each.record, (*entry.method.exits, layers)
    exits, levels = [*method.exits, 0, 0], [*each.levels]
    passes = layers if method.reuse else sum(stops)
    decided = [(j.kept, j.decided) for j in levels] + [(0, 0)] * 2
    return Row(
        entry.name, method.reuse, exits[0], exits[1], method.k if levels else 0, method.interval if len(levels) > 1 else 0,
        entry.sampling.temperature, entry.sampling.rule, record.kind, len(lengths), record.stats.emitted, record.stats.rounds,
        record.stats.drafted, record.score.layer_tokens, passes * sum(n - 1 for n in lengths),
        *decided[0], *decided[1], expected(each, method, stops),
    )  # fmt: skip


def expected(each: Climb, method: Method, stops: tuple[int, ...]) -> float:
    """The closed form's layer-tokens for each final token, at the acceptance that was counted."""
    if not each.levels:
        return float(stops[-1])
    bursts = (method.k, *[method.interval] * len(each.levels))
    levels = [Level(j.alpha, every, 0.0) for j, every in zip(each.levels, bursts, strict=False)]
    return layer_tokens_per_token(levels, stops, method.reuse)


SMOKE = Params(draft_exits=(2,), n_ds=(2,), temperatures=(0.0,), per_kind=1, new_tokens=8)
EXPERIMENT = Experiment(
    "layer_passes", Params, Row, measure, measured=False, split=points, models=folders, presets={"smoke": SMOKE}
)

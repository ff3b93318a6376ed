"""Methods are values: what drafts, with which head, how long a burst is, and which layers verify."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, cast

from flashspec.decoding.adaptive import DOUBTS, Doubt, doubt_named, nothing_to_say
from flashspec.decoding.lookup import LookupHead, LookupReader
from flashspec.decoding.models import Models, dense_head, spans, whole
from flashspec.decoding.rules import TypicalAcceptance, rule_for
from flashspec.decoding.stages import Stage
from flashspec.decoding.ways import fastest
from flashspec.heads.base import Head
from flashspec.heads.registry import HEADS
from flashspec.models.reader import Reader
from flashspec.sampling import GREEDY, Sampling
from flashspec.typed import typed, whole_numbers


@typed
@dataclass(frozen=True)
class Method:
    """One way of decoding.

    `draft` "model" lets a second model write, "cascade" the smallest of several models that then verify in a row, "lookup"
    copies from the text itself (up to `ngram` tokens are compared), "none" the target: at its top (plain decoding), or at
    the first of `exits` (layers counted from the bottom). Every exit is a stage: the one above the writer verifies `k`, and
    from the third stage on `interval`, waiting tokens. `head` names the writer's head (see HEADS): a "flash" one scores
    `probes` clusters chosen by `selection`, and those that take a `shortlist` score so many ids exactly (None: the head's own
    default). `finalize` is "deferred" or "eager".

    Stages may ask the one above early: the writer before a draw, a middle verifier after its check, where `doubt`
    ("confidence" below, "entropy" in nats above) passes `draft_doubt` or `verify_doubt`; None never asks. `middle` "typical"
    lets middle verifiers keep what is typical of them, not what follows their law. Without `reuse` every stage of one model
    reads with layers and caches of its own, as engines do that cannot share them.
    """

    draft: str = "none"
    head: str = "dense"
    k: int = 4
    finalize: str = "deferred"
    exits: tuple[int, ...] = ()
    interval: int = 4
    probes: int | None = None
    selection: str = "top"
    ngram: int = 3
    doubt: str = "confidence"
    draft_doubt: float | None = None
    verify_doubt: float | None = None
    middle: str = "exact"
    reuse: bool = True
    shortlist: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "exits", whole_numbers("exits", self.exits))
        _one_of("draft", self.draft, ("none", "model", "cascade", "lookup"))
        _one_of("doubt", self.doubt, tuple(DOUBTS))
        _one_of("middle", self.middle, ("exact", "typical"))
        _one_of("head", self.head, tuple(HEADS))
        _one_of("finalize", self.finalize, ("eager", "deferred"))
        _one_of("selection", self.selection, ("top", "sample"))
        if self.k < 1 or self.interval < 1:
            raise ValueError(f"k and interval must be at least 1, got k={self.k}, interval={self.interval}")
        if list(self.exits) != sorted(set(self.exits)) or min(self.exits, default=1) < 1:
            raise ValueError(f"exits must be layer numbers from 1, in rising order, got {self.exits}")
        _check_options(self)
        if self.writer_is_target and self.head != "dense":
            raise ValueError(f"head {self.head!r} approximates and needs a verifier above it; set draft='model' or give exits")
        if self.draft == "lookup" and self.head != "dense":
            raise ValueError("prompt lookup has no vocabulary head to replace; use head='dense' with draft='lookup'")
        if self.ngram < 1:
            raise ValueError(f"ngram must be at least 1, got {self.ngram}")
        doubt_named(self.doubt, self.draft_doubt), doubt_named(self.doubt, self.verify_doubt)

    @property
    def writer_is_target(self) -> bool:
        """Plain decoding: one stage, nothing to verify."""
        return self.draft == "none" and not self.exits

    def exact(self, sampling: Sampling) -> bool:
        """Whether the text follows the target's own law under this sampling.

        A lossy middle stage hands on tokens that no longer follow the law it claims for them, so speculative sampling above
        it is lossy too; the coupling and greedy decoding compare tokens alone and stay exact.
        """
        claims = sampling.rule == "speculative" and sampling.temperature > 0
        return self.writer_is_target or (sampling.rule != "typical" and not (self.middle == "typical" and claims))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _check_options(method: Method) -> None:
    """Refuse options that the method's head does not take; plain decoding and dense heads ignore those of others."""
    takes = HEADS[method.head].options
    asked = {
        "probes": method.probes is not None,
        "selection": method.selection != "top",
        "shortlist": method.shortlist is not None,
    }
    wrong = [name for name, given in asked.items() if given and name not in takes and method.head != "dense"]
    if wrong:
        raise ValueError(f"head {method.head!r} has no option {wrong[0]!r}; its options: {', '.join(takes) or 'none'}")


METHODS = {
    "baseline": Method(),
    "dense": Method(draft="model"),
    "flash": Method(draft="model", head="flash"),
    "self_speculation": Method(exits=(2,)),
    "hispec": Method(exits=(2, 4), k=2),
    "hispec_flash": Method(exits=(2, 4), k=2, head="flash"),
    "hispec_adaptive": Method(exits=(2, 4), k=4, interval=8, draft_doubt=0.3, verify_doubt=0.3),
    "hispec_typical": Method(exits=(2, 4), k=2, middle="typical"),
    "lookup": Method(draft="lookup", k=6),
    "cascade": Method(draft="cascade", interval=8),
}


def method_named(method: str | Method, changes: dict[str, Any]) -> Method:
    """A method by name or value, with fields changed; ValueError names what is unknown."""
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}")
    known = [f.name for f in fields(Method)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option of a method; options: {', '.join(known)}")
    return replace(METHODS[method] if isinstance(method, str) else method, **changes)


@typed
def build(method: Method, models: Models, sampling: Sampling = GREEDY, context: int | None = None) -> list[Stage]:
    """The stages of a method over these models, with fresh caches of `context` tokens (None: the models' own)."""
    layers = models.target.config.layers
    if context is not None and context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    if method.exits and method.exits[-1] >= layers:
        raise ValueError(f"exits must lie below the target's {layers} layers, got {method.exits}")
    chain = readers(method, models, context or models.context)
    rule = rule_for(sampling, models.target.config.vocab_size)
    middle = rule if method.middle == "exact" else TypicalAcceptance(sampling, models.target.config.vocab_size)
    heads = [_writer_head(method, models, sampling), *(_verifier_head(models, reader) for reader in chain[1:])]
    rules = [rule, *[middle] * (len(chain) - 2), rule]
    waits = [1, method.k, *[method.interval] * len(chain)]
    return [Stage(*parts, fastest) for parts in zip(chain, heads, rules, waits, _doubts(method, len(chain)), strict=False)]


def readers(method: Method, models: Models, context: int) -> list[Reader]:
    """The chain of readers from the writer up: lookup or smaller models, then the target's spans up to each exit and the top."""
    below: list[Reader] = []
    if method.draft == "lookup":
        below = [LookupReader(context, method.ngram, models.target.device)]
    elif method.draft != "none":
        small = models.drafts if method.draft == "cascade" and models.drafts else (models.model("draft"),)
        below = [whole(model, context) for model in small]
    return [*below, *spans(models.target, (*method.exits, models.target.config.layers), context, method.reuse)]


def _doubts(method: Method, count: int) -> list[Doubt | None]:
    """What makes each of `count` stages ask the one above; the last has none above it."""
    writer = nothing_to_say if method.draft == "lookup" else doubt_named(method.doubt, method.draft_doubt)
    return [writer, *[doubt_named(method.doubt, method.verify_doubt)] * (count - 2), None] if count > 1 else [None]


def _verifier_head(models: Models, reader: Reader) -> Head:
    """The dense head of a stage above the writer: of its own model, through the exit's adapter where it has one."""
    model = getattr(reader, "model", models.target)
    norm = models.exit_norm(getattr(reader, "stop", model.config.layers)) if model is models.target else model.norm
    return dense_head(norm, model)


def _writer_head(method: Method, models: Models, sampling: Sampling) -> Head:
    """The head of stage 0."""
    if method.draft == "lookup":
        return LookupHead(models.target.config.vocab_size)
    which = "target" if method.draft == "none" else "draft"
    model = models.model(which)
    norm = models.exit_norm(method.exits[0]) if which == "target" and method.exits else model.norm
    if method.head == "dense":
        return dense_head(norm, model)
    return _tuned(replace(cast(Any, models.head(which, method.head)), norm=norm), method, sampling)


def _tuned(head: Any, method: Method, sampling: Sampling) -> Head:
    """A head, made afresh where it keeps state, with the method's own probes, shortlist and selection."""
    if method.probes is not None:
        head = head.with_probes(method.probes)
    if method.shortlist is not None:
        head = head.with_shortlist(method.shortlist)
    if method.selection == "sample" and sampling.temperature > 0:
        head = head.with_plan(selection="sample", temperature=sampling.temperature)
    return head

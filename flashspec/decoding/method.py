"""Methods are values: what drafts, with which head, how long a burst is, and which layers verify."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flashspec.decoding.lookup import LookupHead, LookupReader, nothing_to_say
from flashspec.decoding.models import Models, dense_head, spans
from flashspec.decoding.rules import TypicalAcceptance, rule_for
from flashspec.decoding.stages import Stage, unsure
from flashspec.decoding.ways import fastest
from flashspec.heads.base import Head
from flashspec.heads.registry import HEADS
from flashspec.models.exits import check_layers
from flashspec.models.reader import Reader
from flashspec.sampling import GREEDY, Sampling
from flashspec.typed import among, at_least, changed, one_of, typed, whole_numbers

CHOICES = {
    "draft": ("none", "model", "cascade", "lookup"),
    "middle": ("exact", "typical"),
    "head": tuple(HEADS),
    "finalize": ("eager", "deferred"),
}


@typed
@dataclass(frozen=True)
class Method:
    """One way of decoding.

    `draft`: "model" is a second model; "cascade" the smallest of several models, of which the others verify in a row; "lookup"
    copies from the text itself; "none" is the target, at its top (plain decoding) or at the first of `exits` (layers counted
    from the bottom). Every exit is a stage: the one above the drafting exit verifies `k` waiting tokens, later ones `interval`.
    `head` is one of HEADS.
    """

    draft: str = "none"  # what drafts: none, model, cascade or lookup
    head: str = "dense"  # vocabulary head of the draft
    k: int = 4  # drafted tokens per check
    finalize: str = "deferred"  # when the target reads its own final token
    exits: tuple[int, ...] = ()  # layers below each early exit; the first exit drafts
    interval: int = 4  # waiting tokens before a verifier above the first one checks
    probes: int | None = None  # clusters that a FlashHead scores; none means the head's default
    draft_doubt: float | None = None  # stop drafting where the largest probability is below this share
    verify_doubt: float | None = None  # let the next verifier check early where it is below this share
    middle: str = "exact"  # rule of middle verifiers; typical is lossy
    shortlist: int | None = None  # ids that a head with a shortlist scores; none means the head's default

    def __post_init__(self) -> None:
        object.__setattr__(self, "exits", whole_numbers("exits", self.exits))
        among(self, **CHOICES)
        at_least(self, k=1, interval=1)
        check_layers(self.exits)
        takes = HEADS[self.head].options  # the dense head ignores options of other heads
        for name in ("probes", "shortlist"):
            if getattr(self, name) is not None and name not in takes and self.head != "dense":
                raise ValueError(f"head {self.head!r} has no option {name!r}; its options: {', '.join(takes) or 'none'}")
        if self.writer_is_target and self.head != "dense":
            raise ValueError(f"head {self.head!r} approximates and needs a verifier above it; set draft='model' or give exits")
        if self.draft == "lookup" and self.head != "dense":
            raise ValueError("prompt lookup has no vocabulary head to replace; use head='dense' with draft='lookup'")
        unsure(self.draft_doubt), unsure(self.verify_doubt)

    @property
    def writer_is_target(self) -> bool:
        """Plain decoding: one stage, nothing to verify."""
        return self.draft == "none" and not self.exits

    def exact(self, sampling: Sampling) -> bool:
        """Whether the text follows the target's own distribution under this sampling.

        Tokens of a lossy middle stage do not follow the distribution it claims, so speculative sampling above it is lossy
        too; coupling and greedy decoding compare tokens only.
        """
        claims = sampling.rule == "speculative" and sampling.temperature > 0
        return self.writer_is_target or (sampling.rule != "typical" and not (self.middle == "typical" and claims))


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
    if isinstance(method, str):
        one_of("method", method, METHODS)
        method = METHODS[method]
    return changed(method, changes, "a method")


@typed
def build(method: Method, models: Models, sampling: Sampling = GREEDY, context: int | None = None) -> list[Stage]:
    """The stages of a method, with empty caches of `context` tokens (None: the models' full context)."""
    layers, vocab_size = models.target.config.layers, models.target.config.vocab_size
    if context is not None and context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    if method.exits and method.exits[-1] >= layers:
        raise ValueError(f"exits must lie below the target's {layers} layers, got {method.exits}")
    readers, heads = zip(*_chain(method, models, context or models.context), strict=True)
    above, rule = len(readers) - 1, rule_for(sampling, vocab_size)
    middle = rule if method.middle == "exact" else TypicalAcceptance(sampling, vocab_size)
    rules = [rule, *[middle] * (above - 1), rule]
    waits = [1, method.k, *[method.interval] * above]
    first = nothing_to_say if method.draft == "lookup" else unsure(method.draft_doubt)
    doubts = [first, *[unsure(method.verify_doubt)] * (above - 1), None] if above else [None]
    heads = (_writer_head(method, models, heads[0]), *heads[1:])
    return [Stage(*parts, fastest) for parts in zip(readers, heads, rules, waits, doubts, strict=False)]


def _chain(method: Method, models: Models, context: int) -> list[tuple[Reader, Head]]:
    target, below = models.target, list[tuple[Reader, Head]]()
    if method.draft == "lookup":
        below = [(LookupReader(context, target.device), LookupHead(target.config.vocab_size))]
    elif method.draft != "none":
        small = models.drafts if method.draft == "cascade" and models.drafts else (models.model("draft"),)
        below = [(spans(model, (model.config.layers,), context)[0], dense_head(model.norm, model)) for model in small]
    stops = (*method.exits, target.config.layers)
    heads = [dense_head(models.exit_norm(stop), target) for stop in stops]
    return [*below, *zip(spans(target, stops, context, models.exits), heads, strict=True)]


def _writer_head(method: Method, models: Models, dense: Any) -> Head:
    if method.head == "dense":
        return dense
    head: Any = models.head("target" if method.draft == "none" else "draft", method.head)
    head = replace(head, norm=dense.norm)
    changes = {name: value for name in ("probes", "shortlist") if (value := getattr(method, name)) is not None}
    return head.with_plan(**changes) if changes else head

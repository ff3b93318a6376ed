"""Methods are values: what drafts, with which head, how long a burst is, and which layers verify."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from flashspec.decoding.cascade import Stage
from flashspec.decoding.models import Models, readers
from flashspec.decoding.rules import rule_for
from flashspec.heads.base import Head
from flashspec.heads.dense import DenseHead
from flashspec.scores import GREEDY, Sampling


@dataclass(frozen=True)
class Method:
    """One way of decoding.

    `draft` "model" lets a second model write, "none" the target itself: at its top (plain decoding), or at the first of
    `exits` (layers counted from the bottom). Every exit is a stage: the ones above the writer verify `k`, and from the
    third stage on `interval`, waiting tokens. `head` "flash" puts a FlashHead on the writer, with `probes` clusters
    (None: the head's own default) chosen by `selection`. `finalize` is "deferred" or "eager".
    """

    draft: str = "none"
    head: str = "dense"
    k: int = 4
    finalize: str = "deferred"
    exits: tuple[int, ...] = ()
    interval: int = 4
    probes: int | None = None
    selection: str = "top"

    def __post_init__(self) -> None:
        _one_of("draft", self.draft, ("none", "model"))
        _one_of("head", self.head, ("dense", "flash"))
        _one_of("finalize", self.finalize, ("eager", "deferred"))
        _one_of("selection", self.selection, ("top", "sample"))
        if self.k < 1 or self.interval < 1:
            raise ValueError(f"k and interval must be at least 1, got k={self.k}, interval={self.interval}")
        if list(self.exits) != sorted(set(self.exits)) or min(self.exits, default=1) < 1:
            raise ValueError(f"exits must be layer numbers from 1, in rising order, got {self.exits}")
        if self.writer_is_target and self.head == "flash":
            raise ValueError("a FlashHead needs a verifier above it; set draft='model' or give exits")

    @property
    def writer_is_target(self) -> bool:
        """Plain decoding: one stage, nothing to verify."""
        return self.draft == "none" and not self.exits

    def exact(self, sampling: Sampling) -> bool:
        """Whether the text follows the target's own law under this sampling."""
        return self.writer_is_target or sampling.rule != "typical"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


METHODS = {
    "baseline": Method(),
    "dense": Method(draft="model"),
    "flash": Method(draft="model", head="flash"),
    "self_speculation": Method(exits=(2,)),
    "hispec": Method(exits=(2, 4), k=2),
    "hispec_flash": Method(exits=(2, 4), k=2, head="flash"),
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


def build(method: Method, models: Models, sampling: Sampling = GREEDY, context: int | None = None) -> list[Stage]:
    """The stages of a method over these models, with fresh caches of `context` tokens (None: the models' own)."""
    layers = models.target.config.layers
    if method.exits and method.exits[-1] >= layers:
        raise ValueError(f"exits must lie below the target's {layers} layers, got {method.exits}")
    chain = readers(models, method.draft == "model", method.exits, context)
    rule = rule_for(sampling, models.target.config.vocab_size)
    top = DenseHead(models.target.norm, models.target.head_weight)
    heads = [_writer_head(method, models, sampling), *[top] * (len(chain) - 1)]
    waits = [1, method.k, *[method.interval] * len(chain)]
    return [Stage(reader, head, rule, every) for reader, head, every in zip(chain, heads, waits, strict=False)]


def _writer_head(method: Method, models: Models, sampling: Sampling) -> Head:
    """The head of stage 0."""
    which = "draft" if method.draft == "model" else "target"
    if method.head == "dense":
        model = models.model(which)
        return DenseHead(model.norm, model.head_weight)
    head = models.flash_head(which)
    changes: dict[str, Any] = {} if method.probes is None else {"probes": method.probes}
    if method.selection == "sample" and sampling.temperature > 0:
        changes |= {"selection": "sample", "temperature": sampling.temperature}
    return head.with_plan(**changes)

"""Columns and parameters that several experiments share, as frozen dataclasses to inherit from.

Columns come in the order of the bases from right to left, then the row's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from flashspec.study.pairs import at_least, samplings


@dataclass(frozen=True)
class DraftFacts:
    """Which draft: its name and digest, and its shape.

    Parameters of the layers are `body`; `steps` is None where a draft's folder does not tell how long it was trained.
    """

    draft: str
    digest: str
    layers: int
    body: int
    head_bytes: int
    steps: int | None


@dataclass(frozen=True)
class Writing:
    """Which head wrote, at which draft length, under which sampling."""

    method: str
    probes: int
    k: int
    temperature: float
    rule: str


@dataclass(frozen=True)
class Prompted:
    """How many prompts of one kind."""

    kind: str
    prompts: int


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn, and its number."""

    seconds: float
    repeat: int


@dataclass(frozen=True)
class Replayed:
    """Expected counts of texts that are replayed; whole numbers under Gumbel coupling."""

    rounds: float
    drafted: float
    accepted: float
    emitted: int


@dataclass(frozen=True)
class Kept(Prompted):
    """Whole numbers of decodes on all prompts of one kind."""

    rounds: int
    drafted: int
    accepted: int
    emitted: int


@dataclass(frozen=True)
class Counted(Kept):
    """The same, with what the decodes made a model compute and read."""

    forwards: int
    layer_tokens: int
    bytes: int
    flops: int


COUNTS = tuple(field.name for field in fields(Counted))[2:]


@dataclass(frozen=True)
class Compared:
    """A text beside its float32 twin and plain decoding's; divergence columns are empty where it equals plain decoding's."""

    text_digest: str
    twin_digest: str
    divergence_at: int | None
    gap: float | None
    noise: float | None


@dataclass(frozen=True)
class Decoded:
    """Parameters of every experiment that lets one target write."""

    target: str = "reference"  # target model: shipped name or folder
    temperatures: tuple[float, ...] = (0.0, 1.0)  # 0 is greedy
    rules: tuple[str, ...] = ("coupling", "speculative")  # acceptance rules; at T = 0 only the first
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 1  # prompts of each kind
    new_tokens: int = 96  # tokens emitted a prompt, whatever the stop tokens
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        at_least(self, per_kind=1, new_tokens=2)
        samplings(self.temperatures, self.rules, self.seed)


@dataclass(frozen=True)
class Timed(Decoded):
    """Parameters of those that hold a clock."""

    weights: str = "dense"  # target weights: dense (AWQ dequantised) or int4
    dtype: str = "bfloat16"  # of the timed runs; twins run in float32
    repeats: int = 5  # kept turns

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, repeats=1)


@dataclass(frozen=True)
class Raced:
    """Parameters of those that race drafts of one target, each at several draft lengths."""

    target: str = "reference"  # target model: shipped name or folder
    drafts: tuple[str, ...] = ()  # draft models: names or folders; empty means every shipped one
    ks: tuple[int, ...] = (1, 2, 3, 4, 6, 8)  # drafted tokens a check
    temperatures: tuple[float, ...] = (0.0, 1.0)  # 0 is greedy
    rule: str = "coupling"  # acceptance rule
    dtype: str = "bfloat16"  # of the timed runs
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 1  # prompts of each kind, the first ones
    new_tokens: int = 64  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 3  # kept turns
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        at_least(self, ks=1, per_kind=1, new_tokens=2, repeats=1)
        samplings(self.temperatures, (self.rule,), self.seed)


Some = TypeVar("Some", bound=Decoded)


def points(params: Some) -> Iterable[Some]:
    """One point a temperature and rule, so that a killed run continues with the next."""
    found = samplings(params.temperatures, params.rules, params.seed)
    return [replace(params, temperatures=(s.temperature,), rules=(s.rule,)) for s in found]

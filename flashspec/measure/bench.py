"""Speedups that can be defended: generators timed from outside, methods interleaved, texts compared before seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from flashspec.measure import clock
from flashspec.measure.certificate import Certificate, first_difference
from flashspec.theory import Interval

Contestant = Callable[[], Iterable[int]]
Text = tuple[int, ...]


class Refused(ValueError):
    """A speedup was asked for where none may be given; the message says why."""


class Timing(NamedTuple):
    """One timed run: wall seconds of emptying the generator, and the tokens it gave."""

    contestant: str
    repeat: int
    seconds: float
    tokens: Text

    @property
    def emitted(self) -> int:
        """Tokens given."""
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """What stands for the text in a table."""
        return text_digest(self.tokens)


class Recorded(NamedTuple):
    """A timed run as a table keeps it: the text by its length and digest."""

    contestant: str
    repeat: int
    seconds: float
    emitted: int
    digest: str


def text_digest(tokens: Iterable[int]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the token ids, joined by commas."""
    return hashlib.sha256(",".join(str(int(t)) for t in tokens).encode()).hexdigest()[:12]


def time_run(contestant: Contestant) -> tuple[float, Text]:
    """Wall seconds from asking for the generator to its last token, and its tokens."""
    clock.settle()
    start = clock.now()
    tokens = tuple(contestant())
    return clock.now() - start, tokens


def interleave(contestants: Mapping[str, Contestant], repeats: int = 5, warmup: int = 1) -> Iterator[Timing]:
    """Run all contestants in turns A B A B in this process; the first `warmup` turns are discarded."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    for turn in range(-warmup, repeats):
        for name, contestant in contestants.items():
            seconds, tokens = time_run(contestant)
            if turn >= 0:
                yield Timing(name, turn, seconds, tokens)


def paired_ratio(above: Sequence[float], below: Sequence[float], seed: int = 0, draws: int = 2000) -> Interval:
    """Median of above[i] / below[i] with a 95 % percentile-bootstrap interval over the pairs (Efron 1979); seeded.

    Raises ValueError for fewer than 3 pairs, where a bootstrap says nothing.
    """
    if len(above) != len(below):
        raise ValueError(f"pairs need equal lengths, got {len(above)} and {len(below)}; time both in the same turns")
    if len(above) < 3:
        raise ValueError(f"an interval needs at least 3 pairs, got {len(above)}; raise repeats")
    ratios = np.asarray(above, dtype=float) / np.asarray(below, dtype=float)
    chosen = np.random.default_rng(seed).integers(0, len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[chosen], axis=1), (0.025, 0.975))
    return Interval(float(np.median(ratios)), float(low), float(high))


class Run(Protocol):
    """A timed run, whether its text is at hand or only its digest."""

    @property
    def repeat(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def emitted(self) -> int: ...
    @property
    def digest(self) -> str: ...


Runs = Sequence[Run]
Twin = tuple[Text | str, Text | str]


@dataclass(frozen=True)
class Comparison:
    """A method against a baseline, pair by pair; `promise` is what equality the method owes: "text" or "distribution".

    `twin` holds both texts (or their digests) of the same run (method, rule, seed) repeated in float32;
    `certificates` explain the timed texts that differ.
    """

    baseline: Runs
    method: Runs
    twin: tuple[Twin, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    promise: str = "text"

    def __post_init__(self) -> None:
        if self.promise not in ("text", "distribution"):
            raise ValueError(f'promise must be "text" or "distribution", got {self.promise!r}')

    @property
    def refusal(self) -> str | None:
        """Why no speedup may be given, or None."""
        return self._unequal_counts() or (self._unequal_texts() if self.promise == "text" else None)

    @property
    def speedup(self) -> Interval:
        """Seconds of the baseline over seconds of the method. Raises Refused where `refusal` says why."""
        if self.refusal:
            raise Refused(f"refused: {self.refusal}")
        return paired_ratio([t.seconds for t in self.baseline], [t.seconds for t in self.method])

    @property
    def verdict(self) -> str:
        """One line for a person: the speedup, "no difference shown", or "refused: why"."""
        if self.refusal:
            return f"refused: {self.refusal}"
        value, low, high = self.speedup
        text = f"{value:.3f}x, 95 % interval {low:.3f} to {high:.3f}"
        return text if self.speedup.shows_difference else f"no difference shown ({text})"

    def _unequal_counts(self) -> str | None:
        if len(self.baseline) != len(self.method):
            return f"{len(self.baseline)} runs of the baseline stand against {len(self.method)} of the method"
        if not any(run.emitted for run in self.method):
            return "no run emitted a token, so there is no text to compare"
        for one, other in zip(self.baseline, self.method, strict=True):
            if one.emitted != other.emitted:
                return f"token counts differ in repeat {one.repeat}: {one.emitted} and {other.emitted}"
        return None

    def _unequal_texts(self) -> str | None:
        for one, other in self.twin:
            if one != other:
                where = "" if isinstance(one, str) or isinstance(other, str) else f" from token {first_difference(one, other)}"
                return f"the float32 twin gives another text{where}"
        for certificate in self.certificates:
            if certificate.verdict == "defect":
                return f"the divergence certificate says defect: {certificate}"
        return self._unexplained()

    def _unexplained(self) -> str | None:
        """Texts that differ need both a float32 twin and a certificate a difference."""
        pairs = zip(self.baseline, self.method, strict=True)
        differing = {(a.digest, b.digest) for a, b in pairs if a.digest != b.digest}
        if differing and not (self.twin and len(self.certificates) >= len(differing)):
            return f"{len(differing)} timed texts differ and no float32 twin with a divergence certificate explains it"
        return None

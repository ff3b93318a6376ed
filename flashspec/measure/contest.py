"""Methods against each other on the same prompts: timed from outside, in turns, counts taken from events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flashspec.decoding.generate import Stats, count, request
from flashspec.decoding.method import Method
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.decoding.state import Event
from flashspec.measure.bench import Text, time_run
from flashspec.measure.prompts import Prompt
from flashspec.measure.score import Score, score
from flashspec.scores import Sampling


class Entry(NamedTuple):
    """A contestant: a method under a sampling, with a name of its own."""

    name: str
    method: Method
    sampling: Sampling


@dataclass(frozen=True)
class Turns:
    """How long and how often: new tokens a prompt (stop tokens are ignored), kept and discarded turns."""

    new_tokens: int = 48
    repeats: int = 5
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.new_tokens < 1 or self.repeats < 1 or self.warmup < 0:
            raise ValueError("new_tokens and repeats must be at least 1 and warmup at least 0")


class Record(NamedTuple):
    """One timed decode, or several of one kind joined."""

    entry: str
    kind: str
    repeat: int
    seconds: float
    tokens: Text
    stats: Stats
    score: Score


@dataclass
class Decoding:
    """One decode as a contestant: every call starts from fresh stages, set-up inside the timed region."""

    models: Models
    entry: Entry
    prompt: Prompt
    new_tokens: int
    events: list[Event] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    def __call__(self) -> Iterator[int]:
        options = {"max_new_tokens": self.new_tokens, "stop": ()}
        ready = request(self.models, list(self.prompt.ids), self.entry.method, self.entry.sampling, options)
        self.stages, self.events = ready.stages, []
        for step in ready.steps():
            self.events += step.events
            yield from step.tokens

    def record(self, repeat: int) -> Record:
        """Run it once against the clock; counting happens afterwards."""
        seconds, tokens = time_run(self)
        stats = count(self.events, len(tokens), len(self.stages))
        past = len(self.prompt.ids) + len(tokens) // 2
        numbers = score(self.events, self.stages, len(tokens), past)
        return Record(self.entry.name, self.prompt.kind, repeat, seconds, tokens, stats, numbers)


def contest(models: Models, entries: Sequence[Entry], prompts: Sequence[Prompt], turns: Turns) -> Iterator[Record]:
    """Every entry on every prompt, A B A B within a prompt, turn after turn; before them, warm-up turns of the first prompt."""
    return (record for _, record in in_turns([(models, entry) for entry in entries], prompts, turns))


def in_turns(
    field: Sequence[tuple[Models, Entry]], prompts: Sequence[Prompt], turns: Turns, first: int = 0
) -> Iterator[tuple[Decoding, Record]]:
    """The decodes of `contest`, each with its record while its stages and events are still there; turns count from `first`."""
    for turn in range(-turns.warmup, turns.repeats):
        for prompt in prompts if turn >= 0 else prompts[:1]:
            for models, entry in field:
                run = Decoding(models, entry, prompt, turns.new_tokens)
                record = run.record(turn + first)
                if turn >= 0:
                    yield run, record


def texts(models: Models, entry: Entry, prompts: Iterable[Prompt], new_tokens: int) -> list[Text]:
    """The untimed texts of one entry."""
    return [tuple(Decoding(models, entry, prompt, new_tokens)()) for prompt in prompts]


def joined_by_kind(records: Iterable[Record]) -> list[Record]:
    """Records of one entry, kind and repeat as one: seconds and counts summed, texts one after another."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault(record[:3], []).append(record)
    return [_join(group) for group in groups.values()]


def _join(group: list[Record]) -> Record:
    tokens = tuple(token for record in group for token in record.tokens)
    seconds = sum(record.seconds for record in group)
    stats = Stats(*(sum(values) for values in zip(*(vars(record.stats).values() for record in group), strict=True)))
    return Record(*group[0][:3], seconds, tokens, stats, sum((record.score for record in group), Score()))

"""A method on a prompt, timed from outside; counts are taken from its events afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from flashspec.sampling import Sampling


class Entry(NamedTuple):
    """A contestant: a method under a sampling, with a name of its own."""

    name: str
    method: Method
    sampling: Sampling


class Record(NamedTuple):
    """One timed decode."""

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

    def record(self) -> Record:
        """Run it once against the clock; counting happens afterwards."""
        seconds, tokens = time_run(self)
        stats = count(self.events, len(tokens), len(self.stages))
        past = len(self.prompt.ids) + len(tokens) // 2
        numbers = score(self.events, self.stages, len(tokens), past)
        return Record(seconds, tokens, stats, numbers)


def texts(models: Models, entry: Entry, prompts: Iterable[Prompt], new_tokens: int) -> list[Text]:
    """The untimed texts of one entry."""
    return [tuple(Decoding(models, entry, prompt, new_tokens)()) for prompt in prompts]

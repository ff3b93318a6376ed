"""The loop: decoding is a cascade of stages.

Stage 0 writes tokens. Every later stage re-scores the tokens waiting below it, keeps a prefix and adds one
token of its own. A token is final when the last stage keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import Drawn
from flashspec.decoding.stages import Asked, Judged, Stage, judge_together, listed, write_together
from flashspec.sampling import Scores
from flashspec.typed import at_least, one_of, typed, whole_numbers


class Event(NamedTuple):
    """One action: `kept` of the `waiting` tokens, whose ids are `asked`, were accepted; the stage's reader read `rows`.

    `adds` tokens were written: a burst's length at stage 0, 1 at a verification, 0 where a reader only read.
    """

    stage: int
    waiting: int
    kept: int
    rows: int
    adds: int = 1
    asked: tuple[int, ...] = ()


class Step(NamedTuple):
    """Tokens that became final, and every event since the last step."""

    tokens: list[int]
    events: list[Event]


@typed
@dataclass(frozen=True)
class Limits:
    """When decoding ends, and whether the target reads its final token at once or with the next block."""

    max_new_tokens: int = 128
    stop: tuple[int, ...] = ()
    finalize: str = "deferred"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", whole_numbers("stop", self.stop))
        at_least(self, max_new_tokens=1)
        one_of("finalize", self.finalize, ("eager", "deferred"))


@dataclass
class State:
    """Tokens [room], `length` of them written, how many each stage has kept, and the draws not yet checked by the last.

    `asked`: the stage below wants the next one to act now. `final`: the latest final tokens.
    `events`: what happened since the last ones.
    """

    stages: list[Stage]
    tokens: Tensor
    length: int
    marks: list[int]
    waiting: list[Drawn]
    asked: bool = False
    final: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @classmethod
    def at(cls, stages: list[Stage], tokens: Tensor, length: int, level: int = 1, waiting: Sequence[Drawn] = ()) -> State:
        """The state whose last tokens are `waiting` for the stages from `level` on."""
        marks = [length] * level + [length - len(waiting)] * (len(stages) - level)
        return cls(stages, tokens, length, marks, list(waiting))

    @classmethod
    def start(cls, stages: list[Stage], prompt: Sequence[int], limits: Limits) -> State:
        """The state after a prompt; readers have read nothing, and heads have learned only the prompt.

        ValueError for an impossible prompt, and for stages of different vocabularies.
        """
        if not stages:
            raise ValueError("decode needs at least one stage")
        context = min(stage.reader.context for stage in stages)
        if not len(prompt):
            raise ValueError("the prompt is empty; give at least one token")
        if len(prompt) >= context:
            held = f"the prompt has {len(prompt)} tokens and the context holds {context}"
            raise ValueError(f"{held}; shorten it to {context - 1}")
        sizes = {stage.head.vocab_size for stage in stages}
        if len(sizes) > 1:
            raise ValueError(f"the stages' vocabularies differ ({sorted(sizes)}); draft and target must share one tokenizer")
        if min(prompt) < 0 or max(prompt) >= min(sizes):
            raise ValueError(f"prompt ids must lie between 0 and {min(sizes) - 1}, got {min(prompt)}..{max(prompt)}")
        if any(stage.every < 1 for stage in stages):
            raise ValueError(f"every stage must act on at least 1 waiting token, got {[s.every for s in stages]}")
        room = min(context, len(prompt) + limits.max_new_tokens)
        tokens = torch.zeros(room, dtype=torch.int64, device=stages[0].reader.rows.device)
        tokens[: len(prompt)] = torch.tensor(prompt)
        for stage in stages:
            stage.reader.rewind(0)
            stage.reader.text = tokens
        state = cls.at(stages, tokens, len(prompt))
        state.learn(0, None)
        return state

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return len(self.tokens) - self.length

    def check_ours(self) -> None:
        """RuntimeError where another decode has begun over these stages."""
        if any(stage.reader.text is not self.tokens for stage in self.stages):
            raise RuntimeError("another decode has begun over these stages, which hold one text at a time; build some for each")

    def wants(self, i: int) -> bool:
        """Whether stage i acts now; a middle one leaves the last place to the last one."""
        if self.room > 1:
            return self.asked or self.length - self.marks[i] >= self.stages[i].every
        return i + 1 == len(self.stages)

    def below(self, i: int) -> Asked:
        """What waits for stage i."""
        first, done = self.marks[i], self.marks[-1]
        return self.tokens[: self.length], first, self.waiting[first - done :]

    def learn(self, first: int, scores: Scores | None) -> None:
        """Pass heads the newly final tokens from `first` on and the last stage's scores, None at the start of a text."""
        for stage in self.stages:
            stage.head.learn(self.tokens[first : self.length], scores)


@typed
def decode(stages: list[Stage], prompt: list[int], limits: Limits = Limits()) -> Iterator[Step]:
    """Decode from prompt ids; yields a Step whenever tokens became final.

    Stops after max_new_tokens, at the first final stop token (which is emitted), or when a context is full.
    Raises RuntimeError where another decode has begun over these stages, ValueError for an empty or too long
    prompt, ids outside the vocabulary or stages of different vocabularies, FloatingPointError for NaN.
    """
    return (step for _, step in decode_together([stages], [prompt], limits))


def decode_together(stages: list[list[Stage]], prompts: list[list[int]], limits: Limits) -> Iterator[tuple[int, Step]]:
    """Decode prompts at once, each over stages of its own, built from one method; yields a text's number with each Step.

    Where the kernels compute the models, the rows of all texts share each pass over the weights. A text and its events
    are what `decode` gives for it alone. Raises as `decode`, for the first prompt that is at fault.
    """
    states = [State.start(own, prompt, limits) for own, prompt in zip(stages, prompts, strict=True)]
    going = {number: state for number, state in enumerate(states) if state.room}
    while going:
        for state in going.values():
            state.check_ours()
        with torch.inference_mode():
            for state, happened in zip(going.values(), advance([*going.values()]), strict=True):
                state.events += happened
        for number, state in list(going.items()):
            done = not state.room
            if state.final:
                fresh, stopped = _cut(state.final, limits.stop)
                if limits.finalize == "eager" and not stopped:
                    with torch.inference_mode():
                        state.events += finalize(state)
                yield number, Step(fresh, state.events)
                state.final, state.events, done = [], [], done or stopped
            if done:
                del going[number]


def advance(states: Sequence[State]) -> list[list[Event]]:
    """Of every text a burst, then a check by every stage from the bottom until one has too few tokens waiting."""
    events, climbing = draft(states), list(range(len(states)))
    for i in range(1, len(states[0].stages)):
        climbing = [t for t in climbing if states[t].wants(i) or states[t].room <= 1]
        acting = [t for t in climbing if states[t].wants(i)]
        for t, found in zip(acting, check([states[t] for t in acting], i) if acting else [], strict=True):
            events[t] += found
    return events


def draft(states: Sequence[State]) -> list[list[Event]]:
    """Stage 0 writes as many tokens as the next stage waits for; alone, its tokens are final."""
    above = min(1, len(states[0].stages) - 1)
    wants = [min(state.stages[above].every, state.room - above) for state in states]
    texts, starts = [state.tokens for state in states], [state.length for state in states]
    found, events = write_together([state.stages[0] for state in states], texts, starts, wants), []
    for state, want, (drawn, rows) in zip(states, wants, found, strict=True):
        start, state.waiting = state.length, [*state.waiting, *drawn]
        state.length = state.marks[0] = start + len(drawn)
        state.asked = len(drawn) < want
        if not above:
            written = state.tokens[start : state.length]
            state.final, state.waiting = listed([written], [each.sound for each in drawn]), []
        events.append([Event(0, 0, 0, rows, len(drawn))])
    return events


def check(states: Sequence[State], i: int) -> list[list[Event]]:
    """Stage i checks what waits below it, keeps a prefix and adds one token."""
    found = judge_together([state.stages[i] for state in states], [state.below(i) for state in states], i)
    return [checked(state, i, verdict) for state, verdict in zip(states, found, strict=True)]


def checked(state: State, i: int, found: Judged) -> list[Event]:
    """What the verdict of stage i makes of its text."""
    first = state.marks[i]
    newest = first + found.kept
    state.tokens[newest] = found.token
    state.waiting[first - state.marks[-1] :] = promoted(state, first, found) if i + 1 < len(state.stages) else []
    state.length, state.asked = newest + 1, found.asks
    state.marks[: i + 1] = [newest + 1] * (i + 1)
    for stage in state.stages:
        stage.reader.rewind(newest)
    if i + 1 == len(state.stages):
        state.final = [*found.asked[: found.kept], found.token]
        state.learn(first, found.scores)
    return [*_below(i, found.reads), Event(i, len(found.asked), found.kept, found.reads[-1], 1, tuple(found.asked))]


def promoted(state: State, first: int, found: Judged) -> list[Drawn]:
    """Promotion: kept tokens and the new one carry the scores of the stage that kept them."""
    rows = range(found.kept + 1)
    return [Drawn(state.tokens[first + j : first + j + 1], found.scores.row(j), found.sound) for j in rows]


def finalize(state: State) -> list[Event]:
    """The last stage reads its own new token, if there is a next check that this shortens."""
    last = len(state.stages) - 1
    if not state.room or not last:
        return []
    reads = state.stages[last].reader.read(state.tokens[: state.length])
    return [*_below(last, reads), Event(last, 0, 0, reads[-1], 0)]


def _below(i: int, reads: tuple[int, ...]) -> list[Event]:
    return [Event(j, 0, 0, rows, 0) for j, rows in enumerate(reads[:-1], start=i + 1 - len(reads)) if rows]


def _cut(fresh: list[int], stop: tuple[int, ...]) -> tuple[list[int], bool]:
    """Final tokens up to and with the first stop token, and whether there was one."""
    at = next((i for i, token in enumerate(fresh) if token in stop), None)
    return (fresh, False) if at is None else (fresh[: at + 1], True)

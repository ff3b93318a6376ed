"""The loop: decoding is a cascade of stages.

Stage 0 writes tokens. Every later stage re-scores the tokens waiting below it, keeps a prefix and adds one
token of its own. A token is final when the last stage keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flashspec.decoding.rules import Drawn
from flashspec.decoding.stages import Judged, Stage, listed
from flashspec.decoding.state import Event, Limits, State, Step
from flashspec.typed import typed

USUAL = Limits()


@typed
def decode(stages: list[Stage], prompt: list[int], limits: Limits = USUAL) -> Iterator[Step]:
    """Decode from prompt ids; yields a Step whenever tokens became final.

    Stops after max_new_tokens, at the first final stop token (which is emitted), or when a context is full.
    Raises RuntimeError where another decode has begun over these stages, ValueError for an empty or too long
    prompt, ids outside the vocabulary or stages of different vocabularies, FloatingPointError for NaN.
    """
    state, events, done = State.start(stages, prompt, limits), list[Event](), False
    while state.room and not done:
        state.check_ours()
        with torch.inference_mode():
            events += advance(state)
        if state.final:
            fresh, done = _cut(state.final, limits.stop)
            if limits.finalize == "eager" and not done:
                with torch.inference_mode():
                    events += finalize(state)
            yield Step(fresh, events)
            state.final, events = [], []


def advance(state: State) -> Iterator[Event]:
    """A burst, then a check by every stage from the bottom until one has too few tokens waiting."""
    yield from draft(state)
    for i in range(1, len(state.stages)):
        if state.wants(i):
            yield from check(state, i)
        elif state.room > 1:
            break


def draft(state: State) -> list[Event]:
    """Stage 0 writes as many tokens as the next stage waits for; alone, its tokens are final."""
    stages, start, above = state.stages, state.length, min(1, len(state.stages) - 1)
    want = min(stages[above].every, state.room - above)
    drawn, rows = stages[0].write(state.tokens, start, want)
    state.waiting += drawn
    state.length = state.marks[0] = start + len(drawn)
    state.asked = len(drawn) < want
    if not above:
        state.final, state.waiting = listed([state.tokens[start : state.length]], [each.sound for each in drawn]), []
    return [Event(0, 0, 0, rows, len(drawn))]


def check(state: State, i: int) -> list[Event]:
    """Stage i checks what waits below it, keeps a prefix and adds one token."""
    first, waiting = state.marks[i], state.waiting[state.marks[i] - state.marks[-1] :]
    found = state.stages[i].judge(state.tokens[: state.length], first, waiting, i)
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
    """One event for every reader that had to read so that stage i could."""
    return [Event(j, 0, 0, rows, 0) for j, rows in enumerate(reads[:-1], start=i + 1 - len(reads)) if rows]


def _cut(fresh: list[int], stop: tuple[int, ...]) -> tuple[list[int], bool]:
    """Final tokens up to and with the first stop token, and whether there was one."""
    at = next((i for i, token in enumerate(fresh) if token in stop), None)
    return (fresh, False) if at is None else (fresh[: at + 1], True)

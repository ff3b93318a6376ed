"""Tokens as people read them: ids to text piece by piece, and what became of every token."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from flashspec.decoding.models import Models
from flashspec.decoding.state import Event

SHADES = {"accepted": "#cfe8d5", "corrected": "#ffd9b8", "bonus": "#cfe0f5", "rejected": "#e4e4e4", "written": "transparent"}
Said = list[tuple[str, str]]  # pieces of text, each with what became of it: a name of SHADES


class Words(NamedTuple):
    """How a decode's ids read: its prompt, what each final token adds to the text, and rejected tokens by themselves."""

    prompt: str = ""
    pieces: tuple[str, ...] = ()
    alone: Mapping[int, str] = {}


class Texts:
    """Ids to text piece by piece; a piece waits until its characters are whole. Without a tokenizer ids are written."""

    def __init__(self, models: Models) -> None:
        self.models, self.ids, self.start, self.shown = models, list[int](), 0, 0

    def push(self, token: int) -> str:
        """The text that this token completes."""
        if self.models.tokenizer is None:
            return f"{token} "
        self.ids.append(token)
        known, now = (self.models.decode(self.ids[self.start : end]) for end in (self.shown, len(self.ids)))
        if now.endswith("\ufffd"):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return now[len(known) :]


def words_of(models: Models, prompt: list[int], tokens: Iterable[int], events: Iterable[Event]) -> Words:
    """How the ids of a decode read."""
    final, rejected = Texts(models), {token for event in events for token in event.asked[event.kept :]}
    alone = {token: Texts(models).push(token) or "\ufffd" for token in sorted(rejected)}
    return Words(models.decode(prompt), tuple(map(final.push, tokens)), alone)


def kinds(event: Event, last: int) -> list[str]:
    """What each token is that became final in an event: accepted, corrected or bonus; written where stage `last` is 0."""
    if event.stage != last or not event.adds:
        return []
    if not last:
        return ["written"] * event.adds
    return ["accepted"] * event.kept + ["bonus" if event.kept == event.waiting else "corrected"]


def said(events: Iterable[Event], words: Words, last: int) -> Iterator[Said]:
    """For each event the tokens that became final in it, with those that it rejected after the accepted ones."""
    pieces = iter(words.pieces)
    for event in events:
        found = [(piece, kind) for kind, piece in zip(kinds(event, last), pieces, strict=False)]
        rejected = event.asked[event.kept :] if len(found) > event.kept else ()
        yield [*found[: event.kept], *((words.alone[token], "rejected") for token in rejected), *found[event.kept :]]


def marked(words: Words, tokens: Said) -> str:
    """A prompt and its text as HTML, every token in the colour of its kind, and a line that explains the colours."""
    text = "".join(_shaded(piece, kind) for piece, kind in tokens)
    legend = " ".join(_shaded(kind, kind) for kind in SHADES if kind in {kind for _, kind in tokens} - {"written"})
    return f'<pre class="decoded" style="white-space:pre-wrap">{html.escape(words.prompt)}{text}</pre><p>{legend}</p>'


def _shaded(piece: str, kind: str) -> str:
    ink = "" if kind == "written" else ";color:#000"
    return f'<span title="{kind}" style="background:{SHADES[kind]}{ink}">{html.escape(piece)}</span>'

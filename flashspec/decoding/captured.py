"""Bursts and verifications over static buffers: recorded once as CUDA graphs, replayed without a word from the host.

A step reads tokens where they lie on the device, and knows its place through a tensor alone. Recorded on CUDA; called as it is
where FLASHSPEC_GRAPHS is "eager", the twin that a recording must equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

from flashspec.decoding.rules import Drawn, SpeculativeSampling, Verdict, rule_for
from flashspec.decoding.settle import Ask, Judged, coupled, listed, settled
from flashspec.heads.candidates import ContextHead, PreviewHead, ShortlistHead
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.model.graphs import LARGEST, FixedEngine, Replay
from flashspec.model.reader import SpanReader
from flashspec.scores import DeviceDice, Scores

if TYPE_CHECKING:
    from flashspec.decoding.cascade import Stage

HEADS = (DenseHead, FlashHead, ShortlistHead, ContextHead, PreviewHead)
Result = TypeVar("Result")


def records_burst(stage: Stage) -> bool:
    """Whether a stage's drafting can be recorded: its own tokens through fixed shapes, and no doubt that could end a burst."""
    return _fixed(stage) and cast(SpanReader, stage.reader).below is None and stage.doubt is None


def records_check(stage: Stage) -> bool:
    """Whether a stage's verification can be recorded: fixed shapes, a dense head and a rule that judges on the device."""
    sampling = stage.rule.sampling
    return _fixed(stage) and isinstance(stage.head, DenseHead) and (coupled(sampling) or sampling.rule == "speculative")


def _fixed(stage: Stage) -> bool:
    return isinstance(stage.reader, SpanReader) and isinstance(stage.reader.engine, FixedEngine) and isinstance(stage.head, HEADS)


def captured_burst(stage: Stage) -> CapturedBurst:
    """The burst of a stage, made once for its reader, head and sampling, so that the next decode replays what is recorded."""
    return _made(stage, ("burst", id(stage.head), stage.rule.sampling), lambda: CapturedBurst(stage))


def captured_check(stage: Stage, number: int) -> CapturedCheck:
    """The verification of stage `number`, made once for its reader, head and rule."""
    return _made(stage, ("check", id(stage.head), id(stage.rule), number), lambda: CapturedCheck(stage, number))


def _made(stage: Stage, key: tuple[object, ...], make: Callable[[], Result]) -> Result:
    """What the stage's reader keeps under this key, made where there is nothing yet."""
    kept = cast(SpanReader, stage.reader).recordings
    if key not in kept:
        kept[key] = make()
    return kept[key]


class Track:
    """The static side of a reader: its tokens by position, and calls over them, recorded once for each of their shapes."""

    def __init__(self, reader: SpanReader) -> None:
        assert isinstance(reader.engine, FixedEngine)
        self.reader, self.engine = reader, reader.engine
        self.tokens = torch.zeros(reader.context + 1, dtype=torch.int64, device=reader.rows.device)
        self._calls: dict[tuple[int, ...], Callable[[], object]] = {}

    def take(self, tokens: Tensor, first: int, stop: int) -> int:
        """Copy tokens up to `stop`, from `first` or where reading continues; how many of them a step has to read.

        More than a fixed shape holds are read at once here, and so is what the reader below has to give.
        """
        reader = self.reader
        first = min(first, reader.seen)
        self.tokens[first:stop] = tokens[first:stop]
        if stop - reader.seen > LARGEST:
            reader.read(tokens[:stop])
        if reader.below is not None:
            reader.below.read(tokens[:stop])
        return stop - reader.seen

    def read(self, n: int, keys: int) -> Callable[[], None]:
        """A function of `begin` alone that reads the n tokens from there on."""
        steps, forward, below = torch.arange(n, device=self.tokens.device), self.engine.forward(n, keys), self.reader.below

        def read() -> None:
            if n:
                places = self.engine.begin + steps
                x = self.engine.embed(self.tokens[places]) if below is None else below.rows[places]
                self.reader.rows.index_copy_(0, places, forward(x))

        return read

    def run(self, shape: tuple[int, int, int], make: Callable[[tuple[int, int, int]], Callable[[], Result]]) -> Result:
        """The result of a call of this shape (rows to read, rows to score, keys), made and recorded where it is new."""
        if shape not in self._calls:
            call = make(shape)
            self._calls[shape] = Replay(call, self.tokens.device) if self.engine.record else call
        return self._calls[shape]()  # type: ignore[return-value]


class CapturedBurst:
    """Drafts a burst step by step at fixed shapes: read, score, draw and write, one replay for each token."""

    def __init__(self, stage: Stage) -> None:
        sampling = stage.rule.sampling
        self.head, self.dice, self.track = stage.head, DeviceDice(sampling.seed), Track(cast(SpanReader, stage.reader))
        self.rule = cast(SpeculativeSampling, rule_for(sampling, stage.head.vocab_size, self.dice))

    @torch.inference_mode()
    def write(self, tokens: Tensor, start: int, want: int) -> list[Drawn]:
        """Write `want` tokens from position `start` on into tokens; what was drawn, in order. No host synchronisation."""
        if not want:
            return []
        track, drawn = self.track, list[Drawn]()
        track.reader.check_room(start + want - 1)
        n = track.take(tokens, start, start)
        for position in range(start, start + want):
            track.engine.begin.fill_(position - n)
            made = track.run((n, 1, track.engine.keys(position)), self._step)
            tokens[position : position + 1] = made.token
            drawn.append(Drawn(tokens[position : position + 1], _kept(made.scores), made.sound.clone()))
            track.reader.advance(position)
            n = 1
        return drawn

    def _step(self, shape: tuple[int, int, int]) -> Callable[[], Drawn]:
        n, _, keys = shape
        track, read = self.track, self.track.read(n, keys)

        def step() -> Drawn:
            read()
            place = track.engine.begin[None] + n
            scores = self.head(track.reader.rows[place - 1], place, self.dice)
            drawn = self.rule.draw(scores, place, 0)
            track.tokens.index_copy_(0, place, drawn.token)
            return drawn

        return step


class CapturedCheck:
    """Verifies what waits at fixed shapes: read and score in one replay, judge on the device, and wait for the host once."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.head, self.rule, self.number, self.track = stage.head, stage.rule, number, Track(cast(SpanReader, stage.reader))

    @torch.inference_mode()
    def judge(self, tokens: Tensor, first: int, proposals: list[Scores], sound: list[Tensor]) -> Judged:
        """As decoding.judge.Judge says; one host synchronisation."""
        track, stop = self.track, len(tokens)
        n = track.take(tokens, first, stop)
        track.engine.begin.fill_(stop - n)
        scores = track.run((n, stop - first + 1, track.engine.keys(stop)), self._rows)
        track.reader.advance(stop)
        places = torch.arange(first, stop + 1, device=tokens.device)
        ask = Ask(tokens[first:], proposals, places, self.number, self._script(first, stop))
        ruling = settled(self.rule.sampling, scores, ask)
        kept, token, *asked = listed(torch.cat([ruling.kept, ruling.token, tokens[first:]]), [ruling.sound, *sound])
        return Judged(asked, Verdict(kept, token, _kept(ruling.scores)), scores)

    def _script(self, first: int, stop: int) -> Tensor | None:
        """How many tokens stand [1] where the rule's acceptance is scripted."""
        stand = getattr(self.rule, "stand", None)
        if stand is None:
            return None
        return torch.full((1,), stand(stop - first, first, self.number), device=self.track.tokens.device)

    def _rows(self, shape: tuple[int, int, int]) -> Callable[[], Scores]:
        n, rows, keys = shape
        track, read = self.track, self.track.read(n, keys)
        steps, none = torch.arange(1 - rows, 1, device=track.tokens.device), DeviceDice(0)

        def score() -> Scores:
            read()
            places = track.engine.begin + n + steps
            return self.head(track.reader.rows[places - 1], places, none)

        return score


def _kept(scores: Scores) -> Scores:
    """A copy that the next replay leaves alone."""
    return Scores(None if scores.ids is None else scores.ids.clone(), scores.logits.clone())

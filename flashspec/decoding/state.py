"""The state of a decode between two actions, the events it reports, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.rules import Drawn
from flashspec.decoding.stages import Stage
from flashspec.sampling import Scores
from flashspec.theory.checks import at_least, one_of
from flashspec.typed import typed, whole_numbers


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
    """

    stages: list[Stage]
    tokens: Tensor
    length: int
    marks: list[int]
    waiting: list[Drawn]
    asked: bool = False
    final: list[int] = field(default_factory=list)

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
        check_prompt(prompt, min(stage.reader.context for stage in stages))
        sizes = {stage.head.vocab_size for stage in stages}
        if len(sizes) > 1:
            raise ValueError(f"the stages' vocabularies differ ({sorted(sizes)}); draft and target must share one tokenizer")
        if min(prompt) < 0 or max(prompt) >= min(sizes):
            raise ValueError(f"prompt ids must lie between 0 and {min(sizes) - 1}, got {min(prompt)}..{max(prompt)}")
        if any(stage.every < 1 for stage in stages):
            raise ValueError(f"every stage must act on at least 1 waiting token, got {[s.every for s in stages]}")
        room = min(min(s.reader.context for s in stages), len(prompt) + limits.max_new_tokens)
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

    def learn(self, first: int, scores: Scores | None) -> None:
        """Pass heads the newly final tokens from `first` on and the last stage's scores, None at the start of a text."""
        for stage in self.stages:
            stage.head.learn(self.tokens[first : self.length], scores)


def check_prompt(prompt: Sequence[int], context: int) -> None:
    """Refuse a prompt without a token, and one that leaves no room in the context."""
    if not len(prompt):
        raise ValueError("the prompt is empty; give at least one token")
    if len(prompt) >= context:
        raise ValueError(f"the prompt has {len(prompt)} tokens and the context holds {context}; shorten it to {context - 1}")

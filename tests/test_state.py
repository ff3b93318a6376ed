"""A state that is built acts as one that was reached, and a stage's verbs are those of its own parts."""

from __future__ import annotations

import pytest
import torch
from toys import PROMPT, duo, random_model

from flashspec.decoding.cascade import advance, check, draft
from flashspec.decoding.method import build, method_named
from flashspec.decoding.state import Limits, State
from flashspec.heads import DenseHead
from flashspec.sampling import Sampling

WARM = Sampling(0.7, seed=5)


def stages(name: str = "dense", **changes):
    return build(method_named(name, {"k": 3, **changes}), duo(0, torch.float32), WARM, 64)


@torch.inference_mode()
def reached(name: str) -> State:
    """A decode after some rounds, before a check of what was drafted last."""
    state = State.start(stages(name), PROMPT, Limits(40))
    for _ in range(3):
        list(advance(state))
    while state.marks[1] == state.length:
        draft(state)
    return state


@pytest.mark.parametrize("name", ["dense", "flash", "self_speculation"])
@torch.inference_mode()
def test_a_state_that_is_built_acts_as_the_one_that_was_reached(name):
    here = reached(name)
    there = State.at(stages(name), here.tokens.clone(), here.length, 1, here.waiting)
    assert (there.marks, there.room) == (here.marks, here.room)
    for state in (here, there):
        check(state, 1)
    assert there.final == here.final and torch.equal(there.tokens, here.tokens) and there.marks == here.marks


@torch.inference_mode()
def test_the_control_a_state_in_which_nothing_waits_acts_otherwise():
    here = reached("dense")
    there = State.at(stages(), here.tokens.clone(), here.length)
    for state in (here, there):
        check(state, 1)
    assert there.final != here.final


@torch.inference_mode()
def test_a_stage_with_another_head_writes_and_judges_with_it():
    other = random_model(3)
    tokens = torch.zeros(40, dtype=torch.int64)
    tokens[: len(PROMPT)] = torch.tensor(PROMPT)
    first = stages()[0]
    changed = stages()[0]._replace(head=DenseHead(other.norm, other.head_weight))
    made = build(method_named("dense", {}), duo(0, torch.float32), WARM, 64)[0]
    fresh = type(made)(made.reader, DenseHead(other.norm, other.head_weight), made.rule, way=made.way)
    texts = []
    for stage in (first, changed, fresh):
        mine = tokens.clone()
        stage.write(mine, len(PROMPT), 6)
        texts.append(mine.tolist())
    assert texts[1] == texts[2] != texts[0]
    assert type(changed.write) is type(fresh.write)

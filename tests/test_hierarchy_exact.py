"""HiSpec over one model's layers is exact: plain decoding's text under the coupling, the model's own law under sampling."""

from __future__ import annotations

import functools
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefixes import caught, p_of, without_promotion
from toys import TEMPERATURES, Credulous, duo, random_model, text

from flashspec.decoding import cascade, rules
from flashspec.decoding.method import build, hispec
from flashspec.decoding.models import Models
from flashspec.decoding.rules import SpeculativeSampling
from flashspec.heads import FlashHead
from flashspec.models.transformer import Transformer
from flashspec.sampling import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:exit")  # random models have exits that are of no use
LAYERS = 6
PAIRS = list(combinations(range(1, LAYERS), 2))
SCHEDULES = list(product((1, 2, 4), (1, 4, 8)))
VOCAB = 4


@functools.cache
def plain(temperature: float) -> list[int]:
    return text(duo(0, torch.float32), "baseline", temperature)


def printed(exits: tuple[int, int], schedule: tuple[int, int], temperature: float) -> list[int]:
    return text(duo(0, torch.float32), hispec(*exits, *schedule), temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("exits", PAIRS, ids=str)
def test_every_pair_of_exits_prints_the_baselines_text(exits, temperature):
    assert [printed(exits, schedule, temperature) for schedule in SCHEDULES] == [plain(temperature)] * len(SCHEDULES)


def test_the_control_a_verifier_that_keeps_everything_is_caught_at_every_pair(monkeypatch):
    before = plain(0.7)
    monkeypatch.setitem(rules.KINDS, "coupling", Credulous)
    assert all(printed(exits, (2, 4), 0.7) != before for exits in PAIRS)


@st.composite
def any_model(draw) -> Models:
    """A random model of 3 to 8 layers and any seed, in float32, with a FlashHead of small clusters."""
    model = random_model(draw(st.integers(0, 9999)), layers=draw(st.integers(3, 8)), hidden=draw(st.sampled_from([32, 64])))
    models = Models(model)
    models.heads["target", "flash"] = FlashHead.build(model.head_weight, model.norm, cluster_size=4, probes=3)
    return models


@settings(max_examples=40)
@given(any_model(), st.data(), st.just(0.0) | st.floats(1e-3, 2), st.integers(0, 2**31))
def test_any_model_under_any_schedule_prints_the_baselines_text(models, data, temperature, seed):
    layers = models.target.config.layers
    draft_exit, verify_exit = sorted(data.draw(st.sets(st.integers(1, layers - 1), min_size=2, max_size=2)))
    head = data.draw(st.sampled_from(["dense", "flash"]))
    method = hispec(draft_exit, verify_exit, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8)), head=head)
    assert text(models, method, temperature, seed=seed) == text(models, "baseline", temperature, seed=seed)


@functools.cache
def small() -> Transformer:
    """Four ids and three layers that all have something to say, so that exits and top differ."""
    model = random_model(5, layers=3, sharpness=1.5, vocab_size=VOCAB)
    for layer in model.layers[1:]:
        layer.mlp.down.weight.mul_(4.0)
    return model


@functools.cache
def own_law(exit_layer: int = 3) -> torch.Tensor:
    """Probability [V, V, V] of every three tokens behind id 0 at a layer of `small`, float64, by whole forwards."""
    model, joint = small(), torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    for first, second in product(range(VOCAB), repeat=2):
        x = model.embed(torch.tensor([[0, first, second]]))
        for layer in model.layers[:exit_layer]:
            x = layer(x, model.rope)
        p = (model.norm(x[0]) @ model.head_weight.T).double().softmax(-1)
        joint[first, second] = p[0, first] * p[1, second] * p[2]
    return joint


def stacked(n_d: int, n_i: int):
    """HiSpec over the spans of `small`, made once; only the dice change."""
    stages = build(hispec(1, 2, n_d, n_i), Models(small()), Sampling(1.0, rule="speculative"), 8)
    return lambda sampling: [stage._replace(rule=SpeculativeSampling(sampling, VOCAB)) for stage in stages]


def test_the_exits_differ_from_the_top():
    apart = [float((own_law(n) - own_law()).abs().sum()) / 2 for n in (1, 2)]
    assert own_law().sum() == pytest.approx(1.0) and min(apart) > 0.2


@pytest.mark.parametrize("schedule", [(1, 2), (2, 2), (1, 3)], ids=str)
def test_sampling_through_three_spans_prints_the_models_law(schedule):
    assert p_of(stacked(*schedule), 1000, own_law(), new=4) > 1e-4


def test_the_control_without_promotion_the_law_is_another(monkeypatch):
    monkeypatch.setattr(cascade, "promoted", without_promotion)
    assert caught(stacked(1, 2), own_law(), new=4)


def test_the_control_the_middle_exits_law_is_another():
    assert caught(stacked(1, 2), own_law(2), new=4)

"""Training: the same run whether or not it was interrupted, gradients equal to their naive twins, a split that holds."""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from shelf import normal, refused
from torch.nn import functional as F

from flashspec import Transformer, provenance
from flashspec.models.config import ModelConfig
from flashspec.models.family import Design
from flashspec.train import trainer
from flashspec.train.design import acceptance, learn_target
from flashspec.train.reference import Recipe, exit_scores, initialise, learn_reference
from flashspec.train.texts import Texts, kept
from flashspec.train.trainer import Run, Schedule, disagreement, divergence

SHAPE = ModelConfig("qwen3", 96, 16, 24, 4, 2, 1, 8, context=600)
STREAM = np.random.default_rng(0).integers(0, 96, 4000).astype(np.uint16)
RECIPE = Recipe(Schedule(8, 4, warmup=2, save_every=2), growth=((0, 2), (4, 4)), exits=(1, 2), sequences=2, length=16)
SHORT = {"stopped": replace(RECIPE.schedule, steps=4, decay=0), "handed over": replace(RECIPE.schedule, handover=6)}


def seeded(seed=0):
    model = Transformer(SHAPE)
    initialise(model, seed)
    return model


def trained(folder, recipe=RECIPE, branch=None):
    model = seeded(recipe.seed)
    run = Run(model, recipe.schedule, folder)
    run.train(partial(learn_reference, model, recipe, Texts(recipe.seed, STREAM)), lambda: {"loss": 0.0}, branch)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("short", SHORT)
def test_a_run_in_two_pieces_equals_one_run_in_its_folder_or_as_a_branch(whole, tmp_path, short, place):
    trained(tmp_path / "first", replace(RECIPE, schedule=SHORT[short]))
    assert same(trained(tmp_path / place, branch=tmp_path / "first" / "checkpoint.pt"), whole)
    assert not same(trained(tmp_path / "other", replace(RECIPE, seed=1)), whole)  # the control


def test_an_exit_disagrees_least_with_its_own_distribution():
    model, final = seeded(), normal(5, SHAPE.hidden).requires_grad_()
    with torch.no_grad():
        model.embed.weight.mul_(50)
        p = F.linear(model.norm(final), model.head_weight).softmax(-1)
    early = (final.detach() + 0.5).requires_grad_()
    least, more = disagreement(model, final, final), disagreement(model, early, final)
    assert least.item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-4)
    assert more > 1.05 * least
    more.backward()
    assert final.grad is None and early.grad.norm() > 0


def test_a_kill_between_curve_and_checkpoint_leaves_no_step_twice(whole, tmp_path, monkeypatch):
    def steps():
        return [json.loads(text)["step"] for text in (tmp_path / "curve.jsonl").read_text().splitlines()]

    def dying(self):
        if self.step == 4:
            raise KeyboardInterrupt
        save(self)

    save = Run.save
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    assert steps() == [2, 4]  # ahead of the checkpoint
    assert same(trained(tmp_path), whole) and steps() == [2, 4, 6, 8]


@pytest.mark.parametrize("garbage", [b"", b"x", b"PK\x03\x04", b"\x80\x04N."])
def test_a_checkpoint_that_is_none_is_refused_and_kept(tmp_path, garbage):
    trained(tmp_path, replace(RECIPE, schedule=SHORT["stopped"]))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(garbage or path.read_bytes()[:-100])
    kept = path.read_bytes()
    refused("is no checkpoint of this run", trained, tmp_path)
    assert path.read_bytes() == kept


def test_chunked_distillation_has_the_gradient_of_the_plain_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("flashspec.train.trainer.CHUNK", 10)
    target, recipe = seeded(), Design(1, steps=2, sequences=2, length=16, prompt=1)
    texts, draft = Texts(1, STREAM, rows=tmp_path), copy.deepcopy(target.with_layers(target.layers[:1]))
    value = learn_target(draft, target, texts, recipe, 0)
    found = {n: p.grad.clone() for n, p in draft.named_parameters()}
    draft.zero_grad()
    ids = texts.draw(0, 2, 16)[:, :-1]
    logits = F.linear(draft.norm(draft.rows(ids).flatten(0, 1)), draft.head_weight)
    theirs = F.linear(target.norm(kept(tmp_path / "1-0.safetensors", None).float()), target.head_weight).detach()
    plain = divergence(theirs.softmax(-1), logits, recipe.variation) / len(logits)
    plain.backward()
    assert value == pytest.approx(plain.item(), rel=1e-5)
    assert all(torch.allclose(found[n], p.grad, atol=1e-6) for n, p in draft.named_parameters())
    assert torch.allclose(theirs, target(ids).flatten(0, 1), atol=1e-2)


def test_the_whole_model_accepts_itself_and_a_random_draft_is_not_accepted():
    target, other, held = seeded(), Transformer(SHAPE), np.tile(STREAM, 2)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(normal(*p.shape, seed=3) if p.ndim > 1 else p)
    assert acceptance(target, target, held, 512, 1)["accept"] == pytest.approx(1.0, abs=1e-5)
    assert exit_scores(target, held, (2, 4), windows=1)["accept_4"] == pytest.approx(1.0, abs=1e-5)
    assert acceptance(target, other, held, 512, 1)["accept"] < 0.7


@pytest.mark.parametrize(("flags", "dtype"), [({"avx2", "amx_bf16"}, "bfloat16"), ({"avx2"}, "float32")])
def test_frozen_models_compute_in_bfloat16_where_the_processor_multiplies_it(flags, dtype, monkeypatch):
    monkeypatch.setattr(provenance, "cpu_flags", lambda: frozenset(flags))
    assert trainer.quick_dtype() == dtype

"""Training: the same run whether or not it was interrupted, gradients equal to their naive twins, a split that holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from flashspec.decoding.models import SHIPPED
from flashspec.models.config import ModelConfig
from flashspec.models.transformer import Transformer
from flashspec.train import corpus
from flashspec.train.distill import Distillation, DraftLoss, Teacher, acceptance, narrow, slice_of
from flashspec.train.losses import Taught, disagreement, divergence
from flashspec.train.muon import orthogonalise
from flashspec.train.prompts import KINDS, _cuts, choose
from flashspec.train.target import Recipe, TargetLoss, exit_scores, initialise
from flashspec.train.trainer import Batches, Run, Schedule

SHAPE = ModelConfig("qwen3", 96, 16, 24, 4, 2, 1, 8, context=64)
STREAM = np.random.default_rng(0).integers(0, 96, 4000).astype(np.uint16)
RECIPE = Recipe(Schedule(8, 4, warmup=2, save_every=2), growth=((0, 2), (4, 4)), exits=(1, 2), sequences=2, length=16)


def trained(folder: Path, recipe: Recipe = RECIPE, branch: Path | None = None) -> Transformer:
    model = Transformer(SHAPE)
    initialise(model, recipe.seed)
    run = Run(model, recipe.schedule, folder)
    run.resume(None if run.checkpoint.exists() else branch)
    run.train(TargetLoss(model, recipe, Batches(STREAM, recipe.seed)), lambda: {"loss": 0.0})
    return model


def same(one: Transformer, other: Transformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_in_two_pieces_equals_one_run(tmp_path):
    whole = trained(tmp_path / "whole")
    first = replace(RECIPE, schedule=replace(RECIPE.schedule, steps=4, decay=0))
    trained(tmp_path / "half", first)
    # The constant phase of the short run is the constant phase of the long one, so its checkpoint continues it.
    assert same(trained(tmp_path / "half"), whole)


def test_a_decay_branch_starts_from_another_runs_checkpoint(tmp_path):
    first = replace(RECIPE, schedule=replace(RECIPE.schedule, steps=4, decay=0))
    trained(tmp_path / "trunk", first)
    branch = trained(tmp_path / "branch", branch=tmp_path / "trunk" / "checkpoint.pt")
    assert same(branch, trained(tmp_path / "whole"))


def test_a_phase_that_hands_over_continues_at_the_rate_it_had(tmp_path):
    first = replace(RECIPE, schedule=replace(RECIPE.schedule, handover=6))
    trained(tmp_path / "first", first)
    assert same(trained(tmp_path / "second", branch=tmp_path / "first" / "checkpoint.pt"), trained(tmp_path / "whole"))
    with pytest.raises(ValueError, match="handover must lie between 1 and steps = 8"):
        replace(RECIPE.schedule, handover=9)


def test_an_exit_disagrees_least_with_its_own_distribution():
    """The least value is the entropy of the final distribution; only the exit is moved."""
    model = Transformer(SHAPE)
    initialise(model, 0)
    final = torch.randn(5, SHAPE.hidden, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.no_grad():
        model.embed.weight.mul_(50)
        p = F.linear(model.norm(final), model.head_weight).softmax(-1)
    early = (final.detach() + 0.5).requires_grad_()
    least, more = disagreement(model, final, final), disagreement(model, early, final)
    assert least.item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-4)
    assert more > 1.05 * least
    more.backward()
    assert final.grad is None and early.grad.norm() > 0


def test_another_seed_gives_another_model(tmp_path):
    assert not same(trained(tmp_path / "a"), trained(tmp_path / "b", replace(RECIPE, seed=1)))


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_train
test_train.trained(Path({folder!r}))
"""


def test_kill_minus_nine_loses_nothing_that_was_saved(tmp_path):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    curve, deadline = tmp_path / "killed" / "curve.jsonl", time.monotonic() + 60
    while not curve.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert same(trained(tmp_path / "killed"), trained(tmp_path / "whole"))


def test_a_kill_between_curve_and_checkpoint_leaves_no_step_twice(tmp_path, monkeypatch):
    save, steps = Run.save, []

    def dying(self):
        steps.append(self.step)
        if self.step == 4:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    assert steps == [2, 4] and [line["step"] for line in curve_of(tmp_path)] == [2, 4]  # ahead of the checkpoint
    trained(tmp_path)
    assert [line["step"] for line in curve_of(tmp_path)] == [2, 4, 6, 8]


def curve_of(folder):
    return [json.loads(text) for text in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix, steps=5))
    assert values.min() > 0.4 and values.max() < 1.4
    assert torch.linalg.svdvals(matrix).max() > 1.4  # the control: the matrix itself is not orthogonal


def plain_newton_schulz(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_orthogonalisation_equals_the_plain_iteration():
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(orthogonalise(matrix, 5), plain_newton_schulz(matrix, 5), atol=1e-6)


def test_chunked_distillation_has_the_gradient_of_the_plain_loss(tmp_path):
    target = Transformer(SHAPE)
    initialise(target, 0)
    recipe = Distillation(1, Schedule(2, 0), sequences=2, length=16)
    loss = DraftLoss(slice_of(target, 1), Teacher(target, Batches(STREAM, 1), tmp_path), recipe)
    value = loss(0)
    value.backward()
    found = {n: p.grad.clone() for n, p in loss.draft.named_parameters()}
    loss.draft.zero_grad()
    ids, rows = loss.teacher.rows(0, recipe)
    logits = F.linear(loss.draft.norm(loss.draft.rows(ids).flatten(0, 1)), loss.draft.head_weight)
    plain = divergence(loss.teacher.logits(rows).softmax(-1), logits, recipe.variation) / len(logits)
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)
    assert all(torch.allclose(found[n], p.grad, atol=1e-6) for n, p in loss.draft.named_parameters())


def test_a_full_slice_accepts_everything_and_a_random_draft_does_not():
    target, other = Transformer(SHAPE), Transformer(SHAPE)
    initialise(target, 0)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) if p.ndim > 1 else p)
    held = np.tile(STREAM, 2)
    target.rope = other.rope = Transformer(replace(SHAPE, context=600)).rope
    assert acceptance(target, slice_with_rope(target), held, 1)["accept"] == pytest.approx(1.0, abs=1e-5)
    assert acceptance(target, other, held, 1)["accept"] < 0.7


def slice_with_rope(target: Transformer) -> Transformer:
    draft = slice_of(target, target.config.layers)
    draft.rope = target.rope
    return draft


def test_deepest_exit_agrees_with_itself():
    target = Transformer(replace(SHAPE, context=600))
    initialise(target, 0)
    found = exit_scores(target, np.tile(STREAM, 2), (2, 4), windows=1)
    assert found["accept_4"] == pytest.approx(1.0, abs=1e-5)


def test_the_split_is_a_function_of_the_name():
    names = [f"module_{i}.py" for i in range(2000)]
    held = [n for n in names if corpus.is_held_out(n)]
    assert held == [n for n in names if corpus.is_held_out(n)]
    assert 0.02 < len(held) / len(names) < 0.07


def test_prompts_of_every_kind_are_cut_from_one_module():
    source = '"""' + "word " * 80 + '"""\n\n\ndef f(x):\n    """Say what f does."""\n    return x\n'
    kinds = {kind for kind, _, _ in _cuts(source, "library.py")} | {kind for kind, _, _ in _cuts(source, "test_library.py")}
    assert kinds == set(KINDS)
    assert not list(_cuts("def broken(:", "library.py"))


def test_the_shipped_prompts_are_what_make_models_would_write():
    root = corpus.library_root()
    if corpus.card(root).sha256 not in (SHIPPED / "target" / "README.md").read_text(encoding="utf-8"):
        pytest.skip("this interpreter has another standard library than the shipped models were trained on")
    tokenizer = Tokenizer.from_file(str(SHIPPED / "target" / "tokenizer.json"))
    made = choose(corpus.split(root)[1], root, tokenizer)
    shipped = json.loads((SHIPPED / "prompts.json").read_text(encoding="utf-8"))["prompts"]
    assert json.loads(json.dumps(made)) == shipped
    assert choose(corpus.split(root)[1], root, tokenizer, each=16) != shipped


@pytest.mark.parametrize("garbage", [b"", b"x", b"PK\x03\x04", b"\x80\x04N."])
def test_a_checkpoint_that_is_none_is_refused_and_kept(tmp_path, garbage):
    trained(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(garbage or path.read_bytes()[:-100])
    kept = path.read_bytes()
    with pytest.raises(ValueError, match="is no checkpoint of this run"):
        trained(tmp_path)
    assert path.read_bytes() == kept


def test_refusals_in_words():
    with pytest.raises(ValueError, match="decay must lie between"):
        Schedule(10, 11)
    with pytest.raises(ValueError, match="at least 1 layer"):
        Distillation(0, Schedule(1, 0))
    with pytest.raises(ValueError, match="cannot be deeper"):
        slice_of(Transformer(SHAPE), 5)


def test_a_narrower_draft_starts_on_the_principal_directions_of_the_targets_head():
    target = Transformer(SHAPE)
    initialise(target, 0)
    c = target.config
    whole = narrow(target, Distillation(1, Schedule(1, 0), hidden=c.hidden))
    half = narrow(target, Distillation(1, Schedule(1, 0), hidden=c.hidden // 2, ffn=24))
    h = half.config
    assert (h.hidden, h.ffn, h.layers, h.vocab_size) == (c.hidden // 2, 24, 1, c.vocab_size)

    def likeness(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach() @ weight.detach().T

    wanted = likeness(target.head_weight)
    weights = whole.embed.weight, half.embed.weight, target.head_weight[:, : c.hidden // 2]
    lost = [float((likeness(w) - wanted).norm()) for w in weights]
    assert lost[0] < 1e-4 * float(wanted.norm())
    assert lost[1] < lost[2]  # the control: any other columns lose more
    with pytest.raises(ValueError, match="between 1 and"):
        narrow(target, Distillation(1, Schedule(1, 0), hidden=c.hidden + 1))
    with pytest.raises(ValueError, match="'float32' or 'bfloat16', got 'half'"):
        Distillation(1, Schedule(1, 0), dtype="half")


@pytest.mark.slow
def test_the_compiled_slope_is_the_gradient_of_the_plain_divergence():
    wanted, logits = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0)).unbind()
    plain, fast = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, exact = Taught.apply(wanted, fast, 0.7, True), divergence(wanted.softmax(-1), plain, 0.7)
    value.backward()
    exact.backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.allclose(fast.grad, plain.grad, atol=1e-5)
    assert not torch.allclose(fast.grad, torch.autograd.grad(divergence(wanted.softmax(-1), plain, 0.0), plain)[0], atol=1e-3)

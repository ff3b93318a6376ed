"""What is pruned by importance is closer to its target; designed drafts and trained exits are ready to serve."""

import copy
import functools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import shelf
import torch
from shelf import refused
from test_cli_refusals import full_disk
from test_train import same
from toys import PROMPT, random_model, run, text

from flashspec import Models, Transformer, load
from flashspec.decoding.generate import agreement
from flashspec.models import family
from flashspec.models.config import ModelConfig
from flashspec.models.exits import ExitAdapter, rows_at
from flashspec.models.family import Design
from flashspec.models.synthetic import synthetic
from flashspec.train.design import Importance, Place, choose, design_draft, importance, learn_text, prune
from flashspec.train.lessons import LessonRecipe, Lessons, heard, learned
from flashspec.train.reference import REFERENCE, initialise
from flashspec.train.taught import exit_pupil, untrained
from flashspec.train.texts import Texts, continued, windows
from flashspec.train.trainer import Run, Schedule

SHAPE = ModelConfig("qwen3", 64, 32, 64, 6, 4, 2, 8, context=64, eos=(0,))
LLAMA = replace(SHAPE, family="llama", attention_bias=True, mlp_bias=True, tied=False)
OPT = replace(SHAPE, family="opt", kv_heads=4, attention_bias=True, mlp_bias=True, norm_eps=1e-5)
FAMILIES = pytest.mark.parametrize("config", [SHAPE, LLAMA, OPT], ids=["qwen3", "llama", "opt"])
TINY = Design(layers=2, heads=2, kv_heads=1, ffn=24, steps=4, decay=2, sequences=2, length=16, written=6, prompt=4, save_every=2)


@functools.cache
def stream(size=6000):
    dice, ids = np.random.default_rng(0), [1, 2]
    for _ in range(size):
        ids.append((3 * ids[-1] + 5 * ids[-2] + 7 * int(dice.random() < 0.3)) % 64)
    return np.asarray(ids, dtype=np.int32)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    model, texts, design = Transformer(SHAPE), Texts(0, stream()[:5000]), Design(sequences=8, length=32)
    initialise(model, 0)
    run = Run(model, Schedule(120, 60, 10, save_every=120), tmp_path_factory.mktemp("target"))
    run.train(lambda step: learn_text(model, texts, design, step), dict)
    return model.eval().requires_grad_(False)


def held_out():
    return windows(stream()[5200:], 12, 32)


def divergence(target, draft):
    with torch.no_grad():
        p, q = target(held_out()).log_softmax(-1), draft(held_out()).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def pruned(model, rank=lambda scores: scores, **form):
    found = Importance(*map(rank, importance(model, windows(stream()[:5000], 8, 32))))
    return prune(model, choose(found, model.config, replace(model.config, **form)))


def test_the_group_of_heads_that_says_least_is_cut(target):
    quiet, keeps = copy.deepcopy(target), [number % 2 for number in range(target.config.layers)]
    half = target.config.heads // 2 * target.config.head_dim
    for keep, layer in zip(keeps, quiet.blocks, strict=True):
        layer.attention.out.weight[:, :half].mul_(1 if keep == 0 else 1e-3)
        layer.attention.out.weight[:, half:].mul_(1 if keep == 1 else 1e-3)
    found = importance(quiet, windows(stream()[:5000], 8, 32))
    chosen = choose(found, quiet.config, replace(quiet.config, heads=2, kv_heads=1))
    assert [group for (group,) in chosen.groups] == keeps
    assert divergence(quiet, prune(quiet, chosen)) < divergence(quiet, pruned(quiet, lambda s: -s, heads=2, kv_heads=1)) / 10


@pytest.mark.parametrize("form", [{"layers": 4}, {"ffn": 24}, {"layers": 5, "ffn": 40}], ids=str)
def test_importance_beats_chance_and_its_own_reverse(target, form):
    ours, worst = divergence(target, pruned(target, **form)), divergence(target, pruned(target, lambda s: -s, **form))
    chance = []
    for seed in range(4):
        dice = torch.Generator().manual_seed(seed)
        chance.append(divergence(target, pruned(target, lambda s, dice=dice: torch.rand(s.shape, generator=dice), **form)))
    assert ours < sum(chance) / len(chance) and ours < worst


def test_a_silent_layer_goes_first_and_dropping_the_last_layers_is_not_the_same(target):
    model = pruned(target)
    with torch.no_grad():
        for weight in (model.blocks[2].attention.out.weight, model.blocks[2].mlp.down.weight):
            weight.zero_()
    choice = choose(importance(model, held_out()), SHAPE, replace(SHAPE, layers=5))
    assert choice.layers == [0, 1, 3, 4, 5]
    assert divergence(model, prune(model, choice)) == pytest.approx(0.0, abs=1e-6)
    assert divergence(model, prune(model, choice._replace(layers=[0, 1, 2, 3, 4]))) > 1e-3


@FAMILIES
def test_pruning_a_part_is_silencing_it(config):
    model = synthetic(config, torch.float32)
    small = replace(config, ffn=24) if config is OPT else replace(config, heads=2, kv_heads=1, ffn=24)
    choice, twin = choose(importance(model, held_out()), config, small), pruned(model)
    with torch.no_grad():
        for layer, heads, channels in zip(twin.blocks, choice.heads, choice.channels, strict=True):
            columns = [h * config.head_dim + i for h in heads for i in range(config.head_dim)]
            for weight, kept in ((layer.attention.out.weight, columns), (layer.mlp.down.weight, channels)):
                silent = torch.ones(weight.shape[1], dtype=torch.bool)
                silent[kept] = False
                weight[:, silent] = 0.0
    assert torch.allclose(prune(model, choice)(held_out()), twin(held_out()), atol=1e-4)
    assert torch.equal(pruned(model)(held_out()), model(held_out()))  # what keeps everything


def test_text_written_in_batches_is_what_the_plain_model_would_write(target):
    prompts = windows(stream(), 3, 4)
    found, ids = continued(target, prompts, 12, torch.Generator().manual_seed(1)), prompts
    dice = torch.Generator().manual_seed(1)
    while ids.shape[1] < 12:  # the naive twin: everything is read again for every token
        logits = target(ids)[:, -1]
        noise = -torch.empty_like(logits).exponential_(generator=dice).log()
        ids = torch.cat((ids, (logits + torch.tensor([[0.0], [1.0], [1.0]]) * noise).argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(found, ids)
    assert not torch.equal(found[1], continued(target, prompts, 12, torch.Generator().manual_seed(2))[1])  # the control


def test_a_design_in_two_pieces_is_the_same_draft(target, tmp_path, monkeypatch):
    whole = design_draft(target, stream(), Place(tmp_path / "whole", tmp_path), TINY)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shelf.interrupting(patch, Run, "_advance", after=3)
        design_draft(target, stream(), Place(tmp_path / "cut", tmp_path), TINY)
    assert same(design_draft(target, stream(), Place(tmp_path / "cut", tmp_path), TINY), whole)
    assert not same(design_draft(target, stream(), Place(tmp_path / "other", tmp_path), replace(TINY, seed=2)), whole)
    curve = (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in curve] == [2, 4] and "accept" in json.loads(curve[0])
    refused(
        "holds the work on another model, design",
        design_draft,
        target,
        stream(),
        Place(tmp_path / "whole", tmp_path),
        replace(TINY, ffn=32),
    )


def test_the_family_is_matched_and_covers_one_to_eight_layers():
    def off(design, layers):
        return abs(design.of(REFERENCE).body_parameters / (layers * replace(REFERENCE, layers=1).body_parameters) - 1)

    stems = {1: ("wide-", "deep-"), 2: ("wide2-", "deep2-")}
    one, two = ([d for name, d in family.FAMILY.items() if name.startswith(stem)] for stem in stems.values())
    assert all(off(design, layers) <= family.TOLERANCE for layers, points in ((1, one), (2, two)) for design in points)
    assert {design.layers for design in one} == set(range(1, 9)) and {design.layers for design in two} == {2, 3, 4, 8}
    assert off(replace(family.FAMILY["deep-8"], ffn=128), 1) > family.TOLERANCE  # the control
    refused("OPT checkpoint cannot say", Design(heads=2, kv_heads=2).of, OPT)


@pytest.mark.parametrize(("form", "message"), [
    ({"layers": 7}, "bigger than its target: layers must lie between 1 and 6, got 7"),
    ({"ffn": 65}, "bigger than its target: ffn"),
    ({"heads": 8}, "bigger than its target: heads"),
    ({"heads": 3, "kv_heads": 0}, "cannot share"),
    ({"heads": 4, "kv_heads": 1}, "at most 2 share one"),
    ({"length": 64}, "context of 64"),
    ({"length": 60}, "needs 621; give more"),
])  # fmt: skip
def test_designs_that_do_not_fit_are_refused(target, tmp_path, form, message):
    refused(message, design_draft, target, stream(600), tmp_path, replace(TINY, **form))
    assert not list(tmp_path.iterdir())


def test_the_command_goes_on_after_a_full_disk_and_writes_a_folder_that_is_ready_to_serve(folders, tmp_path, cli):
    transformers = pytest.importorskip("transformers")
    text, out = tmp_path / "text.txt", tmp_path / "mine"
    text.write_text("def design(out, work):\n    return out\n" * 200)
    few = "--layers 1 --ffn 32 --steps 2 --decay 1 --length 16 --written 3 --prompt 4 --sequences 2"
    line = ["draft", "design", "--target", folders["target"], "--out", out, "--text", text, *few.split(), "--k"]
    with full_disk(20_000):
        assert "defect" not in cli(*line, "5", code=2).err
    assert not out.exists() and (tmp_path / "mine.work" / "design.json").is_file()
    made = [cli(*line, "5") and shelf.listing(out) for _ in range(2)]
    assert made[0] == made[1] and cli(*line, "7", code=2) and shelf.listing(out) == made[0] and not list(tmp_path.rglob(".*"))
    wanted = {"method": "draft_model", "model": str(out), "num_speculative_tokens": 5}
    assert json.loads((out / "speculative.json").read_text()) == wanted
    models = load(folders["target"], out)
    assert models.draft.config.layers == 1 and models.draft.config.ffn == 32
    assert transformers.AutoTokenizer.from_pretrained(out)("def f(x):")["input_ids"] == models.encode("def f(x):")
    assert all((out / name).exists() for name in ("README.md", "curve.jsonl", "choice.json", "digests.json", "tokenizer.json"))


LONG = [i % 61 for i in range(20)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = random_model(3)
    for layer in model.layers[3:]:
        layer.mlp.down.weight.mul_(12.0)
    ids = torch.randint(0, 61, (168, 64), generator=torch.Generator().manual_seed(1))
    first, *rest = (partial(heard, model, some, (2, 4)) for some in ids.split([8, *[2] * 80]))
    lessons = Lessons(rest, [first])
    recipe = LessonRecipe((2, 4), rank=32, steps=80, rate=1e-2)
    adapters, place = untrained(model, recipe), tmp_path_factory.mktemp("exits")
    bare = {
        n: learned(exit_pupil(model, own, n), lessons, place / "bare", replace(recipe, steps=0)) for n, own in adapters.items()
    }
    found = {n: learned(exit_pupil(model, own, n), lessons, place / str(n), recipe) for n, own in adapters.items()}
    return model, {n: own.eval().requires_grad_(False) for n, own in adapters.items()}, bare, found


def test_training_raises_the_agreement_of_what_was_the_shared_norm(trained):
    model, adapters, bare, found = trained
    assert all(found[n][1] > bare[n][1] + 0.05 and found[n][0] > bare[n][0] for n in adapters)
    rows = rows_at(model, torch.tensor([PROMPT]), (2,))[2]
    assert torch.allclose(ExitAdapter(model, 4)(rows), model.norm(rows))


@pytest.mark.filterwarnings("ignore:exit")
@pytest.mark.parametrize("method", ["self_speculation", "hispec", "hispec_flash"])
def test_adapters_raise_acceptance_and_change_no_text(trained, method):
    model, adapters, *_ = trained
    plain, fitted = Models(model), Models(model, exits=adapters)
    outs = [run(models, method, max_new_tokens=60, prompt=LONG) for models in (plain, fitted)]
    assert outs[0].tokens == outs[1].tokens == text(plain, "baseline", max_new_tokens=60, prompt=LONG)
    if method == "self_speculation":
        (kept, of), (more, all_) = (agreement(out.events, 1) for out in outs)
        assert more / all_ > kept / of

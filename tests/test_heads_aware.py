"""Clusters for queries: equal ones, better than by direction for rows like these, and a command that builds and keeps them."""

import json
import re
from dataclasses import replace

import pytest
import shelf
import tiny
import torch

from flashspec.cli.main import status
from flashspec.decoding.models import Models, load
from flashspec.heads import DenseHead, FlashHead, Origin, head_named, registry
from flashspec.heads.base import FILE, kept
from flashspec.heads.cluster import Recipe, asked_of, bisected, cluster_for
from flashspec.heads.flash import required_probes
from flashspec.kernels import Packed, library, pack
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.measure.queries import agreements, domains
from flashspec.models.folder import read_tensors
from flashspec.models.transformer import RMSNorm
from flashspec.sampling import Sampling

VOCAB, WIDTH = 2048, 64


def weight(vocab=VOCAB):
    return torch.randn(vocab, WIDTH, generator=torch.Generator().manual_seed(1))


def queries(count=400, seed=2, strong=slice(0, 8)):
    """Rows that differ in eight directions twenty times as much as in the others."""
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    rows[:, strong] *= 20
    return rows


@pytest.mark.parametrize(("vocab", "size"), [(2048, 16), (2047, 16), (2033, 16), (31, 16), (16, 16), (5, 16), (300, 7), (64, 1)])
def test_bisection_fills_every_cluster_but_the_last_and_the_same_seed_does_it_again(vocab, size):
    found = bisected(weight(vocab), size, seed=3)
    full, rest = divmod(vocab, size)
    assert torch.bincount(found).sort(descending=True).values.tolist() == [size] * full + [rest] * bool(rest)
    assert torch.equal(found, bisected(weight(vocab), size, seed=3))


def test_clusters_for_queries_find_more_on_new_rows_of_their_kind_and_less_on_another():
    asked = [asked_of(weight(), queries(strong=strong), None) for strong in (slice(0, 8), slice(40, 48))]
    aware, other = (FlashHead.build(weight(), clusters=cluster_for(weight(), each, Recipe(16))) for each in asked)
    plain, new = FlashHead.build(weight()), queries(seed=9)
    exact = DenseHead(None, weight())
    rates = [float((required_probes(head, exact, new) <= 4).double().mean()) for head in (aware, plain, other)]
    assert rates[0] > rates[1] + 0.1 and rates[2] < rates[1], rates


@pytest.mark.parametrize("packed", [False, True])
def test_the_likeliest_ids_are_always_scored_once_each_unless_the_plan_names_others(packed):
    given = pack(weight(), 8) if packed else weight()
    head, rows = FlashHead.build(given, queries=queries()), queries()
    logits = rows @ (given.dequantised() if packed else given).T
    likely = logits.softmax(1).mean(0)
    always = list(head.plan.always)
    assert len(set(always)) == len(always) == VOCAB // 128 and (likely[always].diff() <= 1e-4).all()
    assert likely[always].min() >= 0.9 * likely.sort(descending=True).values[len(always) - 1]
    assert {*always} <= {*head.with_plan(probes=1)(rows[:1]).ids[0].tolist()} and head.clusters.centroids.dtype is torch.float32
    assert FlashHead.build(given, queries=queries(), always=(7,)).plan.always == (7,)
    assert FlashHead.build(given).plan.always == ()


def test_rows_are_asked_behind_the_norm():
    norm = RMSNorm(WIDTH, 1e-6)
    torch.nn.init.uniform_(norm.weight, 0.1, 2.0, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        one, other = FlashHead.build(weight(), norm, queries=queries()), FlashHead.build(weight(), queries=norm(queries()))
    assert torch.equal(one.clusters.members, other.clusters.members) and one.plan == other.plan
    assert not torch.equal(one.clusters.members, FlashHead.build(weight(), queries=queries()).clusters.members)


test_what_cannot_be_asked_is_refused = shelf.refusing([
    (lambda: FlashHead.build(weight(), RMSNorm(WIDTH, 1e-6), queries=queries()[:, 1:]), r"shape \[n, 64\], got \[400, 63\]"),
    (lambda: FlashHead.build(weight(), queries=queries()[0]), r"rows of shape \[n, 64\], got \[64\]"),
    (lambda: FlashHead.build(weight(), queries=queries()[:0]), "at least one; these 0 are not"),
    (lambda: FlashHead.build(weight(), queries=queries() / 0), "finite hidden rows"),
    (lambda: FlashHead.build(weight(8), queries=queries()), "cluster_size 16 exceeds the vocabulary of 8"),
])  # fmt: skip


def prompts(folder, each=4):
    return tiny.prompts_file(folder, ("code", "prose", "letters"), each)


def test_rows_to_judge_by_are_none_of_those_to_build_on(folders, tmp_path):
    models = load(folders["draft"], None)
    asked = load_prompts(prompts(tmp_path), None, models)
    found = domains(models, [*asked, asked[0]], "letters", 8, Sampling(0.7, seed=0))
    seen = torch.cat([domain.seen for domain in found.values()])
    assert [len(domain.seen) for domain in found.values()] == [24, 24, 0]
    assert [len(domain.held) for domain in found.values()] == [8, 8, 32]
    for domain in found.values():
        assert float(torch.cdist(domain.held, seen).min()) > 0 == float(torch.cdist(seen[:1], seen).min())


@pytest.fixture
def home(tmp_path, monkeypatch):
    library()  # compiled before the cache moves
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_command_builds_a_head_that_the_next_process_finds_in_the_cache(folders, home, capsys, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_NOW", 1)
    line = ["heads", "build", str(folders["draft"]), "--prompts", str(prompts(home)), "--new-tokens", "12"]
    before, model = shelf.listing(folders["draft"]), load(folders["draft"], None).target
    origin = Origin(model.vocabulary, model.norm, folders["draft"])
    shelf.refused("`flashspec heads build MODEL`", head_named, "flash", origin, error=FileNotFoundError)
    assert status(line) == 0 and shelf.listing(folders["draft"]) == before
    told, place = capsys.readouterr().out, kept(model.vocabulary, model.norm)
    assert str(place) in told and "letters (unseen)" in told and place.is_relative_to(home / "cache")
    head, facts = head_named("flash", origin), read_tensors(place, "")[1]["flash_head"]
    assert not head.clusters.spherical and len(head.plan.always) == tiny.VOCAB // 128 and '"agreement"' in facts
    models = load(folders["draft"], None)
    asked = domains(models, load_prompts(prompts(home), None, models), "letters", 12, Sampling(0.7, seed=0))
    rates = agreements(head, DenseHead(model.norm, model.vocabulary), asked)
    assert json.loads(facts)["told"]["agreement"]["0.1"] == rates != dict.fromkeys(rates, 1.0)
    assert [f"{rate:.3f}" for rate in rates.values()] == re.findall(r"[01]\.\d{3}", told.splitlines()[2])
    assert kept(model.vocabulary, None) != place
    place.write_bytes(place.read_bytes()[:999])
    shelf.refused("truncated or not a safetensors .* build the head again", head_named, "flash", origin)
    assert status(line) == 0 and head_named("flash", origin).plan == head.plan


def test_a_head_in_a_folder_comes_with_its_model_and_leaves_the_cache_alone(folders, home, capsys):
    line = ["heads", "build", str(folders["draft"]), "--prompts", str(prompts(home)), "--new-tokens", "4", "--out"]
    before, out = shelf.listing(folders["draft"]), home / "draft"
    assert status([*line, str(out)]) == 0 and not (home / "cache" / "flashspec" / "heads").exists()
    assert {*shelf.listing(out)} - {*before} == {FILE} and shelf.listing(folders["draft"]) == before
    with_head = Models(load(folders["target"], None).target, load(out, None).target, folders={"draft": out})
    assert not with_head.head("draft", "flash").clusters.spherical
    for taken in (folders["draft"], out):
        assert status([*line, str(taken)]) == 2
    assert status(["heads", "build", str(out), *line[3:-1]]) == 2 and shelf.listing(folders["draft"]) == before
    said = capsys.readouterr().err
    assert "which this command reads" in said and "holds files already" in said and "holds a FlashHead, which" in said


def test_a_gguf_files_head_is_kept_in_its_own_bits(home, capsys):
    pytest.importorskip("gguf")
    import test_gguf

    file = home / "small.gguf"
    test_gguf.written(file, replace(test_gguf.CONFIG, vocab_size=tiny.VOCAB, layers=1), "Q8_0")
    line = ["heads", "build", str(file), "--prompts", str(prompts(home)), "--new-tokens", "4"]
    assert status(line) == 0 and [path.name for path in home.glob("*.gguf")] == [file.name]
    model = load(file, None).target
    head, place = head_named("flash", Origin(model.vocabulary, model.norm, file)), kept(model.vocabulary, model.norm)
    assert isinstance(head.table.blocks, Packed) and str(place) in capsys.readouterr().out and place.is_file()
    assert status([*line, "--out", str(home / "new")]) == 2 and "--out copies a checkpoint folder" in capsys.readouterr().err


def few(kinds=("code", "prose"), each=4):
    return [Prompt(kind, tuple((7 * i + j + len(kind)) % 512 for i in range(9 + j))) for kind in kinds for j in range(each)]


@pytest.mark.parametrize(("asked", "unseen", "words"), [
    ([*few(), *few(("few",), 2) * 2], "prose", "4 different prompts of a kind are needed, .*; 'few' has 2"),
    (few(), "chat", "got 'chat' of code, prose"),
    (few(("code",)), "code", "one of at least two kinds of prompts, got 'code' of code"),
])  # fmt: skip
def test_prompts_that_leave_nothing_to_build_on_are_refused_before_any_text(asked, unseen, words):
    shelf.refused(words, domains, None, asked, unseen, 6, Sampling(0.7, seed=0))

"""Clusters are equal and of one seed; those for queries find more for rows like these, and a command builds and keeps them."""

import json
import re
import sys
from dataclasses import replace

import pytest
import shelf
import torch
from torch.nn import functional as F

from flashspec.decoding.models import Models, load
from flashspec.heads import DenseHead, FlashHead, Origin, cluster, head_named, registry
from flashspec.heads.base import FILE, kept
from flashspec.heads.cluster import Recipe, asked_of, assign_balanced, bisected, cluster_for, from_assignments
from flashspec.heads.flash import required_probes
from flashspec.kernels import Packed, library, pack
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.measure.queries import agreements, domains
from flashspec.models.folder import read_tensors
from flashspec.models.transformer import RMSNorm
from flashspec.sampling import Sampling

VOCAB, WIDTH = 2048, 64


def weight(vocab=VOCAB):
    return shelf.normal(vocab, WIDTH, seed=1)


def queries(count=400, seed=2, strong=slice(0, 8)):
    """Rows that differ in eight directions twenty times as much as in the others."""
    rows = shelf.normal(count, WIDTH, seed=seed)
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
    return shelf.prompts_file(folder, ("code", "prose", "letters"), each)


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


def test_the_command_builds_a_head_that_the_next_process_finds_in_the_cache(folders, home, cli, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_NOW", 1)
    line = ["heads", "build", folders["draft"], "--prompts", prompts(home), "--new-tokens", "12"]
    before, model = shelf.listing(folders["draft"]), load(folders["draft"], None).target
    origin = Origin(model.vocabulary, model.norm, folders["draft"])
    shelf.refused("`flashspec heads build MODEL`", head_named, "flash", origin, error=FileNotFoundError)
    told, place = cli(*line).out, kept(model.vocabulary, model.norm)
    assert str(place) in told and "letters (unseen)" in told and place.is_relative_to(home / "cache")
    assert shelf.listing(folders["draft"]) == before
    head, facts = head_named("flash", origin), read_tensors(place, "")[1]["flash_head"]
    assert not head.clusters.spherical and len(head.plan.always) == shelf.VOCAB // 128 and '"agreement"' in facts
    models = load(folders["draft"], None)
    asked = domains(models, load_prompts(prompts(home), None, models), "letters", 12, Sampling(0.7, seed=0))
    rates = agreements(head, DenseHead(model.norm, model.vocabulary), asked)
    assert json.loads(facts)["told"]["agreement"]["0.1"] == rates != dict.fromkeys(rates, 1.0)
    assert [f"{rate:.3f}" for rate in rates.values()] == re.findall(r"[01]\.\d{3}", told.splitlines()[2])
    assert kept(model.vocabulary, None) != place
    place.write_bytes(place.read_bytes()[:999])
    shelf.refused("truncated or not a safetensors .* build the head again", head_named, "flash", origin)
    assert cli(*line) and head_named("flash", origin).plan == head.plan


def test_a_head_in_a_folder_comes_with_its_model_and_leaves_the_cache_alone(folders, home, cli):
    line = ["--prompts", prompts(home), "--new-tokens", "4", "--out"]
    before, out = shelf.listing(folders["draft"]), home / "draft"
    assert cli("heads", "build", folders["draft"], *line, out) and not (home / "cache" / "flashspec" / "heads").exists()
    assert {*shelf.listing(out)} - {*before} == {FILE} and shelf.listing(folders["draft"]) == before
    with_head = Models(load(folders["target"], None).target, load(out, None).target, folders={"draft": out})
    assert not with_head.head("draft", "flash").clusters.spherical
    for words, said in (
        ([folders["draft"], *line, folders["draft"]], "which this command reads"),
        ([folders["draft"], *line, out], "holds files already"),
        ([out, *line[:-1]], "holds a FlashHead, which"),
    ):
        assert said in cli("heads", "build", *words, code=2).err
    assert shelf.listing(folders["draft"]) == before


def test_a_gguf_files_head_is_kept_in_its_own_bits(home, cli):
    pytest.importorskip("gguf")
    import test_gguf

    file = home / "small.gguf"
    test_gguf.written(file, replace(test_gguf.CONFIG, vocab_size=shelf.VOCAB, layers=1), "Q8_0")
    line = ["heads", "build", file, "--prompts", prompts(home), "--new-tokens", "4"]
    told = cli(*line).out
    assert [path.name for path in home.glob("*.gguf")] == [file.name]
    model = load(file, None).target
    head, place = head_named("flash", Origin(model.vocabulary, model.norm, file)), kept(model.vocabulary, model.norm)
    assert isinstance(head.table.blocks, Packed) and str(place) in told and place.is_file()
    assert "--out copies a checkpoint folder" in cli(*line, "--out", home / "new", code=2).err


def few(kinds=("code", "prose"), each=4):
    return [Prompt(kind, tuple((7 * i + j + len(kind)) % 512 for i in range(9 + j))) for kind in kinds for j in range(each)]


@pytest.mark.parametrize(("asked", "unseen", "words"), [
    ([*few(), *few(("few",), 2) * 2], "prose", "4 different prompts of a kind are needed, .*; 'few' has 2"),
    (few(), "chat", "got 'chat' of code, prose"),
    (few(("code",)), "code", "one of at least two kinds of prompts, got 'code' of code"),
])  # fmt: skip
def test_prompts_that_leave_nothing_to_build_on_are_refused_before_any_text(asked, unseen, words):
    shelf.refused(words, domains, None, asked, unseen, 6, Sampling(0.7, seed=0))


def rows(count, width=24, seed=0):
    """Rows around thirty directions of very unequal popularity, with lengths that vary."""
    dice = torch.Generator().manual_seed(seed)
    heads = torch.randn(30, width, generator=dice)
    popular = (torch.rand(count, generator=dice) ** 3 * 30).long()
    lengths = torch.rand(count, 1, generator=dice) + 0.5
    return lengths * F.normalize(heads[popular] + 0.3 * torch.randn(count, width, generator=dice), dim=1)


def iterations(monkeypatch, lloyd, balanced):
    monkeypatch.setattr(sys.modules[Recipe.__module__], "LLOYD", lloyd)
    monkeypatch.setattr(sys.modules[Recipe.__module__], "BALANCED", balanced)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("vocab", [640, 641, 655, 1000])
@pytest.mark.parametrize("size", [1, 5, 16, 64])
def test_every_cluster_has_its_size_and_every_id_stands_once(vocab, size, backend, monkeypatch):
    weight = rows(vocab)
    iterations(monkeypatch, 2, 1)
    found = cluster(weight, Recipe(size, backend=backend))
    assert found.members.shape == (-(-vocab // size), size)
    assert torch.equal(found.members[found.members >= 0].sort().values, torch.arange(vocab))
    assert (found.members < 0).sum() == -vocab % size and (found.members[:, 0] >= 0).all()
    for number, ids in enumerate(found.members):
        mine = ids[ids >= 0]
        assert (found.assignments[mine] == number).all()
        centre = F.normalize(weight[mine], dim=1).mean(0) * weight[mine].norm(dim=1).mean()
        assert torch.allclose(found.centroids[number], centre, atol=1e-5)


def test_the_auction_gives_a_full_cluster_to_its_highest_bidders_and_ends_when_every_point_is_the_same():
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    assert assign_balanced(points, torch.eye(2), 2).tolist() == [0, 0, 1, 1]
    points = F.normalize(torch.ones(1000, 8), dim=1)
    placed = assign_balanced(points, F.normalize(torch.randn(250, 8, generator=torch.Generator().manual_seed(0)), dim=1), 4)
    assert (torch.bincount(placed, minlength=250) == 4).all()


def cohesion(found, weight):
    """Mean cosine of a row and the direction of its cluster."""
    return F.cosine_similarity(weight, found.centroids[found.assignments]).mean().item()


def test_clusters_are_tighter_than_chance_and_iterations_help(monkeypatch):
    weight = rows(2000)
    chance, settled = from_assignments(weight, torch.arange(2000) % 125, 16), cluster(weight, Recipe(backend="torch"))
    iterations(monkeypatch, 0, 1)
    first = cluster(weight, Recipe(backend="torch"))
    assert cohesion(chance, weight) + 0.3 < cohesion(first, weight) < cohesion(settled, weight)


def test_only_the_direction_of_a_row_decides_its_cluster():
    weight = rows(500)
    lengths = 2.0 ** torch.randint(-2, 3, (500, 1), generator=torch.Generator().manual_seed(5))
    recipe = Recipe(16, backend="torch")
    assert torch.equal(cluster(weight, recipe).members, cluster(lengths * weight, recipe).members)

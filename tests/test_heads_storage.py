"""Heads on disk: each comes back as it was, beside its own weight alone; rankings, a missing faiss, and the public layout."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import shelf
import torch
from safetensors.torch import load_file, save_file
from shelf import python, refused
from tokenizers import Tokenizer

from flashspec.decoding.generate import generate, own_method
from flashspec.decoding.models import Models, load
from flashspec.heads import (
    HEADS,
    FlashHead,
    IndexHead,
    Origin,
    ShortlistHead,
    cluster,
    head_named,
    is_public,
    load_public,
    ranked_by_frequency,
    registry,
)  # fmt: skip
from flashspec.heads.base import kept, weight_digest
from flashspec.heads.candidates import KINDS, usable
from flashspec.heads.cluster import Recipe
from flashspec.heads.registry import RANKED, file_of
from flashspec.models.folder import read_tensors
from flashspec.models.transformer import Transformer
from flashspec.train import reference

IDS, WIDTH = 300, 32
rows = partial(shelf.normal, 6, WIDTH, seed=2)
PLAN = {"cluster_size": 7, "probes": 5, "always": (3, 299), "seed": 2}
MADE = {
    "flash": lambda: FlashHead.build(weight(), **PLAN),
    "flash in int8": lambda: FlashHead.build(weight(), cluster_size=7, probes=5, stage1="int8"),
    "flash for queries": lambda: FlashHead.build(weight(), queries=rows(), probes=5),
    "fr_spec": lambda: ShortlistHead.build(weight(), ranked=torch.arange(IDS).flip(0), size=50),
    "vocab_trim": lambda: ShortlistHead.build(weight(), ranked=torch.arange(IDS), size=50),
}


def weight(vocab=IDS, width=WIDTH, seed=0):
    return torch.randn(vocab, width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def same(one, other):
    if isinstance(one, FlashHead):
        parts = zip(one.table, other.table, strict=True)
        return one.plan == other.plan and all(getattr(a, "cells", a).equal(getattr(b, "cells", b)) for a, b in parts)
    mine, theirs = one(rows()), other(rows())
    return mine.ids.equal(theirs.ids) and mine.logits.equal(theirs.logits) and one.bytes_read(2) == other.bytes_read(2)


@pytest.mark.parametrize("name", MADE)
def test_a_saved_head_is_found_by_its_name_in_the_models_folder_as_it_was(tmp_path, name):
    head, known = MADE[name](), name.split()[0]
    head.save(tmp_path if known == "flash" else tmp_path / file_of(known))
    assert [path.name for path in tmp_path.iterdir()] == [file_of(known)]
    assert same(head, head_named(known, Origin(weight(), None, tmp_path))) and same(head, MADE[name]())
    assert not same(head, head.with_plan(probes=4) if known not in RANKED else head.with_plan(shortlist=9))


def test_every_flash_head_reads_the_folders_clusters_and_loads_beside_the_same_weight_in_float32(tmp_path):
    MADE["flash"]().save(tmp_path)
    for name in ("flash", "flash_int8", "flash_int4"):
        places = Origin(weight(), None, tmp_path), Origin(weight())
        assert [head_named(name, place).probes for place in places] == [5, 2]
    wide = FlashHead.load(tmp_path, weight().float())
    assert torch.equal(wide.clusters.members, MADE["flash"]().clusters.members) and wide.table.blocks.dtype is torch.float32
    assert weight_digest(weight()) == weight_digest(weight().float()) != weight_digest(weight().flip(0))


@pytest.mark.parametrize("name", ["flash", "fr_spec"])
def test_a_head_beside_another_weight_is_refused(tmp_path, name):
    MADE[name]().save(tmp_path / file_of(name))
    for other in (weight(vocab=301), weight(width=40), weight(seed=1), weight().index_fill(0, torch.tensor([5]), 0)):
        words = rf"another weight, \[300, 32\], than this one, \[{len(other)}, {other.shape[1]}\]"
        refused(words, head_named, name, Origin(other, None, tmp_path))


def spoilt(tmp_path, members=None, centroids=None, **plan):
    """The head of a file that another program wrote: of the right weight, with something in it that cannot be."""
    path = tmp_path / file_of("flash")
    MADE["flash"]().save(path)
    tensors, (_, header) = load_file(path), read_tensors(path, "")
    facts = json.loads(header["flash_head"])
    tensors |= {name: made(tensors[name]) for name, made in (("members", members), ("centroids", centroids)) if made}
    save_file(tensors, path, {"flash_head": json.dumps({**facts, "plan": facts["plan"] | plan})})
    return FlashHead.load(path, weight())


@pytest.mark.parametrize(("changes", "words"), [
    ({"members": lambda found: found.clone().fill_(3)}, "lists each of the 300 ids once, but this one does not"),
    ({"members": lambda found: torch.cat((found, found[:1] * 0 - 1))}, "lists each of the 300 ids once, but this one does not"),
    ({"members": lambda found: found.float()}, "no members of whole numbers in 2 dimensions"),
    ({"centroids": lambda found: found[:-1].contiguous()}, "no float32 centroid for each of its 43 clusters"),
    ({"centroids": lambda found: found[:, :-1].contiguous()}, r"300 ids with centroids \[43, 31\], not of 43 clusters"),
    ({"probes": 44}, "at most the 43 clusters of this head, got 44"),
])  # fmt: skip
def test_clusters_and_plans_that_cannot_be_are_refused_in_one_sentence(tmp_path, changes, words):
    assert same(spoilt(tmp_path, None, None, cluster_size=7, seed=2), MADE["flash"]()), "0.7 wrote more of a plan"
    refused(words, spoilt, tmp_path, **changes)


def test_a_large_vocabulary_waits_for_a_head_that_every_process_finds(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "BUILT_NOW", shelf.VOCAB - 1)
    models = load(folders["target"], folders["draft"])
    draft, other = models.draft.vocabulary, torch.nn.LayerNorm(WIDTH)
    refused("vocabulary of 512 ids: `flashspec heads build MODEL`", generate, models, [3, 1], "flash", error=FileNotFoundError)
    assert own_method(models) == "dense" and generate(models, [3, 1], max_new_tokens=5).tokens
    torch.nn.init.uniform_(other.weight)
    places = {kept(*each) for each in ((draft, None), (draft, models.draft.norm), (draft, other), (draft + 1, None))}
    assert len(places) == 4 and kept(draft.double(), models.draft.norm) == (place := kept(draft, models.draft.norm)) in places
    place.parent.mkdir(parents=True)
    FlashHead.build(draft, models.draft.norm, queries=torch.randn(9, WIDTH), probes=7).save(place)
    script = "import sys, flashspec as fs; print(fs.load(*sys.argv[1:]).head('draft', 'flash').probes)"
    done = python("-c", script, folders["target"], folders["draft"], FLASHSPEC_KERNELS="0")
    assert done.stdout == "7\n", done.stderr
    assert own_method(models) == "flash" and own_method(Models(models.target)) == "baseline"


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    refused("FlashHead.build", FlashHead.load, tmp_path, weight(), error=FileNotFoundError)
    path = tmp_path / file_of("flash")
    MADE["flash"]().save(path)
    path.write_bytes(path.read_bytes()[:999])
    refused("truncated or not a safetensors", FlashHead.load, tmp_path, weight())
    MADE["fr_spec"]().save(path)
    refused("not of a FlashHead", FlashHead.load, tmp_path, weight())


def test_a_drafts_flash_head_is_made_for_its_rows_with_its_default_probes(tmp_path):
    model, stream = shelf.model(2), np.random.default_rng(0).integers(0, shelf.VOCAB, 4000)
    model.save(tmp_path, "float32")
    reference.add_flash_head(tmp_path, stream, count=4)
    head, plain = FlashHead.load(tmp_path, model.head_weight, model.norm), FlashHead.build(model.head_weight, model.norm)
    assert head.probes == plain.probes and not torch.equal(head.clusters.members, plain.clusters.members)
    assert head.plan.always and plain.plan.always == ()


def test_more_probes_never_find_less_and_with_faiss_none_is_left_out():
    pytest.importorskip("faiss")
    assert usable(HEADS) == list(HEADS)
    best, found = (rows() @ weight().float().T).argmax(1), []
    for probes in (1, 8, 69):
        scores = IndexHead.build(weight()).with_plan(shortlist=10, probes=probes)(rows())
        found.append(int((scores.pick(scores.logits.argmax(1)) == best).sum()))
    assert found == sorted(found) and found[-1] == 6 > found[0]


@pytest.mark.parametrize(("call", "words"), [
    (lambda: IndexHead.build(weight(), None, "lsh"), "kind must be one of ivf, ivfpq, hnsw"),
    (lambda: IndexHead.build(weight()).with_plan(shortlist=301), "shortlist must lie between 1 and the 300 ids, got 301"),
    (lambda: IndexHead.build(weight()).with_plan(probes=70), "probes must lie between 1 and the 69 lists"),
])  # fmt: skip
def test_searches_that_do_not_fit_are_refused(call, words):
    pytest.importorskip("faiss")
    refused(words, call)


def test_a_missing_faiss_is_said_with_the_extra_to_install_and_other_heads_go_on(folders, monkeypatch, cli):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for name in KINDS:
        refused(f"head '{name}' needs faiss-cpu; install the extra `ann`", head_named, name, Origin(weight()))
    refused("install the extra `ann`", cluster, weight(), Recipe(16, backend="faiss"))
    with pytest.warns(UserWarning, match="left out: head 'ivf' needs faiss-cpu; install the extra `ann`"):
        assert usable(["dense", "ivf", "preview"]) == ["dense", "preview"]
    flags = ["--ids", "1,2,3", "--target", folders["target"], "--draft", folders["draft"], "--max-new-tokens", "4"]
    said = cli("generate", *flags, "--method", "dense", "--head", "hnsw", code=2)
    assert said.out == "" and "head 'hnsw' needs faiss-cpu; install the extra `ann`, or use a FlashHead" in said.err


def test_ids_are_ranked_by_how_often_they_come():
    ranked = ranked_by_frequency(torch.tensor([5, 3, 3, 7, 3, 5]), 10)
    assert ranked.tolist() == [3, 5, 7, 0, 1, 2, 4, 6, 8, 9]
    for tokens, words in (([], "no tokens to rank"), ([3, 10], "run from 0 to 9, got 3..10")):
        refused(words, ranked_by_frequency, torch.tensor(tokens, dtype=torch.int64), 10)


def test_a_ranking_is_counted_in_a_text_and_kept_beside_the_draft(folders, tmp_path, cli):
    draft, text = folders["draft"], tmp_path / "text.txt"
    text.write_text("assert " * 40 + "import os\n")
    before, out = shelf.listing(draft), tmp_path / "ranked"
    cli("draft", "rank", "--draft", draft, "--text", text, "--out", out)
    assert shelf.listing(draft) == before
    model = Transformer.load(out)
    head = head_named("fr_spec", Origin(model.head_weight, model.norm, out))
    tokens = torch.tensor(Tokenizer.from_file(str(out / "tokenizer.json")).encode(text.read_text()).ids)
    assert int(head.ranked[0]) == int(ranked_by_frequency(tokens, shelf.VOCAB)[0]) != 0
    refused("flashspec draft rank --head vocab_trim", head_named, "vocab_trim", Origin(model.head_weight, model.norm, out))


VOCAB, CLUSTERS = 96, 12
matrix, centroids = partial(shelf.normal, VOCAB, WIDTH, seed=1), partial(shelf.normal, 1, 1, WIDTH, CLUSTERS, seed=2)


def read(folder):
    return load_public(folder, matrix())


def fabricate(folder, nested=False, tensors=None, **options):
    """A checkpoint folder in the public layout; cluster k holds the ids that leave k over K."""
    switches = {"flash_head_cache_dir": "flash_head_assets", "vocab_size": VOCAB, **options}
    raw = {"architectures": ["FlashHeadQwen3ForCausalLM"], "model_type": "qwen3"}
    raw |= {"text_config": switches} if nested else switches
    (folder / "flash_head_assets").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    plain = {"centroids": centroids(), "cluster_assignments": torch.arange(VOCAB) % CLUSTERS}
    save_file({**plain, **(tensors or {})}, folder / "flash_head_assets" / "clustering_cache.safetensors")
    return folder


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, WIDTH, CLUSTERS), (WIDTH, CLUSTERS)])
def test_a_public_checkpoint_is_read(tmp_path, nested, shape):
    tensors = {"centroids": centroids().reshape(shape)}
    head = read(fabricate(tmp_path, nested, tensors, n_probes=5, flash_head_special_token_ids=[3, 90]))
    assert is_public(tmp_path)
    assert (head.probes, head.clusters.count, head.clusters.size, head.plan.always) == (5, CLUSTERS, 8, (3, 90))
    assert head.clusters.members[7].tolist() == list(range(7, VOCAB, CLUSTERS))
    assert torch.equal(head.clusters.centroids, centroids()[0, 0].T)
    save_file({"centroids": centroids()}, cache := tmp_path / "flash_head_assets" / "clustering_cache.safetensors")
    refused("not a FlashHead cache", read, tmp_path)
    cache.unlink()
    refused("assets included", read, tmp_path, error=FileNotFoundError)


def naive(row, probes):
    columns = centroids()[0, 0]
    best = (row @ (columns / columns.norm(dim=0))).argsort(descending=True)[:probes].tolist()
    ids = [v for v in range(VOCAB) if v % CLUSTERS in best]
    return ids[int((matrix()[ids] @ row).argmax())]


def test_it_says_what_the_layout_says(tmp_path):
    head = read(fabricate(tmp_path, n_probes=3))
    scores = head(asked := shelf.normal(40, WIDTH, seed=3))
    mine = scores.pick(scores.logits.argmax(1)).tolist()
    assert mine == [naive(row, 3) for row in asked]
    assert mine != [naive(row, 1) for row in asked]
    head = read(fabricate(tmp_path / "other", flash_head_special_token_ids=7))
    assert (head.probes, head.plan.always) == (1, (7,)), "one cluster in sixteen, and one special id may stand alone"


BROKEN = [
    ({"tensors": {"cluster_assignments": torch.arange(VOCAB - 1) % CLUSTERS}}, "are of 95 ids with centroids"),
    ({"tensors": {"centroids": torch.zeros(1, 1, WIDTH + 8, CLUSTERS)}}, "centroids have the shape"),
    ({"tensors": {"cluster_assignments": torch.arange(VOCAB) % 11}}, "clusters of 8 expected"),
    ({"tensors": {"cluster_assignments": torch.arange(VOCAB) % 13}}, "cluster numbers run from 0 to 11"),
    ({"n_probes": 13}, "at most the 12 clusters"),
    ({"n_probes": 0}, "n_probes holds 0, expected int >= 1"),
    ({"flash_head_special_token_ids": [VOCAB]}, "ids run from 0 to 95"),
    ({"flash_head_cache_dir": None}, "not a checkpoint with a FlashHead"),
]


@pytest.mark.parametrize(("case", "words"), BROKEN)
def test_a_public_checkpoint_that_cannot_be_is_refused(tmp_path, case, words):
    refused(words, read, fabricate(tmp_path, **case))


def test_the_model_of_a_public_checkpoint_is_read_with_its_head(tmp_path):
    model = shelf.model(2)
    model.save(tmp_path, "float32")
    assert not is_public(tmp_path)
    found, assets = FlashHead.build(model.head_weight).clusters, tmp_path / "assets"
    assets.mkdir()
    parts = {"centroids": found.centroids.T.contiguous(), "cluster_assignments": found.assignments}
    save_file(parts, assets / "clustering_cache.safetensors")
    raw = json.loads((tmp_path / "config.json").read_text()) | {"flash_head_cache_dir": "assets", "n_probes": 3}
    raw["architectures"] = [f"FlashHead{name}" for name in raw["architectures"]]
    for names in ({}, {"architectures": None, "model_type": "flash_head_qwen3"}):
        (tmp_path / "config.json").write_text(json.dumps(raw | names))
        again = Transformer.load(tmp_path)
        assert torch.equal(again.head_weight, model.head_weight) and again.config.family == "qwen3"
        assert head_named("flash", Origin(again.head_weight, again.norm, tmp_path)).probes == 3
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": ["FlashHeadGPT9ForCausalLM"]}))
    refused("architecture 'GPT9ForCausalLM' is not supported", Transformer.load, tmp_path)

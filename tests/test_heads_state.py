"""Heads that keep state: on disk and back, beside the weight they belong to; and what a missing faiss says."""

from __future__ import annotations

import sys

import pytest
import shelf
import tiny
import torch
from tokenizers import Tokenizer

from flashspec.cli.main import status
from flashspec.heads import HEADS, IndexHead, Origin, ShortlistHead, cluster, head_named, ranked_by_frequency
from flashspec.heads.cluster import Recipe
from flashspec.heads.index import usable
from flashspec.heads.registry import RANKED, file_of
from flashspec.models.transformer import Transformer

IDS, WIDTH = 200, 32
KINDS = ("ivf", "ivfpq", "hnsw")


def weight(seed: int = 1) -> torch.Tensor:
    return torch.randn(IDS, WIDTH, generator=torch.Generator().manual_seed(seed))


def rows() -> torch.Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2))


def made(name: str):
    """A head with state, other than its default."""
    if name in KINDS:
        return IndexHead.build(weight(), kind=name, candidates=20, probes=9)
    return ShortlistHead.build(weight(), ranked=torch.arange(IDS).flip(0), size=50)


def same(one, other) -> bool:
    mine, theirs = one(rows()), other(rows())
    return mine.ids.equal(theirs.ids) and mine.logits.equal(theirs.logits)


@pytest.mark.parametrize("name", [*KINDS, "fr_spec", "vocab_trim"])
def test_a_saved_head_is_found_by_its_name_in_the_models_folder(tmp_path, name):
    head = made(name)
    head.save(tmp_path / file_of(name))
    again = head_named(name, Origin(weight(), None, tmp_path))
    assert same(head, again) and again.bytes_read(2) == head.bytes_read(2)
    assert name in RANKED or not same(head, head_named(name, Origin(weight())))


@pytest.mark.parametrize("name", ["flash", "flash_int8", "flash_best"])
def test_every_flash_head_reads_the_folders_clusters(tmp_path, name):
    head_named("flash", Origin(weight())).with_probes(5).save(tmp_path)
    assert head_named(name, Origin(weight(), None, tmp_path)).probes == 5
    assert head_named(name, Origin(weight())).probes == 1


@pytest.mark.parametrize("name", ["hnsw", "fr_spec"])
def test_a_head_beside_another_weight_is_refused(tmp_path, name):
    made(name).save(tmp_path / file_of(name))
    with pytest.raises(ValueError, match="another weight of this shape"):
        head_named(name, Origin(weight(seed=3), None, tmp_path))
    with pytest.raises(ValueError, match="vocab_size 200, but this weight has 190"):
        head_named(name, Origin(weight()[:190], None, tmp_path))


def test_a_file_of_another_head_is_refused(tmp_path):
    made("fr_spec").save(tmp_path / file_of("hnsw"))
    with pytest.raises(ValueError, match="not of a"):
        head_named("hnsw", Origin(weight(), None, tmp_path))


@pytest.mark.parametrize("name", KINDS)
def test_an_index_is_a_function_of_weight_and_seed(name):
    assert same(made(name), made(name))


def test_more_candidates_and_more_probes_never_find_less():
    pytest.importorskip("faiss")
    best = (rows() @ weight().T).argmax(1)
    found = []
    for probes in (1, 8, 56):
        scores = IndexHead.build(weight(), kind="ivf", candidates=10, lists=56, probes=probes)(rows())
        found.append(int((scores.pick(scores.logits.argmax(1)) == best).sum()))
    assert found == sorted(found) and found[-1] == 6 > found[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "lsh"}, "kind must be one of ivf, ivfpq, hnsw"),
        ({"candidates": 0}, "candidates must lie between 1 and the 200 ids, got 0"),
        ({"candidates": IDS + 1}, "candidates must lie between 1 and the 200 ids, got 201"),
        ({"probes": 57}, "probes must lie between 1 and the 56 lists"),
        ({"lists": IDS + 1}, "lists must lie between 1 and the 200 ids"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changes, words):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=words):
        IndexHead.build(weight(), **changes)


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_faiss_is_said_with_the_extra_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=f"head '{name}' needs faiss-cpu; install the extra `ann`"):
        head_named(name, Origin(weight()))
    with pytest.raises(ValueError, match="install the extra `ann`"):
        cluster(weight(), Recipe(16, backend="faiss"))


def test_without_faiss_the_other_heads_go_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.warns(UserWarning, match="left out: head 'ivf' needs faiss-cpu; install the extra `ann`"):
        assert usable(["dense", "ivf", "preview"]) == ["dense", "preview"]


def test_with_faiss_none_is_left_out():
    pytest.importorskip("faiss")
    assert usable(HEADS) == list(HEADS)


def test_ids_are_ranked_by_how_often_they_come():
    ranked = ranked_by_frequency(torch.tensor([5, 3, 3, 7, 3, 5]), 10)
    assert ranked.tolist() == [3, 5, 7, 0, 1, 2, 4, 6, 8, 9]
    with pytest.raises(ValueError, match="no tokens to rank"):
        ranked_by_frequency(torch.tensor([], dtype=torch.int64), 10)
    with pytest.raises(ValueError, match="run from 0 to 9, got 3..10"):
        ranked_by_frequency(torch.tensor([3, 10]), 10)


def test_the_command_line_takes_a_head_by_name(tmp_path, capsys):
    folders = shelf.write_pair(tmp_path)
    flags = ["generate", "--ids", "1,2,3", "--target", str(folders["target"]), "--draft-model", str(folders["draft"]),
             "--max-new-tokens", "6", "--dtype", "float32", "--method", "dense"]  # fmt: skip
    texts = set()
    for chosen in (["dense"], ["int8"], ["in_context", "--shortlist", "9"]):
        assert status([*flags, "--head", *chosen]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1
    assert status([*flags, "--head", "best"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in HEADS)


def test_the_command_line_says_in_one_sentence_that_faiss_is_missing(tmp_path, capsys, monkeypatch):
    folders = shelf.write_pair(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    flags = ["generate", "--ids", "1,2,3", "--target", str(folders["target"]), "--draft-model", str(folders["draft"])]
    assert status([*flags, "--method", "dense", "--head", "hnsw", "--max-new-tokens", "4"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "head 'hnsw' needs faiss-cpu; install the extra `ann`, or use a FlashHead" in said.err


def test_a_ranking_is_counted_in_a_text_and_kept_beside_the_draft(tmp_path):
    draft, text = shelf.write_pair(tmp_path)["draft"], tmp_path / "text.txt"
    text.write_text("assert " * 40 + "import os\n")
    before, out = shelf.listing(draft), tmp_path / "ranked"
    assert status(["draft", "rank", "--draft", str(draft), "--text", str(text), "--out", str(out)]) == 0
    assert shelf.listing(draft) == before
    draft = out
    model = Transformer.load(draft)
    head = head_named("fr_spec", Origin(model.head_weight, model.norm, draft))
    tokens = torch.tensor(Tokenizer.from_file(str(draft / "tokenizer.json")).encode(text.read_text()).ids)
    assert int(head.ranked[0]) == int(ranked_by_frequency(tokens, tiny.VOCAB)[0]) != 0
    with pytest.raises(ValueError, match="flashspec draft rank --head vocab_trim"):
        head_named("vocab_trim", Origin(model.head_weight, model.norm, draft))

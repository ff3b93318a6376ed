"""Clusters for queries: equal, better for rows of the same law alone; `flashspec heads build` judges on rows it never used."""

import json

import msgspec
import pytest
import tiny
import torch
from shelf import listing, refused, refusing

from flashspec.cli.main import status
from flashspec.decoding.models import folder_of, load
from flashspec.heads import DenseHead, FlashHead, agreement, cluster
from flashspec.heads.aware import bisected, cluster_for, frequent
from flashspec.heads.cluster import Recipe
from flashspec.heads.storage import FILE
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.measure.queries import agreements, domains, written
from flashspec.models.folder import read_tensors
from flashspec.models.transformer import RMSNorm
from flashspec.sampling import Sampling

VOCAB, WIDTH = 1024, 32
HOT = Sampling(0.7, seed=0)


def weight():
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))


def rows(count, seed, law=0):
    """Rows that lie along few axes, other ones for another law."""
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(100 + law)))[0]
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, -2, WIDTH) @ axes


@pytest.mark.parametrize("count", [16, 17, 160, 169, 1000])
def test_halving_gives_equal_clusters_and_the_same_ones_for_the_same_seed(count):
    points = rows(count, 3)
    found, again, other = (bisected(points, 16, seed) for seed in (0, 0, 1))
    filled = torch.bincount(found).sort().values
    assert filled.tolist() == [count % 16] * (count % 16 > 0) + [16] * (count // 16)
    assert torch.equal(found, again) and (count <= 17 or not torch.equal(found, other))


@pytest.mark.parametrize("probes", [4, 8])
def test_clusters_for_queries_find_more_on_rows_of_their_law_alone(probes):
    dense, judged = DenseHead(None, weight()), rows(500, 2)
    made = {"direction": cluster(weight()), "same": cluster_for(weight(), rows(1000, 1), Recipe())}
    made["other"] = cluster_for(weight(), rows(1000, 1, law=1), Recipe())
    found = {name: agreement(FlashHead.build(weight(), None, each, probes=probes), dense, judged) for name, each in made.items()}
    assert found["same"] > found["direction"] + 0.2 and found["other"] < found["direction"], found


def test_ids_that_are_often_best_are_listed_once_and_scored_always():
    queries = torch.cat((rows(60, 1), rows(60, 1)[:3], rows(60, 1)[:1]))
    best = torch.bincount((queries @ weight().T).argmax(1), minlength=VOCAB)
    always = frequent(weight(), queries)
    assert len(set(always)) == len(always) and set(always) == set(best.nonzero()[:, 0].tolist())
    assert best[list(always)].tolist() == best[best > 0].sort(descending=True).values.tolist()
    assert frequent(weight(), queries, 5) == always[:5]
    head = FlashHead.build(weight(), queries=queries, probes=1)
    assert head.plan.always == always and agreement(head, DenseHead(None, weight()), queries) == 1.0
    assert FlashHead.build(weight(), queries=queries, always=(7,)).plan.always == (7,)
    assert agreement(head.with_always((7,)), DenseHead(None, weight()), queries) < 1.0  # the control


test_bad_queries_are_refused_before_anything_reads_them = refusing([
    (lambda: FlashHead.build(weight(), RMSNorm(WIDTH, 1e-6), queries=rows(5, 1)[:, 1:]), r"at least one, got \[5, 31\]"),
    (lambda: FlashHead.build(weight(), None, cluster(weight()), queries=rows(5, 1).repeat(1, 2)), r"at least one, got \[5, 64\]"),
    (lambda: FlashHead.build(weight(), queries=rows(5, 1)[0]), r"at least one, got \[32\]"),
    (lambda: FlashHead.build(weight(), queries=rows(5, 1)[:0]), r"at least one, got \[0, 32\]"),
    (lambda: FlashHead.build(weight(), queries=rows(5, 1) / 0), "queries hold NaN or infinite"),
    (lambda: cluster_for(weight(), rows(5, 1)[:, 1:], Recipe()), r"hidden rows \[n, 32\]"),
])  # fmt: skip


def asked(kinds=("code", "prose"), each=4):
    return [Prompt(kind, tuple((7 * i + j + len(kind)) % 512 for i in range(9 + j))) for kind in kinds for j in range(each)]


def test_no_row_is_both_built_on_and_judged_by():
    models, prompts = tiny.pair(), asked()
    found = domains(models, [*prompts, prompts[0], prompts[3]], "prose", 6, HOT)
    texts = [written(models, prompt, 6, HOT) for prompt in prompts]
    assert list(found) == ["code", "prose"] and all(map(len, texts))
    assert torch.equal(found["code"].seen, torch.cat(texts[:3])) and torch.equal(found["code"].held, texts[3])
    assert not len(found["prose"].seen) and torch.equal(found["prose"].held, torch.cat(texts[4:]))
    assert not torch.equal(domains(models, prompts, "code", 6, HOT)["prose"].seen, torch.cat(texts[4:]))  # one is held


@pytest.mark.parametrize(("prompts", "unseen", "words"), [
    (asked(each=3), "prose", "4 different prompts of a kind are needed, .*; 'code' has 3"),
    ([*asked(), *asked(("few",), 2) * 2], "prose", "'few' has 2"),
    (asked(), "chat", "got 'chat' of code, prose"),
    (asked(("code",)), "code", "one of at least two kinds of prompts, got 'code' of code"),
])  # fmt: skip
def test_prompts_that_leave_nothing_to_build_on_are_refused_before_any_text(prompts, unseen, words):
    refused(words, domains, None, prompts, unseen, 6, HOT)


def test_the_command_builds_a_head_and_says_how_it_did_on_rows_that_it_did_not_use(tmp_path, capsys):
    path, out, folder = tmp_path / "prompts.json", tmp_path / "head", folder_of("reference", "draft")
    prompts = [each for each in load_prompts(None, 6) if each.kind in ("code", "tests")]
    path.write_bytes(msgspec.json.encode({"prompts": prompts}))
    line = ["heads", "build", "reference", "--prompts", str(path), "--new-tokens", "24", "--out", str(out)]
    assert status(line) == 0
    said, told = capsys.readouterr().out, json.loads(read_tensors(out / FILE, "")[1]["flash_head"])["told"]["agreement"]
    assert listing(out).keys() == {FILE} and "tests (unseen)" in said and f"done: {out / FILE}; copy it into" in said
    assert all(f"{rate:.3f}" in said for rates in told.values() for rate in rates.values())
    models = load(folder, None)
    weight, norm, _ = models.origin("target", "flash")
    head, found = FlashHead.load(out, weight, norm), domains(models, prompts, "tests", 24, HOT)
    assert not head.clusters.spherical and head.rows_scored <= 0.1 * head.vocab_size
    assert agreements(head, DenseHead(norm, weight), found) == told["0.1"] != told["0.08"]
    (out / "notes").touch()
    before = listing(out)
    assert status(line) == 2 and "holds files already" in capsys.readouterr().err and listing(out) == before
    path.write_bytes(msgspec.json.encode({"prompts": prompts[3:]}))
    assert status([*line[:-1], str(tmp_path / "new")]) == 2 and "'code' has 3" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()

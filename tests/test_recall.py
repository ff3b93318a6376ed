"""Heads are judged on held-out rows of every kind of text, builds are timed part by part, and nonsense is refused."""

import sys
from dataclasses import replace

import pytest
import shelf
import tiny
import torch

from flashspec.heads.dense import DenseHead
from flashspec.measure.pieces import low_rank_rows
from flashspec.study import EXPERIMENTS, held_out, run
from flashspec.study.recall import PRESETS, Params, measure, percentiles, points


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A toy pair and two prompts of each kind, as parameters."""
    home = tmp_path_factory.mktemp("recall")
    folders = {name: str(path) for name, path in shelf.write_pair(home).items()}
    return {"target": folders["target"], "draft": (folders["draft"],), "prompts": str(tiny.prompts_file(home, each=2))}


@pytest.fixture(scope="module")
def judged(pair):
    small = {"cluster_size": (8,), "share": (0.3, 3.0), "edge": (16,), "always": 8}
    params = replace(PRESETS["smoke"], **pair, **small, head=("int8", "vocab_trim"))
    return params, list(measure(params))


def test_every_position_is_counted_once_a_head(judged):
    params, rows = judged
    held = held_out.held_out(params.source(params.draft[0]))
    assert len(held.kinds) == len(held.judging) and {r.kind for r in rows} == set(held.kinds) == {"code", "prose"}
    for key in {(r.head, r.always, r.plan) for r in rows}:
        mine = [r for r in rows if (r.head, r.always, r.plan) == key]
        for kind in set(held.kinds):
            assert sum(r.positions for r in mine if r.kind == kind) == held.kinds.count(kind)
        assert all(0 <= r.agreed <= r.positions and -1e-4 <= r.covered <= r.positions + 1e-3 for r in mine)
    assert {r.band for r in rows} <= {"1-16", "17-512"}
    assert {r.format for r in rows if r.head == "int8"} == {"int8"} != {r.format for r in rows if r.head == "flash"}
    assert all(r.clustering_seconds > 0 for r in rows if r.head == "flash")


def test_a_head_that_scores_every_cluster_misses_nothing_and_a_short_one_does(judged):
    _, rows = judged
    whole = [r for r in rows if r.plan == "3"]
    assert whole and all(r.agreed == r.positions and r.covered == pytest.approx(r.positions, rel=1e-3) for r in whole)
    assert sum(r.agreed for r in rows if r.plan == "default") < sum(r.positions for r in rows if r.plan == "default")
    assert all(r.rows_scored <= 0.3 * r.vocab for r in rows if r.plan == "0.3" and not r.always)


def test_the_dense_head_agrees_with_itself_and_a_broken_one_does_not(judged):
    params, _ = judged
    held = held_out.held_out(params.source(params.draft[0]))
    same, mass = held_out.judged(held.dense, held)
    assert bool(same.all()) and torch.allclose(mass, torch.ones(len(mass)))
    broken = DenseHead(held.draft.norm, held.draft.head_weight.flip(0))
    assert not bool(held_out.judged(broken, held)[0].all())


def test_without_faiss_its_heads_are_left_out_with_a_warning_and_the_others_judged(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    params = replace(PRESETS["smoke"], **pair, head=("int8", "ivf"), cluster_size=())
    with pytest.warns(UserWarning, match="left out: head 'ivf' needs faiss-cpu"):
        assert {row.head for row in measure(params)} == {"int8"}
    race = EXPERIMENTS["race"].parse({**pair, "head": "dense,hnsw", "new_tokens": 4, "repeats": 1, "k": 2, "parts": 0})
    with pytest.warns(UserWarning, match="left out: head 'hnsw'"):
        assert {row.head for row in EXPERIMENTS["race"].function(replace(race, temperature=(0.0,)))} == {"dense"}


def test_required_probes_are_percentiles():
    found = percentiles(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 100]))
    assert found == {"required_50": 5, "required_90": 9, "required_99": 100}


def test_a_build_is_timed_part_by_part(tmp_path):
    wanted = {"shape": "1024x64", "rank": 16, "repeats": 2, "cluster_size": "16,64"}
    rows = run("recall", wanted, root=tmp_path).rows
    assert [(row.vocab, row.hidden, row.cluster_size, row.turn, row.kind) for row in rows] == [
        (1024, 64, size, turn, "") for size in (16, 64) for turn in (0, 1)
    ]
    assert all(min(row.clustering_seconds, row.balancing_seconds, row.permutation_seconds) > 0 for row in rows)
    assert len(points(EXPERIMENTS["recall"].preset("head_build", cluster_size=(16, 64)))) == 6


def test_its_weights_share_directions_and_noise_does_not():
    strengths = [torch.linalg.svdvals(rows).square() for rows in (low_rank_rows(600, 64, 8), torch.randn(600, 64))]
    shared, none = (float(found[:8].sum() / found.sum()) for found in strengths)
    assert shared > 0.75 > 0.3 > none
    assert torch.equal(low_rank_rows(50, 16, 4), low_rank_rows(50, 16, 4))
    with pytest.raises(ValueError, match="at most the width 16"):
        low_rank_rows(50, 16, 17)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Params(cluster_size=(0,)), "cluster_size must be at least 1"),
    (lambda: Params(head=("in_context",)), "head must be among"),
    (lambda: Params(shape=("65536x32",)), "rank must be at most the width"),
    (lambda: Params(shape=("wide",)), "IDSxWIDTH"),
    (lambda: Params(backend="gpu"), "auto, faiss or torch"),
    (lambda: Params(per_kind=1), "per_kind must be at least 2"),
    (lambda: held_out.halves([]), "two prompts of a kind"),
])  # fmt: skip
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()

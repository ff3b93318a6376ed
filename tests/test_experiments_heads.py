"""The experiments on draft heads run on tiny models, count what there is to count and refuse nonsense."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import tiny
import torch

from flashspec.heads.dense import DenseHead
from flashspec.measure.stand_ins import low_rank_rows
from flashspec.model.checkpoint import save_transformer
from flashspec.study import held_out as source
from flashspec.study.experiments import depth_times_head, head_build, head_cost, head_recall, head_tar
from flashspec.study.pairs import models_of


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """A tiny pair and two prompts of each kind, as parameters."""
    root = tmp_path_factory.mktemp("pair")
    models = tiny.pair()
    save_transformer(models.target, root / "target", "float32")
    save_transformer(models.draft, root / "draft", "float32")
    prompts = tiny.prompts_file(root, each=2)
    return {"target": str(root / "target"), "draft": str(root / "draft"), "prompts": str(prompts)}


@pytest.fixture(scope="module")
def recalled(common):
    params = replace(
        head_recall.SMOKE, **common, cluster_sizes=(8,), shares=(0.3, 3.0), heads=("int8", "vocab_trim"), edges=(16,), always=8
    )
    return params, list(head_recall.measure(params))


def test_recall_counts_every_position_once(recalled):
    params, rows = recalled
    held = source.held_out(params.source)
    for key in {(r.head, r.homes, r.always, r.plan) for r in rows}:
        mine = [r for r in rows if (r.head, r.homes, r.always, r.plan) == key]
        assert sum(r.positions for r in mine) == len(held.judging) and {r.band for r in mine} == {"1-16", "17-512"}
        assert all(0 <= r.agreed <= r.positions and -1e-4 <= r.covered <= r.positions + 1e-3 for r in mine)
    assert {r.homes for r in rows if r.head == "flash"} == {1, 2}


def test_a_head_that_scores_every_cluster_misses_nothing_and_a_short_one_does(recalled):
    _, rows = recalled
    whole = [r for r in rows if r.plan == "3"]
    assert whole and all(r.agreed == r.positions and r.covered == pytest.approx(r.positions, rel=1e-3) for r in whole)
    assert sum(r.agreed for r in rows if r.plan == "default") < sum(r.positions for r in rows if r.plan == "default")
    assert all(r.rows_scored <= 0.3 * r.vocab for r in rows if r.plan == "0.3" and not r.always)


def test_the_dense_head_agrees_with_itself_and_a_broken_one_does_not(recalled):
    params, _ = recalled
    held = source.held_out(params.source)
    same, mass = source.judged(held.dense, held)
    assert bool(same.all()) and torch.allclose(mass, torch.ones(len(mass)))
    broken = DenseHead(held.draft.norm, held.draft.head_weight.flip(0))
    assert not bool(source.judged(broken, held)[0].all())


def test_without_faiss_its_heads_are_left_out_with_a_warning_and_the_others_judged(common, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    params = replace(head_recall.SMOKE, **common, heads=("int8", "ivf"), metrics=())
    with pytest.warns(UserWarning, match="left out: head 'ivf' needs faiss-cpu"):
        assert {row.head for row in head_recall.measure(params)} == {"int8"}
    params = replace(head_tar.SMOKE, **common, heads=("dense", "hnsw"), shortlists=(64,))
    with pytest.warns(UserWarning, match="left out: head 'hnsw'"):
        assert {row.head for row in head_tar.measure(params)} == {"baseline", "dense"}


def test_required_probes_are_percentiles():
    needed = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 100])
    assert head_recall.percentiles(needed, torch.ones(10, dtype=torch.bool)) == [5, 9, 100]
    assert head_recall.percentiles(needed, torch.zeros(10, dtype=torch.bool)) == [None] * 3


def test_costs_name_every_head_and_skip_what_does_not_fit(monkeypatch):
    params = replace(head_cost.SMOKE, vocabs=(512,), repeats=1)
    rows = list(head_cost.measure(params))
    assert {r.head for r in rows} == set(params.heads) and all(r.seconds > 0 and not r.note for r in rows)
    bytes_of = {r.head: r.bytes for r in rows}
    assert bytes_of["int4"] < bytes_of["int8"] < bytes_of["dense"] and bytes_of["flash_int8"] < bytes_of["flash"]
    monkeypatch.setattr(head_cost, "free_bytes", lambda device: 1000)
    (skipped,) = head_cost.measure(params)
    assert skipped.seconds is None and skipped.note.startswith("left out: needs")


def test_a_build_is_timed_part_by_part():
    (row,) = head_build.measure(head_build.SMOKE)
    assert (row.vocab, row.hidden, row.cluster_size) == (1024, 64, 16)
    assert min(row.clustering_seconds, row.balancing_seconds, row.permutation_seconds) > 0
    assert len(head_build.points(head_build.Params(cluster_sizes=(16, 64)))) == 6


def test_its_weights_share_directions_and_noise_does_not():
    strengths = [torch.linalg.svdvals(rows).square() for rows in (low_rank_rows(600, 64, 8), torch.randn(600, 64))]
    shared, none = (float(found[:8].sum() / found.sum()) for found in strengths)
    assert shared > 0.75 > 0.3 > none
    assert torch.equal(low_rank_rows(50, 16, 4), low_rank_rows(50, 16, 4))
    with pytest.raises(ValueError, match="at most the width 16"):
        low_rank_rows(50, 16, 17)


def test_every_head_is_decoded_with_and_its_counts_add_up(common):
    params = replace(head_tar.SMOKE, **common, probes=(4,), shortlists=(64,), temperatures=(0.0, 0.7))
    rows = list(head_tar.measure(params))
    assert {r.head for r in rows} == {"baseline", *params.heads} and {r.rule for r in rows} == {"coupling", "speculative"}
    for row in rows:
        assert row.emitted == 8 and row.seconds > 0
        assert row.head == "baseline" or row.emitted == row.accepted + row.rounds
        assert (row.agreed is None) == (row.head in ("baseline", "in_context"))
    dense = next(r for r in rows if r.head == "dense")
    assert dense.agreed == dense.positions
    assert any(r.agreed < r.positions for r in rows if r.head == "fr_spec")
    models = models_of(params.target, params.draft, "bfloat16", "dense")
    assert models.head("draft", "fr_spec").vocab_size == tiny.VOCAB


def test_depths_are_timed_one_by_one():
    rows = list(depth_times_head.measure(replace(depth_times_head.SMOKE, repeats=1)))
    assert {(r.layers, r.head) for r in rows} == {(d, h) for d in (1, 2) for h in ("dense", "flash")}
    body = {r.layers: r.bytes for r in rows if r.head == "flash"}
    assert body[2] > body[1]


@pytest.mark.parametrize(("call", "words"), [
    (lambda: head_recall.Params(metrics=("cosine",)), "metrics must be among"),
    (lambda: head_recall.Params(heads=("in_context",)), "heads must be among"),
    (lambda: head_cost.Params(heads=("ivf",)), "heads must be among"),
    (lambda: head_build.Params(rank=2048), "rank must be at most the smallest of widths"),
    (lambda: head_build.Params(backend="gpu"), "auto, faiss or torch"),
    (lambda: head_tar.Params(tuning=1), "tuning must be at least 2"),
    (lambda: head_tar.Params(per_kind=4), "tuning must be at least 8"),
    (lambda: depth_times_head.Params(depths=(0,)), "depths must be at least 1"),
    (lambda: source.halves([]), "two prompts of a kind"),
])  # fmt: skip
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()

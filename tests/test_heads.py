"""What a FlashHead promises against the dense head, and the refusals of both."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from shelf import normal, refusing

from flashspec import kernels
from flashspec.heads import DenseHead, FlashHead, agreement, calibrate_always, cluster, required_probes
from flashspec.heads.cluster import Recipe
from flashspec.models.transformer import RMSNorm

VOCAB, WIDTH, ROWS = 515, 48, 24
WIDE = [torch.float32, torch.bfloat16, torch.float64]
EDGES = (0, 3, VOCAB - 1)
weight, hidden = partial(normal, VOCAB, WIDTH, seed=1), partial(normal, ROWS, WIDTH, seed=2)
CHANGES = [
    {}, {"cluster_size": 1}, {"cluster_size": 7, "always": EDGES}, {"always": EDGES}, {"seed": 3},
    {"stage1": "int8"}, {"stage1": "int4", "always": EDGES, "cluster_size": 7},
]  # fmt: skip


def norm():
    made = RMSNorm(WIDTH, 1e-6)
    torch.nn.init.uniform_(made.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(3))
    return made


def flash(dtype=torch.float32, **changes):
    return FlashHead.build(weight(dtype=dtype), norm().to(dtype), **changes)


def dense(dtype=torch.float32):
    return DenseHead(norm().to(dtype), weight(dtype=dtype))


def is_exact(scores, exact, tolerance=1e-5):
    """Whether every logit that counts is the dense one, and no id counts twice in a row."""
    counts = scores.logits > -torch.inf
    times = torch.zeros(len(exact), VOCAB).scatter_add_(1, scores.ids, counts.float())
    same = torch.allclose(scores.logits[counts], exact.gather(1, scores.ids)[counts], rtol=tolerance, atol=tolerance)
    return same and float(times.max()) == 1


def is_whole(head, dtype):
    """Whether a head that probes every cluster is the dense head."""
    scores = head.with_plan(probes=head.clusters.count)(hidden(dtype=dtype))
    return is_exact(scores, dense(dtype)(hidden(dtype=dtype)).logits) and int((scores.logits > -torch.inf).sum()) == ROWS * VOCAB


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_logits_are_the_dense_ones_row_by_row_and_all_of_them_where_every_cluster_is_probed(changes, dtype):
    head, rows = flash(dtype, **changes), hidden(dtype=dtype)
    scores = head.with_plan(probes=9)(rows)
    assert is_exact(scores, dense(dtype)(rows).logits) and is_whole(head, dtype)
    assert all((scores.ids == forced).any(1).all() for forced in changes.get("always", ()))
    assert not torch.equal(scores.ids, scores.ids[:1].expand(ROWS, -1)), "every row probes for itself"


PACKED = [{}, {"always": (*EDGES, *range(40, 60))}, {"stage1": "int4", "always": EDGES}, {"queries": hidden()}]


@pytest.mark.skipif(not kernels.available(), reason="no C compiler here")
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("changes", PACKED, ids=lambda changes: " ".join(changes))
def test_a_packed_table_gives_the_packed_dense_heads_logits_bit_for_bit(changes, bits):
    packed = kernels.pack(weight(), bits)
    head, exact = FlashHead.build(packed, norm(), **changes), DenseHead(norm(), packed)(hidden()).logits
    assert head.table.blocks.kind == packed.kind and head.table.blocks.nbytes == packed.nbytes // 33 * len(head.table.ids)
    for each in (head.with_plan(probes=5), head.with_plan(probes=33)):
        scores, twin = (one(hidden()) for one in (each, replace(each, norm=lambda x: head.norm(x))))
        assert is_exact(scores, exact, 0) and torch.equal(scores.ids, twin.ids) and torch.equal(scores.logits, twin.logits)
        assert each.scoring is not None
    assert int((scores.logits > -torch.inf).sum()) == ROWS * VOCAB and scores.logits.shape[1] < VOCAB + 64
    turned = replace(packed, cells=head.table.blocks.cells.flip(1), rows=head.table.ids.numel())
    controls = replace(each, table=head.table._replace(blocks=turned)), FlashHead.build(packed.dequantised(), norm(), probes=33)
    assert not any(is_exact(control(hidden()), exact, 0) for control in controls)


@pytest.mark.parametrize(("changes", "part", "spoil"), [
    ({}, "ids", lambda t: torch.arange(t.ids.numel()).clamp(max=VOCAB - 1).view_as(t.ids)),
    ({"always": (1, 2, 500)}, "bias", lambda t: torch.zeros_like(t.bias)),
])  # fmt: skip
def test_the_control_a_head_with_a_spoilt_table_is_caught(changes, part, spoil):
    head = flash(**changes)
    assert is_whole(head, torch.float32)
    assert not is_whole(replace(head, table=head.table._replace(**{part: spoil(head.table)})), torch.float32)


def test_a_rounded_first_stage_reads_fewer_bytes_and_finds_nearly_the_same():
    head = flash(torch.bfloat16, probes=8)
    rounded = {kind: head.with_plan(stage1=kind) for kind in ("weight", "int8", "int4")}
    count, size = head.clusters.count, {kind: each.table.directions.nbytes for kind, each in rounded.items()}
    panels = -(-count // 16) * 16
    assert size["weight"] / count > size["int8"] / panels > size["int4"] / panels
    chosen = [rounded[kind].blocks_of(head.norm(hidden())).tolist() for kind in ("weight", "int8")]
    assert sum(len(set(a) & set(b)) for a, b in zip(*chosen, strict=True)) > 0.9 * 8 * ROWS
    assert rounded["int8"].table.blocks is head.with_plan(probes=7).table.blocks is head.table.blocks


def test_probes_are_the_clusters_nearest_in_direction():
    head = flash(probes=3)
    cosine = torch.nn.functional.cosine_similarity(head.norm(hidden())[:, None], head.clusters.centroids[None], dim=2)
    probed = head.clusters.assignments[head(hidden()).ids].view(ROWS, 3, 16)[:, :, 0]
    assert torch.equal(cosine.topk(3).indices.sort(1).values, probed.sort(1).values)


def test_required_probes_is_the_least_number_that_agrees():
    head = flash()
    for row, least in zip(hidden(), required_probes(head, dense(), hidden()).tolist(), strict=True):
        assert agreement(head.with_plan(probes=least), dense(), row[None]) == 1.0
        assert least == 1 or agreement(head.with_plan(probes=least - 1), dense(), row[None]) == 0.0


def test_calibrated_ids_are_those_missed_and_end_those_misses():
    head, rows = flash(probes=4), hidden()
    always = calibrate_always(head, dense(), rows, count=ROWS)
    assert set(always) == set(dense()(rows).logits.argmax(1)[required_probes(head, dense(), rows) > 4].tolist())
    assert agreement(head, dense(), rows) < agreement(head.with_plan(always=always), dense(), rows) == 1.0
    assert (required_probes(head.with_plan(always=always), dense(), rows) <= 4).all()
    often = torch.cat((rows, rows[required_probes(head, dense(), rows) > 4][-1:].expand(3, -1)))
    assert calibrate_always(head, dense(), often, count=1) == (int(dense()(often[-1:]).logits.argmax()),)


NONE = hidden()[:0]
test_what_cannot_be_is_refused = refusing([
    (lambda: flash(probes=0), "probes must be at least 1"),
    (lambda: flash(probes=34), "at most the 33 clusters"),
    (lambda: flash(cluster_size=0), "cluster_size must be at least 1"),
    (lambda: flash(cluster_size=VOCAB + 1), "exceeds the vocabulary"),
    (lambda: flash(always=(VOCAB,)), "ids run from 0"),
    (lambda: flash(always=(4, 4)), "lists an id twice"),
    (lambda: flash(stage1="int3"), "stage1 must be one of"),
    (lambda: flash(probe=3), "'probe' is no option of a FlashHead"),
    (lambda: flash()(hidden()[:, 1:]), "reads rows of shape"),
    (lambda: dense()(hidden()[0]), "reads rows of shape"),
    (lambda: FlashHead.build(weight().index_fill(0, torch.tensor([3]), torch.nan)), "NaN or infinite"),
    (lambda: DenseHead(None, weight().long()), "floating-point"),
    (lambda: FlashHead.build(weight()[0]), "shape"),
    (lambda: FlashHead.build(weight(), None, cluster(weight(), Recipe(16)), seed=2), "seed is a choice of clustering"),
    (lambda: FlashHead.build(weight(), None, cluster(weight()[:200], Recipe(16))), "200 ids"),
    *((lambda measure=measure: measure(flash(), dense(), NONE), "at least one hidden row")
      for measure in (agreement, required_probes, calibrate_always)),
    (lambda: calibrate_always(flash(), dense(), hidden(), count=0), "count must be at least 1"),
])  # fmt: skip

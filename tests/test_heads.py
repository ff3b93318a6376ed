"""Heads: what a FlashHead promises against the dense head, and the refusals of both."""

from dataclasses import replace

import pytest
import torch

from flashspec.heads import (
    Clusters,
    DenseHead,
    FlashHead,
    agreement,
    calibrate_always,
    cluster,
    missed,
    required_probes,
)
from flashspec.heads.cluster import Recipe
from flashspec.models.transformer import RMSNorm
from flashspec.sampling import Dice

VOCAB, WIDTH, ROWS = 515, 48, 24
POSITIONS = torch.arange(ROWS)
SIZES = [1, 7, 16]


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


def hidden(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)


def norm() -> RMSNorm:
    made = RMSNorm(WIDTH, 1e-6)
    torch.nn.init.uniform_(made.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(3))
    return made


def flash(dtype: torch.dtype = torch.float32, **changes) -> FlashHead:
    return FlashHead.build(weight(dtype), norm().to(dtype), **changes)


def everything(head: FlashHead) -> FlashHead:
    return head.with_probes(head.clusters.count)


def scattered(head: FlashHead, rows: torch.Tensor) -> torch.Tensor:
    """Logits over the vocabulary, -inf where the head did not look."""
    scores = head(rows, POSITIONS, Dice(0))
    wide = torch.full((len(rows), head.vocab_size), -torch.inf, dtype=scores.logits.dtype)
    return wide.scatter_reduce(1, scores.ids, scores.logits, "amax")


def equals_dense(head: FlashHead, dtype: torch.dtype) -> bool:
    exact = DenseHead(norm().to(dtype), weight(dtype))(hidden(dtype)).logits
    mine = scattered(everything(head), hidden(dtype))
    return torch.allclose(mine, exact, rtol=1e-5, atol=1e-5) and torch.equal(mine.argmax(1), exact.argmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("always", [(), (0, 3, VOCAB - 1)])
def test_all_clusters_probed_is_the_dense_head(dtype, size, always):
    assert equals_dense(flash(dtype, cluster_size=size, always=always), dtype)


@pytest.mark.parametrize("changes", [{"homes": 2}, {"metric": "euclidean"}, {"homes": 2, "always": (0, 3, VOCAB - 1)}], ids=str)
def test_second_homes_and_euclidean_clusters_are_the_dense_head_too(changes):
    assert equals_dense(flash(**changes), torch.float32)


@pytest.mark.parametrize("stage1", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_rounded_first_stage_leaves_the_logits_exact(stage1, dtype):
    assert equals_dense(flash(dtype, stage1=stage1), dtype)


@pytest.mark.parametrize("selection", ["top", "sample"])
def test_all_clusters_sampled_is_the_dense_head_too(selection):
    assert equals_dense(flash(selection=selection), torch.float32)


def test_a_head_whose_rows_are_not_where_its_ids_say_is_caught():
    head = flash()
    in_order = torch.arange(head.table.ids.numel()).clamp(max=VOCAB - 1).view_as(head.table.ids)
    assert not equals_dense(replace(head, table=head.table._replace(ids=in_order)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("selection", ["top", "sample"])
@pytest.mark.parametrize("changes", [{}, {"stage1": "int8"}, {"stage1": "int4", "homes": 2}], ids=str)
def test_many_rows_at_once_give_what_each_gives_alone(dtype, selection, changes):
    head, rows = flash(dtype, selection=selection, always=(5, 9), **changes), hidden(dtype)
    together = head(rows, POSITIONS, Dice(4))
    alone = [head(rows[i : i + 1], POSITIONS[i : i + 1], Dice(4)) for i in range(ROWS)]
    assert torch.equal(together.ids, torch.cat([s.ids for s in alone]))
    assert torch.allclose(together.logits, torch.cat([s.logits for s in alone]), rtol=1e-6, atol=1e-6)


def test_probing_every_row_with_the_first_rows_clusters_is_caught():
    head, rows = flash(), hidden()
    first = head(rows[:1]).ids.expand(ROWS, -1)
    assert not torch.equal(head(rows).ids, first)


@pytest.mark.parametrize("homes", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_every_listed_logit_is_the_dense_one_and_each_id_counts_once(size, homes):
    head = flash(cluster_size=size, probes=9, always=(1, 2, 500), homes=homes)
    scores, exact = head(hidden()), DenseHead(norm(), weight())(hidden()).logits
    counts = scores.logits > -torch.inf
    assert torch.allclose(scores.logits[counts], exact.gather(1, scores.ids)[counts], rtol=1e-5, atol=1e-5)
    times = torch.zeros(ROWS, VOCAB).scatter_add_(1, scores.ids, counts.float())
    assert times.max() == 1
    assert (times[:, [1, 2, 500]] == 1).all()


def test_an_id_without_its_bias_would_count_twice():
    head = flash(probes=33, always=(1, 2, 500))
    broken = replace(head, table=head.table._replace(bias=torch.zeros_like(head.table.bias)))
    ids = broken(hidden()).ids[broken(hidden()).logits > -torch.inf].view(ROWS, -1)
    assert any(len(row.unique()) < len(row) for row in ids)


def test_without_twins_an_id_with_two_homes_would_count_twice():
    head = flash(probes=20, homes=2)
    broken = replace(head, table=head.table._replace(twins=None))
    for one, twice in ((head, False), (broken, True)):
        scores = one(hidden())
        ids = [row[counts > -torch.inf] for row, counts in zip(scores.ids, scores.logits, strict=True)]
        assert any(len(row.unique()) < len(row) for row in ids) is twice


def test_a_second_home_is_another_cluster_and_finds_more():
    dense, rows = DenseHead(norm(), weight()), hidden()
    one, two = flash(probes=3), flash(probes=3, homes=2)
    second = two.clusters.second
    assert (second != two.clusters.assignments).all()
    assert torch.bincount(second[second >= 0], minlength=33).max() <= 16
    assert (second >= 0).float().mean() > 0.95
    assert two.table.slots == 2 * one.table.slots
    assert agreement(one, dense, rows) <= agreement(two, dense, rows)
    assert (required_probes(two, dense, rows) <= required_probes(one, dense, rows)).all()


def test_a_rounded_first_stage_reads_fewer_bytes_and_finds_nearly_the_same():
    rows, whole = hidden(), flash(torch.bfloat16, probes=8)
    reads = {kind: whole.with_plan(stage1=kind).bytes_read(1) for kind in ("bf16", "int8", "int4")}
    assert reads["bf16"] == whole.bytes_read(1) > reads["int8"] > reads["int4"]
    chosen = {kind: whole.with_plan(stage1=kind).blocks_of(whole.norm(rows)).sort(1).values for kind in reads}
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(chosen["bf16"], chosen["int8"], strict=True)]
    assert sum(shared) > 0.9 * 8 * ROWS
    assert whole.with_plan(stage1="int8").table.blocks is whole.table.blocks


def test_probes_are_the_clusters_nearest_in_direction():
    head = flash(probes=3)
    states = head.norm(hidden())
    cosine = torch.nn.functional.cosine_similarity(states[:, None], head.clusters.centroids[None], dim=2)
    naive = cosine.argsort(1, descending=True)[:, :3]
    probed = head.clusters.assignments[head(hidden()).ids].view(ROWS, 3, 16)[:, :, 0]
    assert torch.equal(naive.sort(1).values, probed.sort(1).values)


def test_more_probes_never_agree_less():
    dense, found = DenseHead(norm(), weight()), []
    for probes in (1, 4, 16, 33):
        found.append(agreement(flash(probes=probes), dense, hidden()))
    assert found == sorted(found)
    assert found[0] < found[-1] == 1.0


def test_required_probes_is_the_least_number_that_agrees():
    dense, head, rows = DenseHead(norm(), weight()), flash(), hidden()
    needed = required_probes(head, dense, rows)
    for index, least in enumerate(needed.tolist()):
        row = rows[index : index + 1]
        assert agreement(head.with_probes(least), dense, row) == 1.0
        assert least == 1 or agreement(head.with_probes(least - 1), dense, row) == 0.0


def test_calibrated_ids_are_those_missed_and_end_those_misses():
    dense, head, rows = DenseHead(norm(), weight()), flash(probes=4), hidden()
    always = calibrate_always(head, dense, rows, count=ROWS)
    missed = dense(rows).logits.argmax(1)[required_probes(head, dense, rows) > 4]
    assert set(always) == set(missed.tolist())
    assert agreement(head, dense, rows) < agreement(head.with_always(always), dense, rows) == 1.0
    assert (required_probes(head.with_always(always), dense, rows) <= 4).all()


def drawn(seed: int, positions: torch.Tensor) -> torch.Tensor:
    head = flash(probes=2, selection="sample", temperature=2.0)
    return head(hidden()[:1].expand(len(positions), -1), positions, Dice(seed)).ids


def test_sampled_clusters_are_a_function_of_seed_and_position():
    positions = torch.tensor([7, 7, 3, 8])
    ids = drawn(0, positions)
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids, drawn(0, positions.flip(0)).flip(0))
    assert not torch.equal(ids[0], ids[3])
    assert not torch.equal(ids, drawn(1, positions))


def test_sampling_reaches_every_id_and_top_selection_does_not():
    positions = torch.arange(6_000)
    assert drawn(0, positions).unique().numel() == VOCAB
    assert flash(probes=2)(hidden()[:1]).ids.unique().numel() <= 2 * 16


@pytest.mark.parametrize(("temperature", "fits"), [(2.0, True), (4.0, False)])
def test_the_first_cluster_is_drawn_with_its_softmax_probability(temperature, fits):
    head = flash(probes=1, selection="sample", temperature=temperature)
    row, count = hidden()[:1], 6_000
    ids = head(row.expand(count, -1), torch.arange(count), Dice(3)).ids[:, 0]
    seen = torch.bincount(head.clusters.assignments[ids], minlength=head.clusters.count).double()
    share = (head.clusters.centroids @ head.norm(row)[0] / 2.0).softmax(0).double() * count
    chi2 = ((seen - share).square() / share)[share >= 5].sum()
    limit = (share >= 5).sum() * 2.5
    assert bool(chi2 < limit) is fits


def test_rows_scored_and_bytes_read_count_every_row_once():
    head = flash(torch.bfloat16, cluster_size=16, probes=4, always=tuple(range(20)))
    assert head.clusters.count == 33
    assert head.rows_scored == 33 + 4 * 16 + 2 * 16
    assert head(hidden()).ids.shape == (ROWS, head.rows_scored - 33)
    assert head.bytes_read(1) == head.rows_scored * WIDTH * 2
    assert head.bytes_read(3) - head.bytes_read(1) == 2 * 4 * 16 * WIDTH * 2
    assert DenseHead(norm(), weight()).bytes_read(3) == VOCAB * WIDTH * 4


def test_with_probes_copies_no_weight():
    head = flash()
    assert head.with_probes(7).table.blocks is head.table.blocks
    assert (head.probes, head.with_probes(7).probes) == (3, 7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probes": 0}, "probes must be at least 1"),
        ({"probes": 34}, "at most the 33 clusters"),
        ({"cluster_size": 0}, "cluster_size must be at least 1"),
        ({"cluster_size": VOCAB + 1}, "exceeds the vocabulary"),
        ({"always": (VOCAB,)}, "ids run from 0"),
        ({"always": (4, 4)}, "lists an id twice"),
        ({"selection": "best"}, "selection must be one of top, sample"),
        ({"temperature": 0.0}, "must be above 0"),
        ({"stage1": "int3"}, "stage1 must be one of"),
        ({"metric": "cosine"}, "metric must be one of spherical, euclidean"),
        ({"homes": 3}, "homes must be 1 or 2"),
        ({"probe": 3}, "no option 'probe'"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        flash(**changes)


def test_rows_of_another_width_and_draws_without_dice_are_refused():
    with pytest.raises(ValueError, match="reads rows of shape"):
        flash()(hidden()[:, 1:])
    with pytest.raises(ValueError, match="reads rows of shape"):
        DenseHead(norm(), weight())(hidden()[0])
    with pytest.raises(ValueError, match="positions and dice"):
        flash(selection="sample")(hidden())


def test_weights_that_are_not_weights_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        FlashHead.build(weight().index_fill(0, torch.tensor([3]), torch.nan))
    with pytest.raises(ValueError, match="floating-point"):
        DenseHead(None, weight().long())
    with pytest.raises(ValueError, match="shape"):
        FlashHead.build(weight()[0])
    with pytest.raises(ValueError, match="fixed in a built head"):
        flash().with_plan(always=(3,))


def test_calibration_on_nothing_is_refused():
    with pytest.raises(ValueError, match="calibration set is empty"):
        calibrate_always(flash(), DenseHead(norm(), weight()), hidden()[:0])
    for measure in (agreement, required_probes):
        with pytest.raises(ValueError, match="at least one hidden row is needed to compare two heads, got none"):
            measure(flash(), DenseHead(norm(), weight()), hidden()[:0])
    with pytest.raises(ValueError, match="at least 1"):
        calibrate_always(flash(), DenseHead(norm(), weight()), hidden(), least=0)


def test_an_id_missed_once_is_not_missed_chronically():
    dense, head = DenseHead(norm(), weight()), flash(probes=1)
    rows = torch.cat((hidden(), hidden()[:3], hidden()[:3]))
    often = missed(head, dense, rows)
    assert set(calibrate_always(head, dense, rows, least=3)) == set((often >= 3).nonzero()[:, 0].tolist())
    assert set(calibrate_always(head, dense, rows, least=3)) < set(calibrate_always(head, dense, rows))


def test_clusters_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="one home and the plan asks for 2"):
        FlashHead.build(weight(), norm(), cluster(weight(), Recipe(16)), homes=2)
    other: Clusters = cluster(weight()[:200], Recipe(16))
    with pytest.raises(ValueError, match="200 ids"):
        FlashHead.build(weight(), norm(), other)

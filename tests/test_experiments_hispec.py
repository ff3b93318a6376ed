"""The experiments on hierarchies run on tiny models: texts are the baseline's, counts add up, the closed form is near."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tables_hispec as made
import tiny
import torch

from flashspec.decoding.hierarchy import hispec
from flashspec.decoding.method import build
from flashspec.measure import clock
from flashspec.measure.levels import StageCosts, Verified, predicted, stage_costs
from flashspec.model.checkpoint import save_transformer
from flashspec.model.transformer import Transformer
from flashspec.scores import GREEDY
from flashspec.study import Refused, store
from flashspec.study.experiments import (
    exit_quality,
    exit_training,
    hierarchy_memory,
    hispec_end_to_end,
    hispec_flash,
    hispec_grid,
    layer_passes,
)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny pair and prompts, as parameters; higher layers change a row less, so that exits are often right."""
    root = tmp_path_factory.mktemp("pair")
    models = tiny.pair()
    for depth, layer in enumerate(models.target.layers):
        for last in (layer.attention.out, layer.mlp.down):
            last.weight.mul_(0.6**depth)
    save_transformer(models.target, root / "target", "float32")
    save_transformer(models.draft, root / "draft", "float32")
    return {"target": str(root / "target"), "draft": str(root / "draft"), "prompts": str(tiny.prompts_file(root))}


def test_the_grid_times_every_schedule(common):
    params = replace(hispec_grid.SMOKE, **common, dtype="float32", new_tokens=12, temperatures=(0.0, 1.0))
    rows = list(hispec_grid.measure(params))
    schedules = {(r.method, r.draft_exit, r.verify_exit, r.n_d, r.n_i) for r in rows}
    pairs = {("hispec", d, v, 2, 4) for d, v in ((1, 2), (1, 4), (2, 4))}
    alone = {("self_speculation", 2, 0, 2, 0)}
    others = {("baseline", 0, 0, 0, 0), ("dense", 0, 0, 2, 0), ("lookup", 0, 0, 2, 0)}
    assert schedules == pairs | alone | others
    screened, timed = ([r for r in rows if r.stage == stage] for stage in ("screened", "timed"))
    assert len(screened) == 2 * 4 and {(r.method, r.draft_exit, r.verify_exit, r.n_d, r.n_i) for r in screened} == pairs | alone
    assert all(r.emitted == 8 and r.seconds > 0 == r.predicted for r in screened)
    assert len(timed) == 2 * 5 * 2 and sum(r.method == "hispec" for r in timed) == 4
    for row in timed:
        assert row.emitted == 12 and min(row.seconds, row.predicted, row.draft_seconds, row.prefill_seconds) > 0
        assert row.draft_seconds > row.head_seconds or row.method == "baseline"
        assert row.method == "baseline" or 0 <= row.kept_1 <= row.decided_1 and row.check_1_seconds > 0
        assert (row.method == "hispec") == (row.actions_2 > 0) == (row.check_2_seconds > 0)
        if row.method == "hispec":
            assert row.actions_2 == row.rounds and row.kept_2 == row.accepted
    assert {r.rule for r in rows} == {"speculative"}


def test_end_to_end_takes_what_the_grid_found(common, tmp_path, monkeypatch):
    params = hispec_end_to_end.Params(**common, dtype="float32", best=1)
    monkeypatch.setattr(store, "default_root", lambda: tmp_path)
    with pytest.raises(Refused, match="run `flashspec run hispec_grid`"):
        hispec_end_to_end.entries_of(params, GREEDY)
    monkeypatch.setattr(hispec_end_to_end, "stored", lambda *_, **__: made.grid())
    entries = {entry.name.split()[0]: entry.method for entry in hispec_end_to_end.entries_of(small(params), GREEDY)}
    assert (entries["hispec"].exits, entries["hispec"].k, entries["hispec"].interval) == ((2, 4), 2, 4)
    assert entries["hispec_flash"] == replace(entries["hispec"], head="flash", probes=params.probes)
    assert len(entries["self_speculation"].exits) == 1


def small(params: hispec_end_to_end.Params) -> hispec_end_to_end.Params:
    """Without the methods that the made-up grid does not hold."""
    return replace(params, methods=("self_speculation", "hispec", "hispec_flash"))


def test_memory_counts_add_up_and_a_hierarchy_needs_at_most_a_tenth_more():
    rows = {(r.method, r.reuse): r for r in hierarchy_memory.measure(hierarchy_memory.SMOKE)}
    used = {name: r.weights + r.cache + r.rows + r.proposals + r.other for name, r in rows.items()}
    plain, flash = used["baseline", True], rows["hispec_flash", True]
    assert all(used[name] <= 1.1 * plain for name in used if name[1])
    assert used["hispec", False] > used["hispec", True] and flash.index > 0.1 * plain
    assert used["hispec_flash", True] == used["hispec", True]
    stacked, single = rows["hispec", True], rows["self_speculation", True]
    row = 4 * 16384
    assert single.proposals == 2 * row and stacked.proposals >= 4 * row
    with pytest.raises(ValueError, match="at least 8"):
        hierarchy_memory.Params(shapes=("reference-draft",))


def test_end_to_end_prints_the_baselines_text_with_every_method(common):
    params = replace(hispec_end_to_end.SMOKE, **common, dtype="float32", probes=8, rules=("coupling",), temperatures=(0.0, 1.0))
    rows = list(hispec_end_to_end.measure(params))
    assert {r.method for r in rows} == {"baseline", *params.methods}
    for temperature in (0.0, 1.0):
        for kind in ("code", "prose"):
            same = [r for r in rows if (r.temperature, r.kind) == (temperature, kind)]
            assert len({r.text_digest for r in same} | {r.twin_digest for r in same}) == 1
            assert {r.divergence_at for r in same} == {None}
    lookup = [r for r in rows if r.method == "lookup"]
    assert {r.draft for r in lookup} == {"lookup"} and {r.draft_exit for r in lookup} == {0}


def test_flash_heads_stand_beside_dense_ones(common):
    params = replace(hispec_flash.SMOKE, **common, dtype="float32", probes=(8,))
    rows = list(hispec_flash.measure(params))
    assert {(r.method, r.head, r.probes) for r in rows if r.method != "baseline"} == {
        (method, head, probes) for method in ("self_speculation", "hispec") for head, probes in (("dense", 0), ("flash", 8))
    }
    with pytest.raises(ValueError, match="must lie below verify_exit = 4"):
        hispec_flash.Params(draft_exits=(4,))


def test_layer_passes_are_those_of_the_closed_form(common):
    params = replace(layer_passes.SMOKE, **common, n_ds=(2, 3), new_tokens=80, temperatures=(1.0,))
    rows = list(layer_passes.measure(params))
    assert list(layer_passes.measure(params)) == rows
    for row in rows:
        found = (row.layer_tokens - row.prompt_layer_tokens) / row.emitted
        assert found == pytest.approx(row.expected, rel=0.12)
    again = [r for r in rows if not r.reuse]
    shared = {(r.method, r.n_d, r.kind): r.layer_tokens for r in rows if r.reuse}
    assert all(r.layer_tokens > shared[r.method, r.n_d, r.kind] for r in again)
    plain = [r for r in rows if r.method == "baseline"]
    assert all(r.layer_tokens == 6 * (r.prompt_layer_tokens // 6 + r.emitted) for r in plain)


def naive(model: Transformer, ids: list[int], depth: int) -> torch.Tensor:
    """Logits at a depth, by the layers one after another."""
    x = model.embed(torch.tensor([ids[:-1]]))
    for layer in model.layers[:depth]:
        x = layer(x, model.rope)
    return (model.norm(x) @ model.head_weight.T)[0]


def test_exit_quality_counts_what_a_loop_counts(common):
    params = replace(exit_quality.SMOKE, **common, depths=(1, 3))
    rows = list(exit_quality.measure(params))
    assert {(r.depth, r.against) for r in rows} == {(1, 3), (1, 6), (3, 6)} and {r.kind for r in rows} == {"code", "prose"}
    model = Transformer.load(common["target"])
    prompts = exit_quality.load_prompts(common["prompts"], 1)
    row = next(r for r in rows if (r.depth, r.against, r.kind) == (1, 3, "code"))
    with torch.no_grad():
        low, high, top = (naive(model, list(prompts[0].ids), depth) for depth in (1, 3, 6))
    assert row.positions == len(prompts[0].ids) - 1
    assert row.same == int((low.argmax(-1) == high.argmax(-1)).sum())
    assert row.right == int((low.argmax(-1) == top.argmax(-1)).sum())
    assert row.both == int(((low.argmax(-1) == high.argmax(-1)) & (low.argmax(-1) == top.argmax(-1))).sum())
    assert row.in_top_5 == sum(int(h.argmax()) in one.topk(5).indices.tolist() for one, h in zip(low, high, strict=True))
    assert row.overlap == pytest.approx(float(torch.minimum(low.softmax(-1), high.softmax(-1)).sum()), rel=1e-4)
    assert row.same <= row.in_top_2 <= row.in_top_5 <= row.in_top_10 <= row.positions
    with pytest.raises(ValueError, match="below the target's 6 layers"):
        list(exit_quality.measure(replace(params, depths=(6,))))


def test_training_curves_are_read_as_training_wrote_them(tmp_path):
    rows = list(exit_training.measure(exit_training.SMOKE))
    lines = (exit_training.folder_of("reference", "target") / exit_training.CURVE).read_text().splitlines()
    last = json.loads(lines[-1])
    assert len(rows) == 3 * len(lines) and {r.depth for r in rows} == {2, 4, 16} == {2, 4, rows[0].layers}
    assert [(r.loss, r.overlap) for r in rows[-3:]] == [(last[f"loss_{d}"], last[f"accept_{d}"]) for d in (2, 4, 16)]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no curve.jsonl"):
        list(exit_training.measure(exit_training.Params(str(tmp_path))))


def test_costs_leave_nothing_out_and_foretell_a_rate():
    models = tiny.pair()
    stages = build(hispec(2, 4), models, context=64)
    costs = stage_costs(stages, list(range(1, 40)), [2, 5], clock.Plan(3, 1))
    assert len(costs.checks) == 2 and min(costs.draft, costs.head, *costs.checks) > 0 and costs.draft > costs.head
    levels = (Verified(10, 20, 20, 20), Verified(5, 20, 20, 20))
    assert predicted(StageCosts(1.0, 0.5, (2.0, 4.0)), levels, [2, 5]) == pytest.approx(7 / (2 * (2 + 2) + 4))
    assert predicted(StageCosts(0.25, 0.1, ()), (), []) == 4.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hispec_grid.Params(draft_exits=(5,), verify_exits=(2,)), "no verify exit lies above a draft exit"),
        (lambda: hispec_grid.Params(n_is=(0,)), "n_is must be at least 1, got 0"),
        (lambda: hispec_end_to_end.Params(methods=("magic",)), "methods must be among"),
        (lambda: hispec_end_to_end.Params(doubt=2.0), "confidence threshold"),
        (lambda: layer_passes.Params(n_ds=()), "n_ds must be at least 1, got none"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_hierarchy_experiment_is_registered_and_has_a_smoke_preset():
    from flashspec.study import EXPERIMENTS

    counted = ("exit_quality", "exit_training", "hierarchy_memory", "layer_passes")
    timed = ("hispec_grid", "hispec_end_to_end", "hispec_flash")
    assert all(EXPERIMENTS[name].preset("smoke") for name in (*counted, *timed))
    assert {name for name in (*counted, *timed) if EXPERIMENTS[name].measured} == set(timed)

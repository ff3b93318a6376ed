"""Races, pieces and recalls measure every legal choice, and refuse the others in words."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from shelf import refused, refusing

from flashspec import DenseHead
from flashspec.measure.prompts import load_prompts
from flashspec.study import EXPERIMENTS, compare, held_out, parts, race, recall, run, stages
from flashspec.study.race import EXPERIMENT


def asked(folders, **changes):
    facts = {name: str(folders[name]) for name in ("target", "draft", "prompts")} | {"dtype": "float32"}
    small = {"new_tokens": 6, "repeats": 1, "k": 2, "parts": 0, "probes": 8, "exit": 1, "verify_exit": 3}
    return EXPERIMENT.parse({**small, **facts, **changes})


def test_one_race_of_everything(folders, tmp_path):
    every = ("draft_model", "lookup", "self_speculation", "hispec", "hispec_adaptive")
    sizes = {"repeats": 2, "parts": 1, "twins": 1, "per_kind": 2, "temperature": 1.0, "new_tokens": 10}
    wanted = asked(folders, method=every, head=("dense", "flash", "int8"), finalize=("eager", "deferred"), **sizes)
    result = run("race", wanted, root=tmp_path)
    frame = result.frame
    assert set(frame["method"]) == {"baseline", *every} and set(frame["head"]) == {"dense", "flash", "int8"}
    names = ["method", "head", "k", "exits", "finalize", "kind", "prompt", "turn"]
    assert not frame.duplicated(names).any() and len(frame) == 4 * 2 * len(frame.drop_duplicates(names[:5]))
    texts = frame.groupby("prompt")["text_digest"].nunique()
    assert (texts == 1).all() and frame["text_digest"].nunique() == 4
    twinned = frame[frame["twin_digest"] != ""]
    assert len(twinned) == len(frame) / 2 and (twinned["twin_digest"] == twinned["text_digest"]).all()
    assert frame["divergence_at"].isna().all()
    above = frame[frame["method"] != "baseline"]
    assert (above[["burst_seconds", "check_1_seconds", "prefill_seconds", "step_seconds"]] > 0).all(axis=None)
    assert (above.loc[above["interval"] > 0, "check_2_seconds"] > 0).all() and (above["interval"] > 0).any()
    assert (frame["emitted"] == 10).all() and (above["accepted"] <= above["judged"]).all()
    assert stages.predicted_seconds(frame).notna().all()
    work = frame[frame["draft"] == ""].groupby(["method", "prompt"])["layer_tokens"].min().unstack(0)
    assert (work["hispec"] > work["baseline"]).all() and (work["self_speculation"] >= work["baseline"]).all()
    assert set(compare.speedups(frame)["prompts"]) == {4}
    assert {"kernels", "variables", "models", "diff"} - {"diff"} <= result.origin.keys()


def test_a_cascade_runs_models_in_place_of_exits(folders, tmp_path):
    single, chain = str(folders["draft"]), f"{folders['draft']}:int8+{folders['target']}:int8"
    sizes = {"method": ("draft_model", "cascade"), "interval": (3,), "parts": 1, "temperature": 1.0, "new_tokens": 12}
    frame = run("race", asked(folders, draft=(single, chain), **sizes), root=tmp_path).frame
    assert frame.groupby("prompt")["text_digest"].nunique().eq(1).all()
    rows = frame[frame["method"] == "cascade"]
    assert set(rows["draft"]) == {"draft:int8+target:int8"} and set(rows["interval"]) == {3}
    assert (rows["actions_2"] > 0).all() and (rows["check_2_seconds"] > 0).all() and stages.predicted_seconds(rows).notna().all()
    assert set(frame.loc[frame["method"] == "draft_model", "draft"]) == {"draft"}
    refused("joined by +", run, "race", asked(folders, draft=single, method="cascade"), root=tmp_path)


METHODS = ("draft_model", "dense", "flash", "lookup", "self_speculation", "hispec", "hispec_flash")
LEGAL = {
    "method": st.sets(st.sampled_from(METHODS), min_size=1),
    "head": st.sets(st.sampled_from(("dense", "int8", "flash")), min_size=1),
    "k": st.sets(st.integers(1, 4), min_size=1, max_size=2), "temperature": st.sampled_from((0.0, 0.6, 1.0)),
    "rule": st.sampled_from(("coupling", "speculative", "typical")),
    "finalize": st.sampled_from(("eager", "deferred")), "kind": st.sampled_from(("code", "prose", ())),
    "repeats": st.integers(1, 2), "screen": st.integers(0, 1), "parts": st.integers(0, 1),
    "twins": st.integers(0, 1), "seed": st.integers(0, 3),
}  # fmt: skip


@settings(max_examples=8)
@given(st.fixed_dictionaries(LEGAL))
def test_any_legal_race_runs_and_is_compared(folders, tmp_path, values):
    wanted = asked(folders, **{name: tuple(v) if isinstance(v, (set, frozenset)) else v for name, v in values.items()})
    frame = run("race", wanted, root=tmp_path).frame
    timed = frame[~frame["screened"]]
    assert (timed["method"] == "baseline").sum() == wanted.repeats * timed["prompt"].nunique()
    found = compare.speedups(frame)
    assert set(found["method"]) == set(timed["method"]) - {"baseline"}
    assert frame["screened"].any() == bool(wanted.screen)
    if wanted.rule[0] == "coupling" or not wanted.temperature[0]:
        assert (found["same_text"] == 1).all()
    compare.like_for_like(frame)


def test_a_text_that_parts_from_plain_decoding_is_seen(folders, tmp_path, monkeypatch):
    whole = race.Racer.run

    def lying(self, prompt, new_tokens):
        found = whole(self, prompt, new_tokens)
        return found if self.who["method"] == "baseline" else found._replace(tokens=(*found.tokens[:3], 7, *found.tokens[4:]))

    monkeypatch.setattr(race.Racer, "run", lying)
    frame = run("race", asked(folders, temperature=0.0, seed=99), root=tmp_path).frame
    above = frame[frame["method"] != "baseline"]
    assert (above["divergence_at"] == 3).all() and above["gap"].notna().all()
    assert (compare.speedups(frame)["same_text"] == 0).all()


@pytest.mark.parametrize(("changes", "word"), [
    ({"method": "magic"}, "method must be one of"),
    ({"engine": ("flashspec", "transformers"), "temperature": 1.0}, "other engines are compared greedily"),
    ({"k": 0}, "k must be at least 1"),
    ({"method": "hispec", "exit": 6, "verify_exit": 7}, "hispec has no exits"),
    ({"kind": "song"}, "kind must be one of code, prose"),
])  # fmt: skip
def test_a_bad_choice_is_refused_in_words(folders, tmp_path, changes, word):
    refused(word, lambda: run("race", asked(folders, **changes), root=tmp_path))


def frame(tmp_path, **changes):
    return run("parts", {"repeats": 2, "past": 8, "cold_megabytes": 1, **changes}, root=tmp_path).frame


def test_every_piece_is_timed_with_every_head(tmp_path):
    wanted = {"piece": parts.PIECES, "shape": "reference-shallow", "head": ("dense", "int8", "flash"), "rows": (1, 4), "k": 3}
    found = frame(tmp_path, **wanted)
    assert set(found["piece"]) == set(parts.PIECES) and (found["seconds"] > 0).all()
    sizes = found.drop_duplicates(["piece", "head", "rows"]).set_index(["piece", "head", "rows"])["bytes"]
    assert sizes["step", "flash", 1] < sizes["step", "int8", 1] < sizes["step", "dense", 1]
    assert sizes["step", "dense", 1] == sizes["body", "dense", 1] + sizes["head", "dense", 1]
    assert sizes["burst", "dense", 1] == 3 * sizes["step", "dense", 1]
    assert set(found.loc[found["head"] == "int8", "format"]) == {"int8"}
    assert set(found.groupby(["piece", "head", "rows"])["turn"].apply(tuple)) == {(0, 1)}


def test_a_projection_needs_no_model_and_too_many_probes_are_left_out(tmp_path):
    sizes = {"probes": (8, 999), "shortlist": (64, 9999)}
    found = frame(tmp_path, piece="projection", shape="512x64", head=("dense", "flash", "fr_spec"), **sizes)
    assert set(zip(found["head"], found["probes"], found["shortlist"], strict=True)) == {
        ("dense", 0, 0), ("flash", 8, 0), ("fr_spec", 0, 64)
    }  # fmt: skip
    assert (found["vocab"] == 512).all() and found["layers"].isna().all()


def test_spreads_keep_the_parameters_and_formats_differ_in_bytes(tmp_path):
    found = frame(tmp_path, piece="body", shape="reference-target", spread=(1, 4), head="dense")
    deep, wide = (found[found["layers"] == layers].iloc[0] for layers in (16, 4))
    assert abs(wide.body / deep.body - 1) < 0.1 and wide.hidden > deep.hidden
    found = frame(tmp_path, piece="check", shape="reference-shallow", format=("bfloat16", "float32", "int4"), rows=2)
    size = found.groupby("format")["bytes"].first()
    assert size["int4"] < size["bfloat16"] < size["float32"]


test_a_bad_piece_is_refused_in_words = refusing([
    (lambda: parts.EXPERIMENT.parse({"piece": "song"}), "piece must be one of"),
    (lambda: parts.EXPERIMENT.parse({"piece": "step", "shape": "512x64"}), "projection alone"),
    (lambda: parts.EXPERIMENT.parse({"shape": "no-such-model"}), "no-such-model"),
    (lambda: parts.EXPERIMENT.parse({"rows": 0}), "rows must be at least 1"),
])  # fmt: skip


@pytest.fixture(scope="module")
def judged(folders):
    pair = {"target": str(folders["target"]), "draft": (str(folders["draft"]),), "prompts": str(folders["prompts"])}
    small = {"cluster_size": (8,), "share": (0.3, 3.0), "edge": (16,), "always": 8}
    params = replace(recall.EXPERIMENT.presets["smoke"], **pair, **small, head=("int8", "vocab_trim", "flash"))
    return params, list(recall.measure(params))


def test_every_position_is_counted_once_a_head(judged):
    params, rows = judged
    held = held_out.held_out(params, params.draft[0])
    assert len(held.kinds) == len(held.judging) and {r.kind for r in rows} == set(held.kinds) == {"code", "prose"}
    for key in {(r.head, r.cluster_size, r.always, r.plan) for r in rows}:
        mine = [r for r in rows if (r.head, r.cluster_size, r.always, r.plan) == key]
        for kind in set(held.kinds):
            assert sum(r.positions for r in mine if r.kind == kind) == held.kinds.count(kind)
        assert all(0 <= r.agreed <= r.positions and -1e-4 <= r.covered <= r.positions + 1e-3 for r in mine)
    assert {r.band for r in rows} <= {"1-16", "17-512"}
    assert {r.format for r in rows if r.head == "int8"} == {"int8"} != {r.format for r in rows if r.head == "flash"}
    assert all(r.clustering_seconds > 0 for r in rows if r.cluster_size == 8)
    assert {r.plan for r in rows if r.cluster_size == 16} == {"default", "0.3", "3"}  # the draft's own


def test_of_an_instruction_only_the_answer_is_judged(judged, monkeypatch):
    params, _ = judged
    asked = [structs.replace(prompt, chat=True) for prompt in load_prompts(params.prompts, params.per_kind)]
    whole = len(held_out.held_out(params, params.draft[0]).judging)
    monkeypatch.setattr(held_out, "load_prompts", lambda *_: asked)
    held = held_out.held_out(replace(params, edge=(9,)), params.draft[0])
    assert list(held.bands((99, 9))) == list(held.bands((9, 99))) == ["1-9", "10-99", "100-512"]
    assert len(held.judging) == len(held.kinds) == len(asked) // 2 * (params.new_tokens + 1) < whole
    asked[:] = [next(prompt for prompt in asked if prompt.kind == kind) for kind in ("code", "prose")]
    refused("two prompts of a kind", held_out.held_out, replace(params, edge=(10,)), params.draft[0])


def test_a_head_that_scores_every_cluster_misses_nothing(judged):
    _, rows = judged
    whole = [r for r in rows if r.plan == "3"]
    assert whole and all(r.agreed == r.positions and r.covered == pytest.approx(r.positions, rel=1e-3) for r in whole)
    assert sum(r.agreed for r in rows if r.plan == "default") < sum(r.positions for r in rows if r.plan == "default")
    assert all(r.rows_scored <= 0.3 * r.vocab for r in rows if r.plan == "0.3" and not r.always)


def test_the_dense_head_agrees_with_itself_and_a_broken_one_does_not(judged):
    params, _ = judged
    held = held_out.held_out(params, params.draft[0])
    same, mass = held_out.judged(held.dense, held)
    assert bool(same.all()) and torch.allclose(mass, torch.ones(len(mass)))
    broken = DenseHead(held.draft.norm, held.draft.head_weight.flip(0))
    assert not bool(held_out.judged(broken, held)[0].all())


def test_a_build_is_timed_part_by_part(tmp_path):
    wanted = {"shape": "1024x64", "rank": 16, "repeats": 2, "cluster_size": "16,64"}
    rows = run("recall", wanted, root=tmp_path).rows
    assert [(row.vocab, row.hidden, row.cluster_size, row.turn, row.kind) for row in rows] == [
        (1024, 64, size, turn, "") for size in (16, 64) for turn in (0, 1)
    ]
    assert all(min(row.clustering_seconds, row.balancing_seconds, row.permutation_seconds) > 0 for row in rows)
    assert len(recall.points(EXPERIMENTS["recall"].preset("head_build", cluster_size=(16, 64)))) == 6


test_what_cannot_be_is_refused = refusing([
    (lambda: recall.Params(cluster_size=(0,)), "cluster_size must be at least 1"),
    (lambda: recall.Params(shape=("65536x32",)), "rank must be at most the width"),
    (lambda: recall.Params(shape=("wide",)), "IDSxWIDTH"),
    (lambda: recall.Params(backend="gpu"), "one of auto, faiss, torch"),
    (lambda: recall.Params(per_kind=1), "per_kind must be at least 2"),
])  # fmt: skip

"""A race runs every legal choice of models, methods, samplings and prompts, beside plain decoding, with equal texts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashspec.study import compare, race, run
from flashspec.study.race import EXPERIMENT, PRESETS, points

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def home(folders, tmp_path_factory):
    return {**folders, "root": tmp_path_factory.mktemp("race")}


def asked(home, **changes):
    facts = {"target": str(home["target"]), "draft": str(home["draft"]), "prompts": str(home["prompts"]), "dtype": "float32"}
    small = {"new_tokens": 6, "repeats": 1, "k": 2, "parts": 0, "probes": 8, "exit": 1, "verify_exit": 3}
    return EXPERIMENT.parse({**small, **facts, **changes})


def test_one_race_of_everything(home):
    every = ("draft_model", "lookup", "self_speculation", "hispec", "hispec_adaptive")
    sizes = {"repeats": 2, "parts": 1, "twins": 1, "per_kind": 2, "temperature": 1.0, "new_tokens": 10}
    wanted = asked(home, method=every, head=("dense", "flash", "int8"), finalize=("eager", "deferred"), **sizes)
    result = run("race", wanted, root=home["root"])
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
    assert compare.rated(frame)["speedup"].notna().all() and compare.rated(frame)["predicted_seconds"].notna().all()
    assert set(compare.speedups(frame)["prompts"]) == {4}
    assert {"kernels", "variables", "models", "diff"} - {"diff"} <= result.origin.keys()


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
def test_any_legal_race_runs_and_is_compared(home, values):
    wanted = asked(home, **{name: tuple(v) if isinstance(v, (set, frozenset)) else v for name, v in values.items()})
    frame = run("race", wanted, root=home["root"]).frame
    timed = frame[~frame["screened"]]
    assert (timed["method"] == "baseline").sum() == wanted.repeats * timed["prompt"].nunique()
    assert compare.rated(frame)["speedup"].notna().all()
    found = compare.speedups(frame)
    assert set(found["method"]) == set(timed["method"]) - {"baseline"}
    assert frame["screened"].any() == bool(wanted.screen)
    if wanted.rule[0] == "coupling" or not wanted.temperature[0]:
        assert (found["same_text"] == 1).all()
    compare.like_for_like(frame)


def test_a_text_that_parts_from_plain_decoding_is_seen(home, monkeypatch):
    whole = race.Racer.run

    def lying(self, prompt, new_tokens):
        found = whole(self, prompt, new_tokens)
        return found if self.who["method"] == "baseline" else found._replace(tokens=(*found.tokens[:3], 7, *found.tokens[4:]))

    monkeypatch.setattr(race.Racer, "run", lying)
    frame = run("race", asked(home, temperature=0.0, seed=99), root=home["root"]).frame
    above = frame[frame["method"] != "baseline"]
    assert (above["divergence_at"] == 3).all() and above["gap"].notna().all()
    assert (compare.speedups(frame)["same_text"] == 0).all()


@pytest.mark.parametrize(("changes", "word"), [
    ({"method": "magic"}, "method must be among"),
    ({"head": "magic"}, "head must be among"),
    ({"engine": ("flashspec", "transformers"), "temperature": 1.0}, "transformers is compared greedily"),
    ({"k": 0}, "k must be at least 1"),
    ({"temperature": -1.0}, "temperature"),
    ({"method": "hispec", "exit": 6, "verify_exit": 7}, "hispec has no exits"),
    ({"kind": "song"}, "kind must be among code, prose"),
])  # fmt: skip
def test_a_bad_choice_is_refused_in_words(home, changes, word):
    with pytest.raises(ValueError, match=word):
        run("race", asked(home, **changes), root=home["root"])


def test_a_race_splits_into_points():
    several = replace(PRESETS["sweep_350"], rule=("coupling", "speculative"))
    assert [(p.temperature, p.rule) for p in points(several)] == [
        ((0.0,), ("coupling",)), ((0.7,), ("coupling",)), ((0.7,), ("speculative",)), ((1.0,), ("coupling",)),
        ((1.0,), ("speculative",)),
    ]  # fmt: skip

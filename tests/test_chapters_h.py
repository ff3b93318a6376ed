"""Chapters 2 to 4 give a page for any legal parameters, and their tables say what was put into a race."""

import json
import random
from dataclasses import asdict

import numpy as np
import pages
import pytest
import shelf
import tiny
from test_compare import race

from flashspec.study import EXPERIMENTS, chain, notebooks, papers
from flashspec.study.parameters import hints, parse_value, type_name
from flashspec.study.parts import Row
from flashspec.study.quote import NOT_HERE, value, verdict
from flashspec.theory import amdahl

pandas = pytest.importorskip("pandas")
pytest.importorskip("seaborn")
pytest.importorskip("myst_nb")

CHAPTERS = ("02_chain", "03_final_token", "04_inside_a_round")
LEGAL = {
    "method": ["draft_model", "draft_model", "dense,flash", "lookup", "self_speculation", "hispec"],
    "head": ["dense", "flash", "int8", "dense,flash", "int8,flash_int8"],
    "k": ["1", "2", "3", "1,3"],
    "probes": ["8", "4", "4,8"],
    "finalize": ["eager", "deferred", "eager,deferred"],
    "temperature": ["0", "1", "0.7", "1", "0,0.8"],
    "rule": ["coupling", "speculative", "typical"],
    "kind": ["", "code", "prose"],
    "parts": ["0", "1"],
    "twins": ["0", "1"],
    "repeats": ["1", "2"],
    "seed": ["0", "1"],
}
OWN = {
    "02_chain": {"shape": ["reference-shallow", "reference-draft"]},
    "03_final_token": {},
    "04_inside_a_round": {"shape": ["reference-shallow"], "format": ["bfloat16", "float32,int4"], "rows": ["1", "3", "1,2"]},
}


def declared(chapter):
    return notebooks.parameters(pages.NOTEBOOKS / f"{chapter}.ipynb")


def page(chapter, values):
    """A chapter run with values as the command line gives them, its tables rendered."""
    known = declared(chapter)
    scope = pages.page(chapter, {name: parse_value(name, known[name].kind, value) for name, value in values.items()})
    for cell in json.loads((pages.NOTEBOOKS / f"{chapter}.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if source.startswith("chain.shown("):
            assert "<table" in eval(source, scope)._repr_html_()
    return scope


def disagreements(chapter, experiment, preset):
    """Where a notebook's parameters differ from a preset's in type or default; those of other experiments are skipped."""
    kinds = hints(experiment.params)
    mine = {name: found for name, found in declared(chapter).items() if name in kinds}
    lost = [name for name, found in mine.items() if type_name(found.kind) != type_name(kinds[name])]
    said, wanted = experiment.parse({name: found.default for name, found in mine.items()}), experiment.preset(preset)
    return lost + [name for name in kinds if getattr(said, name) != getattr(wanted, name)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chapters")
    pair = {name: str(path) for name, path in shelf.write_pair(folder).items()}
    return {**pair, "prompts": str(tiny.prompts_file(folder)), "dtype": "float32", "new_tokens": "6", "per_kind": "1"}


@pytest.fixture
def small(home, tmp_path_factory, monkeypatch):
    """Smoke sizes: the toy pair, and pieces timed twice; tables of equal parameters are shared."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(tmp_path_factory.getbasetemp() / "chapters-results"))
    from flashspec.study import parts

    quick = {"repeats": 3, "past": 8, "cold_megabytes": 1, "probes": (8, 64)}
    for name in ("draft_step", "formats"):
        monkeypatch.setitem(parts.PRESETS, name, parts.EXPERIMENT.parse({**vars(parts.PRESETS[name]), **quick}))
    return home


def engines(chapter):
    small = {"engines": "flashspec", "peer_tokens": "6", "peer_k": "2", "peer_dtype": "float32"}
    return small if chapter.startswith("04") else {}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_any_legal_parameters_give_a_page(chapter, small):
    dice = random.Random(chapter)
    for _ in range(pages.PAGES):
        values = {name: dice.choice(choices) for name, choices in {**LEGAL, **OWN[chapter]}.items()}
        scope = page(chapter, {**small, **values, **engines(chapter)})
        assert len(scope["results"].rows)


def test_another_engine_beside_ours(small):
    pytest.importorskip("transformers")
    quick = {"k": "2", "head": "dense", "temperature": "0", "repeats": "1", "shape": "reference-shallow", "rows": "1"}
    scope = page("04_inside_a_round", {**small, **engines("04"), **quick, "engines": "flashspec,transformers"})
    assert set(scope["beside"]["mode"]) == {"plain", "with the draft"} and (scope["beside"]["same_text"] == 1).all()


def test_the_control_a_fixed_temperature_fails(small):
    """A reading that takes a temperature for granted has no page where the table lacks it."""
    quick = {**small, "head": "dense", "k": "1", "repeats": "1"}
    fixed = 'results.frame[results.frame["temperature"] == 1.0]["seconds"].iloc[0]'
    assert eval(fixed, page("03_final_token", {**quick, "temperature": "1"})) > 0
    with pytest.raises(IndexError):
        eval(fixed, page("03_final_token", {**quick, "temperature": "0"}))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapters_parameters_are_the_presets(chapter):
    chosen = EXPERIMENTS["race"]
    assert disagreements(chapter, chosen, "end_to_end") == []
    assert disagreements(chapter, chosen, "smoke") != []  # the control


def pieces(gain=4.0, share=0.5, turns=5):
    """Pieces of one shape: FlashHead's head is `gain` times faster, the dense head takes `share` of the step."""
    rows = []
    for turn in range(turns):
        noise = 1 + 0.01 * turn
        for head, probes, factor, scored in (("dense", 0, 1.0, 1000), ("flash", 64, gain, 100), ("flash", 8, 2 * gain, 10)):
            times = {"projection": 1 / factor, "head": share / factor, "body": 1 - share, "step": 1 - share + share / factor}
            rows += [Row(piece, "reference-draft", head, "bfloat16", noise * seconds, turn, layers=2, probes=probes,
                         rows_scored=scored, bytes=10 * scored) for piece, seconds in times.items()]  # fmt: skip
            if head == "dense":
                rows += [Row("check", "reference-draft", head, "bfloat16", noise * (2 + n), turn, rows=n) for n in (1, 5)]
    return pandas.DataFrame([asdict(row) for row in rows])


def test_the_chain_holds_what_was_put_in():
    frame = race(prompts=16, noise=0.0)
    found = chain.chain(frame, pieces())
    assert value(found, name="main", stage="projection") == pytest.approx(4.0)
    assert value(found, name="main", stage="draft step") == pytest.approx(amdahl(0.5, 4.0))
    assert set(found.loc[found["stage"] == "projection", "probes"]) == {64}  # a tenth of the rows
    texts = found[found["stage"] == "text, deferred"]
    assert len(texts) == 2 and texts["ratio"].to_numpy() == pytest.approx(1.65 / 1.5)  # over bfloat16, not over the faster int8
    assert chain.head_share(pieces(share=0.3), "reference-draft") == pytest.approx(0.3)
    assert np.isnan(chain.head_share(pieces(), "opt")) and verdict(found, name="opt") == NOT_HERE


def test_deferral_compares_one_format_with_itself():
    deferred = race(prompts=4, noise=0.0)
    eager = deferred[deferred["method"] != "baseline"].assign(finalize="eager", seconds=lambda rows: 1.4 * rows["seconds"])
    eager.loc[eager["head"] == "int8", "seconds"] *= 0.5
    found = chain.deferral(pandas.concat([deferred, eager], ignore_index=True))
    assert value(found, head="dense") == pytest.approx(1.4) and value(found, head="int8") == pytest.approx(0.7)
    assert chain.deferral(deferred).empty


def test_the_ledger_closes_where_parts_tell_the_seconds_and_not_otherwise():
    timed = race(prompts=4, noise=0.0).assign(step_seconds=0.01, prefill_seconds=0.0, overhead_seconds=0.0, burst_seconds=0.004,
                                              check_1_seconds=0.01, drafted=64, rounds=32)  # fmt: skip
    exact = timed.assign(seconds=chain.compare.predicted_seconds(timed))
    assert chain.inside(exact)["explained"].to_numpy() == pytest.approx(1.0)
    assert chain.inside(exact.assign(seconds=2 * exact["seconds"]))["explained"].to_numpy() == pytest.approx(0.5)
    assert chain.inside(race(prompts=4)).empty


def test_a_check_is_held_against_its_own_one_row():
    found = chain.checks(pieces())
    assert value(found, rows=5) == pytest.approx(7 / 3) and value(found, rows=1) == 1.0
    assert chain.checks(pieces()[lambda rows: rows["rows"] != 1])["ratio"].isna().all()


def test_engines_are_compared_prompt_by_prompt():
    ours = race(prompts=16, temperatures=(0.0,), noise=0.0, speed={("baseline", "dense"): 1.0, ("draft_model", "dense"): 1.5})
    theirs = ours.assign(engine="transformers", seconds=lambda rows: 3 * rows["seconds"])
    found = chain.peers(pandas.concat([ours, theirs], ignore_index=True))
    assert list(found["mode"]) == ["plain", "with the draft"] and found["ratio"].to_numpy() == pytest.approx(3.0)
    assert chain.peers(ours).empty


def test_the_thesis_agrees_with_itself():
    ratio = papers.thesis("projection_dense_ms") / papers.thesis("projection_flash_ms")
    assert papers.thesis("projection") == pytest.approx(ratio, rel=1e-3)
    assert amdahl(papers.head_share(), papers.thesis("projection")) == pytest.approx(papers.thesis("draft_step"), rel=1e-3)

"""Every chapter gives a page for any legal parameters, and its parameters are those of the presets that it runs."""

import ast
import json
import os
import random
from pathlib import Path
from typing import get_args, get_origin

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("myst_nb")

from flashspec.parameters import hints, parse_value
from flashspec.study import EXPERIMENTS, chain, compare, notebooks, parts, recall, style

PAGES = int(os.environ.get("FLASHSPEC_PAGES", "2"))  # parameter sets drawn for each chapter
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CHAPTERS = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
RACE = {
    "method": ["draft_model", "draft_model", "dense,flash", "lookup", "self_speculation", "hispec", "hispec_adaptive,lookup"],
    "head": ["dense", "flash", "int8", "dense,flash", "int8,flash_int8", "preview,in_context"],
    "k": ["1", "2", "3", "1,3"], "probes": ["4", "8", "4,8"], "shortlist": ["32", "16,64"],
    "exit": ["1", "1,2"], "verify_exit": ["3", "3,4"], "interval": ["2", "2,4"],
    "finalize": ["eager", "deferred", "eager,deferred"], "temperature": ["0", "1", "0.7", "0,0.8"],
    "rule": ["coupling", "speculative", "typical", "coupling,speculative"],
    "dtype": ["float32", "float32", "bfloat16"], "kind": ["", "code", "prose"], "per_kind": ["1", "2"],
    "repeats": ["1", "2"], "screen": ["0", "1"], "parts": ["0", "1"], "twins": ["0", "1"], "seed": ["0", "1"],
}  # fmt: skip
OWN = {
    "01_decide": {"prompt": ["0", "5"], "text": ["", "def f("], "k": ["1", "4"], "temperature": ["0", "0.7"],
                  "draft": ["pair", "auto"], "exits": ["2,4", "1"], "max_new_tokens": ["1", "9"]},
    "02_chain": {"shape": ["reference-shallow", "reference-draft"], "format": ["bfloat16", "float32"]},
    "04_inside_a_round": {"shape": ["reference-shallow"], "format": ["bfloat16", "float32,int4"], "rows": ["1", "3", "1,2"]},
    "05_heads": {
        "judged": ["int8", "preview,fr_spec", "flash,int4"],
        "cluster_size": ["", "8", "16,32"], "share": ["0.2", "0.1,0.3"], "shape": ["512x64", "512x64,1024x64", "512x64,512x128"],
        "timed": ["dense", "flash", "dense,flash", "dense,int8,flash_int8", "int8,in_context"], "timed_probes": ["8", "4,8"],
        "one_shape": ["512x64", "1024x64"], "layers": ["1", "1,2"], "deep_probes": ["8"], "built": ["512x64", "512x64,1024x64"],
    },
    "07_designing_a_draft": {
        "piece": ["step", "step,body", "check,burst"], "shape": ["reference-shallow", "reference-shallow,reference-draft"],
        "layers": ["0", "1,2", "4"], "spread": ["1", "1,2"], "format": ["bfloat16", "float32"], "head": ["dense", "int8,flash"],
        "probes": ["4", "16"], "rows": ["1,3", "3"], "past": ["4", "8"], "repeats": ["1", "3"],
    },
    "09_hierarchies": {"depth": ["2", "1,3,9"]},
    "11_your_models": {
        "gpu_target": ["Qwen3-32B-AWQ", "LLaMA-65B"], "gpu_draft": ["Qwen3-0.6B"], "gpu_k": ["1", "5"],
        "curve": ["0.8", "0.9,0.5"],
    },
}  # fmt: skip
SMALL = {
    "dtype": "float32", "new_tokens": "6", "texts": "2", "text_tokens": "6", "deep_shape": "reference-shallow",
    "engines": "flashspec", "peer_tokens": "6", "peer_k": "2", "peer_dtype": "float32",
}  # fmt: skip


def declared(chapter):
    """Types and defaults of a chapter's parameters, by name."""
    kind = notebooks.parameters(NOTEBOOKS / f"{chapter}.ipynb")
    return {name: (each, getattr(kind(), name)) for name, each in hints(kind).items()}


def bare(value):
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def page(chapter, values, typed=True):
    known, scope, shown = declared(chapter), {}, []
    given = {name: value for name, value in values.items() if name in known}
    chosen = {name: parse_value(name, known[name][0], value) if typed else bare(value) for name, value in given.items()}
    for cell in json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, chapter, "exec"), scope)
            shown += [eval(compile(ast.Expression(last.value), chapter, "eval"), scope)] if last else []
            scope.update(chosen if "parameters" in cell["metadata"].get("tags", ()) else {})
    return scope, [each._repr_html_() for each in shown if hasattr(each, "_repr_html_")]


@pytest.fixture
def small(folders, tmp_path_factory, monkeypatch):
    """Smoke sizes: the toy pair, pieces timed three times, few resamples; tables of equal parameters are shared."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(tmp_path_factory.getbasetemp() / "chapters-results"))
    quick = {"repeats": 3, "past": 8, "cold_megabytes": 1, "probes": (8, 64), "shortlist": (64,)}
    for name in ("draft_step", "qwen", "formats", "head_cost", "depth_times_head"):
        monkeypatch.setitem(parts.EXPERIMENT.presets, name, parts.EXPERIMENT.preset(name, **quick))
    monkeypatch.setitem(recall.EXPERIMENT.presets, "head_build", recall.EXPERIMENT.parse({"rank": 16}))
    monkeypatch.setattr(compare, "DRAWS", 50)
    ours = {name: str(path) for name, path in folders.items()}
    return SMALL | ours | {f"{side}_{name}": path for side in ("peer", "exit") for name, path in ours.items()}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_any_legal_parameters_give_a_page(chapter, small, monkeypatch):
    dice = random.Random(chapter)
    options = {**({} if chapter[:2] in ("01", "07") else RACE), **OWN.get(chapter, {})}
    if "shortlist" not in declared(chapter):  # whose default is longer than this vocabulary
        options["head"] = [head for head in options.get("head", ()) if "in_context" not in head]
    for turn in range(PAGES if declared(chapter) else 1):
        values = {name: dice.choice(choices) for name, choices in options.items() if name in declared(chapter)}
        values |= {"draft": small["draft"]} if values.get("draft") == "pair" else {}
        scope, shown = page(chapter, {**small, **values}, typed=turn % 2 == 0)
        assert all("<table" in each or "not in this table" in each or "<pre" in each for each in shown), values
        assert "results" not in scope or len(scope["results"].rows), values
        monkeypatch.setattr(style, "svg", lambda *figure: "")


def test_the_control_a_reading_that_asks_for_a_fixed_temperature_has_no_page_without_it(small, monkeypatch):
    whole = chain.deferral
    monkeypatch.setattr(chain, "deferral", lambda frame: whole(frame).set_index("temperature").loc[[1.0]].reset_index())
    quick = {**small, "head": "dense", "k": "1", "repeats": "1", "per_kind": "1", "rule": "coupling", "parts": "0", "twins": "0"}
    page("03_final_token", {**quick, "temperature": "0,1"})
    with pytest.raises(KeyError):
        page("03_final_token", {**quick, "temperature": "0"})


def test_another_engine_beside_ours(small):
    pytest.importorskip("transformers")
    quick = {"k": "2", "head": "dense", "temperature": "0", "repeats": "1", "shape": "reference-shallow", "rows": "1"}
    scope, _ = page("04_inside_a_round", {**small, **quick, "per_kind": "1", "engines": "flashspec,transformers"})
    assert set(scope["beside"]["mode"]) == {"each at its fastest", "plain", "with the draft"}
    assert (scope["beside"]["same_text"] == 1).all()


NAMES = {
    "05_heads recall qwen": {
        "judged": "head", "texts": "per_kind", "text_tokens": "new_tokens", "prompts": "prompts",
        "cluster_size": "cluster_size", "share": "share",
    },
    "05_heads recall head_build": {"built": "shape"},
    "05_heads parts head_cost": {"shape": "shape", "timed": "head", "timed_probes": "probes"},
    "05_heads parts depth_times_head": {"layers": "layers"},
    **dict.fromkeys((
        "02_chain race thesis", "03_final_token race thesis", "04_inside_a_round race thesis",
        "05_heads race thesis", "06_drafts race qwen_sweep", "06_drafts family qwen", "07_designing_a_draft parts draft_latency",
        "08_throughput_model race smollm2_sweep",
        "09_hierarchies race smollm2_exits", "10_all_together race combined", "11_your_models race thesis",
    )),
}  # fmt: skip


def disagreements(chapter, experiment, preset, names=None):
    """Where a notebook's parameters differ from a preset's in type or default; `names` are its own names for them."""
    chosen, said = EXPERIMENTS[experiment], declared(chapter)
    wanted, kinds = chosen.preset(preset), hints(chosen.params)
    given = names or {name: name for name in kinds if name in said and (name != "shape" or experiment == "parts")}
    lists = {there: list[get_args(kind)[:1]] for there, kind in kinds.items() if get_origin(kind) is tuple}  # for papermill
    lost = [here for here, there in given.items() if said[here][0] not in (kinds[there], lists.get(there))]
    held = {there: parse_value(here, kinds[there], said[here][1]) for here, there in given.items()}
    meant = held if names else vars(chosen.parse(held))  # what a chapter leaves out stays at its default
    return lost + [name for name, value in meant.items() if value != getattr(wanted, name)]


@pytest.mark.parametrize("table", NAMES)
def test_a_chapters_parameters_are_the_presets(table):
    assert disagreements(*table.split(), NAMES[table]) == []
    assert disagreements("03_final_token", "race", "smoke") and disagreements("07_designing_a_draft", "parts", "smoke")

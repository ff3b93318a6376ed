"""The chapter on draft heads gives a page for any legal parameters, and its tables say what was put into them."""

import json
import random
from dataclasses import asdict

import pages
import pytest
import shelf
import tiny
from tables_heads import pieces, recall_rows, results
from test_compare import race

from flashspec.study import EXPERIMENTS, compare, figures, heads, notebooks, parts, recall, style
from flashspec.study.parameters import hints, parse_value, type_name
from flashspec.theory import amdahl

pandas = pytest.importorskip("pandas")
pytest.importorskip("seaborn")
pytest.importorskip("myst_nb")

CHAPTER = "05_heads"
LEGAL = {
    "head": ["dense", "flash", "int8", "dense,flash", "dense,int8,flash", "flash,preview", "in_context,flash_int8"],
    "k": ["1", "2", "1,3"],
    "probes": ["8", "4,8"],
    "shortlist": ["32", "16,64"],
    "temperature": ["0", "1", "0.7", "0,1", "0.3,0.8"],
    "rule": ["coupling", "speculative", "typical", "coupling,speculative"],
    "finalize": ["deferred", "eager", "eager,deferred"],
    "dtype": ["float32", "bfloat16"],
    "kind": ["", "code", "prose"],
    "repeats": ["1", "2"],
    "judged": ["", "int8", "preview,fr_spec"],
    "metric": ["", "spherical", "euclidean", "spherical,euclidean"],
    "homes": ["1", "2", "1,2"],
    "cluster_size": ["8", "16,32"],
    "share": ["0.2", "0.1,0.3"],
    "shape": ["512x64", "512x64,1024x64", "512x64,512x128"],
    "timed": ["dense", "flash", "dense,flash", "dense,int8,flash_int8", "int8,in_context"],
    "timed_probes": ["8", "4,8"],
    "one_shape": ["512x64", "1024x64"],
    "layers": ["1", "1,2"],
    "deep_probes": ["8", "16"],
    "built": ["512x64", "512x64,1024x64"],
}


def declared():
    return notebooks.parameters(pages.NOTEBOOKS / f"{CHAPTER}.ipynb")


def page(values):
    """The chapter run with values as the command line gives them, its tables rendered."""
    known = declared()
    scope = pages.page(CHAPTER, {name: parse_value(name, known[name].kind, value) for name, value in values.items()})
    for cell in json.loads((pages.NOTEBOOKS / f"{CHAPTER}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if source.startswith("shown("):
            told = eval(source, scope).data
            assert "<table" in told or "not in this table" in told
    return scope


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    pair = {name: str(path) for name, path in shelf.write_pair(folder).items()}
    return {**pair, "prompts": str(tiny.prompts_file(folder, each=2)), "deep_shape": "reference-shallow", "new_tokens": "6",
            "per_kind": "1", "texts": "2", "text_tokens": "6"}  # fmt: skip


@pytest.fixture
def small(home, tmp_path_factory, monkeypatch):
    """Smoke sizes: the toy pair, pieces timed three times, few resamples; tables of equal parameters are shared."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(tmp_path_factory.getbasetemp() / "heads-results"))
    quick = {"repeats": 3, "past": 8, "cold_megabytes": 1, "shortlist": (64,)}
    for name in ("head_cost", "depth_times_head"):
        monkeypatch.setitem(parts.PRESETS, name, parts.EXPERIMENT.parse({**vars(parts.PRESETS[name]), **quick}))
    monkeypatch.setattr(compare, "DRAWS", 50)
    monkeypatch.setitem(recall.PRESETS, "head_build", recall.EXPERIMENT.parse({"rank": 16}))
    return home


def test_any_legal_parameters_give_a_page(small, monkeypatch):
    """Every figure is drawn; every eighth page's are rendered too, which takes most of the time."""
    dice, svg = random.Random(CHAPTER), style.svg
    for number in range(pages.PAGES):
        monkeypatch.setattr(style, "svg", (lambda figure: "") if number % 8 else svg)
        values = {name: dice.choice(choices) for name, choices in LEGAL.items()}
        values["judged"] = values["judged"] or ("" if values["metric"] else "int8")  # nothing to judge is refused
        scope = page({**small, **values})
        assert len(scope["results"].rows) and len(scope["timing"].rows)


def test_the_control_a_fixed_head_fails(small):
    """A reading that takes a head for granted has no page where the table lacks it."""
    quick = {**small, "k": "1", "repeats": "1", "temperature": "0", "judged": "int8", "metric": "", "layers": "1"}
    quick |= {"built": "512x64", "shape": "512x64", "timed": "dense"}
    fixed = 'against[against["head"] == "flash"]["ratio"].iloc[0]'
    assert eval(fixed, page({**quick, "head": "flash", "probes": "8"})) > 0
    with pytest.raises(IndexError):
        eval(fixed, page({**quick, "head": "dense"}))


NAMES = {
    ("race", "head_tar"): {},
    ("recall", "head_recall"): {"judged": "head", "texts": "per_kind", "text_tokens": "new_tokens", "metric": "metric",
                                "homes": "homes", "cluster_size": "cluster_size", "share": "share"},
    ("recall", "head_build"): {"built": "shape"},
    ("parts", "head_cost"): {"shape": "shape", "timed": "head", "timed_probes": "probes"},
    ("parts", "depth_times_head"): {"layers": "layers"},
}  # fmt: skip


def disagreements(experiment, preset, names):
    """Where the notebook's parameters differ from a preset's in type or default; `names` are its own names for them."""
    chosen, said = EXPERIMENTS[experiment], declared()
    wanted = chosen.preset(preset)
    names = names or {name: name for name in vars(wanted) if name in said}
    kinds = hints(chosen.params)
    return [here for here, there in names.items()
            if type_name(said[here].kind) != type_name(kinds[there]) or said[here].default != getattr(wanted, there)]  # fmt: skip


@pytest.mark.parametrize(("table", "names"), NAMES.items(), ids=lambda each: " ".join(each))
def test_its_parameters_are_the_presets(table, names):
    assert disagreements(*table, names) == []


def test_other_presets_disagree():
    assert disagreements("race", "smoke", {}) != []  # the control


def line(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_gains_are_those_planted_over_the_dense_head_of_the_format():
    frame = pieces()
    float32 = frame[frame["head"] == "dense"].assign(format="float32", seconds=lambda rows: 3 * rows["seconds"])
    found = heads.faster(pandas.concat([float32, frame], ignore_index=True))
    one = line(found, piece="head", layers=1, head="flash")
    assert one["value"] == pytest.approx(4.0) and one["over"] == "bfloat16" and one["limit"] == pytest.approx(4.0)
    assert heads.faster(float32).empty and heads.faster(frame[frame["head"] != "dense"]).empty
    assert set(heads.faster(frame[frame["turn"] == 0])["verdict"]) == {"too few turns"}


def test_steps_of_parts_that_add_up_are_those_that_amdahl_predicts_and_others_are_not():
    found = heads.depths(pieces())
    one = line(found, layers=4, head="flash")
    assert one["share"] == pytest.approx(50.0)
    assert one["value"] == pytest.approx(one["predicted"]) == pytest.approx(amdahl(0.5, 4.0))
    slow = pieces().assign(seconds=lambda rows: rows["seconds"] * (1 + ((rows["piece"] == "step") & (rows["head"] == "flash"))))
    other = line(heads.depths(slow), layers=4, head="flash")
    assert other["value"] == pytest.approx(other["predicted"] / 2)


def test_the_fit_finds_what_a_call_takes_and_the_pace_of_its_bytes():
    one = pieces(layers=(1,))
    frame = pandas.concat([one.assign(shape=f"{n}x64", seconds=0.002 + 1.5e-3 * n, bytes=int(1e6 * n)) for n in (1, 4, 16)])
    found = heads.calls(frame[frame["piece"] == "head"])
    assert found["fixed"].to_numpy() == pytest.approx(2.0) and found["pace"].to_numpy() == pytest.approx(1.5)
    assert heads.calls(pieces(layers=(1,))[lambda rows: rows["piece"] == "head"]).empty


def test_misses_are_told_by_kind_and_calibration_halves_them():
    table = heads.by_kind(recall_rows())
    plain, ready = line(table, name="flash"), line(table, name="flash, calibrated")
    assert (plain["code"], plain["prose"], plain["agreement"]) == (96.0, 99.0, 97.5) and ready["agreement"] == 98.75
    assert plain["share"] == 10.0 and plain["coverage"] == 90.0
    found = line(heads.bands(recall_rows()), kind="code")
    assert found["missed"] == pytest.approx(4.0) and found["missed_calibrated"] == pytest.approx(2.0)
    assert line(heads.clusterings(recall_rows()), cluster_size=64)["spherical, one home"] == 97.5
    assert heads.told(table, "agreement", name="flash") == "97.5 %"
    assert heads.told(table, "agreement", name="x") == "not in this table"


def test_builds_are_minutes_and_parts():
    timed = recall.Row("", "", "flash", "bfloat16", 1000, 64, 100, 12800, "spherical", 1, 16, clustering_seconds=30.0,
                       balancing_seconds=20.0, permutation_seconds=10.0)  # fmt: skip
    found = heads.builds(pandas.DataFrame([asdict(timed)]))
    assert found[["minutes", "clustering"]].iloc[0].tolist() == [1.0, 50.0] and heads.builds(recall_rows()).empty


def test_heads_are_held_against_plain_their_own_format_and_int8():
    table = heads.against(race(noise=0.0, temperatures=(0.0,)))
    one = line(table, head="flash")
    assert one["ratio"] == pytest.approx(1.65 * 1.1)
    assert one["same_format"].startswith("1.10×") and one["over_int8"].startswith("0.92×")
    assert table["who"].str.contains("×").all()
    assert heads.against(race(temperatures=(0.0,), speed={("baseline", "dense"): 1.0})).empty


def test_a_figure_has_a_mark_for_every_head_and_says_where_there_is_none():
    axis, *_ = figures.head_speedups(results(race())).figure.axes
    assert {text.get_text() for text in axis.get_yticklabels()} == {"main, dense", "main, int8", "main, flash", "dense"}
    lone, *_ = figures.head_speedups(results(race(speed={("baseline", "dense"): 1.0}))).figure.axes
    assert lone.get_title(loc="left") == "not in this table" and len(lone.lines) < len(axis.lines)
    depths = [len(figures.head_depth(results(frame)).figure.axes[0].lines) for frame in (pieces(), pieces()[:0])]
    assert depths[0] > depths[1]

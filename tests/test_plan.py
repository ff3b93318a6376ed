"""A plan finds the best setting where it is known, says no where nothing pays, and refuses what cannot be true."""

from dataclasses import replace
from itertools import product

import pytest
import shelf
import tiny
import toys

from flashspec.cli.main import status
from flashspec.cli.plan import held
from flashspec.decoding.method import Method
from flashspec.decoding.models import Models
from flashspec.measure import clock, depths
from flashspec.measure.costs import SETTLING, PairCosts, PairParts, Setting, measure_costs, name_of, parts_of
from flashspec.measure.planning import Given, Question, Texts, advise, forecast, head_cases, observe, stated_costs
from flashspec.measure.prompts import Prompt
from flashspec.models.synthetic import synthetic
from flashspec.sampling import Sampling
from flashspec.study import advice, tables
from flashspec.study.race import Row as RaceRow
from flashspec.study.registry import EXPERIMENTS
from flashspec.theory import Costs, best_k, replayed_all, speedup

PUBLISHED = {"step": 60.0, "draft": 6.69, "check": 60.0}
QUESTION = Question(heads=("dense",), finalizes=("deferred", "eager"), max_k=12)


NAMES = ("dense", "flash P=2", "flash P=3")


def stated(**changes):
    return stated_costs({**PUBLISHED, **changes})


@pytest.mark.parametrize("alpha", [0.5, 0.8, 0.95])
def test_the_recommended_k_is_the_closed_forms_best(alpha):
    best = advise(stated(), Given((alpha,)), QUESTION.methods).best
    expected = best_k(alpha, Costs(6.69, 60.0), 12)
    assert (best.method.k, best.rate) == (expected.block, pytest.approx(expected.throughput))
    assert best.method.finalize == "deferred"  # an eager final token costs a step and brings nothing
    assert best.speedup.low == best.speedup.high == pytest.approx(best.speedup.value)  # stated numbers carry no noise


def test_a_draft_as_slow_as_its_target_is_not_speculated_with():
    found = advise(stated(draft=60.0), Given((0.8,)), QUESTION.methods)
    assert found.verdict == "do not speculate" and found.best.speedup.value < 1.0
    assert "do not speculate" in next(advice.lines(found, {}))
    assert advise(stated(draft=6.0), Given((0.8,)), QUESTION.methods).verdict == "speculate"


def test_what_breaks_even_breaks_even():
    best = advise(stated(), Given((0.8,)), QUESTION.methods).best
    at = stated(draft=best.needs.draft)
    assert forecast(at, Given((0.8,)), best.method).speedup.value == pytest.approx(1.0)
    assert forecast(stated(), Given((best.needs.acceptance,)), best.method).speedup.value == pytest.approx(1.0)


def test_a_longer_curve_is_followed_and_a_short_one_goes_on():
    method = Method("model", k=4)
    assert forecast(stated(), Given((0.9, 0.5)), method).tar == pytest.approx(1 + 0.9 + 0.45 + 0.225 + 0.1125)
    flat, constant = (forecast(stated(), Given(rates), method).tar for rates in ((0.9,) * 4, (0.9,)))
    assert flat == pytest.approx(constant)


def noisy(spread):
    parts = stated().turns[0]
    turns = ({name: value * (1 + spread * (i % 5 - 2)) for name, value in parts.items()} for i in range(9))
    return PairCosts(tuple({**turn, "step": 60.0} for turn in turns), stated().ks)


def test_an_eager_round_costs_its_read_and_the_shorter_check():
    turn = {**stated().turns[0], "eager 1": 100.0, "eager 32": 100.0, "finalize": 58.0}
    costs, _ = PairCosts((turn,) * 3, stated().ks).costs(Method("model", finalize="eager"))
    assert (costs.check(4), costs.finalize) == (42.0, 58.0)
    assert PairCosts((turn,) * 3, stated().ks).costs(Method("model"))[0].check(4) == 60.0


def test_the_interval_grows_with_the_noise_and_an_interval_that_holds_one_is_unclear():
    texts = Texts({"dense": [[float((i + j) % 3 > 0) for j in range(40)] for i in range(4)]})
    widths = [(f := forecast(noisy(s), texts, Method("model"))).speedup.high - f.speedup.low for s in (0.0, 0.1)]
    assert widths[0] < widths[1]
    mixed = Texts({"dense": [[0.0] * 40, [1.0] * 40, [0.0] * 40]})
    assert advise(stated(), mixed, QUESTION.methods).verdict == "unclear"


@pytest.fixture(scope="module")
def observed():
    models = toys.duo()
    question = Question(probes=(2, 3), max_k=3, new_tokens=24, repeats=3)
    prompts = [Prompt("code", tuple(toys.PROMPT)), Prompt("prose", (9, 8, 2)), Prompt("tests", (5, 5, 1))]
    return (models, question, prompts, *observe(models, question, prompts))


def test_a_plan_measures_every_part_and_counts_what_live_decodes_count(observed):
    models, question, prompts, costs, texts = observed
    assert {name for turn in costs.turns for name in turn} == {
        "step", "finalize", "overhead", *(f"{part} {k}" for part, k in product(("check", "eager"), (1, 2, 3))),
        *(f"{part} {name}" for part, name in product(("burst 1", "burst 2", "burst 3", "head"), NAMES))}  # fmt: skip
    assert all(value > 0 for turn in costs.turns for name, value in turn.items() if name != "overhead")
    for writer in question.writers:
        live = [toys.run(models, replace(writer, k=3), prompt=list(p.ids), seed=0).stats for p in prompts]
        found = replayed_all(texts.chances[name_of(writer)], 3)
        assert (found.rounds, found.accepted) == (sum(s.rounds for s in live), sum(s.accepted for s in live))


def test_a_plan_recommends_what_its_own_numbers_say(observed):
    *_, question, _, costs, texts = observed
    found = advise(costs, texts, question.methods)
    rates = {m: speedup(forecast(costs, texts, m).tar, costs.costs(m)[0], m.k, costs.costs(m)[1]) for m in question.methods}
    assert rates[found.best.method] == max(rates.values())
    assert len(found.others) == len(question.writers) * 2 - 1
    said = "\n".join(advice.lines(found, {"costs": "here"}))
    assert "break-even" in said and "runner-up" in said and "95 % interval" in said
    for step, warned in ((2 * found.best.parts["verify"], True), (0.5 * found.best.parts["verify"], False)):
        told = "\n".join(advice.lines(found._replace(best=found.best._replace(step=step)), {}))
        assert ("beware: a check was timed shorter" in told) == warned


def test_a_head_pays_exactly_if_its_round_gets_faster(observed):
    *_, question, _, _, texts = observed
    parts = {"step": 1.0, "finalize": 1.0, "overhead": 0.0, "check 1": 1.0, "check 4": 1.2}
    heads = {"dense": 0.4, "flash P=2": 0.1, "flash P=3": 0.15}
    bursts = {f"burst {k} {n}": k * (0.2 + t) for n, t in heads.items() for k in (1, 4)}
    turn = parts | {f"head {n}": t for n, t in heads.items()} | bursts
    costs = PairCosts((turn,) * 3, (1, 4))
    for case in head_cases(costs, texts, question.writers, 3):
        ours, dense = (forecast(costs, texts, replace(m, k=3)) for m in (case.method, Method("model")))
        assert case.gain == pytest.approx(ours.speedup.value / dense.speedup.value)
        assert case.pays == (case.gain > 1.0) or name_of(case.method) == "dense"
    cases = head_cases(costs, texts, question.writers, 3)
    said = list(advice.head_lines(cases, {}))
    assert said[0].startswith(f"take the {name_of(cases[0].method)} head at k = 3: ") and len(said) == 4
    for case, line in zip(cases, said, strict=False):
        if name_of(case.method) == "dense":
            assert "what the others are compared with; 600 ms a drafted token" in line
        else:
            assert (": pays, predicted" in line) == case.pays and f"{case.nu:.2f} of one with the dense head" in line


def test_a_head_that_is_cheap_only_alone_does_not_pay():
    texts = Texts({name: [[1.0] * 40] * 3 for name in ("dense", "flash P=2")})
    turn = {"step": 1.0, "check 1": 1.0, "check 4": 1.2, "overhead": 0.0, "finalize": 1.0, "head dense": 0.2,
            "burst 1 dense": 0.3, "burst 4 dense": 1.2, "head flash P=2": 0.01}  # fmt: skip
    writers = [Method("model"), Method("model", "flash", probes=2)]
    for draft, pays in ((0.3, False), (0.11, True)):
        costs = PairCosts(({**turn, **{f"burst {k} flash P=2": k * draft for k in (1, 4)}},) * 3, (1, 4))
        assert {name_of(case.method): case.pays for case in head_cases(costs, texts, writers, 3)}["flash P=2"] is pays


def test_where_no_cheap_head_pays_the_dense_one_is_taken_and_that_is_said():
    sure, lost = [1.0] * 40, [0.0] * 40
    texts = Texts({"dense": [sure] * 3, "flash P=2": [lost] * 3})
    turn = {"step": 1.0, "check 1": 1.0, "check 4": 1.2, "overhead": 0.0, "finalize": 1.0, "head dense": 0.1}
    bursts = {f"burst {k} {name}": k * token for name, token in (("dense", 0.3), ("flash P=2", 0.25)) for k in (1, 4)}
    costs = PairCosts(({**turn, **bursts, "head flash P=2": 0.05},) * 3, (1, 4))
    said = list(advice.head_lines(head_cases(costs, texts, [Method("model"), Method("model", "flash", probes=2)], 3), {}))
    assert said[0].startswith("take the dense head at k = 3: no cheap head keeps enough; what the others")
    assert said[1].startswith("runner-up: flash P=2: does not pay, predicted")


def test_a_model_that_does_not_fit_is_stretched_in_a_straight_line():
    cut = depths.Cut("qwen3-32b", 64, (2, 4))
    assert cut.stretched(3.0 + 2 * 0.5, 3.0 + 4 * 0.5) == pytest.approx(3.0 + 64 * 0.5)
    assert depths.Cut("qwen3-0.6b", 28, (28, 28)).stretched(7.0, 7.0) == 7.0
    assert depths.cut_of("qwen3-32b", 1e9).depths == depths.SHORT and depths.cut_of("qwen3-0.6b", 1e12).whole
    low = {"step": 1.0, "check 1": 1.5, "burst 1 dense": 0.2, "head dense": 0.1, "finalize": 1.0}
    high = {"step": 2.0, "check 1": 2.5, "burst 1 dense": 0.2, "head dense": 0.1, "finalize": 2.0}
    both = {f"{name}{depths.SHALLOW}": seconds for name, seconds in low.items()} | high
    found = depths.stretched_turn((cut, depths.Cut("qwen3-0.6b", 28, (28, 28))), both)
    assert found == {**low, "step": 32.0, "check 1": 32.5, "finalize": 32.0}


def stretched(monkeypatch, repeats: int) -> tuple[PairCosts, list[Models]]:
    """Costs of a small target of six layers timed at one and four, and the pairs that were timed."""
    stood = []
    monkeypatch.setattr(depths, "parts_of", lambda models, *rest: stood.append(models) or parts_of(models, *rest))
    monkeypatch.setattr(depths, "shape", lambda name: toys.config(6))
    monkeypatch.setattr(depths, "synthetic", lambda name, depth: synthetic(toys.config(depth)))
    cuts = depths.Cut("deep", 6, depths.SHORT), depths.Cut("whole", 1, (1, 1))
    return depths.shape_costs(cuts, [Method("model", "dense")], range(1, 13), clock.Plan(repeats)), stood


def test_a_stretched_pair_is_timed_at_few_lengths_and_shares_its_weights(monkeypatch):
    found, (low, high) = stretched(monkeypatch, 9)
    assert found.ks == (1, 2, 4, 8, 12) and len(found.turns) == 9
    assert (low.target.config.layers, high.target.config.layers) == depths.SHORT
    assert low.target.blocks[0] is high.target.blocks[0] and low.target.embed is high.target.embed
    assert found.medians()["step"] > 0 and found.medians()["burst 12 dense"] > found.medians()["burst 1 dense"]


def test_plain_decoding_settles_before_it_is_timed():
    calls = []
    groups = ({"step": lambda: calls.append("step")}, {"burst 1 d": lambda: calls.append("burst"), "check 1": lambda: None})
    assert set(PairParts(groups, (1,)).turn(3)) == {"step", "burst 1 d", "check 1"}
    assert (calls.count("step"), calls.count("burst")) == (3 + SETTLING, 3 + 1)
    calls.clear()
    PairParts(groups, (1,)).turn(3, warmup=0)
    assert (calls.count("step"), calls.count("burst")) == (3, 3)


def test_costs_need_something_to_measure():
    with pytest.raises(ValueError, match="at least one writer"):
        measure_costs(tiny.pair(), [], (1,), Setting((1,), (2,)), clock.Plan(1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: stated(draft=0.0), "the time of draft must be above 0"),
    (lambda: stated(check=-1.0), "the time of check must be above 0"),
    (lambda: stated_costs({"step": 1.0, "draft": 1.0}), "the times lack check"),
    (lambda: stated(rest=1.0), "no part 'rest'"),
    (lambda: Given((1.2,)), r"must lie in \[0, 1\], got 1.2"),
    (lambda: Given((0.5, -0.1)), r"position 1 must lie in \[0, 1\]"),
    (lambda: Given(()), "needs one rate"),
    (lambda: Question(max_k=0), "max_k must be at least 1"),
    (lambda: Question(repeats=2), "repeats must be at least 3"),
    (lambda: Question(heads=("sparse",)), "head must be"),
    (lambda: Question(heads=()), "at least one head"),
    (lambda: depths.cuts_of("qwen3-0.6b", "qwen3-32b"), "bigger than its target"),
])  # fmt: skip
def test_what_cannot_be_true_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return shelf.write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def prompts(tmp_path):
    return str(tiny.prompts_file(tmp_path, ("code", "prose", "tests")))


def test_the_command_plans_a_pair_and_says_where_its_numbers_come_from(folders, prompts, capsys):
    pair = ["--target", str(folders["target"]), "--draft", str(folders["draft"]), "--prompts", prompts]
    few = ["--max-k", "2", "--new-tokens", "8", "--repeats", "3", "--probes", "4"]
    assert status(["plan", *pair, *few]) == 0
    said = capsys.readouterr().out
    assert "predicted" in said and "measured on this machine" in said and "replayed on the target's own texts" in said
    assert status(["plan", "heads", *pair, *few, "--k", "2"]) == 0
    assert "must keep more than" in capsys.readouterr().out


def test_flags_that_would_be_lost_and_tables_that_lack_the_pair_are_refused(folders, tmp_path, monkeypatch, capsys):
    assert status(["plan", "--max-k", "2", "heads"]) == 2
    assert "write --max-k behind `heads`" in capsys.readouterr().err
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(tmp_path))
    assert status(["plan", "heads", "--tar", "stored"]) == 2
    assert "no end-to-end table is stored" in capsys.readouterr().err
    found = advice.Stored({("dense", 4): ()}, "end_to_end")
    with pytest.raises(ValueError, match="no flash head at k = 2, only dense at k = 4"):
        found.counts(Method("model", "flash", k=2))
    with pytest.raises(ValueError, match="choose among them"):
        held(found, [Method("model"), Method("model", "flash")], 4)
    assert status(["plan", "heads", "--times", "step=1,draft=1,check=1", "--acceptance", "0.5"]) == 2
    assert "nothing about heads" in capsys.readouterr().err


def ran(kind, prompt, rounds, **changes):
    """One run of a race of which only the counts matter."""
    facts = {"method": "draft_model", "head": "dense", "draft": "main", "k": 4, "temperature": 0.0, "turn": 0, "rule": "coupling"}
    return RaceRow("t", format="bfloat16", finalize="deferred", kind=kind, prompt=prompt, rounds=rounds, drafted=4 * rounds,
                   accepted=10, emitted=rounds + 10, seconds=1.0, **{**facts, **changes})  # fmt: skip


def put(root, preset, rows):
    experiment = EXPERIMENTS["race"]
    tables.write(experiment.place(experiment.preset(preset), root), experiment.row, rows, {})


def test_counts_are_read_from_the_stored_race_of_one_draft_and_sampling(tmp_path):
    rows = [
        ran(kind, prompt, rounds, draft=draft, rule=rule, **who)
        for (draft, rounds), who, rule, kind, prompt in product(
            (("main", 5), ("shallow", 7)), ({"method": "baseline", "k": 0}, {}, {"head": "flash", "probes": 64}),
            ("coupling", "typical"), ("code", "prose"), (0, 1))
    ]  # fmt: skip
    put(tmp_path, "end_to_end", [*rows, ran("code", 0, 999, turn=1), ran("code", 0, 999, engine="transformers")])
    found = advice.stored_counts("main", Sampling(), tmp_path)
    assert set(found.found) == {("dense", 4), ("flash P=64", 4)}
    assert [(c.rounds, c.tar) for c in found.counts(Method("model", "flash", k=4, probes=64))] == [(10, 3.0), (10, 3.0)]
    assert advice.stored_counts("shallow", Sampling(), tmp_path).counts(Method("model"))[0].tar == pytest.approx(17 / 7)


def test_counts_of_every_head_are_read_from_the_race_made_for_them(tmp_path):
    rows = [
        ran("code", 0, rounds, head=head, shortlist=listed, temperature=heat, rule="speculative")
        for (head, listed, rounds), heat in product((("dense", 0, 5), ("preview", 512, 10)), (0.7, 1.0))
    ]
    put(tmp_path, "head_tar", rows)
    found = advice.stored_counts("main", Sampling(0.7, rule="speculative"), tmp_path)
    assert set(found.found) == {("dense", 4), ("preview N=512", 4)} and found.name == "head_tar"
    assert found.counts(Method("model", "preview", k=4, shortlist=512))[0].tar == 2.0
    assert advice.stored_counts("main", Sampling(0.3, rule="speculative"), tmp_path).found == {}


def test_the_command_plans_from_stated_numbers(capsys):
    assert status(["plan", "--times", "step=60,draft=6.69,check=60", "--acceptance", "0.8"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("speculate: k = ") and "costs stated; acceptance given" in said
    for bad, word in (
        (["--times", "step=60,draft=6.69,check=60"], "--acceptance"),
        (["--times", "step=60,draft=0,check=60", "--acceptance", "0.8"], "above 0"),
        (["--times", "step=60,draft=x,check=60", "--acceptance", "0.8"], "float"),
        (["--times", "step=60,draft=1,check=60", "--acceptance", "1.8"], "[0, 1]"),
        (["--target", "qwen3-32b", "--draft", "qwen3-0.6b"], "--acceptance"),
        (["--target", "qwen3-32b", "--draft", "reference", "--acceptance", "0.8"], "two shapes"),
    ):
        assert status(["plan", *bad]) == 2
        assert word in capsys.readouterr().err


def test_the_command_records_and_replays(folders, prompts, tmp_path, capsys):
    trace, target, draft = str(tmp_path / "trace.json"), str(folders["target"]), str(folders["draft"])
    assert status(["trace", "record", trace, "--target", target, "--prompts", prompts, "--new-tokens", "12"]) == 0
    assert status(["trace", "replay", trace, "--draft", draft, "--target", target, "--ks", "1,3"]) == 0
    table = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert [row[0] for row in table] == ["k", "1", "3"]
    assert status(["trace", "replay", trace, "--draft", draft, "--target", draft]) == 2
    assert "another target" in capsys.readouterr().err
    line = ["--target", draft, "--prompts", prompts, "--new-tokens", "4"]
    assert status(["trace", "record", trace, *line]) == 2
    assert "is there already" in capsys.readouterr().err
    trace = str(tmp_path / "other.json")
    assert status(["trace", "record", trace, *line]) == 0
    assert status(["trace", "replay", trace, "--draft", target]) == 2
    assert "bigger than its target" in capsys.readouterr().err

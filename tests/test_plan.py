"""A plan finds the best setting where it is known, says no where nothing pays, and refuses what cannot be true."""

import math
from dataclasses import replace
from itertools import count, product
from types import SimpleNamespace

import pytest
import shelf
import toys
from shelf import refusing

from flashspec.cli import plan
from flashspec.cli.plan import draft_of
from flashspec.decoding.method import Method
from flashspec.heads import registry
from flashspec.measure import planning
from flashspec.measure.costs import SETTLING, PairCosts, name_of, parts_of, pass_bytes, timed_turn
from flashspec.measure.planning import (
    Question,
    advise,
    forecast,
    head_cases,
    observe,
    replayed_on,
    shape_costs,
    stated_costs,
    stated_rates,
)
from flashspec.measure.prompts import Prompt
from flashspec.models.synthetic import synthetic
from flashspec.theory import Costs, Interval, break_even, replayed, round_time, speedup, throughput, tokens_per_check

PUBLISHED = {"step": 60.0, "draft": 6.69, "check": 60.0}
QUESTION = Question(head=("dense",), finalize=("deferred", "eager"), max_k=12)


def stated(**changes):
    return stated_costs({**PUBLISHED, **changes})


@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_the_recommended_k_is_the_closed_forms_best(alpha):
    best = advise(stated(), stated_rates((alpha,)), QUESTION.methods)[0]
    rates = {k: throughput(tokens_per_check(alpha, k), Costs(6.69, 60.0), k) for k in range(1, 13)}
    assert best.method.k == max(rates, key=rates.get) and best.rate == pytest.approx(rates[best.method.k])
    assert best.method.finalize == "deferred"  # an eager final token costs a step and brings nothing
    assert best.speedup.low == best.speedup.high == pytest.approx(best.speedup.value)  # stated numbers carry no noise
    slow = advise(stated(draft=60.0), stated_rates((0.8,)), QUESTION.methods)
    assert next(plan.lines(slow, {})).startswith("do not speculate") and plan.verdict(best) == "speculate:"


def noisy(spread):
    parts = stated().turns[0]
    turns = ({name: value * (1 + spread * (i % 5 - 2)) for name, value in parts.items()} for i in range(9))
    return PairCosts(tuple({**turn, "step": 60.0} for turn in turns), stated().ks)


def made(ks=(1, 4), **parts):
    """Costs in which every turn found the same: parts by name, bursts from the seconds of one token of each writer."""
    turn = {"step": 1.0, "check 1": 1.0, "check 4": 1.2, "overhead": 0.0, "finalize": 1.0}
    bursts = {f"burst {k} {name}": k * token for name, token in parts.pop("tokens", {}).items() for k in ks}
    return PairCosts(({**turn, **bursts, **parts},) * 3, ks)


def test_a_burst_is_no_multiple_of_a_token():
    pair = made(overhead=0.1, **{"check 1": 2.0, "check 4": 2.0, "burst 1 dense": 0.5, "burst 4 dense": 1.1})
    costs, step = pair.costs(Method("model"))
    assert step == 1.0 and [costs.burst(k) for k in (1, 2, 4)] == pytest.approx([0.5, 0.7, 1.1])
    assert round_time(costs, 4) == pytest.approx(1.1 + 2.0 + 0.1) and throughput(3.2, costs, 4) == pytest.approx(1.0)
    assert Costs(0.5, 2.0, overhead=0.1).burst(4) == 2.0
    assert 4 * break_even(3.2, costs, 4, 1.0).draft == pytest.approx(1.1)


def test_the_interval_grows_with_the_noise_and_an_interval_that_holds_one_is_unclear():
    texts = replayed_on({"dense": [[float((i + j) % 3 > 0) for j in range(40)] for i in range(4)]})
    widths = [(f := forecast(noisy(s), texts, Method("model"))).speedup.high - f.speedup.low for s in (0.0, 0.1)]
    assert widths[0] < widths[1]
    mixed = replayed_on({"dense": [[0.0] * 40, [1.0] * 40, [0.0] * 40]})
    assert plan.verdict(advise(stated(), mixed, QUESTION.methods)[0]).startswith("no gain shown (the interval holds 1)")


@pytest.fixture(scope="module")
def observed():
    models = toys.duo()
    question = Question(probes=(2, 3), max_k=3, new_tokens=24, repeats=3)
    prompts = [Prompt("code", tuple(toys.PROMPT)), Prompt("prose", (9, 8, 2)), Prompt("tests", (5, 5, 1))]
    *_, (costs, texts) = observe(models, question, prompts)
    return models, question, prompts, costs, texts


def test_a_plan_measures_every_part_and_counts_what_live_decodes_count(observed):
    models, question, prompts, costs, texts = observed
    assert {name for turn in costs.turns for name in turn} == {
        "step", "finalize", "overhead", *(f"check {k}" for k in (1, 2, 3)),
        *(f"burst {k} {name}" for k, name in product((1, 2, 3), ("dense", "flash P=2", "flash P=3")))}  # fmt: skip
    assert all(value > 0 for turn in costs.turns for name, value in turn.items() if name != "overhead")
    for writer in question.writers:
        live = [toys.run(models, replace(writer, k=3), prompt=list(p.ids), seed=0).stats for p in prompts]
        found = replayed(texts[name_of(writer)], 3)
        assert (found.rounds, found.accepted) == (sum(s.rounds for s in live), sum(s.accepted for s in live))


def test_a_plan_recommends_what_its_own_numbers_say(observed):
    *_, question, _, costs, chances = observed
    texts = replayed_on(chances)
    found = advise(costs, texts, question.methods)
    rates = {m: speedup(forecast(costs, texts, m).tar, costs.costs(m)[0], m.k, costs.costs(m)[1]) for m in question.methods}
    assert rates[found[0].method] == max(rates.values()) and len(found) == len(question.writers) * 2
    said = "\n".join(plan.lines(found, {"costs": "here"}))
    assert "break-even" in said and "95 % interval" in said
    assert said.count("deferred") == (found[0].method.finalize == "deferred") + len(question.writers)
    for share, warned in ((2, True), (0.5, False)):
        told = plan.lines([found[0]._replace(step=share * found[0].parts["verify"])], {})
        assert any("beware: a check was timed shorter" in line for line in told) == warned


WRITERS = [Method("model"), Method("model", "flash", probes=2)]


def test_a_head_pays_exactly_if_its_round_gets_faster_and_the_first_line_says_so(observed):
    *_, question, _, _, chances = observed
    texts = replayed_on(chances)
    costs = made(tokens={"dense": 0.6, "flash P=2": 0.3, "flash P=3": 0.35})
    cases = head_cases(costs, texts, question.writers, 3)
    said = list(plan.head_lines(cases, {}))
    assert said[0].startswith(f"take the {name_of(cases[0].method)} head at k = 3: ") and len(said) == 4
    for case, line in zip(cases, said, strict=False):
        ours, dense = (forecast(costs, texts, replace(m, k=3)) for m in (case.method, Method("model")))
        assert case.gain == pytest.approx(ours.speedup.value / dense.speedup.value)
        if name_of(case.method) == "dense":
            assert "what the others are compared with; 600 ms a drafted token" in line
        else:
            assert (case.gain > 1.0) == case.pays == (": pays, predicted" in line)
            assert f"{case.nu:.2f} of one with the dense head" in line


@pytest.mark.parametrize(("seconds", "kept", "pays"), [(0.3, 1.0, False), (0.11, 1.0, True), (0.25, 0.0, False)])
def test_a_head_that_is_not_cheaper_in_a_burst_or_keeps_too_little_does_not_pay_and_the_dense_one_is_taken(seconds, kept, pays):
    texts = replayed_on({"dense": [[1.0] * 40] * 3, "flash P=2": [[kept] * 40] * 3})
    costs = made(tokens={"dense": 0.3, "flash P=2": seconds})
    first, second, _ = plan.head_lines(head_cases(costs, texts, WRITERS, 3), {})
    if pays:
        assert first.startswith("take the flash P=2 head at k = 3: pays, predicted")
    else:
        assert first.startswith("take the dense head at k = 3: no cheap head keeps enough; what the others")
        assert second.startswith("runner-up: flash P=2: does not pay, predicted")


def test_shapes_cost_the_bytes_that_a_pass_reads():
    pair, model = shape_costs("qwen3-4b", "qwen3-0.6b", 1e9), synthetic("reference-draft")
    costs, step = pair.costs(Method("model", k=4))
    assert (costs.burst(4), costs.check(4), step) == pytest.approx((4e-9 * pass_bytes("qwen3-0.6b"), step, step))
    matrices = sum(weight.nbytes for weight in model.parameters() if weight.ndim == 2)
    assert pass_bytes("reference-draft") == pytest.approx(matrices, rel=1e-3)
    assert pass_bytes("qwen3-4b-awq") < 0.4 * pass_bytes("qwen3-4b")
    speed = forecast(pair, stated_rates((1.0,)), Method("model", k=4)).speedup.value
    assert speed == pytest.approx(5 * step / round_time(costs, 4)) and speed > 1.0


def test_every_part_of_every_writer_is_timed_in_its_place_and_plain_decoding_settles_before():
    groups, calls = parts_of(shelf.pair(), WRITERS, (1, 3), (1, 2, 3)), []
    assert [" ".join(group) for group in groups] == [
        "step", "finalize", "burst 1 dense check 1", "burst 3 dense check 3",
        "burst 1 flash P=2 behind check 1", "burst 3 flash P=2 behind check 3"]  # fmt: skip
    noted = [{name: lambda name=name: calls.append(name) for name in group} for group in groups]
    found = timed_turn(noted, "cpu", str)
    assert found.pop("overhead") >= 0
    assert {name: calls.count(name) for name in found} == {name: 1 + SETTLING if name == "step" else 1 for name in found}
    assert calls[-2:] == ["burst 3 flash P=2", "behind check 3"] and not any("behind" in name for name in found)


test_what_cannot_be_true_is_refused = refusing([
    (lambda: stated(draft=0.0), "the time of draft must be above 0"),
    (lambda: stated_costs({"step": 1.0, "draft": 1.0}), "the times lack check"),
    (lambda: stated(rest=1.0), "no part 'rest'"),
    (lambda: stated_rates((1.2,)), r"must lie in \[0, 1\], got 1.2"),
    (lambda: stated_rates(()), "needs one rate"),
    (lambda: Question(max_k=0), "max_k must be at least 1"),
    (lambda: Question(repeats=2), "repeats must be at least 3"),
    (lambda: Question(head=("sparse",)), "head must be"),
    (lambda: shape_costs("qwen3-0.6b", "qwen3-32b", 1e9), "bigger than its target"),
])  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    return str(shelf.prompts_file(tmp_path, ("code", "prose", "tests")))


@pytest.fixture
def few(folders, prompts):
    """A small plan of the toy pair, as flags."""
    pair = ["--target", folders["target"], "--draft", folders["draft"], "--prompts", prompts]
    return [*pair, "--max-k", "2", "--new-tokens", "8", "--repeats", "3"]


def test_the_command_plans_a_pair_and_says_where_its_numbers_come_from(few, cli):
    said = cli("plan", *few, "--probes", "4").out
    assert "predicted" in said and "measured on this machine" in said and "replayed on the target's own texts" in said
    assert "must keep more than" in cli("plan", "heads", *few, "--probes", "4", "--k", "2").out


def test_a_person_who_waits_sees_every_piece_an_estimate_and_the_machine(few, cli, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_NOW", 1)
    out, said = cli("plan", *few)
    without = "planned without FlashHead: this draft has no FlashHead"
    heard = ("text 1 of 3", "burst 2 dense: ", "first estimate: ", "text 3 of 3", "after turn 1: ", "after turn 3: ")
    told = (without, *heard, "a load of ")
    places = [said.index(word) for word in told]
    assert places == sorted(places) and all(said.count(word) == 1 for word in told if "text" not in word)
    assert "flash" not in out and "8 tokens for each of 3 prompts" in out
    late = cli("plan", *few, "--seconds", "0", code=2).err
    assert "only 0 of the 3 turns that an interval needs fit into 0 s; give more --seconds" in late
    assert "heads build" in cli("plan", *few, "--head", "flash", code=2).err


def test_measuring_ends_where_one_more_turn_would_end_too_late_and_turns_come_before_longer_texts(observed, monkeypatch):
    models, question, prompts, *_ = observed
    ticks = count()
    monkeypatch.setattr(planning, "clock", SimpleNamespace(now=lambda: float(next(ticks))))

    def lengths(until=math.inf, **options):
        """Of the first text, turn after turn, and the ticks that all took."""
        start, asked = next(ticks) + 1, replace(question, **options)
        found = [len(texts["dense"][0]) for _, texts in observe(models, asked, prompts, until=start + until)]
        return found, next(ticks) - start

    (cold, first, second, third), whole = lengths()
    assert cold == first < second < third == question.new_tokens
    reached = [len(lengths(until=share * whole)[0]) for share in (0.1, 0.3, 0.5, 0.7, 1.1)]
    assert reached == sorted(reached) and (reached[0], reached[-1]) == (0, 4) and len({*reached}) > 3
    assert lengths(until=whole - 2)[0] == [cold, first, second, second]
    assert len(lengths(until=whole + 2, repeats=5)[0]) == 4 < len(lengths(repeats=5)[0])


def test_the_draft_is_the_targets_own_unless_one_is_named():
    assert [draft_of({"draft": named, "target": "qwen", "times": None}) for named in ("auto", "shallow")] == ["qwen", "shallow"]


@pytest.mark.parametrize(("load", "spread", "busy"), [(0.3, 0.0, False), (0.3, 0.2, True), (1.7, 0.0, True)])
def test_a_busy_machine_is_called_busy(load, spread, busy):
    turns = tuple({"step": 60.0 + 60 * spread * i} for i in range(3))
    assert plan.machine(load, 2, PairCosts(turns, (1,)).spread).startswith("this machine is busy") == busy


def test_an_interval_wider_than_a_factor_of_two_gives_no_advice():
    found = advise(stated(), stated_rates((0.8,)), QUESTION.methods)[0]
    words = [plan.verdict(found._replace(speedup=Interval(1.5, low, 2.3))) for low in (1.1, 1.2)]
    assert words[0].startswith("no advice: the interval is wider than a factor of two") and words[1] == "speculate:"


def test_the_command_plans_from_stated_numbers(cli):
    said = cli("plan", "--times", "step=60,draft=6.69,check=60", "--acceptance", "0.8").out
    assert said.startswith("speculate: k = ") and "costs stated; acceptance given" in said
    said = cli("plan", "--target", "opt-66b", "--draft", "opt-125m", "--acceptance", "0.6").out
    assert "costs predicted from the bytes of the shapes at " in said


def test_the_command_records_and_replays(folders, prompts, tmp_path, cli):
    trace, other, target, draft = tmp_path / "trace.json", tmp_path / "other.json", folders["target"], folders["draft"]
    line = ["--prompts", prompts, "--new-tokens", "4"]
    for place, model in ((trace, target), (other, draft)):
        cli("trace", "record", place, "--target", model, *line)
    said = cli("trace", "replay", trace, "--draft", draft, "--target", target, "--k", "1,3").out
    assert [row.split("\t")[0] for row in said.splitlines()[-3:]] == ["k", "1", "3"]
    for bad, word in (
        (["replay", trace, "--draft", draft, "--target", draft], "another target"),
        (["record", trace, "--target", draft, *line], "is there already"),
        (["replay", other, "--draft", target], "bigger than its target"),
    ):
        assert word in cli("trace", *bad, code=2).err

"""The decision page: Python's numbers in a real browser, presets close to what was measured, and keys alone suffice."""

import math
import random
from pathlib import Path

import pytest
from browser import overflow

pytest.importorskip("pandas")

from flashspec import theory
from flashspec.study import papers
from flashspec.theory import decision, scheduled
from flashspec.theory.decision import Setting

STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"
WORKS = ["thesis", "yan-deep", "yan-wide", "hispec"]
FIELDS = papers.DESCRIBED["field"]
PLAIN = Setting(15.4, 0.06, 0.85, 6.7, 0.3, 0.8, 6.9, 0.02, 3, 2, 1.2, 0.41, 1.0, 7.3, 0.4, 0.79, 1.1)
FORMULAS = (STATIC / "decision.js").read_text()
RANGES = {field["name"]: (field["low"], field["high"]) for field in FIELDS} | {"exits": (0, 2)}


def drawn(dice):
    """A setting anywhere within the ranges of its sliders."""
    values = {name: dice.uniform(*span) for name, span in RANGES.items()}
    return values | {name: dice.randint(*RANGES[name]) for name in ("k", "exits")}


def plainly(found):
    """What a page's answer looks like: tuples by name."""
    return {name: value._asdict() if isinstance(value, tuple) else value for name, value in found.items()}


def parted(here, there):
    """The names of the numbers in which two answers differ by more than 1e-9 of them."""
    if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
        return {f"{name} {part}".strip() for name in here for part in parted(here[name], there[name])}
    numbers = [value for value in (here, there) if isinstance(value, (int, float))]
    return set() if here is there is None or len(numbers) == 2 and math.isclose(*numbers, rel_tol=1e-9) else {"."}


@pytest.fixture(scope="module")
def address(tmp_path_factory, serve):
    site = tmp_path_factory.mktemp("site")
    head = '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    looks, code = (STATIC / "decide.css").read_text(), f"{FORMULAS}</script><script>{(STATIC / 'decide.js').read_text()}"
    shown = f"{head}<style>{looks}</style>{papers.decision_tool().data}<script>{code}</script>"
    page = f"<!doctype html><html lang=en><title>x</title>{shown}"
    (site / "index.html").write_text(page)
    return serve(site)


def test_a_thousand_settings_give_pythons_numbers_and_a_changed_formula_does_not(visit, address):
    page, dice = visit(address), random.Random(0)
    settings = [drawn(dice) for _ in range(1000)]
    found = page.evaluate("(settings) => settings.map(decide.decision)", settings)
    expected = [plainly(decision.decision(Setting(**each))) for each in settings]
    wrong = [names for here, there in zip(found, expected, strict=True) if (names := parted(here, there))]
    assert wrong == [] and len(found) == 1000 and page.faults == []
    changed = FORMULAS.replace("alpha ** (block + 1)", "alpha ** block")
    assert changed != FORMULAS
    found = page.evaluate(f"(settings) => {{ {changed}; return settings.map(decide.decision); }}", settings[:20])
    assert all(parted(here, there) for here, there in zip(found, expected, strict=False))  # the control


def words(page):
    return page.inner_text("#decision-tool")


def test_the_page_is_used_with_keys_alone_and_its_address_holds_its_state(visit, address):
    page = visit(address)
    first, reached = words(page), []
    page.keyboard.press("Tab")
    while (here := page.evaluate("document.activeElement.id")) not in ("", *reached):
        reached.append(here)
        page.keyboard.press("Tab")
    ids = [f"decide-{name}" for name in (*RANGES, "preset")]
    assert {*ids, *(f"decide-{field['name']}-slider" for field in FIELDS), "decide-address"} <= set(reached)
    assert page.evaluate("location.hash") == ""

    page.focus("#decide-alpha-slider")
    page.keyboard.press("Home")
    assert page.input_value("#decide-alpha") == "0" and "Fastest: one exit" in words(page)
    page.focus("#decide-preset")
    page.keyboard.press("Home")
    assert words(page) == first
    page.focus("#decide-k")
    page.keyboard.press("ArrowUp")
    assert "At your k = 4" in words(page) and "k=4" in page.evaluate("location.hash")
    page.keyboard.type("9")
    assert page.get_attribute("#decide-k", "aria-invalid") == "true" and "At your k = 4" in words(page)
    page.keyboard.press("Tab")
    assert page.input_value("#decide-k") == "4" and page.get_attribute("#decide-k", "aria-invalid") == "false"
    page.focus("#decide-exits")
    page.keyboard.press("Home")
    assert page.locator("#decide-middle").is_hidden() and "Choose one exit" in words(page)

    again = visit(f"{address}/{page.evaluate('location.hash')}")
    assert words(again) == words(page) != first and page.faults == again.faults == []
    strange = visit(f"{address}/#k=99&alpha=x&step=&exits=7&nobody=1")
    assert words(strange) == first and strange.faults == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_every_control_has_a_name(visit, address, dark):
    page = visit(address, 390, dark)
    unnamed = "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length && !e.ariaLabel).length"
    assert overflow(page) == 0 and page.evaluate(unnamed) == 0
    assert page.locator("svg[role=img]").evaluate_all("(all) => all.every((each) => each.ariaLabel)")
    assert page.locator("svg path.curve").count() == 4 and "break-even" in page.text_content("svg >> nth=1")


def test_presets_come_close_to_what_was_measured_and_to_what_a_paper_prints(tmp_path):
    assert list(papers.presets(tmp_path)) == ["start", *WORKS]  # without tables
    found = papers.presets()
    assert list(found)[:3] == ["qwen", "smollm2", "reference"] and len(found) == 3 + len(WORKS)
    for preset in found.values():
        assert all(low <= preset.values[name] <= high for name, (low, high) in RANGES.items())
        assert preset.note.startswith(("Measured", *papers.LABELS.values()))
    rates = {name: plainly(decision.decision(each.setting)) for name, each in found.items()}
    off = {name: rates[name]["plain"] * rates[name][found[name].head] / found[name].rate for name in found if name != "hispec"}
    assert all(off[name] == pytest.approx(1, abs=0.12) for name in ("qwen", "smollm2", "reference"))
    assert off["yan-deep"] == pytest.approx(1, rel=0.01) and off["yan-wide"] == pytest.approx(1, rel=0.01)
    other = decision.decision(found["yan-wide"].setting._replace(k=7))  # the control
    assert other["dense"] != pytest.approx(rates["yan-wide"]["dense"], rel=0.01)


def test_a_decision_is_what_the_formulas_of_theory_give():
    dice = random.Random(1)
    for _ in range(50):
        s = Setting(**drawn(dice))
        d = decision.decision(s._replace(exits=2))
        costs = theory.Costs(s.draft, s.step * (1 + s.slope * s.k))
        assert d["dense"] == pytest.approx(theory.speedup(theory.tokens_per_check(s.alpha, s.k), costs, s.k, s.step))
        assert d["dense_best"].speedup >= d["dense"] and d["flash_best"].speedup >= d["flash"]
        if d["even"] is not None:
            assert decision.at(s, d["flash_won"], d["even"], s.k) == pytest.approx(1.0)
        for flash, won in ((0, "dense_best"), (1, "flash_best")):
            assert max(decision.at(s, flash, s.alpha, k) for k in range(1, decision.MOST + 1)) == d[won].speedup
        flat = s._replace(exits=2, slope=0.0)
        checks, alphas = [s.middle, s.whole_rest * s.step], [s.middle_alpha, s.whole_alpha]
        assert decision.hierarchy(flat).speedup == pytest.approx(s.step * scheduled(s.first, checks, alphas)[0])
    free = decision.decision(PLAIN._replace(gain=1.0, loss=0.0))
    assert free["flash_gain"] == 1.0 and free["flash_even"] == pytest.approx(PLAIN.alpha)
    assert decision.decision(PLAIN)["flash_gain"] > 1.0 > decision.decision(PLAIN._replace(loss=0.4))["flash_gain"]

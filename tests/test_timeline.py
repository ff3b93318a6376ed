"""A decode that can be seen: what became of every token, and a timeline that shows Python's own numbers in a browser."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from browser import overflow
from test_book import extension

from flashspec import Sampling, load
from flashspec.decoding.generate import Detokenizer, generate
from flashspec.study import EXPERIMENTS, figures
from flashspec.study.stages import PARTS, seconds_by_part
from flashspec.study.timeline import spans

SECONDS = {"plain steps": 0.0153, "drafting": 0.0049, "middle checks": 0.0017, "full checks": 0.0181, "final token": 0.0131}
HOW = {
    "plain": {"method": "baseline"}, "eager": {"method": "dense", "k": 3, "finalize": "eager"},
    "deferred": {"method": "dense", "k": 3}, "levels": {"method": "hispec", "exits": (1, 3), "finalize": "eager"},
    "lookup": {"method": "lookup"},
}  # fmt: skip


def test_a_character_of_several_tokens_is_printed_once_and_whole():
    class Bytes:
        tokenizer = True

        def decode(self, ids):
            return bytes(ids).decode("utf-8", errors="replace")

    texts = Detokenizer(Bytes())
    pieces = [texts.push(byte) for byte in "aé€b".encode()]
    assert pieces == ["a", "", "é", "", "", "€", "b"]


@pytest.fixture(scope="module")
def outputs(folders):
    models, prompt = load(folders["target"], folders["draft"]), "def f(é):\n    return [é, é] < é # "
    warm = Sampling(temperature=0.9, seed=1)
    return {name: generate(models, prompt, sampling=warm, max_new_tokens=24, stop=(), **how) for name, how in HOW.items()}


@pytest.mark.parametrize("name", HOW)
def test_every_token_is_said_once_and_as_often_accepted_as_counted(outputs, name):
    out = outputs[name]
    said = [each for tokens in out.said for each in tokens]
    pieces, kinds = [piece for piece, kind in said if kind != "rejected"], [kind for _, kind in said]
    assert tuple(pieces) == out.words.pieces and out.text.startswith("".join(pieces))
    if name == "plain":
        return
    assert kinds.count("accepted") == out.stats.accepted and kinds.count("corrected") + kinds.count("bonus") == out.stats.rounds
    assert kinds.count("rejected") == out.stats.judged - out.stats.accepted and kinds.count("written") == 0
    page = out._repr_html_()
    assert len(re.findall('<span title="(accepted|corrected|bonus)"', page)) == len(out.tokens) + len(set(kinds) - {"rejected"})
    assert "[é, é] &lt; é" in page and "rejected" not in page


@pytest.mark.parametrize("name", HOW)
def test_a_timeline_lasts_as_long_as_the_study_predicts_from_counts_and_parts(outputs, name):
    out = outputs[name]
    found = spans(figures.timeline({name: out}, SECONDS).decodes[0])
    last = max(event.stage for event in out.events)
    judged = [e for e in out.events if e.adds and e.stage]
    eager = sum(event.adds == 0 and event.stage == last for event in out.events) if last else 0
    parts = {"plain steps": 0 if last else len(out.tokens), "drafting": out.stats.drafted, "final token": eager}
    parts |= {"middle checks": sum(e.stage < last for e in judged), "full checks": sum(e.stage == last for e in judged)}
    assert found[-1].end == pytest.approx(sum(SECONDS[part] * count for part, count in parts.items()), abs=1e-12)
    assert found[-1].round == out.stats.rounds and (name != "levels" or (parts["middle checks"] and eager))
    assert all(one.end == two.start for one, two in zip(found, found[1:], strict=False))
    assert spans(figures.timeline(out).decodes[0])[-1].end == sum(parts.values())  # a forward is 1 long


def numbers(page):
    """What the timelines of a page say at this moment, and the places of all bars in their own unit."""
    status = "list => list.map(each => [+each.dataset.start, +each.dataset.end, +each.dataset.total, +each.dataset.tokens])"
    bars = "list => list.map(bar => ['x', 'width'].map(name => bar.getAttribute(name) / bar.ownerSVGElement.dataset.scale))"
    exact = "list => list.map(bar => [bar.dataset.start, bar.dataset.end].map(Number))"
    rects = page.locator("rect[data-end]")
    return page.locator("[data-status]").evaluate_all(status), rects.evaluate_all(exact), rects.evaluate_all(bars)


def expected(decodes, time, **changes):
    """The same numbers from Python's spans; seconds of parts may be changed."""
    status, bars = [], []
    for decode in decodes:
        found = spans(decode._replace(seconds={**decode.seconds, **changes}))
        last, started = max(each.event.stage for each in found), [each.round for each in found if each.start < time]
        now = [each for each in found if each.round == max(started, default=1)]
        done = [each.event for each in found if each.end <= time and each.event.stage == last and each.event.adds]
        status.append([now[0].start, now[-1].end, found[-1].end, sum(event.kept + 1 if last else event.adds for event in done)])
        bars += [(each.start, each.end) for each in found]
    return status, bars


def apart(found, wanted):
    """The largest difference between numbers that a page shows and Python's."""
    (status, bars, _), (mine, ours) = found, wanted
    pairs = zip([x for line in [*status, *bars] for x in line], [x for line in [*mine, *ours] for x in line], strict=True)
    return max(abs(one - two) for one, two in pairs)


PAGE = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>two</title>"


def test_the_keyboard_alone_steps_through_two_timelines_that_show_pythons_numbers(outputs, visit, serve, tmp_path):
    shown = {name: outputs[name] for name in ("plain", "eager", "deferred", "levels")}
    first, second = figures.timeline(shown, SECONDS), figures.timeline(outputs["deferred"])
    (tmp_path / "page.html").write_text(PAGE + first._repr_html_() + second._repr_html_(), encoding="utf-8")
    page = visit(f"{serve(tmp_path)}/page.html", width=390, dark=True)
    moments = sorted({0.0, *(action.end for decode in first.decodes for action in spans(decode))})

    def wanted(time, **changes):
        mine, other = expected(first.decodes, time, **changes), expected(second.decodes, 1e9)
        return [*mine[0], *other[0]], [*mine[1], *other[1]]

    assert apart(numbers(page), wanted(moments[-1])) < 1e-9
    for key in ("Tab", "Tab", "Tab", "Enter"):  # Back, Play, Step: from the end to the beginning
        page.keyboard.press(key)
    for place in range(1, len(moments), 7):
        for _ in range(7 if place > 1 else 1):
            page.keyboard.press("Enter")
        found = numbers(page)
        assert apart(found, wanted(moments[place])) < 1e-9
        drawn = [(x - start, x + width - end) for (x, width), (start, end) in zip(found[2], found[1], strict=True)]
        assert max(abs(each) for pair in drawn for each in pair) < 1e-9
    longer = {"final token": SECONDS["final token"] + 1e-8}
    assert apart(numbers(page), wanted(moments[place], **longer)) > 1e-9  # the control
    for key in ("Tab", "Home", "ArrowRight"):  # the slider
        page.keyboard.press(key)
    assert apart(numbers(page), wanted(moments[1])) < 1e-9
    for key in ("Shift+Tab", "Shift+Tab", "Space"):  # play, and stop
        page.keyboard.press(key)
    page.wait_for_function("+document.querySelector('[data-time]').dataset.time > 0.05")
    page.keyboard.press("Space")
    assert page.locator("[data-play]").first.inner_text().startswith("Play") and not page.faults and overflow(page) == 0


def test_a_stored_decode_takes_the_times_of_a_race_of_the_same_models_and_settings(folders, tmp_path):
    ours = {name: str(path) for name, path in folders.items()} | {"temperature": 0.8}
    ours |= {"dtype": "float32", "kind": "code", "new_tokens": 9, "method": "draft_model,hispec", "exit": 1, "verify_exit": 2}
    ours |= {"finalize": "eager,deferred", "repeats": 1, "parts": 1}
    race, kept = (EXPERIMENTS[name].run(ours, root=tmp_path) for name in ("race", "decodes"))
    found = figures.timeline(kept, race)
    ends = [spans(decode)[-1].end for decode in found.decodes]
    rows = race.frame
    spent = seconds_by_part(rows)[[part for part in PARTS if part not in ("prompt", "loop")]].sum(axis=1)
    spent -= rows["finalize_seconds"].where((rows["finalize"] == "eager") & (rows["k"] > 0), 0.0)  # the last token is not read
    assert sorted(ends) == pytest.approx(sorted(spent), abs=1e-12)
    names = [decode.name for decode in found.decodes]
    assert names[0] == "plain decoding" and [name.endswith("eager") for name in names[1:]] == [True, False, True, False]
    assert race.path.stem in found.source and kept.path.stem in found._repr_html_() and " ms" in found._repr_html_()
    other = replace(race, rows=tuple(replace(row, k=row.k + 1) for row in race.rows))
    assert " forwards" in figures.timeline(kept, other)._repr_html_() and " forwards" in figures.timeline(kept)._repr_html_()


def test_the_book_keeps_all_of_a_timeline_and_no_script_but_ours(outputs):
    clean, html = extension("clean").clean, figures.timeline(outputs)._repr_html_()
    assert parts(clean(html)) == parts(html) and "<script" in html
    assert "<script" not in clean(html.replace("let begun", "let begun = alert(1)"))


def parts(html):
    """Every tag with its attributes, and every text, styles as declarations."""
    found, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, at: found.append((tag, {(k, (v or "").replace(" ", "").strip(";")) for k, v in at}))
    parser.handle_startendtag = parser.handle_starttag
    parser.handle_data = lambda text: found.append(text.strip())
    parser.feed(html)
    return [each for each in found if each]

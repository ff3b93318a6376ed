"""Every page of the built book in headless Chromium: `make check-book` builds the book and names its folder in FLASHSPEC_BOOK."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import overflow

BOOK = Path(os.environ.get("FLASHSPEC_BOOK") or "no book")
NO_BOOK = "no built book; `make check-book` builds it and runs these tests"
UNITS = ("times", "%", "milliseconds", "megabytes", "tokens a second", "tokens a check", "layers", "nats")
ALLOWED = {"region", "empty-table-header"}  # the theme's, and the corner of a table with an index
LIST = {"aria-allowed-role", "aria-deprecated-role", "aria-required-children"}
OWN = {"api.html": {"definition-list"}, "bibliography.html": LIST}  # what Sphinx itself writes there
PAGES = sorted(path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html") if "_static" not in path.parts)
CHAPTERS = [page for page in PAGES if page != "index.html" and not page.startswith("_modules/")]
SVG, NUMBER, FRAME = "{http://www.w3.org/2000/svg}", re.compile(r"[\d.−-]+"), 5  # patches of an axis without bars


def words(part):
    return [note.text.strip() for note in part.iter(ElementTree.Comment)]


def faults_of(text):
    """What a drawn figure lacks: data, or a unit on an axis with numbers."""
    tree = ElementTree.fromstring(text, ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True)))
    found = ["is empty"] if "not in this table" in words(tree) else []
    for axes in (part for part in tree.iter(f"{SVG}g") if re.fullmatch(r"axes_\d+", part.get("id", ""))):
        parts = {part.get("id"): part for part in axes if part.tag == f"{SVG}g"}
        data = [part for name, part in parts.items() if not name.startswith(("matplotlib", "text", "legend"))]
        bars = sum(name.startswith("patch") for name in parts) - FRAME
        drawn = bars > 0 or any(part.find(f".//{SVG}use") is not None for part in data)
        found += [] if drawn else ["is empty"]
        for axis in (part for name, part in parts.items() if name.startswith("matplotlib.axis")):
            label = " ".join(text for part in axis if "tick" not in part.get("id", "") for text in words(part))
            ticks = [text for part in axis if "tick" in part.get("id", "") for text in words(part)]
            if any(map(NUMBER.fullmatch, ticks)) and not any(unit in label for unit in UNITS):
                found.append(f"has an axis without a unit: {label!r}")
    return found


def drawing(label, *points):
    from matplotlib.figure import Figure

    from flashspec.study.style import svg

    figure = Figure()
    axis = figure.subplots()
    axis.axvline(1.0)
    axis.plot(*points, "o")
    axis.set(xlabel=label, ylabel="acceptance, %", xticks=[1, 2])
    return svg(figure, {})


@pytest.mark.parametrize(("picture", "said"), [
    (("times faster", [1, 2], [3, 4]), ""), (("times faster", [], []), "empty"), (("share", [1, 2], [3, 4]), "without a unit"),
])  # fmt: skip
def test_an_empty_figure_and_an_axis_without_a_unit_are_found(picture, said):
    found = " ".join(faults_of(drawing(*picture)))
    assert said in found and bool(said) == bool(found)


@pytest.fixture
def opened(serve, visit):
    """A function that opens a page of the built book."""
    if not PAGES:
        pytest.skip(NO_BOOK)
    home = serve(BOOK)
    return lambda name: visit(f"{home}/{name}")


def unfriendly(page, tries=1):
    """The violations that axe-core finds in the last of some tries, each with its first element."""
    from axe_playwright_python.sync_playwright import Axe

    known = ALLOWED | OWN.get(Path(page.url).name, set())
    for _ in range(tries):
        found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
        if not (wrong := [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["id"] not in known]):
            break
        page.wait_for_timeout(600)
    return wrong


TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter(each => each.getBoundingClientRect().right > 391).map(each => each.outerHTML.slice(0, 99))"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_page_is_whole_and_readable_light_and_dark_wide_and_narrow(opened, name):
    page = opened(name)
    assert unfriendly(page, tries=3) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    assert unfriendly(page, tries=9) == []  # the theme gives what scrolls now its place in the tab order some time later
    assert overflow(page) == 0, page.evaluate(TOO_WIDE)[:3]
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).map(image => image.src)") == []
    assert page.faults == []
    for figure in page.query_selector_all("figure:has(img)"):
        image, links = figure.query_selector("img"), figure.query_selector_all("figcaption .source a")
        goals = [link.get_attribute("href") for link in links]
        assert len(image.get_attribute("alt") or "") > 30, figure.inner_html()
        assert "api.html#flashspec.study." in goals[0] and goals[1:] and all("90_status.html#" in goal for goal in goals[1:])
        assert faults_of((BOOK / name).parent.joinpath(image.get_attribute("src")).read_text()) == [], figure.inner_text()


def test_search_works_and_the_book_is_small(opened):
    page = opened("search.html?q=acceptance")
    page.wait_for_selector("#search-results li a")
    assert [fault for fault in page.faults if "Anchored content" not in fault] == []  # a remark of Sphinx on its own template
    assert sum(path.stat().st_size for path in BOOK.rglob("*") if path.is_file()) <= 25e6


@pytest.mark.skipif(not PAGES, reason=NO_BOOK)
def test_a_second_build_has_the_same_bytes(tmp_path):
    command = [Path(sys.executable).with_name("jupyter-book"), "build", BOOK.parents[1], "--path-output", tmp_path, "-n", "-q"]
    subprocess.run(command, check=True, capture_output=True)
    one, two = (
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != ".buildinfo"}
        for place in (BOOK, tmp_path / "_build" / "html")
    )
    assert one.keys() == two.keys() and [path for path in one if one[path] != two[path]] == []


def test_the_control_a_page_that_asks_elsewhere_or_misses_a_picture_is_found(opened):
    page = opened("bibliography.html")
    with page.expect_response("**/lost.png"):
        page.evaluate(
            "document.body.innerHTML += '<img src=http://192.0.2.1/a.png><img src=lost.png><p style=color:#eee>pale</p>'"
        )
    said = " ".join(page.faults)
    assert unfriendly(page) and "asks for http://192.0.2.1" in said and "404" in said

"""The book stays off the network and its links lead somewhere; the checker that says so is itself caught out."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "book" / "_build" / "html"

def extension(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links, offline = extension("links"), extension("offline")


def site(folder, body):
    (folder / "index.html").write_text(f"<html><body>{body}</body></html>")
    (folder / "other.html").write_text('<html><body><h1 id="place">here</h1></body></html>')
    return list(links.faults(folder))


def test_sound_links_pass(tmp_path):
    links = ('<a href="other.html#place">', '<a href="#">', '<a href="https://arxiv.org/abs/1">')
    assert site(tmp_path, "".join((*links, '<img src="data:image/png;base64,AA">'))) == []


@pytest.mark.parametrize(("body", "said"), [
    ('<a href="missing.html">', "not in the book"),
    ('<a href="other.html#nowhere">', "no such place"),
    ('<img src="lost.svg">', "not in the book"),
    ('<script src="https://cdn.example/x.js"></script>', "from the network"),
    ('<script src="//cdn.example/x.js"></script>', "from the network"),
    ('<link rel="stylesheet" href="https://fonts.example/f.css">', "from the network"),
    ('<p style="background:url(https://img.example/a.png)">', "from the network"),
])  # fmt: skip
def test_every_kind_of_fault_is_found(tmp_path, body, said):
    assert said in " ".join(site(tmp_path, body))


def test_a_style_sheet_that_loads_a_font_from_elsewhere_is_found_and_no_book_is_no_success(tmp_path):
    assert links.main(str(tmp_path)) == 1
    (tmp_path / "book.css").write_text("@font-face { src: url('https://fonts.example/f.woff2') }")
    assert "from the network" in " ".join(site(tmp_path, ""))


def test_thebe_goes_and_nothing_loads_twice():
    bodied = SimpleNamespace(filename=None, attributes={"body": "const thebe_selector = 1"})
    named = [SimpleNamespace(filename=name, attributes={}) for name in ("a.js", "sphinx-thebe.js", "a.js", "b.js")]
    assert [script.filename for script in offline.keep_local([bodied, *named])] == ["a.js", "b.js"]


@pytest.mark.skipif(not (BUILT / "index.html").exists(), reason="the book is not built; run make book")
def test_the_built_book_has_no_fault():
    assert list(links.faults(BUILT)) == []


def test_mathjax_is_shipped_with_its_licence():
    folder = ROOT / "book" / "_static" / "mathjax"
    assert (folder / "tex-svg.js").stat().st_size > 1_000_000
    assert "Apache License" in (folder / "LICENSE").read_text()


def test_every_page_in_the_contents_exists():
    for page in re.findall(r"(?:file|root): (\S+)", (ROOT / "book" / "_toc.yml").read_text()):
        source = ROOT / page if page.startswith("notebooks/") else ROOT / "book" / page
        assert source.with_suffix(".ipynb").exists() or source.with_suffix(".md").exists(), page


def test_every_citation_is_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), flags=re.M))
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    found = [keys for page in pages for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text())]
    cited = {key for keys in found for key in keys.split(",")}
    assert cited and cited <= known


def cells(notebook, kind):
    return ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def unquoted(code, text):
    """Names that a chapter cites and no call of `quote` keeps; numbers of other chapters are theirs."""
    calls = [node for source in code for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    kept = {word.arg for call in calls if getattr(call.func, "id", "") == "quote" for word in call.keywords}
    cited = {name.partition(":")[0] for name in re.findall(r"\{glue:text\}`([^`]+)`", text) if "::" not in name}
    return {name for name in cited if name.removesuffix("_value") not in kept and name not in kept}


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("[!.]*.ipynb")), ids=lambda path: path.stem)
def test_a_chapter_keeps_every_number_that_it_cites(notebook):
    code, text = cells(notebook, "code"), "\n".join(cells(notebook, "markdown"))
    assert unquoted(code, text) == set()
    assert unquoted(code, text + "{glue:text}`nobody:.1f`") == {"nobody"}  # the control

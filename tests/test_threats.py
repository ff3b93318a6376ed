"""Every promise of the page on threats has a test, and the promises without a home elsewhere have it here."""

import ast
import os
import re
from io import StringIO

import nbformat
import pytest
import torch
from nbformat import v4
from shelf import ROOT, python
from test_book import extension
from test_train import RECIPE, SHORT, replace, trained

import flashspec as fs
from flashspec.study import papers


def missing(page):
    """The tests that a page names and that are not there; AssertionError where a line of a table names none."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and line != "| promise | test |"]
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", line) for line in lines]
    assert lines and all(named)
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    tests = [(file, test) for each in named for file, test in each]
    return [each for each in tests if not re.search(rf"\n(def )?{each[1]}( = |\()", files.get(each[0], ""))]


def test_every_promise_names_tests_that_exist():
    page = (ROOT / "book" / "threats.md").read_text(encoding="utf-8")
    assert missing(page) == []
    assert missing(page.replace("::test_every_flipped_bit", "::test_no_flipped_bit")) != []  # the control
    with pytest.raises(AssertionError):
        missing(page + "\n| Nothing ever goes wrong | trust us |")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_is_refused_and_its_code_never_runs(tmp_path, folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "run", replace(RECIPE, schedule=SHORT["stopped"]))
    torch.save({"model": Hostile()}, tmp_path / "run" / "checkpoint.pt")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes((folders["target"] / "config.json").read_bytes())
    torch.save({"embed": Hostile()}, tmp_path / "model" / "pytorch_model.bin")
    for read in (lambda: trained(tmp_path / "run"), lambda: fs.load(tmp_path / "model", None)):
        with pytest.raises((ValueError, FileNotFoundError), match="is no checkpoint of this run|are never read"):
            read()
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "model" / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # the control


MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def dangers(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            harmless = isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["UnpicklingError"]
            yield from () if harmless else MODULES & {str(name).partition(".")[0] for name in names}
        if isinstance(node, ast.Call):
            called, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            wrong = {"shell": "True", "trust_remote_code": "True", "allow_pickle": "True", "weights_only": "False"}
            if called in ("eval", "exec", "os.system", "os.popen") or re.fullmatch(r"yaml\.(?!safe_)\w*load\w*", called):
                yield called
            if called == "torch.load" and "weights_only" not in words:
                yield called
            yield from (name for name, value in wrong.items() if words.get(name) == value)


def test_the_source_calls_nothing_that_turns_data_into_code():
    sources = [*(ROOT / "flashspec").rglob("*.py"), *(ROOT / "book" / "_ext").glob("*.py")]
    assert {str(path): found for path in sources if (found := list(dangers(path.read_text(encoding="utf-8"))))} == {}
    bad = "import pickle\nfrom dill import loads\neval(x)\nyaml.load(x)\nyaml.full_load(x)\ntorch.load(x)\nrun(x, shell=True)"
    assert len(list(dangers(bad))) == 7  # the control


CONNECTIONS = """
import sys
from flashspec.cli.main import status
opened = []
def watch(event, given):
    pip = event == "subprocess.Popen" and any("pip" in str(word) for word in given[1])
    if pip or event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(given[1], tuple):
        opened.append(event)
        raise KeyboardInterrupt
sys.addaudithook(watch)
for line in sys.argv[1:]:
    status(line.split())
print(len(opened))
"""
OFFLINE = ["list", "doctor", "generate x --max-new-tokens 2", "plan --acceptance 0.5 --times step=1,draft=0.1,check=1.1"]
NOT_HERE = ["generate x --target qwen", "generate x --target nobody/nothing", "heads build qwen"]


@pytest.mark.parametrize(("lines", "cache", "opens"), [
    (OFFLINE, "", False), (NOT_HERE, "empty", False), (["fetch smollm2"], "empty", True), (["fetch qwen"], "empty", True),
])  # fmt: skip
def test_no_command_but_fetch_opens_a_connection(tmp_path, lines, cache, opens):
    place = dict.fromkeys(("XDG_CACHE_HOME", "FLASHSPEC_MODELS", "HF_HOME") if cache else (), str(tmp_path))
    done = python("-c", CONNECTIONS, *lines, **place)
    assert (int(done.stdout.split()[-1]) > 0) == opens, done.stderr


RUNS = ("alert(", "onerror", "onload", "<iframe", "javascript:", "http-equiv", "<form action=/x", "//evil.example")
OUTPUTS = [
    {"text/html": "<b>kept</b><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>kept too</a>"},
    {"application/javascript": "alert(4)"},
    {"text/html": "<svg viewBox='0 0 1 1' onload='alert(5)'><path d='M0 0'/><script>alert(6)</script></svg>"},
    {"text/html": "<iframe srcdoc='x'></iframe><style>p{background:url(//evil.example/a)}</style><form action=/x></form>"},
    {"text/html": "<math><mtext><table><mglyph><style><img src=x onerror=alert(7)></style></table></math>"},
    {"text/markdown": "<script>alert(8)</script> *kept in words*"},
    {"text/html": "<img src='https://evil.example/p.png'><meta http-equiv=refresh content='0;url=//evil.example'>"},
]  # fmt: skip
TEXT = "# Title\n\n<script>alert(9)</script>\n\n<b>kept</b> in text <img src=x onerror='alert(10)'>\n"


def page(folder, extensions):
    """The HTML that Sphinx makes of an executed notebook with these outputs and this text."""
    from sphinx.application import Sphinx

    cells = [v4.new_code_cell("1", execution_count=1, outputs=[v4.new_output("display_data", data)]) for data in OUTPUTS]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(TEXT), *cells], metadata=kernel), folder / "index.ipynb")
    config = {"extensions": ["myst_nb", *extensions], "nb_execution_mode": "off", "html_theme": "basic"}
    Sphinx(folder, None, folder / "out", folder / "trees", "html", config, status=None, warning=StringIO()).build()
    text = (folder / "out" / "index.html").read_text(encoding="utf-8")
    return re.search(r'<div class="body".*', text, re.S)[0]


def test_what_a_notebook_brings_along_is_shown_and_does_not_run(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    bare, cleaned = (page(tmp_path_factory.mktemp("page"), extensions) for extensions in ([], ["clean"]))
    assert [word for word in RUNS if word not in bare] == []  # the control
    assert [word for word in RUNS if word in cleaned] == []
    assert all(word in cleaned for word in ("<b>kept</b>", "kept too", "kept in words", "<b>kept</b> in text", '<path d="M0 0">'))


def test_a_drawing_and_a_table_keep_what_they_show():
    clean = extension("clean").clean
    drawn = '<svg viewBox="0 0 9 9"><style>*{stroke-linecap:butt}</style><use xlink:href="#a" style="fill:red"></use></svg>'
    table = '<table class="t" border="1"><tbody><tr style="text-align: left"><td>1</td></tr></tbody></table>'
    said = '<pre class="decoded"><span style="background:#cfe8d5">x</span></pre><a href="https://x.example/">x</a>'
    assert [clean(html) for html in (drawn, table, said)] == [drawn, table, said]
    tool = papers.decision_tool().data
    assert clean(tool).count("<script") == 1 and 'type="application/json" id="decide-data"' in clean(tool)  # data, not code
    assert clean(f"{tool}<script>alert(5)</script>").count("<script") == 1
    loads = '<svg><use xlink:href="https://x.example/#a"></use></svg><p style="background:url(//x)">x</p><img src="//x">'
    assert clean(loads) == "<svg><use></use></svg><p>x</p><img>"

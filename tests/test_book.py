"""The book stays off the network and its links lead somewhere; notebooks run with validated parameters."""

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from shelf import ROOT, python, refused
from trouble import ipynb

from flashspec.cli.study import SESSION, session
from flashspec.parameters import hints
from flashspec.study import Refused, answers, experiment
from flashspec.study import notebooks as books

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[!.]*.ipynb"))


def extension(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links = extension("links")
SOUND = '<a href="other.html#place"><a href="#"><a href="https://arxiv.org/abs/1"><img src="data:image/png;base64,AA">'


@pytest.mark.parametrize(("body", "said"), [
    (SOUND, ""),
    ('<a href="missing.html">', "not in the book"),
    ('<a href="other.html#nowhere">', "no such place"),
    ('<img src="lost.svg">', "not in the book"),
    ('<script src="https://cdn.example/x.js"></script>', "from the network"),
    ('<script src="//cdn.example/x.js"></script>', "from the network"),
    ('<link rel="stylesheet" href="https://fonts.example/f.css">', "from the network"),
    ('<p style="background:url(https://img.example/a.png)">', "from the network"),
])  # fmt: skip
def test_every_kind_of_fault_is_found(tmp_path, body, said):
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    (tmp_path / "other.html").write_text('<html><body><h1 id="place">here</h1></body></html>')
    found = " ".join(links.faults(tmp_path))
    assert said in found and bool(found) == bool(said)
    (tmp_path / "book.css").write_text("@font-face { src: url('https://fonts.example/f.woff2') }")
    assert "from the network" in " ".join(links.faults(tmp_path))


def test_a_page_brings_its_notebook_and_links_to_it_under_the_title(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "toy.ipynb").write_text("{}")
    app = SimpleNamespace(srcdir=tmp_path / "book", outdir=tmp_path / "html")
    pages = {page: {"body": "<h1>Toy</h1><h1>again</h1>"} for page in ("notebooks/toy", "intro")}
    for page, context in pages.items():
        extension("offline").bring_notebook(app, page, "", context, None)
    found = re.findall(r'href="([^"]+)"', pages["notebooks/toy"]["body"])
    assert pages["notebooks/toy"]["body"].startswith("<h1>Toy</h1><p") and found[0] == "toy.ipynb" == Path(found[1]).name
    assert (tmp_path / "html" / "notebooks" / found[0]).read_text() == "{}"
    assert pages["intro"] == {"body": "<h1>Toy</h1><h1>again</h1>"}


def amiss(notebook, text):
    """What `name = value` in a text is no value of a parameter of this notebook."""
    for name, value in re.findall(r"`(\w+) = ([^`]+)`", text):
        try:
            books.validated(books.parameters(notebook), {name: ast.literal_eval(value)})
        except ValueError:
            yield name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_no_outputs_and_no_verbs_and_exercises_that_change_its_parameters(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    for found in cells:
        assert not found.get("outputs") and not found.get("execution_count")
        lines = "".join(found["source"]).splitlines() if found["cell_type"] == "code" else []
        assert not {"def", "class", "for", "while", "async"} & {line.split()[0] for line in lines if line.split()}
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert [*amiss(notebook, text.partition("## Try it")[2].partition("\n## ")[0])] == []
    assert [*amiss(notebook, "`nobody = 1`, `fresh = 7`")] == ["nobody", "fresh"]  # the control


def test_the_readme_shows_what_is_stored_and_nothing_that_is_not(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    root = ROOT / "book" / "results"
    shown = answers.table(root) + session(root)
    assert answers.with_results(text, shown) == text
    assert shown.count("\n| ") <= 11 and all(f"$ flashspec run {name}\n" in shown for name in SESSION)
    assert answers.PICTURE.as_posix() in text and (ROOT / answers.PICTURE).exists()
    assert not any(sign.isdigit() for sign in answers.table(tmp_path)) and session(tmp_path) == ""
    fresh = answers.with_results(f"before\n{answers.START}\nold\n{answers.STOP}\nafter\n", "new")
    assert fresh.startswith("before") and fresh.endswith("after\n") and "old" not in fresh
    assert answers.with_results(fresh, "new") == fresh
    refused("no place for results", answers.with_results, "nothing here", "new")


PARAMETERS = [
    "k: int = 4  # draft tokens per verification\n", "rate: float = 0.5\n", "exact: bool = True\n",
    "blocks: list[int] = [1, 2]\n", "fresh: bool = False",
]  # fmt: skip


def notebook(folder, *lines, name="toy.ipynb", parameters=PARAMETERS):
    return ipynb(folder / name, parameters, *lines)


def printed(path):
    cells = json.loads(path.read_text())["cells"]
    return "".join(line for c in cells for out in c.get("outputs", ()) for line in out.get("text", ()))


@pytest.mark.parametrize(("line", "word"), [("k: int = n()", "and a literal"), ("k: complex = 1", "needs a type")])
def test_a_parameters_cell_holds_parameters_with_type_and_default(tmp_path, line, word):
    found = books.parameters(notebook(tmp_path))
    assert hints(found) == {"k": int, "rate": float, "exact": bool, "blocks": list[int], "fresh": bool}
    assert vars(found()) == {"k": 4, "rate": 0.5, "exact": True, "blocks": [1, 2], "fresh": False}
    refused(word, books.parameters, notebook(tmp_path, parameters=[line]))


def test_strings_arrive_as_values_the_bytes_repeat_and_fresh_reaches_the_notebooks_that_know_it(tmp_path, cli):
    source = notebook(tmp_path / "in", "print((k, rate, exact, tuple(blocks), fresh))")
    values = {"k": "7", "rate": "1", "exact": "false", "blocks": "3"}
    one = books.execute(source, tmp_path / "out" / "toy.ipynb", values)
    first = one.read_bytes()
    assert printed(one) == "(7, 1.0, False, (3,), False)\n"
    assert books.execute(source, one, values).read_bytes() == first
    assert b"papermill" not in first and b"iopub" not in first
    assert [path.name for path in one.parent.iterdir()] == ["toy.ipynb"]
    notebook(tmp_path / "in", "print(k)", name="stale.ipynb", parameters=PARAMETERS[:1])
    cli("notebooks", source.parent, tmp_path / "all", "-p", "blocks", "3", "--fresh")
    assert printed(tmp_path / "all" / "toy.ipynb") == "(4, 0.5, True, (3,), True)\n"
    assert printed(tmp_path / "all" / "stale.ipynb") == "4\n"


def test_a_failed_cell_leaves_no_output_and_the_exit_status_says_so(tmp_path, cli):
    notebook(tmp_path / "in", "print(k)", name="a_good.ipynb")
    notebook(tmp_path / "in", "raise ValueError('the cache is cold')", name="b_bad.ipynb")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_bad.ipynb").write_text("{}")
    said = cli("notebooks", tmp_path / "in", out, code=1).err.splitlines()[-1]
    assert "b_bad.ipynb failed" in said and "the cache is cold" in said and "Traceback" not in said
    assert (out / "a_good.ipynb").exists() and not (out / "b_bad.ipynb").exists()


def test_a_notebook_runs_again_only_where_what_it_is_made_of_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(tmp_path / "results"))
    source, out, runs = notebook(tmp_path / "in", "print(k)"), tmp_path / "out", []
    monkeypatch.setattr("papermill.execute_notebook", lambda given, made, *_, **__: runs.append(shutil.copy(given, made)))
    steps = [{}, {}, {"values": {"k": 5}}, {"values": {"k": 5}}, {"values": {"k": 5}, "fresh": True}, {}, {}]
    for step, times in zip(steps, (1, 1, 2, 2, 3, 4, 4), strict=True):
        (page,) = books.execute_all([source], out, **step)
        assert len(runs) == times and page.exists()
    (tmp_path / "results" / "race").mkdir(parents=True)
    for change in (tmp_path / "results" / "race" / "new.parquet", source, page):
        change.write_text(source.read_text().replace("rate", "pace") if change == source else "{}")
        books.execute_all([source], out)
    assert len(runs) == 7


def injected(path, values, *more):
    """What IPython says of a notebook's cells up to the first behind what papermill injects, and its names."""
    found = parameterize_notebook(load_notebook_node(str(path)), values, kernel_name="python3", language="python")
    sources = [cell.source for cell in found.cells if cell.cell_type == "code"]
    at = next(i for i, source in enumerate(sources) if source.startswith(books.INJECTED))
    shell = InteractiveShell(user_module=ModuleType("page"))
    done = [shell.run_cell(source, store_history=True) for source in [*sources[: at + 1], *(more or sources[at + 1 : at + 2])]]
    return done[-1].error_in_exec, shell.user_ns


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_behind_papermills_refuses_what_the_notebook_does_not_take(path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(experiment.Experiment, "run", lambda *given, **named: pytest.fail("it ran"))
    known = books.parameters(path)
    whole = [name for name, kind in hints(known).items() if kind is int]
    for values, words in [
        ({"kk": 1}, "unknown parameter 'kk'"),
        *(({name: "x"}, f"{name!r} expects a whole number") for name in whole[:1]),
    ]:
        said, _ = injected(path, values)
        assert isinstance(said, Refused) and words in str(said)


def test_what_papermill_passes_on_takes_its_declared_type(tmp_path, capsys):
    """Plain papermill passes the string "false", which is true, and one value for a list."""
    values = {"fresh": "false", "blocks": 3, "rate": 1}
    line = "from flashspec.study import checked\nchecked(globals())"
    for lines, found in (((line,), (False, [3], 1.0)), (("1 + 1",), ("false", 3, 1))):
        error, names = injected(notebook(tmp_path), values, *lines)
        assert error is None and (names["fresh"], names["blocks"], names["rate"]) == found
    said = python("-m", "papermill", notebook(tmp_path, line), tmp_path / "out.ipynb", "-p", "kk", "3")
    assert said.returncode == 1 and "unknown parameter 'kk', did you mean 'k'; known parameters: k, rate" in said.stderr

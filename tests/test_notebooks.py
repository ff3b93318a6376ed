"""A notebook runs with validated parameters, or there is no output under its name."""

import json
from pathlib import Path

import pytest

from flashspec.cli.main import status
from flashspec.study import Refused
from flashspec.study import notebooks as books

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PARAMETERS = [
    "k: int = 4  # draft tokens per verification\n", "rate: float = 0.5\n", "exact: bool = True\n",
    "blocks: tuple[int, ...] = (1, 2)\n", "fresh: bool = False",
]  # fmt: skip


def cell(*lines, tags=()):
    return {"cell_type": "code", "id": f"c{len(lines)}{len(tags)}", "metadata": {"tags": list(tags)}, "execution_count": None,
            "outputs": [], "source": list(lines)}  # fmt: skip


def notebook(folder, *lines, name="toy.ipynb", parameters=PARAMETERS):
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    cells = [cell(*parameters, tags=["parameters"]), *map(cell, lines)]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return folder / name


def printed(path):
    cells = json.loads(path.read_text())["cells"]
    return "".join(line for c in cells for out in c.get("outputs", ()) for line in out.get("text", ()))


def test_parameters_bear_type_and_default(tmp_path):
    found = books.parameters(notebook(tmp_path))
    assert list(found) == ["k", "rate", "exact", "blocks", "fresh"]
    assert found["k"] == books.Parameter(int, 4)
    assert found["blocks"].default == (1, 2) and found["exact"].kind is bool


@pytest.mark.parametrize(("line", "word"), [("k: int = n()", "literal default"), ("print(3)", "only lines"), ("k: int", "only")])
def test_a_parameters_cell_holds_parameters(tmp_path, line, word):
    with pytest.raises(Refused, match=word):
        books.parameters(notebook(tmp_path, parameters=[line]))


def test_strings_arrive_as_values_and_the_bytes_repeat(tmp_path):
    source = notebook(tmp_path / "in", "print((k, rate, exact, tuple(blocks)))")
    values = {"k": "7", "rate": "1", "exact": "false", "blocks": "3"}
    one = books.execute(source, tmp_path / "out" / "toy.ipynb", values)
    first = one.read_bytes()
    assert printed(one) == "(7, 1.0, False, (3,))\n"
    assert books.execute(source, one, values).read_bytes() == first
    assert b"papermill" not in first and b"iopub" not in first
    assert [path.name for path in one.parent.iterdir()] == ["toy.ipynb"]


def test_bad_parameters_are_refused_before_anything_runs(tmp_path):
    source, out = notebook(tmp_path / "in", "print(k)"), tmp_path / "out"
    for values, word in (({"kk": 1}, "did you mean 'k'"), ({"z": 1}, "parameters: k, rate"), ({"k": "x"}, "'k' expects int")):
        for call in (lambda v: books.execute_all([source], out, values=v), lambda v: books.execute(source, out / "toy.ipynb", v)):
            with pytest.raises(Refused, match=word):
                call(values)
    assert not out.exists()


def test_a_failed_cell_leaves_no_output_and_the_exit_status_says_so(tmp_path, capsys):
    notebook(tmp_path / "in", "print(k)", name="a_good.ipynb")
    notebook(tmp_path / "in", "raise ValueError('the cache is cold')", name="b_bad.ipynb")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_bad.ipynb").write_text("{}")
    assert status(["notebooks", str(tmp_path / "in"), str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "b_bad.ipynb failed" in said and "the cache is cold" in said and "Traceback" not in said
    assert (out / "a_good.ipynb").exists() and not (out / "b_bad.ipynb").exists()


@pytest.mark.parametrize("deadly", ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import time; time.sleep(60)"])
def test_a_dead_or_hanging_kernel_is_no_success(tmp_path, deadly):
    source = notebook(tmp_path / "in", deadly)
    with pytest.raises(books.NotebookFailed, match="toy.ipynb failed"):
        books.execute(source, tmp_path / "toy.ipynb", timeout=3)
    assert not (tmp_path / "toy.ipynb").exists()


def test_one_value_is_a_list_of_one_and_fresh_reaches_the_notebooks_that_know_it(tmp_path):
    source = notebook(tmp_path / "in", "print(tuple(blocks), fresh)")
    notebook(tmp_path / "in", "print(k)", name="stale.ipynb", parameters=PARAMETERS[:1])
    assert status(["notebooks", str(source.parent), str(tmp_path / "out"), "-p", "blocks", "3", "--fresh"]) == 0
    assert printed(tmp_path / "out" / "toy.ipynb") == "(3,) True\n" and printed(tmp_path / "out" / "stale.ipynb") == "4\n"


def test_the_command_refuses_with_status_two(tmp_path, capsys):
    notebook(tmp_path / "in")
    assert status(["notebooks", str(tmp_path / "in"), str(tmp_path / "out"), "-p", "kk", "3"]) == 2
    assert status(["notebooks", str(tmp_path / "empty.ipynb"), str(tmp_path / "out")]) == 2
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.strip().splitlines())


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("[!.]*.ipynb")), ids=lambda path: path.name)
def test_committed_notebooks_have_no_outputs_and_no_verbs(path):
    for found in json.loads(path.read_text())["cells"]:
        assert not found.get("outputs") and not found.get("execution_count")
        lines = "".join(found["source"]).splitlines() if found["cell_type"] == "code" else []
        assert not {"def", "class", "for", "while", "async"} & {line.split()[0] for line in lines if line.split()}

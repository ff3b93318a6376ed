"""A notebook runs with validated parameters, or there is no output under its name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from flashspec.cli.main import status
from flashspec.study import Experiment, Refused
from flashspec.study import notebooks as books

PARAMETERS = [
    "k: int = 4  # draft tokens per verification\n",
    "rate: float = 0.5\n",
    "exact: bool = True\n",
    "blocks: tuple[int, ...] = (1, 2)\n",
    "fresh: bool = False",
]


@dataclass(frozen=True)
class Params:
    k: int = 4
    rate: float = 0.5
    exact: bool = True
    blocks: tuple[int, ...] = (1, 2)


class Row(NamedTuple):
    k: int


TOY = Experiment("toy", Params, Row, lambda params: [Row(params.k)])


def cell(*lines, tags=()):
    return {"cell_type": "code", "id": f"c{len(lines)}{len(tags)}", "metadata": {"tags": list(tags)}, "execution_count": None,
            "outputs": [], "source": list(lines)}  # fmt: skip


def notebook(folder, *cells, name="toy.ipynb"):
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    text = {"cells": [cell(*PARAMETERS, tags=["parameters"]), *cells], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(text))
    return folder / name


def printed(path):
    return "".join(
        line for c in json.loads(path.read_text())["cells"] for out in c.get("outputs", ()) for line in out.get("text", ())
    )


def test_parameters_bear_type_default_and_help(tmp_path):
    found = books.parameters(notebook(tmp_path))
    assert list(found) == ["k", "rate", "exact", "blocks", "fresh"]
    assert found["k"] == books.Parameter(int, 4, "draft tokens per verification")
    assert found["blocks"].default == (1, 2) and found["exact"].kind is bool


def test_strings_arrive_as_values_and_the_bytes_repeat(tmp_path):
    source = notebook(tmp_path / "in", cell("print((k, rate, exact, tuple(blocks)))"))
    values = {"k": "7", "rate": "1", "exact": "false", "blocks": "3,4"}
    one = books.execute(source, tmp_path / "out" / "toy.ipynb", values)
    first = one.read_bytes()
    assert printed(one) == "(7, 1.0, False, (3, 4))\n"
    assert books.execute(source, one, values).read_bytes() == first
    assert b"papermill" not in first and b"iopub" not in first
    assert [path.name for path in one.parent.iterdir()] == ["toy.ipynb"]


@pytest.mark.parametrize(
    ("values", "word"),
    [({"kk": 1}, "did you mean 'k'"), ({"zzz": 1}, "known parameters: k, rate"), ({"k": "many"}, "'k' expects int")],
)
def test_bad_parameters_are_refused_before_anything_runs(tmp_path, values, word):
    source = notebook(tmp_path / "in", cell("print(k)"))
    with pytest.raises(Refused, match=word):
        books.execute_all([source], tmp_path / "out", values={**values})
    with pytest.raises(Refused, match=word):
        books.execute(source, tmp_path / "out" / "toy.ipynb", values)
    assert not (tmp_path / "out").exists()


def test_a_failed_cell_leaves_no_output_and_the_exit_status_says_so(tmp_path, capsys):
    notebook(tmp_path / "in", cell("print(k)"), name="a_good.ipynb")
    notebook(tmp_path / "in", cell("raise ValueError('the cache is cold')"), name="b_bad.ipynb")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_bad.ipynb").write_text("{}")
    assert status(["notebooks", str(tmp_path / "in"), str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "b_bad.ipynb failed" in said and "the cache is cold" in said and "Traceback" not in said
    assert (out / "a_good.ipynb").exists() and not (out / "b_bad.ipynb").exists()


@pytest.mark.parametrize("deadly", ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import time; time.sleep(60)"])
def test_a_dead_or_hanging_kernel_is_no_success(tmp_path, deadly):
    source = notebook(tmp_path / "in", cell(deadly))
    with pytest.raises(books.NotebookFailed, match="toy.ipynb failed"):
        books.execute(source, tmp_path / "toy.ipynb", timeout=3)
    assert not (tmp_path / "toy.ipynb").exists()


def test_one_value_is_a_list_of_one(tmp_path):
    source = notebook(tmp_path / "in", cell("print(tuple(blocks))"))
    assert status(["notebooks", str(source), str(tmp_path / "out"), "-p", "blocks", "3"]) == 0
    assert printed(tmp_path / "out" / "toy.ipynb") == "(3,)\n"


def test_fresh_reaches_the_notebooks_that_know_it(tmp_path):
    source = notebook(tmp_path / "in", cell("print(fresh)"))
    (written,) = books.execute_all([source], tmp_path / "out", fresh=True)
    assert printed(written) == "True\n"


def test_the_command_refuses_with_status_two(tmp_path, capsys):
    notebook(tmp_path / "in")
    assert status(["notebooks", str(tmp_path / "in"), str(tmp_path / "out"), "-p", "kk", "3"]) == 2
    assert status(["notebooks", str(tmp_path / "empty.ipynb"), str(tmp_path / "out")]) == 2
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.strip().splitlines())


def test_a_notebook_agrees_with_its_experiment_and_a_changed_default_is_caught(tmp_path):
    source = notebook(tmp_path)
    assert books.disagreements(source, TOY) == []
    source.write_text(source.read_text().replace("k: int = 4", "k: int = 5"))
    assert books.disagreements(source, TOY) == ["k defaults to 5 in the notebook, 4 in toy"]
    source.write_text(source.read_text().replace("rate: float", "speed: float"))
    assert "rate is missing from the notebook" in books.disagreements(source, TOY)


def committed():
    return sorted((Path(__file__).parents[1] / "notebooks").glob("[!.]*.ipynb"))


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.name)
def test_committed_notebooks_have_no_outputs_and_no_verbs(path):
    for found in json.loads(path.read_text())["cells"]:
        assert not found.get("outputs") and not found.get("execution_count")
        words = [
            line.split()[0] for line in "".join(found["source"]).splitlines() if line.split() and found["cell_type"] == "code"
        ]
        assert not {"def", "class", "for", "while", "async"} & set(words)

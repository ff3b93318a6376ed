"""Thousands of bad inputs: each is one sentence or a harmless result, in seconds and in bounded memory.

FLASHSPEC_BAD_INPUTS=50000 draws fifty thousand of them instead of two.
"""

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
import shelf
from fuzz import ODD, outcome, spoiled, spoiled_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_book import PARAMETERS, notebook
from test_cli_refusals import SAMPLING, TOLD, TRACE
from test_tables import Row, resealed, written

from flashspec.cli.main import COMMANDS, group, status
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import Trace
from flashspec.parameters import parse
from flashspec.study import notebooks as books
from flashspec.study import sweep, tables
from flashspec.study.race import Params

CASES = int(os.environ.get("FLASHSPEC_BAD_INPUTS", "2000"))
BIG = ["9" * 5000, "-" + "9" * 400, "[" * 1500, "(" * 300 + ")" * 300, "1e999", "1..999999999999", "x," * 20_000]
WORDS = st.one_of(
    st.sampled_from(["", "-", "--", "=", "k=", "=1", "nan", "-1", "0", "1.5", "none", "true", "[1, [2, 3]]", "{}", "{k: 1}"]),
    st.sampled_from(["\0", "\ud800", "/dev/null", "/proc/self/mem", "/", "..", "é" * 300, "a\nb", "%s%n", *BIG]),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("bad")
    shelf.write_pair(home)
    written(home)
    (home / "text.txt").write_text("words " * 99)
    (home / "trace.json").write_text(json.dumps({**TRACE, "sampling": SAMPLING, "told": [TOLD, {**TOLD, "prompt": [5]}]}))
    (home / "prompts.json").write_text(json.dumps({"prompts": [{"kind": "code", "ids": [1, 2]}, {"kind": "chat", "text": "hi"}]}))
    (home / "grid.yaml").write_text("product: {k: 1..3, head: [dense, flash]}\nzip: {a: [1, 2], b: [x, y]}\nsample: 4\nseed: 1\n")
    notebook(home)
    return home


HARMLESS = {  # a command, and an end that keeps it from doing work for which it would take long, or that would be kept
    "generate": "x --target {home}/target --draft {home}/draft --max-new-tokens 2", "list": "", "doctor": "x", "fetch": "x",
    "results ls": "--results {home}", "results show": "", "results diff": "{home}/toy/k.parquet", "results export": "",
    "results verify": "--results {home}", "notebooks": "{home}/text.txt {home}/none", "pages": "{home}/text.txt",
    "plan": "--acceptance 0.5 --times step=1,draft=0.1,check=1.1",
    "trace replay": "{home}/trace.json --draft {home}/draft", "trace record": "{home}/trace.json",
    "export": "{home}/target {home}/target", "heads build": "{home}/text.txt", "quantize": "{home}/target {home}/target",
    "draft design": "--text {home}/none", "draft rank": "--text {home}/none", "draft family": "--folder {home}/text.txt",
    "draft teach": "--out {home}/target", "train": "--folder {home}/text.txt", "train exits": "--text {home}/none",
    "sweep": "{home}/none.ipynb",
    **{f"run {name}": "--preset nowhere --results {home}/none" for name in ("race", "parts", "recall", "exits", "smoke")},
}  # fmt: skip


def options(command):
    """The flags of a command by its words, as the command line itself names them."""
    found = group
    for word in command.split():
        found = found.get_command(click.Context(found), word)
    return [name for param in found.params for name in param.opts if name.startswith("-")]


@st.composite
def lines(draw):
    command = draw(st.sampled_from([line for line in sorted(HARMLESS) if line.split()[0] in COMMANDS]))
    names = [*options(command), "--", "--no-such", "-z"]
    spoken = draw(st.lists(st.tuples(st.sampled_from(names), WORDS), min_size=1, max_size=3))
    words = [word for pair in spoken for word in pair][draw(st.integers(0, 1)) :]
    return [*command.split(), *words], HARMLESS[command].split()


def say(home, line):
    start, end = line
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as told:
        code = status([*start, *(word.format(home=home) for word in end)])
    last = (told.getvalue().strip().splitlines() or [""])[-1]
    assert code in (0, 1) or code == 2 and "error: " in last and "Traceback" not in told.getvalue(), (line, told.getvalue())
    assert "defect" not in told.getvalue(), (line, told.getvalue())


VALUES = st.one_of(WORDS, ODD, st.lists(WORDS, max_size=3))
NAMES = st.one_of(st.sampled_from(["k", "rate", "exact", "blocks", "fresh", "head", "temperature"]), WORDS)
MAPS = st.dictionaries(NAMES, VALUES, max_size=3)
CELLS = [
    "k: int = 9**9**9", "k: 9**9**9 = 1", "k: int = " + "-" * 5000 + "1", "k: list[int] = " + "[" * 300, "k = *", "k: x = 1",
]  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{o}'] * 9)}]\n" for o, n in zip("abcdefghi", "bcdefghij", strict=True)
)
YAMLS = [
    BOMB, f"{BOMB}product: *j", f"{BOMB}product: {{k: *j}}", "product: !!python/object/apply:os.abort []",
    "product: {k: 1..99999999999}", "[",
]  # fmt: skip

GRIDS = st.fixed_dictionaries({}, optional={"product": MAPS, "zip": MAPS, "sample": st.integers(-1, 9)})


def points(grid):
    for point in grid.points()[:3]:
        parse(Params, point)


def a_grid(home, data):
    (home / "spoiled.yaml").write_bytes(data)
    points(sweep.read_grid(home / "spoiled.yaml"))


def a_table(home, data):
    place = home / "toy" / "k.parquet"
    good, _ = tables.opened(place)
    (home / "spoiled.parquet").write_bytes(resealed(data) if tables.SEAL in data[:-99] else data)
    found = tables.read(home / "spoiled.parquet", Row)
    list(tables.unlike_rows(good.to_pandas(), found.frame))
    tables.consistent(home / "spoiled.parquet")


def stored(file, read, spoil=spoiled_bytes):
    return lambda home: spoil((home / file).read_bytes()).map(lambda data: (home, data)), lambda given: read(*given)


def loading(file, load):
    place = f"spoiled{Path(file).suffix}"
    return stored(file, lambda home, data: ((home / place).write_bytes(data), load(home / place)), spoiled)


KINDS = {  # what is drawn, what is called with it, and which share of all cases it takes
    "line": (lambda home: lines().map(lambda line: (home, line)), lambda given: say(*given), 0.3),
    "words of a grid": (lambda home: WORDS, lambda word: sweep.spoken(word), 0.02),
    "grid": (lambda home: GRIDS, lambda given: points(sweep.Grid(**given)), 0.13),
    "grid by text": (lambda home: st.tuples(st.just(home), st.sampled_from(YAMLS).map(str.encode)),
                     lambda given: a_grid(*given), 0.002),
    "grid by file": (*stored("grid.yaml", a_grid), 0.08),
    "parameters": (lambda home: MAPS.map(lambda values: (home, values)),
                   lambda given: books.validated(books.parameters(given[0] / "toy.ipynb"), given[1]), 0.15),
    "cell": (lambda home: st.one_of(st.sampled_from(CELLS), WORDS).map(lambda line: (home, line)),
             lambda given: books.parameters(notebook(given[0] / "cells", parameters=[*PARAMETERS, "\n", given[1]])), 0.05),
    "notebook": (*loading("toy.ipynb", books.parameters), 0.08),
    "table": (*stored("toy/k.parquet", a_table), 0.12),
    "trace": (*loading("trace.json", Trace.load), 0.04),
    "prompts": (*loading("prompts.json", load_prompts), 0.04),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_input_is_one_sentence(kind, home, tmp_path, monkeypatch):
    drawn, call, share = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    outcomes = set()
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)

        @settings(max_examples=max(5, round(CASES * share)))
        @given(drawn(home))
        def check(given):
            outcomes.add(outcome(lambda: call(given)))

        check()
    assert not list(tmp_path.iterdir()) and (len(outcomes) > 3 or kind == "line")


def test_the_control_a_crash_a_hog_and_a_snail_are_caught():
    for bad, limits in ((lambda: {}["x"], {}), (lambda: len(bytearray(2**27)), {"kibibytes": 2**16}), (list, {"seconds": 0})):
        with pytest.raises(AssertionError):
            outcome(bad, **limits)

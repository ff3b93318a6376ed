"""Imports go down only, sizes stay within budget, and `import flashspec` needs torch alone."""

import ast
import graphlib

import pytest
from shelf import ROOT, python

FLOORS = {
    "once": 0, "parameters": 0, "refusals": 0, "sampling": 0, "typed": 0, "theory": 0, "provenance": 0, "kernels": 0,
    "models": 1, "heads": 1, "decoding": 2, "measure": 3, "train": 4, "study": 4, "cli": 5,
}  # fmt: skip
APART = {("train", "study"), ("study", "train")}  # one floor, and neither imports the other
HEAVY = {
    "transformers", "faiss", "pandas", "papermill", "seaborn", "matplotlib", "tokenizers", "triton", "click", "distributed",
    "yaml",
}  # fmt: skip
LINES, BODY, ARGUMENTS = 300, 40, 5
PROMISED = {"generate"}  # a public signature fixed by the design


def named(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(tree, known):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names}
    return found & set(known)


MODULES = {named(path): path for path in sorted((ROOT / "flashspec").rglob("*.py"))}


def upward(place, tree):
    rooms = {name.split(".")[1] for name in within(tree, MODULES) if "." in name}
    return sorted(room for room in rooms if FLOORS.get(room, 0) > FLOORS[place] or (place, room) in APART)


def circle(imports):
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return set(error.args[1])
    return set()


def overgrown(tree):
    """Functions of too many lines or arguments."""
    for f in ast.walk(tree):
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) and f.name not in PROMISED:
            taken = {each.arg for each in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)} - {"self", "cls"}
            yield from [f.name] if f.end_lineno - f.lineno + 1 > BODY or len(taken) > ARGUMENTS else ()


def heavy_at_top(tree):
    tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [getattr(node, "module", None) or alias.name for node in tops for alias in node.names]
    return sorted({name.split(".")[0] for name in names} & HEAVY)


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_a_file_keeps_to_its_floor_and_budget(path):
    text = path.read_text()
    tree = ast.parse(text)
    place = named(path).partition(".")[2].partition(".")[0]
    assert place in FLOORS or not place, f"{place} has no floor: add it to FLOORS and to the design"
    assert (not place or not upward(place, tree)) and len(text.splitlines()) <= LINES
    assert not [*overgrown(tree)] and path.name != "utils.py"
    assert place == "cli" or not set(heavy_at_top(tree))
    assert not any(word in text for word in ("TODO", "FIXME", "NotImplementedError"))


def test_no_modules_import_one_another_and_a_circle_is_caught_wherever_the_import_is_written():
    trees = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
    assert circle({name: within(tree, trees) - {name} for name, tree in trees.items()}) == set()
    ring = {"a": "import b", "b": "def f():\n    from c import x", "c": "if TYPE_CHECKING:\n    from a import y", "d": "import a"}
    found = {name: within(ast.parse(text), ring) for name, text in ring.items()}
    assert circle(found) == {"a", "b", "c"} and circle({**found, "c": set()}) == set()


def test_an_upward_import_and_an_overgrown_function_are_caught():
    for line in ("from flashspec.cli import main", "from flashspec import study", "import flashspec.measure.runs"):
        assert upward("decoding", ast.parse(f"def hidden():\n    {line}\n"))
    assert upward("train", ast.parse("from flashspec.study import race")) == ["study"]
    assert not upward("decoding", ast.parse("from flashspec.models import reader\nfrom flashspec.sampling import Scores"))

    assert [*overgrown(ast.parse("def long():\n" + "    x = 1\n" * BODY))] == ["long"]
    assert [*overgrown(ast.parse("def wide(a, b, c, d, *, e, f): pass"))] == ["wide"]
    assert not [*overgrown(ast.parse("def method(self, a, b, c, d, e, **rest): pass"))]
    assert heavy_at_top(ast.parse("import pandas as pd\nfrom transformers import AutoModel")) == ["pandas", "transformers"]
    assert not heavy_at_top(ast.parse("def f():\n    import pandas\n"))


def loaded_by(line):
    return {*python("-c", f"import sys; {line}; print(*{{name.split('.')[0] for name in sys.modules}})").stdout.split()}


def test_import_flashspec_loads_no_heavy_library_and_a_decode_not_torchs_compiler():
    """Whose import takes a second; torch brings it for an embedding without memory, the control."""
    assert not loaded_by("import flashspec") & HEAVY
    assert loaded_by("import flashspec, tokenizers") & HEAVY == {"tokenizers"}
    assert loaded_by("import flashspec as fs; [getattr(fs, name) for name in fs.__all__]")
    checked = "assert 'torch._dynamo' not in sys.modules"
    assert loaded_by(f"import flashspec as fs; fs.generate(fs.load(), 'def', max_new_tokens=1); {checked}")
    assert not loaded_by(f"import torch; torch.nn.Embedding(2, 2, device='meta'); {checked}")

"""Notebooks as functions of their parameters: validated, run by papermill, written only when every cell ran."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import field, make_dataclass
from functools import cache, partial
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flashspec.models.folder import first_line
from flashspec.models.writing import refuse_input, write_text
from flashspec.parameters import Refused, hints, parse, refuse_unknown
from flashspec.provenance import digest, short_hash
from flashspec.study.tables import default_root

START_TIMEOUT, MADE_OF = 600, "made_of"
INJECTED = "# Parameters\n"  # how papermill begins the cell of the values that it was given
PLAIN = {kind.__name__: kind for kind in (int, float, str, bool, list)}
KINDS = PLAIN | {f"list[{name}]": list[kind] for name, kind in PLAIN.items()}  # type: ignore[valid-type]


class NotebookFailed(ValueError):
    """A cell raised, timed out or lost its kernel; the output so far is kept as X.part.ipynb."""


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook's file, each with its source as one text; Refused where it is no notebook."""
    if not notebook.is_file():
        raise Refused(f"no notebook {notebook}: check the path")
    try:
        found = json.loads(notebook.read_bytes())["cells"]
        whole = [{"metadata": {}, **cell, "source": "".join(cell["source"])} for cell in found]
        _ = [list(cell["metadata"].get("tags", ())) for cell in whole]
        return whole
    except (AttributeError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Refused(f"{notebook} is no notebook ({type(error).__name__}: {error}): copy it again") from None


def parameters(notebook: Path) -> type:
    """The dataclass of the parameters that a notebook declares in its cell tagged `parameters`, if it has one."""
    tagged = (cell["source"] for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", ()))
    return declared(next(tagged, ""))


def declared(source: str) -> type:
    """The dataclass of a cell's lines `name: kind = default  # help`; a line without a type has its default's."""
    found, name = list[Any](), source
    try:
        for name, line in _assigned(source).items():
            default = ast.literal_eval(line.value)  # type: ignore[arg-type]
            own = list if isinstance(default, tuple) else type(default)
            kind = KINDS[ast.unparse(line.annotation)] if isinstance(line, ast.AnnAssign) else own
            found.append((name, kind, field(default_factory=partial(copy, default))))
        return make_dataclass("Params", found, frozen=True)
    except (LookupError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Refused(f"parameter {name!r:.80} needs a type and a literal, as in `k: int = 4  # help`: {error}") from error


def validated(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the declared types from values or strings; unknown names and wrong types are refused."""
    found = parse(kind, values)
    return {name: getattr(found, name) for name in values}


def checked(scope: MutableMapping[str, Any]) -> None:
    """Check the values that papermill injected after a notebook's parameters against these, in `globals()`.

    Unknown names and wrong types are refused, strings become values of the declared types. Without papermill nothing happens.
    """
    ran = scope.get("In", ())
    at = max((number for number, source in enumerate(ran) if source.startswith(INJECTED)), default=0)
    if at:
        scope.update(validated(declared(ran[at - 1]), {name: scope[name] for name in _assigned(ran[at])}))


def execute(
    notebook: Path, out: Path, values: Mapping[str, Any] | None = None, timeout: float | None = 3600, home: Path | None = None
) -> Path:
    """Run a notebook with the given parameters and write it to `out`, which exists afterwards only if every cell ran.

    Cells run in the folder `home`, the notebook's own by default. `timeout` is in seconds a cell. The bytes written are those
    of the cells and their outputs: run times, identifiers and papermill's notes are taken out. NotebookFailed names what went
    wrong.
    """
    import papermill
    from traitlets.config import Config

    chosen, part = validated(parameters(notebook), values or {}), out.with_suffix(".part.ipynb")
    limits = {"execution_timeout": timeout, "start_timeout": START_TIMEOUT}
    ways = {"kernel_name": "python3", "cwd": str(home or notebook.parent), "progress_bar": False, **limits}
    for place in (out, part):
        refuse_input(place, [notebook])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    try:
        with TemporaryDirectory() as sockets:
            pipes = {"transport": "ipc", "ip": f"{sockets}/kernel"}
            papermill.execute_notebook(str(notebook), str(part), chosen, config=Config({"KernelManager": pipes}), **ways)
    except Exception as error:
        name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", first_line(error))
        raise NotebookFailed(f"{notebook.name} failed, {name}: {value}: its output so far is in {part.name}") from error
    page = json.loads(part.read_text())
    for number, cell in enumerate(page["cells"]):
        cell["id"] = f"cell-{number}"
        cell["metadata"].pop("execution", None)
    for each in (page, *page["cells"]):
        each["metadata"].pop("papermill", None)
    page["metadata"][MADE_OF] = made_of(notebook, chosen)
    write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", part)
    part.replace(out)
    return out


def execute_all(
    notebooks: Sequence[Path], out_dir: Path, fresh: bool = False, values: Mapping[str, Any] | None = None
) -> list[Path]:
    """Run every notebook, even after one failed; then NotebookFailed lists all failures.

    `fresh` and `values` go to the notebooks that declare such parameters; a value that none declares is refused first. One
    whose output was made of the same (`made_of`) is not run again, unless it measures again.
    """
    from tqdm import tqdm

    wanted = {**(values or {}), **({"fresh": True} if fresh else {})}
    kinds = {notebook: parameters(notebook) for notebook in notebooks}
    refuse_unknown(wanted, dict.fromkeys(chain(*map(hints, kinds.values()), ["fresh"])))
    chosen = {
        each: validated(kind, {name: wanted[name] for name in wanted if name in hints(kind)}) for each, kind in kinds.items()
    }
    written, failures = [], []
    for notebook in tqdm(notebooks, desc="notebooks", unit="notebook", delay=0.5):
        out = out_dir / notebook.name
        try:
            current = not fresh and out.exists() and made_of(notebook, chosen[notebook]) in out.read_text()
            written.append(out if current else execute(notebook, out, chosen[notebook]))
        except NotebookFailed as error:
            failures.append(str(error))
    if failures:
        raise NotebookFailed("; ".join(failures))
    return written


def made_of(notebook: Path, values: Mapping[str, Any]) -> str:
    """A digest of all that a page is made of: the notebook, its values, this package, what is installed, the stored tables."""
    return short_hash([digest(notebook), values, _code(), _digests(default_root())], 64)


def found_in(source: Path) -> list[Path]:
    """The notebook itself, or those in a folder in name order; an empty folder is refused."""
    found = sorted(source.glob("[!.]*.ipynb")) if source.is_dir() else [source]
    if not found:
        raise Refused(f"no notebooks in {source}: expected files named *.ipynb")
    return found


@cache
def _code() -> list[Any]:
    installed = sorted({f"{each.name} {each.version}" for each in distributions()})
    return [installed, _digests(Path(__file__).parents[1])]


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def _assigned(source: str) -> dict[str, ast.AnnAssign | ast.Assign]:
    """The lines of a cell's text that give names values, by name."""
    lines = [line for line in ast.parse(source).body if isinstance(line, (ast.AnnAssign, ast.Assign))]
    return {ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0]): line for line in lines}

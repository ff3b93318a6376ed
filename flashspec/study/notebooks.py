"""Notebooks as functions of their parameters: validated, executed by papermill, written only when every cell ran."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flashspec.models.writing import refuse_input, write_text
from flashspec.study.experiment import Experiment
from flashspec.study.parameters import Refused, comments, hints, parse_value, refuse_unknown, type_name

START_TIMEOUT = 600

TYPES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, str, bool, tuple, list)} | {"Literal": Literal, "Any": Any}


class Parameter(NamedTuple):
    """One line of a notebook's parameters cell: `name: kind = default  # help`."""

    kind: Any
    default: Any
    help: str


class NotebookFailed(RuntimeError):
    """A cell raised, timed out or lost its kernel; the output so far is kept as X.part.ipynb."""


def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters a notebook declares in its cell tagged `parameters`, by name; none without such a cell."""
    if not notebook.is_file():
        raise Refused(f"no notebook {notebook}: check the path")
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        source = "".join(next((c["source"] for c in cells if "parameters" in c["metadata"].get("tags", ())), ""))
        body = ast.parse(source).body
    except (AttributeError, KeyError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise Refused(f"{notebook} is no notebook ({type(error).__name__}: {error}): copy it again") from None
    helps = comments(source)
    found = (_parameter(node) for node in body)
    return {name: Parameter(kind, default, helps[name]) for name, kind, default in found}


def validated(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the declared types (tuples as lists, which papermill can write), from values or strings.

    Unknown names and wrong types are refused.
    """
    known = parameters(notebook)
    refuse_unknown(values, known)
    parsed = {name: parse_value(name, known[name].kind, value) for name, value in values.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in parsed.items()}


def execute(notebook: Path, out: Path, values: Mapping[str, Any] | None = None, timeout: int = 3600) -> Path:
    """Run a notebook with the given parameters and write it to `out`, which exists afterwards only if every cell ran.

    Cells run in the notebook's own folder. `timeout` is in seconds a cell. The bytes written are those of the cells and
    their outputs: run times, identifiers and papermill's notes are taken out. NotebookFailed names what went wrong.
    """
    chosen = validated(notebook, values or {})
    part = out.with_suffix(".part.ipynb")
    for place in (out, part):
        refuse_input(place, [notebook])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    try:
        _papermill(notebook, part, chosen, timeout)
    except Exception as error:
        raise NotebookFailed(f"{notebook.name} failed, {_reason(error)}: its output so far is in {part.name}") from error
    write_text(json.dumps(reproducible(json.loads(part.read_text())), indent=1, ensure_ascii=False) + "\n", part)
    part.replace(out)
    return out


def execute_all(
    notebooks: Sequence[Path], out_dir: Path, fresh: bool = False, values: Mapping[str, Any] | None = None
) -> list[Path]:
    """Run every notebook, even after one failed; then NotebookFailed lists all failures.

    `fresh` and `values` go to the notebooks that declare such parameters; a value that none declares is refused first.
    """
    from tqdm import tqdm

    chosen = _shared_out(notebooks, {**(values or {}), **({"fresh": True} if fresh else {})})
    for notebook in notebooks:
        refuse_input(out_dir / notebook.name, [notebook])
    written, failures = [], []
    for notebook in tqdm(notebooks, desc="notebooks", unit="notebook", delay=0.5):
        try:
            written.append(execute(notebook, out_dir / notebook.name, chosen[notebook]))
        except NotebookFailed as error:
            failures.append(str(error))
    if failures:
        raise NotebookFailed("; ".join(failures))
    return written


def _shared_out(notebooks: Sequence[Path], values: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """The values each notebook declares, parsed; a name that none declares is refused, `fresh` apart."""
    declared = {notebook: parameters(notebook) for notebook in notebooks}
    refuse_unknown(values, {**{name: None for known in declared.values() for name in known}, "fresh": None})
    mine = {notebook: {name: values[name] for name in values if name in known} for notebook, known in declared.items()}
    return {notebook: validated(notebook, given) for notebook, given in mine.items()}


def reproducible(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same notebook without run times, papermill's notes and random cell identifiers."""
    metadata = {name: value for name, value in notebook["metadata"].items() if name != "papermill"}
    return {**notebook, "metadata": metadata, "cells": [_cell(number, cell) for number, cell in enumerate(notebook["cells"])]}


def disagreements(notebook: Path, experiment: Experiment, extra: Iterable[str] = ("fresh",)) -> list[str]:
    """Where a notebook's parameters cell and an experiment's parameters differ in name, type or default; empty if nowhere."""
    said = {name: found for name, found in parameters(notebook).items() if name not in set(extra)}
    meant = _fields(experiment)
    lost = [f"{name} is missing from the notebook" for name in meant if name not in said]
    lost += [f"{name} is no parameter of {experiment.name}" for name in said if name not in meant]
    for name in meant.keys() & said.keys():
        here, there = said[name], meant[name]
        if type_name(here.kind) != type_name(there.kind):
            lost.append(f"{name} is {type_name(here.kind)} in the notebook, {type_name(there.kind)} in {experiment.name}")
        if here.default != there.default:
            lost.append(f"{name} defaults to {here.default!r} in the notebook, {there.default!r} in {experiment.name}")
    return sorted(lost)


def found_in(source: Path) -> list[Path]:
    """The notebook itself, or those in a folder in name order; an empty folder is refused."""
    found = sorted(source.glob("[!.]*.ipynb")) if source.is_dir() else [source]
    if not found:
        raise Refused(f"no notebooks in {source}: expected files named *.ipynb")
    return found


def _parameter(node: ast.stmt) -> tuple[str, Any, Any]:
    """Name, type and default of one assignment."""
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
    if not isinstance(target, ast.Name) or not isinstance(node, ast.AnnAssign | ast.Assign):
        raise Refused(f"a parameters cell holds only lines like `k: int = 4  # help`, got `{ast.unparse(node)}`")
    try:
        default = ast.literal_eval(node.value)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise Refused(f"parameter {target.id!r} needs a literal default: a number, string, bool, None or tuple") from error
    annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else None
    return target.id, eval(annotation, {"__builtins__": {}}, TYPES) if annotation else type(default), default


def _papermill(notebook: Path, part: Path, values: dict[str, Any], timeout: int) -> None:
    import papermill
    from traitlets.config import Config

    transport = {"KernelManager": {"transport": "ipc" if os.name == "posix" else "tcp"}}
    papermill.execute_notebook(
        str(notebook),
        str(part),
        parameters=values,
        kernel_name="python3",
        cwd=str(notebook.parent),
        progress_bar=False,
        execution_timeout=timeout,
        start_timeout=START_TIMEOUT,
        config=Config(transport),
    )


def _reason(error: Exception) -> str:
    """The last line of an error, without the traceback that papermill appends."""
    name, value = getattr(error, "ename", None), getattr(error, "evalue", None)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{name}: {value}" if name else f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _cell(number: int, cell: dict[str, Any]) -> dict[str, Any]:
    dropped = ("papermill", "execution")
    metadata = {name: value for name, value in cell["metadata"].items() if name not in dropped}
    return {**cell, "id": f"cell-{number}", "metadata": metadata}


def _fields(experiment: Experiment) -> dict[str, Parameter]:
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(experiment.params)}
    return {name: Parameter(kind, defaults[name], "") for name, kind in hints(experiment.params).items()}

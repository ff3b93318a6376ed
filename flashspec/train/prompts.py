"""The study's prompts: four kinds of text, cut from held-out modules, a fixed function of the corpus."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("code", "tests", "docstrings", "prose")
LENGTH = 64


def cuts(source: str, module: str) -> Iterator[tuple[str, int, str]]:
    """(kind, line, text that the prompt is the beginning of) for every place of a module a prompt may start at."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield "tests" if "test" in module else "code", node.lineno, "".join(lines[node.lineno - 1 :])
            if ast.get_docstring(node):
                opening = node.body[0].lineno
                yield "docstrings", opening, "".join(lines[max(0, opening - 6) : opening])
    for part in ast.walk(tree):
        if isinstance(part, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(part, clean=False) or ""
            if len(text.split()) > 60:
                yield "prose", part.body[0].lineno, text.lstrip()


def _prompts(file: Path, root: Path, tokenizer: Any) -> Iterator[dict[str, Any]]:
    module = file.relative_to(root).as_posix()
    for kind, line, text in cuts(file.read_text(encoding="utf-8"), module):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids = ids[-LENGTH:] if kind == "docstrings" else ids[:LENGTH]
        if len(ids) >= LENGTH // 2:
            yield {"kind": kind, "module": module, "line": line, "text": tokenizer.decode(ids), "ids": ids}


def choose(files: list[Path], root: Path, tokenizer: Any, each: int = 128) -> list[dict[str, Any]]:
    """Up to `each` prompts of every kind, spread over modules: no module gives a second one before every module gave one."""
    found = [prompt for file in files for prompt in _prompts(file, root, tokenizer)]
    found.sort(key=lambda p: hashlib.sha256(f"{p['module']}:{p['line']}".encode()).hexdigest())  # a fixed shuffle
    given: dict[tuple[str, str], int] = {}
    turns = []
    for prompt in found:
        place = (prompt["kind"], prompt["module"])
        turns.append(given.get(place, 0))
        given[place] = turns[-1] + 1
    order = sorted(range(len(found)), key=turns.__getitem__)
    return [prompt for kind in KINDS for prompt in [found[i] for i in order if found[i]["kind"] == kind][:each]]
